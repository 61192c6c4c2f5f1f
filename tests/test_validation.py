from dataclasses import replace

import pytest

from flaxcls.config import Config, LossConfig, ModelConfig, OptimConfig
from flaxcls.errors import InputError
from flaxcls.validation import validate


def test_the_default_is_valid():
    validate(Config())


def change(path, value):
    part, _, name = path.rpartition(".")
    if not part:
        return replace(Config(), **{name: value})
    return replace(Config(), **{part: replace(getattr(Config(), part), **{name: value})})


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        ("seed", -1, "must be in 0.."),
        ("data.source", "digit", "Did you mean 'digits'"),
        ("data.name", "cifar10", "data.source 'digits' does not read it"),
        ("data.dir", "x", "data.source 'digits' does not read it"),
        ("data.source", "tfds", "needs the name of a data set"),
        ("data.validation_fraction", 1.0, "0 or more and below 1"),
        ("data.test_fraction", 1.5, "above 0 and below 1"),
        ("data.train_examples", 0, "1 or more, or None"),
        ("augment.crop_padding", -1, "0 or more"),
        ("augment.alternating_flip", 1, "must be of type bool"),
        ("augment.resized_crop", 0.0, "above 0 and at most 1"),
        ("augment.resized_crop", 0.5, "images are cropped already; set augment.crop_padding, 1, to 0"),
        ("augment.rotate", 181.0, r"0\.\.180 degrees"),
        ("augment.translate", 1.0, "a share of the side"),
        ("augment.brightness", -0.1, "0 or more"),
        ("augment.contrast", float("inf"), "finite"),
        ("augment.saturation", float("nan"), "0 or more"),
        ("augment.hue", 0.6, r"0\.\.0\.5"),
        ("augment.policy", "rand_augmnt", "Did you mean 'rand_augment'"),
        ("augment.magnitude", 5.0, "augment.policy 'none' does not read it"),
        ("augment.layers", 3, "augment.policy 'none' does not read it"),
        ("augment.cutout", -1, "0 or more"),
        ("augment.eval_shift", -1, "0 or more"),
        ("augment.eval_pattern", "diagonale", "Did you mean 'diagonal'"),
        ("augment.eval_pattern", "diagonal", "augment.eval_shift is 0, so no image is moved"),
        ("augment.mixup", -0.2, "0 or more"),
        ("augment.cutmix", float("inf"), "finite"),
        ("augment.crop_fill", "reflekt", "Did you mean 'reflect'"),
        ("model.name", "cn", "Did you mean 'cnn'"),
        ("model.widths", (), "at least one convolution"),
        ("model.widths", (8, 0), "each must be 1 or more"),
        ("model.widths", [8], "must be of type tuple"),
        ("model.dense", (-1,), "each must be 1 or more"),
        ("model.kernel_size", 0, "1 or more"),
        ("model.activation", "relo", "Did you mean 'relu'"),
        ("model.stochastic_depth", 1.0, r"must be in \[0, 1\)"),
        ("model.init_images", -1, "0 or more"),
        ("model.dropout", 1.0, r"must be in \[0, 1\)"),
        ("loss.name", "crossentropy", "Did you mean 'cross_entropy'"),
        ("loss.focal_gamma", 1.0, "loss.name 'cross_entropy' does not read it"),
        ("loss.class_weights", "balance", "Did you mean 'balanced'"),
        ("loss.label_smoothing", 1.0, r"must be in \[0, 1\)"),
        ("loss.l1", -1.0, "0 or more"),
        ("loss.l2", float("nan"), "0 or more"),
        ("optim.name", "adamm", "Did you mean 'adam'"),
        ("optim.learning_rate", 0.0, "above 0 and finite"),
        ("optim.learning_rate", -1e-3, "above 0 and finite"),
        ("optim.learning_rate", float("nan"), "above 0 and finite"),
        ("optim.learning_rate", float("inf"), "above 0 and finite"),
        ("optim.learning_rate", "1e-3", "must be of type float"),
        ("optim.name", "adam", "has no decoupled decay"),
        ("optim.name", "rmsprop", "has no decoupled decay"),
        ("optim.schedule", "cosin", "Did you mean 'cosine'"),
        ("optim.schedule", "one_cycle", "one_cycle warms up by itself"),
        ("optim.decay_rate", 0.0, "above 0"),
        ("optim.boundaries", (0.5, 0.5), "in rising order"),
        ("optim.boundaries", (0.5, 1.0), "above 0 and below 1"),
        ("optim.cycles", 0, "1 or more"),
        ("optim.plateau_patience", 0, "1 or more"),
        ("optim.plateau_factor", 1.0, "above 0 and below 1"),
        ("optim.momentum", 1.0, r"in \[0, 1\)"),
        ("optim.warmup_epochs", 1000.0, "no more than loop.epochs, 60"),
        ("optim.weight_decay", -1.0, "0 or more"),
        ("optim.rate_factors", {"a": -1.0}, "each factor must be 0 or more and finite"),
        ("optim.decay_factors", {"a": 1.0, "b": float("nan")}, "each factor must be 0 or more and finite"),
        ("optim.decay_factors", {"a": float("inf")}, "each factor must be 0 or more and finite"),
        ("optim.rate_factors", {"a": "1"}, r"must be of type dict\[str, float\]"),
        ("optim.rate_factors", {1: 1.0}, r"must be of type dict\[str, float\]"),
        ("optim.rate_factors", [("a", 1.0)], r"must be of type dict\[str, float\]"),
        ("optim.freeze", {"a": -1}, "0 or more and less than loop.epochs, 60"),
        ("optim.freeze", {"a": 1, "b": 60}, "0 or more and less than loop.epochs, 60"),
        ("optim.freeze", {"a": 1.5}, r"must be of type dict\[str, int\]"),
        ("optim.clip_norm", 0.0, "above 0, or None"),
        ("optim.sam_rho", 0.0, "above 0, or None"),
        ("optim.sam_rho", float("inf"), "above 0, or None"),
        ("optim.ema_decay", 1.0, "above 0 and below 1, or None"),
        ("optim.accumulate", 0, "1 or more"),
        ("optim.accumulate", 3, "must divide loop.batch_size, 64"),
        ("loop.epochs", 0, "1 or more"),
        ("loop.epochs", 1.5, "must be of type int"),
        ("loop.batch_size", 0, "1 or more"),
        ("loop.batch_size", -64, "1 or more"),
        ("loop.batch_size", True, "must be of type int"),
        ("loop.eval_batch_size", 0, "1 or more"),
        ("loop.eval_every", 0, "1 or more"),
        ("loop.save_every", 0, "1 or more, or None"),
        ("loop.log_every", 0, "1 or more"),
        ("stop.patience", 0, "1 or more, or None"),
        ("stop.min_delta", -0.1, "0 or more"),
        ("stop.skip", 1.0, r"must be in \[0, 1\)"),
    ],
)
def test_what_breaks_a_rule_is_named_with_its_value_and_the_rule(path, value, rule):
    with pytest.raises(InputError, match=rule) as error:
        validate(change(path, value))
    assert path in str(error.value) or path == "data.source"
    assert repr(value) in str(error.value) or value in ("tfds", "adam", "rmsprop", "one_cycle", ())


def test_there_is_one_kind_of_flip():
    flips = change("augment.alternating_flip", True)
    validate(flips)
    with pytest.raises(
        InputError, match=r"^augment\.alternating_flip is True, but augment\.flip mirrors .* one of the"
    ):
        validate(replace(flips, augment=replace(flips.augment, flip=True)))


def test_dropout_needs_a_dense_layer_to_act_on():
    with pytest.raises(InputError, match=r"names none; add one, or leave model\.dropout out"):
        validate(replace(Config(), model=ModelConfig(dense=(), dropout=0.5)))
    validate(replace(Config(), model=ModelConfig(dense=())))


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_soft_labels_are_not_for_focal_loss_and_groups_divide_the_batch(name):
    mixing = change(f"augment.{name}", 0.5)
    validate(mixing)
    with pytest.raises(InputError, match=rf"augment.{name} is 0.5, but it gives soft labels, and loss.name 'focal'"):
        validate(replace(mixing, loss=LossConfig(name="focal")))
    with pytest.raises(InputError, match=rf"augment.{name} is 0.5, .* multiple of 8; it is 60"):
        validate(replace(mixing, loop=replace(mixing.loop, batch_size=60)))


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_a_factor_of_the_decay_needs_an_optimizer_that_decays(name):
    factors = {"rate_factors": {"a": 0}, "decay_factors": {"a": 0.5}}
    validate(replace(Config(), optim=OptimConfig(**factors)))
    with pytest.raises(
        InputError, match=r"^optim\.decay_factors is .* has no decoupled decay; choose .* leave it out\.$"
    ):
        validate(replace(Config(), optim=OptimConfig(name=name, weight_decay=0.0, **factors)))


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(InputError) as error:
        validate(replace(Config(), seed=-1, loop=replace(Config().loop, epochs=-3, batch_size=-2)))
    for path in ("seed", "loop.epochs", "loop.batch_size"):
        assert path in str(error.value)


def test_int_for_a_float_is_taken():
    validate(replace(Config(), optim=OptimConfig(learning_rate=1)))

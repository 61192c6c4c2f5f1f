import json
import typing
from dataclasses import replace

import pytest

from flaxcls import config as configs
from flaxcls.config import Config, ModelConfig, OptimConfig, differences, from_json, to_json, validate
from flaxcls.data import DATASETS
from flaxcls.errors import InputError
from flaxcls.losses import LOSSES
from flaxcls.models import MODELS
from flaxcls.models.layers import ACTIVATIONS, POOLINGS
from flaxcls.optim import OPTIMIZERS, SCHEDULES


def test_it_is_read_back_equal():
    config = Config(seed=3, model=ModelConfig(widths=(1, 2), dense=()), optim=OptimConfig(clip_norm=0.5))
    assert from_json(to_json(config)) == config
    assert from_json(to_json(Config())) == Config()


def test_the_default_is_valid():
    validate(Config())


def test_the_names_it_knows_are_those_there_are():
    literal = lambda hint: set(typing.get_args(hint))  # noqa: E731
    assert literal(configs.SourceName) == set(DATASETS)
    assert literal(configs.ModelName) == set(MODELS)
    assert literal(configs.LossName) == set(LOSSES)
    assert literal(configs.OptimizerName) == set(OPTIMIZERS)
    assert literal(configs.ScheduleName) == set(SCHEDULES)
    assert literal(configs.ActivationName) == set(ACTIVATIONS)
    assert set(configs.choices(typing.get_type_hints(ModelConfig)["pooling"])) == {*POOLINGS, None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the configuration is not JSON"),
        (to_json(Config()).replace('"seed"', '"sed"'), "unknown field 'sed'. Did you mean 'seed'"),
        (
            to_json(Config()).replace('"widths"', '"width"'),
            r"unknown field 'model\.width'. Did you mean 'model\.widths'",
        ),
        (json.dumps({"seed": 0}), "the configuration has no data"),
        ("null", "the configuration is None, but must be an object"),
        (json.dumps({"seed": 0, "data": [1]}), r"the configuration at data is \[1\], but must be an object"),
    ],
)
def test_a_file_that_is_no_configuration(text, message):
    with pytest.raises(InputError, match=message):
        from_json(text)


def test_differences_are_named():
    one, other = Config(), Config(seed=1, optim=OptimConfig(learning_rate=1.0))
    assert differences(one, one) == []
    assert differences(one, other) == ["seed: 0 -> 1", "optim.learning_rate: 0.004 -> 1.0"]


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
        ("data.validation_fraction", 0.0, "above 0 and below 1"),
        ("data.test_fraction", 1.5, "above 0 and below 1"),
        ("augment.crop_padding", -1, "0 or more"),
        ("augment.crop_fill", "reflekt", "Did you mean 'reflect'"),
        ("model.name", "cn", "Did you mean 'cnn'"),
        ("model.widths", (), "at least one convolution"),
        ("model.widths", (8, 0), "each must be 1 or more"),
        ("model.widths", [8], "must be of type tuple"),
        ("model.dense", (-1,), "each must be 1 or more"),
        ("model.kernel_size", 0, "1 or more"),
        ("model.activation", "relo", "Did you mean 'relu'"),
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
        ("optim.clip_norm", 0.0, "above 0, or None"),
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


def test_dropout_needs_a_dense_layer_to_act_on():
    with pytest.raises(InputError, match=r"names none; add one, or leave model\.dropout out"):
        validate(replace(Config(), model=ModelConfig(dense=(), dropout=0.5)))
    validate(replace(Config(), model=ModelConfig(dense=())))


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(InputError) as error:
        validate(replace(Config(), seed=-1, loop=replace(Config().loop, epochs=-3, batch_size=-2)))
    for path in ("seed", "loop.epochs", "loop.batch_size"):
        assert path in str(error.value)


def test_every_field_has_a_help_text():
    import ast
    import inspect

    tree = ast.parse(inspect.getsource(configs))
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for field, following in zip(node.body[1:], node.body[2:], strict=False):
                nested = isinstance(field, ast.AnnAssign) and "Config" in ast.unparse(field.annotation)
                if isinstance(field, ast.AnnAssign) and not nested:
                    assert isinstance(following, ast.Expr), f"{node.name}.{ast.unparse(field)} has no help text"


def test_int_for_a_float_is_taken():
    validate(replace(Config(), optim=OptimConfig(learning_rate=1)))

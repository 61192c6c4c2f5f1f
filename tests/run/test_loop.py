"""`fit` on a small data set: what it writes, that it resumes to the same bits, and what it refuses."""

import dataclasses
import itertools
import json
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import flaxcls.run.setup
from flaxcls.analysis import load_run
from flaxcls.config import AugmentConfig, Config, StopConfig
from flaxcls.data import from_arrays
from flaxcls.errors import DivergenceError, InputError, Interrupted
from flaxcls.models import CNN
from flaxcls.parameters import weights
from flaxcls.run import fit
from flaxcls.run.checkpoint import Checkpoints
from flaxcls.run.checkpoint_files import fingerprint, read_record, read_steps
from flaxcls.run.loader import Loader
from flaxcls.run.utilization import SPEEDS
from flaxcls.run.workdir import read_config
from tests.conftest import make_stripes
from tests.slow import slow

pytestmark = pytest.mark.usefixtures("shared_programs")

STEPS = 11  # of small_config on the stripes: 3 epochs of 109 examples in batches of 32


def metrics(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in SPEEDS} for line in lines]


@pytest.fixture
def run(stripes, small_config, tmp_path, quiet):
    def run(config=small_config, *, workdir="run", dataset=stripes, **options):
        return fit(config, dataset=dataset, workdir=tmp_path / workdir, console=quiet, **options)

    run.workdir = tmp_path / "run"
    return run


def test_a_run_leaves_its_result_config_metrics_and_checkpoints(run, small_config, stripes):
    result = run()
    written = json.loads((result.workdir / "result.json").read_text())
    assert set(written) == {
        "test", "validation", "best_step", "steps", "seconds", "images_per_second", "skipped_updates", "rollbacks",
        "unread",
        "parameters", "versions", "device", "fingerprint",
    }  # fmt: skip
    assert written["steps"] == STEPS
    assert set(written["test"]) == {"accuracy", "loss"}
    assert written["test"]["accuracy"] * len(stripes.test.labels) == pytest.approx(
        round(written["test"]["accuracy"] * len(stripes.test.labels))
    )
    assert written["fingerprint"] == fingerprint(result.state.eval_variables)
    assert written["device"] == "2 x cpu"
    assert read_config(result.workdir) == small_config

    lines = metrics(result.workdir)
    assert [line["step"] for line in lines if line["split"] == "train"] == [2, 4, 6, 8, 10, 11]
    assert [line["step"] for line in lines if line["split"] == "validation"] == [4, 7, 11]
    train = next(line for line in lines if line["split"] == "train")
    assert set(train) == {"step", "epoch", "split", "loss", "accuracy", "grad_norm", "learning_rate", "decay_norm"}
    assert {path.name for path in (result.workdir / "checkpoints").iterdir()} == {str(result.best_step), "7", "11"}


def test_the_result_is_that_of_the_best_validation_loss(run):
    result = run()
    validation = [line for line in metrics(result.workdir) if line["split"] == "validation"]
    best = min(validation, key=lambda line: line["loss"])
    assert result.best_step == best["step"]
    assert result.validation["loss"] == pytest.approx(best["loss"], rel=1e-6)


def test_the_best_is_tested_even_if_training_went_on_to_something_worse(run, small_config, tmp_path):
    rising = optax.adam(lambda step: jnp.where(step < 4, 1e-2, 3.0))
    config = replace(small_config, optim=replace(small_config.optim, ema_decay=None))
    result = run(config, tx=rising)
    assert (result.best_step, result.steps) == (4, STEPS)
    assert result.state.step == 4
    at_best, at_end = (
        next(line for line in metrics(result.workdir) if line["step"] == step and line["split"] == "validation")
        for step in (4, STEPS)
    )
    assert result.validation["loss"] == pytest.approx(at_best["loss"], rel=1e-6)
    assert at_end["loss"] > 1.2 * at_best["loss"]
    with pytest.raises(Interrupted):
        run(config, tx=rising, workdir="short", stop_after=4)
    with Checkpoints(tmp_path / "short" / "checkpoints") as checkpoints:
        assert fingerprint(checkpoints.restore_state(4, result.state).eval_variables) == result.fingerprint


def test_the_stripes_are_learned(run, small_config):
    loop = replace(small_config.loop, epochs=15)
    result = run(replace(small_config, loop=loop, augment=replace(small_config.augment, crop_padding=0)))
    assert result.test["accuracy"] == 1.0


@pytest.mark.parametrize("factors", [slow(False), True])
def test_learning_rate_and_decay_are_those_of_the_step_that_is_named(run, small_config, factors):
    optim = replace(small_config.optim, schedule="constant", weight_decay=0.5, warmup_epochs=1.0, ema_decay=None)
    if factors:
        optim = replace(optim, rate_factors={"Dense_0/*": 4.0}, decay_factors={"Conv_0/kernel": 0, "*/bias": 0.5})
    config = replace(small_config, optim=optim)
    line = next(line for line in metrics(run(config).workdir) if line["step"] == 2)
    assert line["learning_rate"] == pytest.approx(1e-2 * 1 / 3)  # the second of three steps of warm-up, from 0
    with pytest.raises(Interrupted):
        run(config, workdir="one", stop_after=1)
    abstract = run(config, workdir="shapes").state
    with Checkpoints(run.workdir.with_name("one") / "checkpoints") as checkpoints:
        before = checkpoints.restore_state(1, abstract).params
    if factors:
        moved = [4.0 * before["Dense_0"]["kernel"], before["Dense_1"]["kernel"]]
        moved += [0.5 * before["Dense_1"]["bias"], 2.0 * before["Dense_0"]["bias"], 0.5 * before["BatchNorm_0"]["bias"]]
    else:
        moved = weights(before)
    norm = np.sqrt(sum(np.sum(np.square(weight)) for weight in moved))
    assert line["decay_norm"] == pytest.approx(line["learning_rate"] * 0.5 * norm, rel=1e-5)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(run, small_config):
    one, same, other = run(workdir="one"), run(workdir="same"), run(replace(small_config, seed=1), workdir="other")
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert metrics(one.workdir) == metrics(same.workdir)


@pytest.mark.parametrize("stops", [(3, 9), *(slow((step,)) for step in range(1, STEPS))])
def test_stopped_after_any_step_and_resumed_it_ends_with_the_same_bits(run, small_config, stops):
    config = replace(small_config, stop=StopConfig(patience=2, metric="accuracy"))
    whole = run(config, workdir="whole")
    for number, stop in enumerate(stops):
        with pytest.raises(Interrupted, match=f"after step {stop}"):
            run(config, workdir="parts", resume=number > 0, stop_after=stop)
    resumed = run(config, workdir="parts", resume=True)
    assert resumed.fingerprint == whole.fingerprint
    chex.assert_trees_all_equal(resumed.state, whole.state)
    assert metrics(resumed.workdir) == metrics(whole.workdir)
    for name in ("test", "validation", "best_step", "steps"):
        assert getattr(resumed, name) == getattr(whole, name)


@pytest.mark.parametrize(
    "optim",
    [
        {"sam_rho": 0.1, "clip_norm": 0.5, "plateau_patience": 1, "accumulate": 2},
        slow({"rate_factors": {"Dense_1/*": 2.0, "Dense_*": 0.5}, "decay_factors": {"*/bias": 0.5}}),
    ],
)
def test_it_resumes_to_the_same_bits_with(run, small_config, optim):
    config = replace(small_config, optim=replace(small_config.optim, **optim))
    whole = run(config, workdir="whole")
    with pytest.raises(Interrupted):
        run(config, workdir="parts", stop_after=6)
    assert run(config, workdir="parts", resume=True).fingerprint == whole.fingerprint != run().fingerprint


def test_a_run_that_crashed_goes_on_from_its_last_checkpoint(run, small_config, monkeypatch):
    config = replace(small_config, loop=replace(small_config.loop, save_every=3))
    whole = run(config, workdir="whole")

    class CrashError(Exception):
        pass

    batches = Loader.load

    def crashing(self, start, end, **options):
        if start == 8:
            raise CrashError
        return batches(self, start, end, **options)

    monkeypatch.setattr(Loader, "load", crashing)
    with pytest.raises(CrashError):
        run(config, workdir="parts")
    monkeypatch.undo()
    resumed = run(config, workdir="parts", resume=True)
    assert resumed.fingerprint == whole.fingerprint
    assert metrics(resumed.workdir) == metrics(whole.workdir)


@pytest.mark.slow
def test_several_steps_a_dispatch(run, small_config):
    """Evaluation and saving, due after steps 4, 7, 11 and after 3, 6, 9, wait for the ends of dispatches: 4, 8, 11."""
    plain = replace(small_config, augment=AugmentConfig(crop_padding=0), model=replace(small_config.model, norm="none"))
    config = replace(plain, loop=replace(plain.loop, steps_per_dispatch=4, save_every=3, log_every=4))
    whole, single = run(config, workdir="whole"), run(plain, workdir="single")
    lines = metrics(whole.workdir)
    assert [(line["step"], line["split"]) for line in lines] == [
        (step, split) for step in (4, 8, 11) for split in ("train", "validation")
    ]
    last, expected = (
        {line["split"]: line["loss"] for line in metrics(result.workdir) if line["step"] == STEPS}
        for result in (whole, single)
    )
    assert last["validation"] == pytest.approx(expected["validation"], rel=1e-3)
    assert lines[0]["learning_rate"] == metrics(single.workdir)[1]["learning_rate"]  # of step 4
    for stop_after in (1, 6):
        with pytest.raises(Interrupted, match=f"stopped after step {4 if stop_after == 1 else 8}"):
            run(config, workdir="parts", stop_after=stop_after, resume=stop_after > 1)
    parts = run(config, workdir="parts", resume=True)
    assert parts.fingerprint == whole.fingerprint
    assert metrics(parts.workdir) == lines


def test_resuming_a_finished_run_trains_nothing_and_gives_its_result_again(run):
    first, again = run(), run(resume=True)
    assert again.fingerprint == first.fingerprint
    assert again.test == first.test
    assert metrics(again.workdir) == metrics(first.workdir)
    assert again.images_per_second == pytest.approx(first.images_per_second)


def test_early_stopping_stops_and_its_counters_survive(run, small_config):
    config = replace(
        small_config,
        optim=replace(small_config.optim, learning_rate=1e-12, ema_decay=None, weight_decay=0.0),
        model=replace(small_config.model, norm="none"),
        loop=replace(small_config.loop, epochs=9),
        stop=StopConfig(patience=2, min_delta=0.01),
    )
    whole = run(config, workdir="whole")
    assert (whole.best_step, whole.steps) == (4, 11)  # the third evaluation is the second without improvement
    assert [line["step"] for line in metrics(whole.workdir) if line["split"] == "train"][-1] == 11
    with pytest.raises(Interrupted):
        run(config, workdir="parts", stop_after=9)
    assert run(config, workdir="parts", resume=True).steps == 11


def test_the_callers_own_model_and_optimizer(run):
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            return nn.Dense(3)(images.reshape(images.shape[0], -1))

    result = run(model=Linear(), tx=optax.sgd(0.1))
    assert result.parameters == 64 * 3 + 3
    assert "learning_rate" not in metrics(result.workdir)[0]


def test_float_arrays_are_trained_on_like_bytes(run):
    images, labels = make_stripes(150)
    floats = from_arrays((images / 255).astype(np.float32), labels, name="stripes")
    bytes_, result = run(workdir="bytes"), run(dataset=floats, workdir="floats")
    assert result.test["loss"] == pytest.approx(bytes_.test["loss"], rel=0.05)


@pytest.mark.parametrize(
    "change",
    [
        {
            "optim": {"accumulate": 2, "clip_norm": 0.5, "plateau_patience": 1},
            "loss": {"l1": 1e-4, "l2": 1e-4, "label_smoothing": 0.1},
        },
        {
            "optim": {"name": "muon", "schedule": "one_cycle"},
            "loss": {"name": "focal", "focal_gamma": 1.0, "class_weights": "balanced"},
            "model": {"dtype": "bfloat16"},
        },
        slow(
            {
                "optim": {"name": "muon", "rate_factors": {"*kernel": 0.5}, "decay_factors": {"*": 2}, "sam_rho": 0.1},
                "augment": {"flip": True, "crop_fill": "reflect", "normalize": False},
            }
        ),
        slow(
            {
                "optim": {"name": "adam", "weight_decay": 0.0, "schedule": "constant", "warmup_epochs": 1.0},
                "augment": {"crop_padding": 0, "resized_crop": 0.5, "rotate": 10, "brightness": 0.2, "eval_flip": True},
                "stop": {"skip": 0.5},
            }
        ),
        slow(
            {
                "augment": {
                    **{"alternating_flip": True, "policy": "rand_augment", "cutout": 3, "mixup": 0.2, "cutmix": 1.0},
                    "eval_shift": 1,
                }
            }
        ),
    ],
)
def test_every_option_runs(run, small_config, change):
    for part, values in change.items():
        small_config = replace(small_config, **{part: replace(getattr(small_config, part), **values)})
    result = run(small_config)
    assert np.isfinite(result.test["loss"])


@pytest.mark.parametrize(("bad_step", "kept"), [(3, []), slow(4, []), slow(6, ["4"]), (7, ["4"]), slow(11, ["4", "7"])])
def test_nan_stops_within_a_logging_interval_and_keeps_the_last_good_checkpoint(
    run, small_config, tmp_path, bad_step, kept
):
    exploding = optax.adam(lambda step: jnp.where(step < bad_step - 1, 1e-3, jnp.nan))
    config = replace(small_config, optim=replace(small_config.optim, ema_decay=None))
    # the update of step `bad_step` breaks the parameters: the loss of the next one shows it, or the check before a save
    if bad_step in (4, 7, 11):
        message = rf"the parameters are not finite after step {bad_step}\."
    else:
        message = rf"the loss is nan at step {bad_step + 1}\."
    with pytest.raises(DivergenceError, match=message) as error:
        run(config, tx=exploding)
    assert ("No checkpoint had been written" in str(error.value)) == (not kept)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == kept
    assert all(np.isfinite(line["loss"]) for line in metrics(tmp_path / "run"))


def change(config: Config, path: str, value):
    part, _, name = path.partition(".")
    return replace(config, **{part: replace(getattr(config, part), **{name: value})})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "loop.batch_size",
            200,
            "loop.batch_size is 200, but the train split of 'stripes' has 109 examples",
        ),
        ("loop.batch_size", 31, r"loop.batch_size is 31, but must be a multiple of 2: 2 devices.*nearest is 32"),
        (
            "augment.crop_padding",
            8,
            "crop_padding is 8, but the images of stripes have 8x8 pixels, and a shift by that much",
        ),
        (
            "augment.eval_shift",
            8,
            "eval_shift is 8, but the images of stripes have 8x8 pixels, and a shift by that much",
        ),
        ("augment.cutout", 9, "cutout is 9, but the images of stripes have 8x8 pixels: choose at most 8"),
        ("augment.saturation", 0.5, "saturation is 0.5, but the images of stripes are grey"),
        ("augment.hue", 0.1, "hue is 0.1, but the images of stripes are grey"),
        ("optim.accumulate", 32, "batch_size is 32, but must be a multiple of 64"),
        ("model.widths", (4,) * 5, "the image is too small for the network"),
        ("loop.epochs", -1, "loop.epochs is -1, but must be 1 or more"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(run, small_config, tmp_path, path, value, message):
    config = change(change(small_config, "augment.crop_fill", "reflect"), path, value)
    with pytest.raises(InputError, match=message):
        run(config)
    assert list(tmp_path.iterdir()) == []


def test_colours_of_images_without_known_colours_are_refused(run, small_config):
    images, labels = make_stripes(150)
    dataset = from_arrays(np.repeat(images, 2, axis=-1), labels)
    for name, value in (("brightness", 0.2), ("contrast", 0.2), ("policy", "trivial_augment")):
        with pytest.raises(InputError, match=rf"augment.{name} is {value!r}, .* have 2 channels"):
            run(change(small_config, f"augment.{name}", value), dataset=dataset)


def test_batch_normalisation_of_one_example_is_refused(run, small_config, monkeypatch):
    monkeypatch.setattr(flaxcls.run.setup, "make_mesh", lambda fsdp: jax.make_mesh((1, 1), ("data", "fsdp")))
    for path, value in (("loop.batch_size", 1), ("optim.accumulate", 32)):
        with pytest.raises(
            InputError, match=r"one example, from which batch normalisation .* model.norm group, layer or none"
        ):
            run(change(small_config, path, value))


def test_views_change_the_evaluation_alone(run, small_config):
    plain = run(small_config)
    config = replace(small_config, augment=AugmentConfig(eval_flip=True, eval_shift=1, eval_pattern="diagonal"))
    viewed = run(config, workdir="viewed")
    assert viewed.test["loss"] != plain.test["loss"]
    train = [[line for line in metrics(result.workdir) if line["split"] == "train"] for result in (plain, viewed)]
    assert train[0] == train[1]
    assert load_run(viewed.workdir).evaluated.pattern == "diagonal"


def test_factors_of_parameters_that_the_callers_own_model_does_not_have(run, small_config, tmp_path):
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            return nn.Dense(3, name="head")(images.reshape(images.shape[0], -1))

    config = replace(small_config, optim=replace(small_config.optim, rate_factors={"Dense_0/*": 0.1}))
    with pytest.raises(
        InputError, match=r"rate_factors: unknown parameter 'Dense_0/\*'. Known: head/bias, head/kernel"
    ):
        run(config, model=Linear())
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_other_classes_than_the_data(run, tmp_path):
    with pytest.raises(InputError, match="stripes has 3 classes"):
        run(model=CNN(10, widths=(4,), dense=()))
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_with_its_own_data_and_model_only(run, stripes, small_config):
    with pytest.raises(Interrupted):
        run(stop_after=2)
    lines = metrics(run.workdir)
    darker = stripes.train._replace(images=stripes.train.images // 2)
    with pytest.raises(InputError, match="the run was started with mean"):
        run(dataset=replace(stripes, train=darker), resume=True)
    with pytest.raises(InputError, match="the run was started with examples"):
        run(dataset=replace(stripes, test=stripes.validation), resume=True)
    with pytest.raises(InputError, match="the run was started with class_names"):
        run(dataset=replace(stripes, class_names=("a", "b", "c")), resume=True)
    with pytest.raises(InputError, match="the run was started with arrays"):
        run(model=CNN(3, widths=(4,), dense=(9,)), resume=True)
    assert metrics(run.workdir) == lines


def test_stop_after_must_lie_ahead(run):
    with pytest.raises(InputError, match="stop_after is 0, but must be 1 or more"):
        run(stop_after=0)
    with pytest.raises(Interrupted):
        run(stop_after=2)
    with pytest.raises(InputError, match="stop_after is 2, but this run stands at step 2"):
        run(stop_after=2, resume=True)


def test_the_checkpoint_is_the_whole_truth(run, small_config, stripes):
    """The last checkpoint holds config, seed, counters and the statistics that images are scaled by."""
    result = run()
    checkpoints = result.workdir / "checkpoints"
    record = read_record(checkpoints, read_steps(checkpoints)[-1])
    assert record["config"]["seed"] == small_config.seed
    assert record["config"]["loop"] == dataclasses.asdict(small_config.loop)
    assert record["early_stopping"]["best_step"] == result.best_step
    assert record["class_names"] == ["rows", "columns", "none"]
    assert record["mean"] == pytest.approx([stripes.train.images.mean() / 255])
    assert jax.tree.leaves(result.state.ema)


def test_restarts_that_are_shorter_than_a_step_are_refused(run, small_config):
    config = change(change(small_config, "optim.schedule", "cosine_restarts"), "optim.cycles", 12)
    with pytest.raises(InputError, match=r"optim\.cycles is 12, but there are 11 steps after the warm-up"):
        run(config)


def test_the_learning_rate_that_is_logged_is_the_one_that_plateaus_have_left(run, small_config):
    optim = replace(small_config.optim, schedule="constant", plateau_patience=1, plateau_factor=0.5)
    exploding = replace(optim, learning_rate=0.5)  # a loss that does not fall
    result = run(replace(small_config, optim=exploding, loop=replace(small_config.loop, epochs=8)))
    rates = [line["learning_rate"] for line in metrics(result.workdir) if line["split"] == "train"]
    assert rates[0] == pytest.approx(0.5)
    assert all(after in (before, before / 2, before / 4) for before, after in itertools.pairwise(rates))
    assert rates[-1] < 0.5


def test_another_optimizer_is_named_by_what_differs(run, small_config):
    with pytest.raises(Interrupted):
        run(stop_after=4)
    other = change(small_config, "optim.name", "sgd")
    with pytest.raises(InputError, match=r"started with arrays .*opt_state.*: .* but is resumed with"):
        run(other, resume=True, allow_changes=True)


def test_xla_is_told_to_be_deterministic_where_it_has_to_be(run, small_config, monkeypatch):
    options = flaxcls.run.setup._compiler_options
    assert options(True) is None  # on CPU it is
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert options(False) is None
    flags = options(True)
    monkeypatch.undo()
    assert flags == {"xla_gpu_deterministic_ops": True}
    assert jax.jit(jnp.sin, compiler_options=flags)(0.0) == 0.0  # a flag that XLA does not know is an error
    with pytest.raises(Exception, match="xla_gpu_deterministic_op"):
        jax.jit(jnp.sin, compiler_options={"xla_gpu_deterministic_op": True})(0.0)

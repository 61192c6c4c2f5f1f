"""Batches that are picked on the devices, and parameters that are frozen from a step on."""

import contextlib
import json
import re
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.cifar10_speedrun import make_tx
from flaxcls.config import AugmentConfig, Config, LoopConfig, OptimConfig
from flaxcls.data import from_arrays
from flaxcls.data.images import Images
from flaxcls.data.preparation import Preparation
from flaxcls.data.stored import Files
from flaxcls.errors import InputError, Interrupted
from flaxcls.models.airbench import Airbench
from flaxcls.run import fit, loop
from flaxcls.run.setup import make_setup
from flaxcls.run.utilization import SPEEDS
from tests.conftest import make_stripes
from tests.data.test_folder import save_all
from tests.slow import slow

pytestmark = pytest.mark.usefixtures("shared_programs")


def changed(config, **parts):
    return replace(config, **{name: replace(getattr(config, name), **values) for name, values in parts.items()})


def metrics(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in SPEEDS} for line in lines]


@pytest.fixture
def run(stripes, small_config, tmp_path, quiet):
    def run(workdir, config=small_config, *, dataset=stripes, **options):
        return fit(config, dataset=dataset, workdir=tmp_path / workdir, console=quiet, **options)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [
        {"loop": {"steps_per_dispatch": 2, "on_nan": "skip"}},
        slow(
            {"model": {"dtype": "bfloat16"}, "augment": {"flip": True, "mixup": 0.2}, "data": {"sampling": "balanced"}}
        ),
    ],
)
def test_a_split_on_the_devices_gives_the_same_bits(run, small_config, parts):
    config = changed(small_config, **parts)
    resident = changed(config, data={"on_device": True})
    whole, other = run("whole", config), run("resident", resident)
    chex.assert_trees_all_equal(other.state, whole.state)
    assert (other.fingerprint, other.test) == (whole.fingerprint, whole.test)
    assert metrics(other.workdir) == metrics(whole.workdir)


def test_a_run_may_go_on_with_the_split_on_the_devices_and_without(run, small_config):
    whole = run("whole")
    for number, on_device in enumerate((False, True, True, False)):
        config = changed(small_config, data={"on_device": on_device})
        with contextlib.nullcontext() if number == 3 else pytest.raises(Interrupted):
            parts = run("parts", config, resume=number > 0, stop_after=(2, 5, 9, None)[number])
    assert parts.fingerprint == whole.fingerprint
    assert metrics(parts.workdir) == metrics(whole.workdir)


def test_the_split_is_put_there_once_and_stays(stripes, small_config):
    setup = make_setup(changed(small_config, data={"on_device": True}), stripes, None, None)
    key = jax.random.key(0)
    first, second = setup.loader.load(0, 2), setup.loader.load(2, 3, rollbacks=1)
    setup.train(setup.create(key), first, key)
    for name, expected in (("image", stripes.train.images), ("label", stripes.train.labels)):
        array = first["split"][name]
        assert second["split"][name] is array
        assert array.is_fully_replicated
        assert len(array.addressable_shards) == 2
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)
    for batches, ordinary in (
        (first, setup.loader.place([*map(setup.loader.maker, (0, 1))])),
        (second, setup.loader.place([setup.loader.maker.after_rollbacks(1)(2)])),
    ):
        np.testing.assert_array_equal(stripes.train.labels[batches["chosen"]["index"]], ordinary["label"])
        assert batches["chosen"]["index"].sharding == ordinary["label"].sharding


def test_pictures_in_memory_become_an_array_and_others_are_refused(run, small_config, stripes, tmp_path):
    config = changed(small_config, data={"on_device": True}, loop={"epochs": 1})
    images, labels = make_stripes(150)
    options = {"class_names": stripes.class_names, "name": "stripes"}
    preparation = Preparation(images.shape[1:3], 1, "crop")
    pictures = Images(list(images), preparation, whole=True)
    assert run("pictures", config, dataset=from_arrays(pictures, labels, **options)).fingerprint == (
        run("array", config).fingerprint
    )
    save_all(tmp_path / "data", images[..., 0], labels)
    read = Images(Files(sorted((tmp_path / "data").rglob("*.png"))), preparation, whole=True)
    cut = Images(list(images), preparation)
    for refused, message in ((read, "are not all in memory.* data.memory"), (cut, "are of several sizes.* one size")):
        with pytest.raises(InputError, match=f"data.on_device is True, but the training images of stripes {message}"):
            run("refused", config, dataset=from_arrays(refused, labels, **options))
    assert not (tmp_path / "refused").exists()


@pytest.fixture
def dispatches(monkeypatch):
    """Returns what each dispatch of a run is noted in: step and parameters before it, those after it, what it logs."""
    noted, make = [], loop.make_setup  # which shares compiled programs

    def noting(*args):
        setup = make(*args)

        def train(state, *rest, **options):
            before = by_path(state.params)
            new, (metrics, extra) = setup.train(state, *rest, **options)
            noted.append((int(new.step) - len(metrics["loss"]), before, by_path(new.params), extra))
            return new, (metrics, extra)

        return replace(setup, train=train)

    monkeypatch.setattr(loop, "make_setup", noting)
    return noted


def by_path(params):
    """Returns copies: the state that they are of is given away."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.array(leaf) for path, leaf in leaves}


@pytest.fixture
def freezing(small_config):
    """A run that freezes parameters from its beginning, from step 3 and from step 7 on; an epoch has 3.4 steps."""
    freeze = {"Conv_0/*": 1, "*/kernel": 2, "BatchNorm_0/bias": 0}
    return changed(
        small_config,
        augment={"crop_padding": 0},
        model={"dropout": 0.0},
        optim={"freeze": freeze, "weight_decay": 0.5, "schedule": "linear", "decay_factors": {"Dense_1/*": 2.0}},
        loop={"steps_per_dispatch": 2},
    )


def test_frozen_parameters_move_before_that_step_and_not_after(run, freezing, dispatches):
    result = run("run", freezing)
    assert [step for step, *_ in dispatches] == [0, 2, 3, 4, 6, 7, 8, 10]
    for step, before, after, extra in dispatches:
        stays = {path for path in before if np.array_equal(before[path], after[path])}
        expected = {"BatchNorm_0/bias"}
        expected |= {"Conv_0/kernel", "Conv_0/bias"} & set(before) if step >= 3 else set()
        expected |= {path for path in before if path.endswith("/kernel")} if step >= 7 else set()
        assert stays == expected
        if step in (3, 6, 10):  # of one step, so that what is logged is of the parameters before it
            decays = {"Conv_0/kernel": 1, "Dense_0/kernel": 1, "Dense_1/kernel": 2, "Dense_1/bias": 2}
            moved = [factor * before[path] for path, factor in decays.items() if path not in expected]
            norm = 0.5 * np.sqrt(sum(np.sum(np.square(leaf)) for leaf in moved))
            np.testing.assert_allclose(extra["decay_norm"], extra["learning_rate"] * norm, rtol=1e-5)
    assert result.steps == 11


@pytest.mark.parametrize("on_device", [False, slow(True)])
def test_a_run_with_phases_of_freezing_resumes_in_each_to_the_same_bits(run, freezing, on_device):
    config = changed(freezing, data={"on_device": on_device})
    whole = run("whole", config)
    for number, stop in enumerate((2, 5, 8, None)):
        with contextlib.nullcontext() if stop is None else pytest.raises(Interrupted):
            parts = run("parts", config, resume=number > 0, stop_after=stop)
    chex.assert_trees_all_equal(parts.state, whole.state)
    assert parts.fingerprint == whole.fingerprint
    assert metrics(parts.workdir) == metrics(whole.workdir)
    with pytest.raises(InputError, match=r"optim\.freeze: \{'Conv_0/\*': 1, .*\} -> \{\}"):
        run("whole", changed(config, optim={"freeze": {}}), resume=True)


def test_freezing_what_is_not_there_is_refused_before_anything_is_written(run, small_config, tmp_path):
    config = changed(small_config, optim={"freeze": {"Conv_*": 1, "Dens_0/kernel": 0}})
    for options in ({}, {"tx": optax.sgd(0.1)}):
        with pytest.raises(
            InputError, match=r"^optim\.freeze: unknown parameter 'Dens_0/kernel'\. Did you mean 'Dense_0/kernel'"
        ):
            run("run", config, **options)
    assert list(tmp_path.iterdir()) == []


def operations(text):
    """Returns (name, line) of each line of a StableHLO module; a line that only ends an operation names none."""
    found = [(re.search(r"stablehlo\.(\w+)|\b(call|return|func)\b", line), line) for line in text.splitlines()]
    return [((match[1] or match[2]) if match else None, line) for match, line in found]


def test_for_a_gpu_the_steps_are_a_loop_that_only_picks_from_the_split(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # which decides how steps follow each other
    examples, batch_size, steps = 5000, 40, 25
    rng = np.random.default_rng(0)
    few = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), np.arange(20) % 10
    images = rng.integers(0, 256, (examples, 32, 32, 3), dtype=np.uint8)
    dataset = from_arrays(images, np.arange(examples) % 10, validation=few, test=few)
    config = Config(
        augment=AugmentConfig(flip=True, crop_padding=2, crop_fill="reflect"),
        optim=OptimConfig(ema_decay=None, freeze={"whitening/bias": 3}),
        loop=LoopConfig(epochs=8, batch_size=batch_size, steps_per_dispatch=steps),
    )
    model, tx = Airbench(10, widths=(8, 16, 16), dtype=jnp.dtype("bfloat16")), make_tx(1000, batch_size)
    setup = make_setup(changed(config, data={"on_device": True}), dataset, model, tx)
    traced = setup.train.trace(setup.abstract_state, setup.loader.load(0, steps), jax.random.key(0), frozen=())
    text = traced.lower(lowering_platforms=("cuda",)).as_text()

    split = f"tensor<{examples}x32x32x3xui8>"
    # the loop hands it on from one turn to the next
    users = [name for name, line in operations(text) if split in line and name not in ("func", "call", "return")]
    assert users == ["while", "gather"]
    assert f"{steps}x" in next(line for name, line in operations(text) if name == "while")
    assert text.count("stablehlo.convolution") == 7 + 2 * 6  # those of one step
    for transfer in ("infeed", "outfeed", "stablehlo.send", "stablehlo.recv", "callback"):
        assert transfer not in text
    constants = re.findall(r"stablehlo.constant.*tensor<((?:\d+x)*)", text)
    sizes = [int(np.prod([int(side) for side in shape.split("x")[:-1]])) for shape in constants]
    assert max(sizes) < 1000
    (results,) = re.findall(r"func.func public @main.*-> \((.*)\) {", text)
    assert split not in results

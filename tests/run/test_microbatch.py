"""On a single CPU a large batch is taken in parts: as many as suit its caches, and never so that numbers change."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn

import flaxcls.run.microbatch
from flaxcls import create_state
from flaxcls.models import CNN
from flaxcls.run.microbatch import choose_microbatches
from tests.flags import xla_flags

SHAPE, KEY = (8, 8, 1), jax.random.key(0)
LARGEST = 8 * 8 * 4 * 4  # bytes that the convolution makes of an image
MODEL = CNN(3, widths=(4,), dense=(8,), norm="none", dropout=0.0)


@pytest.fixture
def single_cpu(monkeypatch):
    """Simulates a process with one device, where the tests have two, and caches for two images at a time."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))
    monkeypatch.setattr(flaxcls.run.microbatch, "MICROBATCH_BYTES", 2 * LARGEST)


def microbatches(batch, model=MODEL, steps_per_dispatch=1):
    state = jax.eval_shape(lambda: create_state(KEY, model, optax.sgd(0.1), image_shape=SHAPE))
    return choose_microbatches(model, state, SHAPE, batch_size=batch, steps_per_dispatch=steps_per_dispatch)


@pytest.mark.parametrize(
    ("batch", "steps", "expected"),
    [(2, 1, 1), (3, 1, 3), (4, 1, 2), (7, 1, 7), (64, 1, 32), (64, 4, 8), (64, 64, 1), (74, 1, 2), (96, 1, 32)],
)
def test_as_few_as_fit_the_cache_or_as_many_as_can_be(single_cpu, batch, steps, expected):
    assert microbatches(batch, steps_per_dispatch=steps) == expected


def test_dropout_and_batch_normalisation_see_the_whole_batch(single_cpu):
    assert microbatches(16, MODEL.clone(norm="group")) > 1
    assert microbatches(16, MODEL.clone(norm="batch")) == 1
    assert microbatches(16, MODEL.clone(dropout=0.1)) == 1


def test_what_is_as_large_whatever_the_batch_does_not_count(single_cpu):
    class Cast(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dense(3, dtype=jnp.bfloat16)(nn.relu(nn.Dense(512, dtype=jnp.bfloat16)(x.reshape(len(x), -1))))

    assert microbatches(2, Cast()) == 1


def test_several_devices_other_devices_and_earlier_releases_take_it_whole(single_cpu, monkeypatch):
    assert microbatches(16) > 1
    for target, name, value in (
        (jax, "device_count", lambda: 2),
        (jax, "default_backend", lambda: "gpu"),
        (jax, "__version_info__", (0, 11, 9)),
    ):
        with monkeypatch.context() as other:
            other.setattr(target, name, value)
            assert microbatches(16) == 1


PROGRAM = """
import io, json, sys
import jax
from pathlib import Path
from rich.console import Console
import flaxcls.run.microbatch
from flaxcls.config import Config, LoopConfig, ModelConfig, OptimConfig
from flaxcls.data import from_arrays
from flaxcls.models import build_model
from flaxcls.run import fit
from flaxcls.run.setup import make_setup
from tests.conftest import make_stripes

dataset = from_arrays(*make_stripes(300), class_names=("rows", "columns", "none"), name="stripes")
loop = LoopConfig(epochs=2, batch_size=64, steps_per_dispatch=2)
model = ModelConfig(widths=(4,), dense=(), norm="none", dropout=0.0)
config = Config(model=model, optim=OptimConfig(ema_decay=None), loop=loop)

def report(name, most_bytes, model):
    flaxcls.run.microbatch.MICROBATCH_BYTES = most_bytes
    setup = make_setup(config, dataset, model, None)
    lowered = setup.train.lower(setup.abstract_state, setup.loader.load(0, 2), jax.random.key(0))
    shown, workdir = io.StringIO(), Path(sys.argv[1]) / name
    result = fit(config, dataset=dataset, model=model, workdir=workdir, console=Console(file=shown, width=200))
    return {
        "barriers": lowered.as_text().count("stablehlo.optimization_barrier"),
        "validation": result.validation,
        "says so": "steps of 64 in 4 microbatches on" in shown.getvalue(),
    }

small = 16 * int(sys.argv[2])
print(json.dumps({
    "devices": jax.device_count(),
    "whole": report("whole", 2**30, None),
    "microbatches": report("microbatches", small, None),
    "a user's": report("users", small, build_model(config.model, 3)),
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="takes batches whole")
def test_fit_trains_in_microbatches_as_on_the_whole_and_leaves_a_users_model_whole(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(LARGEST)],
        env={**os.environ, "XLA_FLAGS": xla_flags(1), "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("devices") == 1
    # between two steps, and two of the 4 microbatches of either
    assert [run["barriers"] for run in found.values()] == [1, 1 + 2 * 3, 1]
    assert [run["says so"] for run in found.values()] == [False, True, False]
    assert found["microbatches"]["validation"] == pytest.approx(found["whole"]["validation"], rel=1e-3)
    assert found["a user's"]["validation"] == found["whole"]["validation"]

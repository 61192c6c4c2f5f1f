"""On a single CPU a large batch is taken in parts: as many as suit its caches, and never so that numbers change."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxcls.parts
from flaxcls import create_state, train_step
from flaxcls.models import CNN
from flaxcls.parts import cache_parts

SHAPE, KEY = (8, 8, 1), jax.random.key(0)
RELEASE = jax.__version_info__
LARGEST = 8 * 8 * 4 * 4  # bytes that the convolution makes of an image
MODEL = CNN(3, widths=(4,), dense=(8,), norm="none", dropout=0.0)


@pytest.fixture
def single_cpu(monkeypatch):
    """What a process with one device sees, where tests have two; and caches for two images at a time."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))
    monkeypatch.setattr(flaxcls.parts, "PART_BYTES", 2 * LARGEST)


def variables(model):
    return model.init({"params": KEY}, jnp.zeros((1, *SHAPE)), train=False)


def parts(batch, model=MODEL):
    return cache_parts(model, variables(model), jnp.zeros((batch, *SHAPE)))


@pytest.mark.parametrize(("batch", "expected"), [(2, 1), (3, 3), (4, 2), (7, 7), (16, 8), (32, 16), (34, 1)])
def test_as_few_as_fit_the_cache_or_none_at_all(single_cpu, batch, expected):
    assert parts(batch) == expected


def test_dropout_and_batch_normalisation_see_the_whole_batch(single_cpu):
    assert parts(16, MODEL.clone(norm="group")) > 1
    assert parts(16, MODEL.clone(norm="batch")) == 1
    assert parts(16, MODEL.clone(dropout=0.1)) == 1


def test_several_devices_other_devices_and_earlier_releases_take_it_whole(single_cpu, monkeypatch):
    assert parts(16) > 1
    for target, name, value in (
        (jax, "device_count", lambda: 2),
        (jax, "default_backend", lambda: "gpu"),
        (jax, "__version_info__", (0, 11, 9)),
    ):
        with monkeypatch.context() as other:
            other.setattr(target, name, value)
            assert parts(16) == 1


def test_the_update_is_that_of_the_whole_batch_in_less_memory(single_cpu, monkeypatch):
    state = create_state(KEY, MODEL, optax.sgd(0.1), image_shape=SHAPE)
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 255, (64, *SHAPE), np.uint8), "label": rng.integers(0, 3, 64)}
    batch["mask"] = np.arange(64) < 50
    found = {}
    for size in (4 * LARGEST, 64 * LARGEST):
        monkeypatch.setattr(flaxcls.parts, "PART_BYTES", size)
        step = jax.jit(partial(train_step, model=MODEL, tx=optax.sgd(0.1))).lower(state, batch, KEY).compile()
        found[size] = (*step(state, batch, KEY), step.memory_analysis().temp_size_in_bytes)
    (ours, metrics, less), (whole, expected, more) = found.values()
    chex.assert_trees_all_close(ours.params, whole.params, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(metrics, expected, rtol=1e-5)
    if RELEASE >= (0, 12):
        assert less < 0.5 * more

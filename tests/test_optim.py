import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls.config import OptimConfig
from flaxcls.optim import make_optimizer, make_schedule


def test_cosine_with_warm_up_is_its_closed_form():
    schedule = make_schedule(OptimConfig(learning_rate=0.2, schedule="cosine"), total_steps=110, warmup_steps=10)
    for step in range(111):
        expected = 0.2 * step / 10 if step < 10 else 0.2 * (1 + math.cos(math.pi * (step - 10) / 100)) / 2
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-7)


def test_constant_with_and_without_warm_up():
    config = OptimConfig(learning_rate=0.2, schedule="constant")
    assert [float(make_schedule(config, total_steps=9, warmup_steps=0)(s)) for s in (0, 5, 9)] == pytest.approx(
        [0.2] * 3
    )
    schedule = make_schedule(config, total_steps=9, warmup_steps=4)
    assert [float(schedule(s)) for s in (0, 1, 2, 4, 9)] == pytest.approx([0, 0.05, 0.1, 0.2, 0.2])


PARAMS = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}


def one_update(config, grads):
    tx = make_optimizer(config, lambda step: 0.1)
    updates, _ = jax.jit(tx.update)(grads, tx.init(PARAMS), PARAMS)
    return updates


def test_decay_moves_the_weights_and_spares_the_biases():
    nothing = jax.tree.map(jnp.zeros_like, PARAMS)
    updates = one_update(OptimConfig(name="adamw", weight_decay=0.5), nothing)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * 3.0, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_adam_does_not_decay():
    updates = one_update(OptimConfig(name="adam", weight_decay=0.0), jax.tree.map(jnp.zeros_like, PARAMS))
    np.testing.assert_array_equal(updates["kernel"], 0)


def test_the_first_adam_step_by_hand():
    grads = {"kernel": jnp.full((2, 2), 4.0), "bias": jnp.full(2, -0.5)}
    updates = one_update(OptimConfig(name="adam", weight_decay=0.0), grads)
    np.testing.assert_allclose(updates["kernel"], -0.1, rtol=1e-5)  # the gradient over its own size
    np.testing.assert_allclose(updates["bias"], 0.1, rtol=1e-5)


def test_clipping_scales_the_gradient_that_adam_sees():
    grads = {"kernel": jnp.full((2, 2), 4.0), "bias": jnp.zeros(2)}  # norm 8
    config = OptimConfig(name="adam", weight_decay=0.0, clip_norm=2.0)
    for clip, first_moment in ((config, 0.1 * 1.0), (dataclasses.replace(config, clip_norm=None), 0.1 * 4.0)):
        tx = make_optimizer(clip, lambda step: 0.1)
        _, state = tx.update(grads, tx.init(PARAMS), PARAMS)
        moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2, 2)]
        np.testing.assert_allclose(moments[0], first_moment, rtol=1e-6)

"""Several steps as one program, and steps whose update is dropped."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcls import create_state, train_step
from flaxcls.models import CNN
from flaxcls.optim import updates_done
from flaxcls.step import drop_not_finite, train_steps
from tests.slow import slow
from tests.test_step import KEY, make_batch, small


@pytest.fixture
def state_and_step():
    model, tx = small(norm="batch", dropout=0.1), optax.adam(lambda step: 1e-2 / (1 + step))
    step = partial(train_step, model=model, tx=tx, ema_decay=0.9)
    return create_state(KEY, model, tx, image_shape=(8, 8, 1), ema=True), step


@pytest.mark.slow
def test_several_steps_at_once_are_the_same_steps(state_and_step):
    state, step = state_and_step
    batches = [make_batch(seed=seed) for seed in range(3)]
    one, losses = state, []
    for batch in batches:
        one, metrics = jax.jit(step)(one, batch, KEY)
        losses.append(metrics["loss"])
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *batches)
    together, metrics = jax.jit(partial(train_steps, step=step))(state, stacked, KEY)
    assert together.step == 3
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-4)
    chex.assert_trees_all_close(together, one, rtol=1e-3, atol=1e-5)


def test_on_cpu_convolutions_are_operations_of_their_own():
    """In a loop, even of one turn that is optimised away, XLA fuses them into code that is forty times slower."""
    model, tx = CNN(3, widths=(4, 4), dense=(8,)), optax.sgd(1e-2)
    state = create_state(KEY, model, tx, image_shape=(8, 8, 1))
    step = partial(train_steps, step=partial(train_step, model=model, tx=tx, accumulate=2))
    for count in (1, 3):
        stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *[make_batch(seed=seed) for seed in range(count)])
        program = jax.jit(step).lower(state, stacked, KEY).compile().as_text()
        before, _, entry = program.partition("\nENTRY ")
        assert entry.count(" convolution(") >= 2 * 5 * count  # of both parts: two forward, three backward
        assert " convolution(" not in before


def broken(kind, step):
    """Returns `step` with one thing made NaN at its second call of three."""

    def broken_step(state, batch, key):
        now = state.step == 1
        new, metrics = step(state, batch, key)
        poison = partial(jax.tree.map, lambda x: jnp.where(now, jnp.nan, x))
        if kind in ("loss", "grad_norm"):
            return new, {**metrics, kind: poison(metrics[kind])}
        return new.replace(**{kind: poison(getattr(new, kind))}), metrics

    return broken_step


@pytest.mark.parametrize("kind", ["grad_norm", "model_state", *map(slow, ("loss", "params", "ema"))])
def test_an_update_that_is_not_finite_is_dropped(state_and_step, kind):
    state, step = state_and_step
    guarded = jax.jit(drop_not_finite(broken(kind, step)))
    first, metrics = guarded(state, make_batch(seed=0), KEY)
    assert metrics["skipped"] == 0
    second, metrics = guarded(first, make_batch(seed=1), KEY)
    assert metrics["skipped"] == 1
    assert second.step == 2
    chex.assert_trees_all_equal(second.replace(step=first.step), first)
    third, metrics = guarded(second, make_batch(seed=2), KEY)
    assert metrics["skipped"] == 0
    assert (third.step, updates_done(third.opt_state)) == (3, 2)
    chex.assert_tree_all_finite(third)


def test_where_all_is_finite_nothing_is_dropped_or_changed(state_and_step):
    state, step = state_and_step
    plain, _ = jax.jit(step)(state, make_batch(), KEY)
    guarded, metrics = jax.jit(drop_not_finite(step))(state, make_batch(), KEY)
    assert metrics["skipped"] == 0
    chex.assert_trees_all_close(guarded, plain, rtol=1e-5, atol=1e-7)

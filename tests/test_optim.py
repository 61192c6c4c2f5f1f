import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcls.config import OptimConfig
from flaxcls.errors import InputError
from flaxcls.optim import OPTIMIZERS, group_factors, make_optimizer, make_schedule, sam


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


@pytest.mark.parametrize(
    ("options", "closed_form"),
    [
        ({"schedule": "linear"}, lambda t: 1 - t),
        ({"schedule": "exponential", "decay_rate": 0.01}, lambda t: 0.01**t),
        ({"schedule": "piecewise"}, lambda t: 0.1 ** ((t > 0.5) + (t > 0.75))),
        ({"schedule": "piecewise", "boundaries": (0.25,), "decay_rate": 0.5}, lambda t: 0.5 ** (t > 0.25)),
        ({"schedule": "cosine_restarts", "cycles": 4}, lambda t: (1 + math.cos(math.pi * (4 * t % 1))) / 2),
        ({"schedule": "cosine_restarts", "cycles": 1}, lambda t: (1 + math.cos(math.pi * t)) / 2),
    ],
)
@pytest.mark.parametrize("warmup", [0, 20])
def test_schedules_are_their_closed_forms(options, closed_form, warmup):
    schedule = make_schedule(OptimConfig(learning_rate=0.3, **options), total_steps=100 + warmup, warmup_steps=warmup)
    for step in range(100):
        if step / 100 not in (0.5, 0.75, 0.25):  # at a boundary either side is right
            assert float(schedule(step + warmup)) == pytest.approx(0.3 * closed_form(step / 100), abs=1e-6)


def test_one_cycle_rises_for_three_tenths_and_falls_to_almost_nothing():
    schedule = make_schedule(OptimConfig(learning_rate=0.5, schedule="one_cycle"), total_steps=100, warmup_steps=0)
    rates = [float(schedule(step)) for step in range(101)]
    assert rates[0] == pytest.approx(0.5 / 25)
    assert rates[30] == max(rates) == pytest.approx(0.5)
    assert rates[15] == pytest.approx((0.5 + 0.02) / 2)  # half a cosine passes the middle halfway
    assert rates[100] == pytest.approx(0.5 / 25 / 1e4)


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


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lion", "muon"])
def test_whatever_decays_spares_the_biases(name):
    grads = {"kernel": jnp.array([[1.0, 2.0], [-1.0, 3.0]]), "bias": jnp.array([1.0, -2.0])}
    without, with_decay = (one_update(OptimConfig(name=name, weight_decay=decay), grads) for decay in (0.0, 0.5))
    np.testing.assert_array_equal(without["bias"], with_decay["bias"])
    assert not np.allclose(without["kernel"], with_decay["kernel"])


def test_sgd_with_nesterov_momentum_by_hand():
    tx = make_optimizer(OptimConfig(name="sgd", momentum=0.9, weight_decay=0.5), lambda step: 0.1)
    state = tx.init(PARAMS)
    grads = {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 1.0)}
    first, state = tx.update(grads, state, PARAMS)
    second, _ = tx.update(grads, state, PARAMS)
    np.testing.assert_allclose(first["bias"], -0.1 * (1 + 0.9 * 1), rtol=1e-6)
    np.testing.assert_allclose(second["bias"], -0.1 * (1 + 0.9 * 1.9), rtol=1e-6)
    np.testing.assert_allclose(first["kernel"], -0.1 * (2 * 1.9 + 0.5 * 3.0), rtol=1e-6)


def test_lion_moves_every_weight_by_the_learning_rate():
    grads = {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([1.0, -2.0])}
    updates = one_update(OptimConfig(name="lion", weight_decay=0.0), grads)
    chex.assert_trees_all_close(updates, jax.tree.map(lambda g: -0.1 * jnp.sign(g), grads))


def test_rmsprop_by_hand():
    grads = {"kernel": jnp.full((2, 2), 4.0), "bias": jnp.full(2, -0.5)}
    updates = one_update(OptimConfig(name="rmsprop", weight_decay=0.0, momentum=0.0), grads)
    np.testing.assert_allclose(updates["kernel"], -0.1 / math.sqrt(0.1), rtol=1e-4)  # g / sqrt((1 - 0.9) g^2)


def test_lamb_scales_each_update_by_the_norm_of_its_weight():
    grads = {"kernel": jnp.full((2, 2), 4.0), "bias": jnp.full(2, -0.5)}
    updates = one_update(OptimConfig(name="lamb", weight_decay=0.0), grads)
    np.testing.assert_allclose(optax.tree.norm(updates["kernel"]), 0.1 * 6.0, rtol=1e-4)


def test_muon_makes_a_kernels_update_orthogonal():
    """Singular values of the update of a convolution, as the matrix (9 c_in, c_out), are about equal."""
    params = {"kernel": jnp.ones((3, 3, 8, 16)), "bias": jnp.ones(16)}
    grads = {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 8, 16)), "bias": jnp.full(16, 2.0)}
    tx = make_optimizer(OptimConfig(name="muon", weight_decay=0.0), lambda step: 0.1)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    singular = np.linalg.svd(np.asarray(updates["kernel"]).reshape(72, 16), compute_uv=False)
    assert singular.max() / singular.min() < 2
    before = np.linalg.svd(np.asarray(grads["kernel"]).reshape(72, 16), compute_uv=False)
    assert before.max() / before.min() > 2
    assert np.sqrt(np.mean(np.square(updates["kernel"]))) == pytest.approx(0.1 * 0.2, rel=0.3)
    np.testing.assert_allclose(updates["bias"], -0.147, rtol=1e-2)  # Adam's -0.1 with Nesterov's first step


@pytest.mark.parametrize("rho", [None, 0.1])
def test_a_plateau_of_the_training_loss_reduces_the_rate(rho):
    config = OptimConfig(
        name="sgd", momentum=0.0, weight_decay=0.0, plateau_patience=2, plateau_factor=0.5, sam_rho=rho
    )
    tx = make_optimizer(config, lambda step: 1.0, steps_per_epoch=3)
    grads = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}

    @jax.jit
    def update(state):
        return tx.update(grads, state, PARAMS, value=jnp.float32(1.0), grad_fn=lambda params, index: grads)

    state, sizes = tx.init(PARAMS), []
    for _ in range(14):
        updates, state = update(state)
        sizes.append(-float(updates["bias"][0]))
    assert sizes == [1.0] * 8 + [0.5] * 6  # one epoch of three steps sets the mark, two more do not better it


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


CURVATURE = {"kernel": np.array([[1.0, 2.0], [0.5, 4.0]], np.float32), "bias": np.array([3.0, 1.0], np.float32)}
START = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.array([3.0, -1.0])}


def quadratic_gradient(params, index=0):
    """Returns the gradient of the loss sum(curvature * params^2) / 2."""
    return jax.tree.map(lambda a, p: a * p, CURVATURE, params)


def descend(tx, steps, **extra):
    """Returns the parameters after each step on the quadratic loss."""
    params, state, path = START, tx.init(START), []
    for _ in range(steps):
        updates, state = tx.update(quadratic_gradient(params), state, params, grad_fn=quadratic_gradient, **extra)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path


@pytest.mark.parametrize("clip_norm", [None, 2.0])
def test_sharpness_aware_minimisation_by_hand(clip_norm):
    """Clipping and momentum receive the gradient at the worst point."""
    config = OptimConfig(name="sgd", momentum=0.9, weight_decay=0.5, clip_norm=clip_norm, sam_rho=0.7)
    path = descend(make_optimizer(config, lambda step: 0.1), 3, value=jnp.float32(1.0))

    flat = lambda params: np.concatenate([params["kernel"].ravel(), params["bias"]]).astype(np.float64)  # noqa: E731
    curvature = flat(CURVATURE)
    decay = np.array([0.5] * 4 + [0.0] * 2)
    params, trace = flat(START), np.zeros(6)
    for measured in path:
        gradient = curvature * params
        worst = curvature * (params + 0.7 * gradient / np.linalg.norm(gradient))
        if clip_norm is not None:
            worst *= clip_norm / np.linalg.norm(worst)
        trace = worst + 0.9 * trace
        params = params - 0.1 * (worst + 0.9 * trace + decay * params)
        np.testing.assert_allclose(flat(measured), params, rtol=1e-5)


def test_sharpness_aware_minimisation_is_that_of_optax():
    """Which takes no other argument than `grad_fn`, so it cannot be given the loss, and divides by a norm of 0."""
    base = optax.adamw(0.1, weight_decay=0.1)
    theirs = optax.contrib.sam(base, optax.chain(optax.contrib.normalize(), optax.sgd(0.7)), opaque_mode=True)
    chex.assert_trees_all_close(descend(sam(base, 0.7), 5), descend(theirs, 5), rtol=1e-5)


def test_where_there_is_no_gradient_there_is_no_worst_point():
    nothing = jax.tree.map(jnp.zeros_like, PARAMS)
    tx = sam(optax.sgd(1.0), 0.7)
    updates, _ = tx.update(nothing, tx.init(PARAMS), PARAMS, grad_fn=lambda params, index: params)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.negative, PARAMS))


def follow(config, rate=0.1):
    """Returns the parameters after three steps on the quadratic loss."""
    return descend(make_optimizer(config, lambda step: rate / (1 + step)), 3)[-1]


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion"])
def test_factors_of_rate_and_decay_by_hand(name):
    factors = {"rate_factors": {"b*": 0.5, "*": 2}, "decay_factors": {"bias": 3.0}}
    measured = follow(OptimConfig(name=name, momentum=0.0, weight_decay=0.2, **factors))
    for leaf, rate, decay in (("kernel", 2.0, 0.2), ("bias", 0.5, 0.6)):
        p, m, v = np.asarray(START[leaf], np.float64), 0.0, 0.0
        for step in range(3):
            g = CURVATURE[leaf] * p
            if name == "sgd":
                direction = g
            elif name == "adamw":
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                direction = m / (1 - 0.9 ** (step + 1)) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
            else:
                direction, m = np.sign(0.9 * m + 0.1 * g), 0.99 * m + 0.01 * g
            p = p - rate * 0.1 / (1 + step) * (direction + decay * p)
        np.testing.assert_allclose(measured[leaf], p, rtol=1e-5)


def without_decay(name):
    return OptimConfig(name=name, weight_decay=0.0)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_factor_of_the_rate_is_another_learning_rate(name):
    config = without_decay(name)
    measured = follow(dataclasses.replace(config, rate_factors={"kernel": 0.5}))
    np.testing.assert_allclose(measured["bias"], follow(config)["bias"], rtol=1e-6)
    # the gradient of a parameter is its own here, so it does not see what the others do
    np.testing.assert_allclose(measured["kernel"], follow(config, rate=0.05)["kernel"], rtol=1e-6)


@pytest.mark.parametrize("name", sorted({*OPTIMIZERS} - {"adam", "rmsprop"}))
def test_a_factor_of_the_decay_is_another_decay_and_reaches_biases(name):
    config = OptimConfig(name=name, weight_decay=0.5)
    spared = follow(dataclasses.replace(config, decay_factors={"kernel": 0}))
    chex.assert_trees_all_close(spared, follow(without_decay(name)), rtol=1e-6)
    both = follow(dataclasses.replace(config, decay_factors={"kernel": 2.0, "bias": 0.1}))
    np.testing.assert_allclose(both["kernel"], follow(OptimConfig(name=name, weight_decay=1.0))["kernel"], rtol=1e-6)
    assert not np.allclose(both["bias"], spared["bias"], rtol=1e-4)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("options", [{}, {"clip_norm": 2.0}, {"sam_rho": 0.5}])
def test_factors_of_1_change_nothing(name, options):
    config = dataclasses.replace(without_decay(name), **options)
    ones = {"rate_factors": {"*": 1.0}}
    if name not in ("adam", "rmsprop"):
        config, ones = dataclasses.replace(config, weight_decay=0.5), {**ones, "decay_factors": {"kernel": 1.0}}
    chex.assert_trees_all_equal(follow(dataclasses.replace(config, **ones)), follow(config))


def test_without_factors_the_state_is_that_of_the_optimizer_alone():
    tx = make_optimizer(OptimConfig(name="adam", weight_decay=0.0), lambda step: 0.1)
    chex.assert_trees_all_equal_structs(tx.init(PARAMS), optax.adam(lambda step: 0.1).init(PARAMS))


GROUPED = {
    "Conv_0": {"bias": jnp.ones(2), "kernel": jnp.ones((3, 3, 1, 2))},
    "Dense_0": {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))},
    "Dense_1": {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))},
}


def test_the_first_key_that_matches_decides():
    config = OptimConfig(
        rate_factors={"Dense_1/*": 3, "Dense_*": 0.1, "*/kernel": 2.0},
        decay_factors={"Conv_?/bias": 0.5, "Dense_[0]/*": 0.0},
    )
    assert group_factors(config, GROUPED) == [(1.0, 0.5), (2.0, 1.0), (0.1, 0.0), (0.1, 0.0), (3.0, 0.0), (3.0, 1.0)]


def test_without_a_key_the_rate_is_everywhere_and_decay_is_of_the_weights():
    assert group_factors(OptimConfig(), GROUPED) == [(1.0, 0.0), (1.0, 1.0)] * 3


@pytest.mark.parametrize("name", ["rate_factors", "decay_factors"])
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            ["Dens_0/kernel"],
            r"unknown parameter 'Dens_0/kernel'. Did you mean 'Dense_0/kernel'\?.*Conv_0/bias, Conv_0/ker",
        ),
        (["dense_*"], r"unknown parameter 'dense_\*'.*Dense_1/kernel"),
        (["*", "Dense_*"], r"'Dense_\*' stands behind keys that match the same parameters: put it before them"),
    ],
)
def test_a_key_that_decides_nothing_is_refused(name, keys, message):
    with pytest.raises(InputError, match=rf"optim\.{name}: {message}"):
        group_factors(OptimConfig(**{name: dict.fromkeys(keys, 0.5)}), GROUPED)

"""Muon with kernels of a fixed norm against float64 NumPy.

bfloat16 holds 8 bits, and each iteration makes small singular values, and their errors, up to 3.4 times larger.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcls.muon import orthogonalize, renormalized_muon

SHAPES = {"wide": (3, 3, 4, 8), "same": (3, 3, 4, 8), "tall": (1, 1, 5, 12), "dense": (20, 6)}


def random_tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}


def newton_schulz(x, iterations):
    x = x / np.linalg.norm(x)
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T, iterations).T
    for _ in range(iterations):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def as_matrix(kernel):
    return np.moveaxis(kernel.astype(np.float64), -1, 0).reshape(kernel.shape[-1], -1)


def one_step(kernel, buffer, gradient, rate, momentum, iterations):
    """Returns kernel and buffer afterwards, both matrices of c_out rows, as the recipe says it."""
    buffer = momentum * buffer + gradient
    u = gradient + momentum * buffer
    kernel = kernel * np.sqrt(len(kernel)) / np.linalg.norm(kernel)
    return kernel - rate * newton_schulz(u, iterations), buffer


def relative_error(value, expected):
    return np.linalg.norm(value - expected) / np.linalg.norm(expected)


@pytest.mark.usefixtures("strict_types")
@pytest.mark.parametrize(
    ("options", "momentum", "iterations"), [({}, 0.6, 3), ({"momentum": 0.9, "iterations": 1}, 0.9, 1)]
)
def test_steps_are_the_recipes(options, momentum, iterations):
    rates = [0.24, 0.12, 0.06, 0.03]
    tx = renormalized_muon(lambda step: jnp.array(rates)[step], **options)
    params = random_tree(0)
    state, update = tx.init(params), jax.jit(tx.update)
    expected = {name: (as_matrix(kernel), 0.0) for name, kernel in params.items()}
    for number, rate in enumerate(rates):
        grads = random_tree(number + 1, scale=1e-3)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for name, (kernel, buffer) in expected.items():
            expected[name] = one_step(kernel, buffer, as_matrix(grads[name]), rate, momentum, iterations)
            tolerance = {1: 0.002, 3: 0.012}[iterations]
            assert relative_error(as_matrix(np.asarray(params[name])), expected[name][0]) < tolerance


def test_the_norm_is_kept_to_before_the_step():
    tx = renormalized_muon(0.0)
    params = random_tree(0, scale=7.0)
    updates, _ = jax.jit(tx.update)(random_tree(1), tx.init(params), params)
    for kernel in jax.tree.leaves(optax.apply_updates(params, updates)):
        assert float(jnp.linalg.norm(kernel)) == pytest.approx(kernel.shape[-1] ** 0.5, rel=1e-5)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
@pytest.mark.parametrize(("iterations", "tolerance"), [(1, 0.012), (3, 0.05), (5, 0.08)])
def test_newton_schulz_is_that_of_float64(shape, iterations, tolerance):
    rng = np.random.default_rng(0)
    outer = rng.normal(size=(3, shape[0], 1)) * rng.normal(size=(3, 1, shape[1]))  # a singular value near 1
    matrices = (rng.normal(size=(3, *shape)) + 2 * outer).astype(np.float32)
    result = orthogonalize(jnp.array(matrices), iterations)
    assert result.dtype == jnp.float32
    for matrix, expected in zip(np.asarray(result), matrices, strict=True):
        assert relative_error(matrix, newton_schulz(expected.astype(np.float64), iterations)) < tolerance


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_singular_values_come_near_1_and_singular_vectors_stay(shape):
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(side, 12)))[0] for side in shape)
    values = np.geomspace(1, 0.03, 12)  # the smallest is 0.02 of the norm
    matrix = left * values @ right.T
    result = np.asarray(orthogonalize(jnp.array(matrix[None], jnp.float32), 3)[0], np.float64)
    between = left.T @ result @ right
    assert np.all((np.diag(between) > 0.65) & (np.diag(between) < 1.25))
    np.testing.assert_allclose(between, np.diag(np.diag(between)), atol=0.03)


def test_the_size_of_the_gradient_does_not_matter_and_none_at_all_is_no_harm():
    tx = renormalized_muon(0.1)
    params = random_tree(0)
    update = jax.jit(tx.update)
    small, large = (update(random_tree(1, scale), tx.init(params), params)[0] for scale in (2.0**-20, 1.0))
    for one, other in zip(jax.tree.leaves(small), jax.tree.leaves(large), strict=True):
        np.testing.assert_array_equal(one, other)
    nothing, _ = update(jax.tree.map(np.zeros_like, params), tx.init(params), params)
    assert np.isfinite(nothing["wide"]).all()


def test_what_is_no_kernel_is_refused_and_partition_is_the_way_out():
    params = {"Conv_0": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.zeros(4)}}
    with pytest.raises(ValueError, match=r"Conv_0/bias has the shape \(4,\), but Muon is for kernels.*optax.partition"):
        renormalized_muon(0.1).init(params)
    labels = {"Conv_0": {"kernel": "muon", "bias": "sgd"}}
    tx = optax.partition({"muon": renormalized_muon(0.1), "sgd": optax.sgd(0.5)}, labels)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["Conv_0"]["bias"], -0.5)
    assert updates["Conv_0"]["kernel"].shape == (3, 3, 2, 4)

"""Muon as in the CIFAR-10 speed runs: nearly orthogonal updates of kernels whose norm stays constant."""

from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import optax

__all__ = ["NEWTON_SCHULZ", "orthogonalize", "renormalized_muon"]

# a, b and c of the quintic a s + b s^3 + c s^5, which moves every singular value s in 0..1 near 1 (Jordan et al. 2024)
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_TINY = 1e-30  # replaces a norm of 0 in a division


def renormalized_muon(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float = 0.6, iterations: int = 3
) -> optax.GradientTransformation:
    """Returns an optimizer that keeps the norm of kernels [... c_in c_out], each taken as a matrix of c_out rows.

    From a gradient g it computes buffer = momentum buffer + g and u = g + momentum buffer. It scales the kernel to the
    Frobenius norm sqrt(c_out), makes u nearly orthogonal by `orthogonalize`, and subtracts learning_rate times the
    result (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks").

    `optax.contrib.muon` differs. Its buffer is an average with bias correction, which changes only the size of u. It
    iterates 5 times, in the type of the gradient, and scales its update by sqrt(max(1, c_out / fan_in)). Its kernels
    keep no norm, but may decay. It passes parameters that are not matrices to Adam; here use `optax.partition` for it.

    Args:
      learning_rate: a number, or step -> number. The rows of a kernel have a mean norm of 1. If the matrix is not
        taller than wide, the rows of its update have about the learning rate as their norm: so the learning rate is the
        share of the kernel that a step replaces.
      momentum: Nesterov momentum of the buffer.
      iterations: number of Newton-Schulz iterations.

    Raises:
      ValueError: from `init`, for a parameter that is not a kernel.
    """
    return optax.chain(
        optax.trace(momentum, nesterov=True),
        _orthogonal(iterations),
        optax.scale_by_learning_rate(learning_rate),
        _renormalized(),
    )


def orthogonalize(matrices: jax.Array, iterations: int) -> jax.Array:
    """Returns matrices f32[n r c] with the same singular vectors, and singular values nearer to 1.

    Each matrix is divided by its Frobenius norm and transposed if it is tall. Then X = a X + (b A + c A A) X, with
    A = X X^T, is applied `iterations` times, all in bfloat16. After 3 iterations, singular values above 0.02 of that
    norm are in 0.68..1.21, and smaller ones have grown about 40 times. A matrix of zeros stays zero.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    norms = jnp.sqrt(jnp.sum(jnp.square(matrices), axis=(1, 2), keepdims=True))
    x = (matrices / jnp.maximum(norms, _TINY)).astype(jnp.bfloat16)
    if tall:
        x = x.mT
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).astype(matrices.dtype)


def _orthogonal(iterations: int) -> optax.GradientTransformation:
    def init(params: Any) -> optax.EmptyState:
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if leaf.ndim < 2:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise ValueError(
                    f"{name} has the shape {leaf.shape}, but Muon is for kernels [... c_in c_out]: give it another "
                    "optimizer by optax.partition."
                )
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        leaves, structure = jax.tree.flatten(updates)
        by_shape = defaultdict(list)  # one batched product for kernels of the same shape: fewer, larger GPU kernels
        for number, leaf in enumerate(leaves):
            by_shape[leaf.shape].append(number)
        for shape, numbers in by_shape.items():
            matrices = jnp.stack([leaves[number].reshape(-1, shape[-1]).T for number in numbers])
            for number, matrix in zip(numbers, orthogonalize(matrices, iterations), strict=True):
                leaves[number] = matrix.T.reshape(shape)
        return jax.tree.unflatten(structure, leaves), state

    return optax.GradientTransformation(init, update)


def _renormalized() -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def add_scaling(step: jax.Array, kernel: jax.Array) -> jax.Array:
            norm = jnp.sqrt(jnp.sum(jnp.square(kernel)))
            return step + kernel * (kernel.shape[-1] ** 0.5 / jnp.maximum(norm, _TINY) - 1)

        return jax.tree.map(add_scaling, updates, params), state

    return optax.GradientTransformation(optax.init_empty_state, update)

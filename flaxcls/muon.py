"""Muon as the CIFAR-10 speed runs have it: nearly orthogonal updates of kernels that are kept at one norm."""

from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import optax

# of the quintic a s + b s^3 + c s^5, which brings every singular value s in 0..1 near 1 (Jordan et al. 2024)
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_TINY = 1e-30  # in the place of a norm of 0, so that nothing is divided by it


def renormalized_muon(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float = 0.6, iterations: int = 3
) -> optax.GradientTransformation:
    """Returns the optimizer of kernels [... c_in c_out], each a matrix of c_out rows, that keeps their norm.

    Of a gradient g it makes buffer = momentum buffer + g and u = g + momentum buffer; the kernel is scaled to the
    Frobenius norm sqrt(c_out), and learning_rate times u, made nearly orthogonal by `orthogonalize`, is taken off
    (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks").

    `optax.contrib.muon` differs: its buffer is an average, corrected for its start, which changes nothing but the size
    of u; it iterates 5 times, in the type of the gradient; its update is scaled by sqrt(max(1, c_out / fan_in)); and
    kernels keep no norm, but may decay. What is not a matrix it gives to Adam; here `optax.partition` has to.

    Args:
      learning_rate: a number, or step -> number. A kernel's rows have norm 1 in the mean, and those of its update the
        learning rate, about, where it is no taller than wide: so it is the part of the kernel that is replaced.
      momentum: of the buffer, Nesterov's.
      iterations: of Newton-Schulz.

    Raises:
      ValueError: from `init`, for a parameter that is no kernel.
    """
    return optax.chain(
        optax.trace(momentum, nesterov=True),
        _orthogonal(iterations),
        optax.scale_by_learning_rate(learning_rate),
        _renormalized(),
    )


def orthogonalize(matrices: jax.Array, iterations: int) -> jax.Array:
    """Returns matrices f32[n r c] with their singular values moved towards 1, and singular vectors kept.

    Each matrix is divided by its Frobenius norm, transposed if it is tall, and X = a X + (b A + c A A) X, with
    A = X X^T, is taken `iterations` times, all in bfloat16. After 3, what was a singular value above 0.02 of that norm
    is in 0.68..1.21, and a smaller one has grown about 40 times. A matrix of zeros stays one.
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
        alike = defaultdict(list)  # kernels of one shape are one batched product: fewer, larger programs on a GPU
        for number, leaf in enumerate(leaves):
            alike[leaf.shape].append(number)
        for shape, numbers in alike.items():
            matrices = jnp.stack([leaves[number].reshape(-1, shape[-1]).T for number in numbers])
            for number, matrix in zip(numbers, orthogonalize(matrices, iterations), strict=True):
                leaves[number] = matrix.T.reshape(shape)
        return jax.tree.unflatten(structure, leaves), state

    return optax.GradientTransformation(init, update)


def _renormalized() -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def onto(step: jax.Array, kernel: jax.Array) -> jax.Array:
            norm = jnp.sqrt(jnp.sum(jnp.square(kernel)))
            return step + kernel * (kernel.shape[-1] ** 0.5 / jnp.maximum(norm, _TINY) - 1)

        return jax.tree.map(onto, updates, params), state

    return optax.GradientTransformation(optax.init_empty_state, update)

"""Metrics as sums over examples, so that batches of any size merge exactly."""

import jax
import jax.numpy as jnp
from flax import struct

__all__ = ["MetricSums"]


@struct.dataclass
class MetricSums:
    """Sums over the examples seen so far, each counted once.

    loss: f32[], sum of the losses.
    correct: i32[], number of examples that were classified correctly.
    count: i32[], number of examples.
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array

    @classmethod
    def empty(cls) -> "MetricSums":
        """Returns the sums over no examples."""
        return cls(jnp.float32(0), jnp.int32(0), jnp.int32(0))

    def merge(self, other: "MetricSums") -> "MetricSums":
        """Returns the sums over the examples of both."""
        return jax.tree.map(jnp.add, self, other)

    def compute(self) -> dict[str, float]:
        """Returns the mean loss (nats) and the accuracy (0..1). Raises ValueError if no example was counted."""
        sums: MetricSums = jax.device_get(self)
        count = int(sums.count)
        if count == 0:
            raise ValueError("no example was counted, so there is no mean: evaluate at least one.")
        return {"loss": float(sums.loss) / count, "accuracy": int(sums.correct) / count}

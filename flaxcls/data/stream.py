"""The order of the training examples: batch i is a function of (seed, i) alone.

The training stream is endless: one permutation of all examples after the other, and batch i is its next `batch_size`
examples. Every batch is full, every example comes exactly once an epoch, and resuming needs no saved position.
"""

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """Returns a permutation i64[count] of 0..count-1 that depends on (seed, epoch) alone.

    The raw output of Philox and a stable sort are the same in every version of NumPy, unlike `Generator.permutation`.
    """
    key = np.array([seed, epoch], np.uint64)
    order = np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")
    order.flags.writeable = False
    return order


def batch_indices(seed: int, step: int, *, count: int, batch_size: int) -> np.ndarray:
    """Returns i64[batch_size], which of `count` examples make up batch `step` (from 0) of the stream."""
    position, end = step * batch_size, (step + 1) * batch_size
    pieces = []
    while position < end:
        epoch, offset = divmod(position, count)
        piece = permutation(seed, epoch, count)[offset : offset + end - position]
        pieces.append(piece)
        position += len(piece)
    return np.concatenate(pieces)

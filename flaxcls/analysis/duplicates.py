"""Images that two splits share, exactly or nearly. A test on training images measures memory, not learning."""

from typing import NamedTuple

import cv2
import numpy as np

from flaxcls.data import Split
from flaxcls.data.resize import with_channels

# side of the compared thumbnails, in pixels
SIDE = 16
# least correlation of two thumbnails that count as near-duplicates
ALIKE = 0.985
_ROWS = 1024


class Duplicate(NamedTuple):
    """Two examples that are nearly the same.

    first: position in the first split.
    second: position in the second split.
    correlation: correlation of the thumbnails' pixels; 1 if they are the same.
    """

    first: int
    second: int
    correlation: float


def near_duplicates(first: Split, second: Split, *, alike: float = ALIKE) -> list[Duplicate]:
    """Returns the examples of `first` that have a near-duplicate in `second`, each with the most similar one.

    The most similar pairs come first. The correlation of pixels is measured on grey thumbnails of `SIDE` pixels a side.
    So brightness, contrast, compression and size make little difference, but flipped or cropped copies are not found.
    An image of a single colour has no near-duplicates.

    Args:
      first, second: splits with images of one shape, u8[n h w c] or floats.
      alike: least correlation of near-duplicates.
    """
    thumbnails, others = _thumbnails(first), _thumbnails(second)
    found = []
    for start in range(0, len(thumbnails), _ROWS):
        correlations = thumbnails[start : start + _ROWS] @ others.T
        nearest = correlations.argmax(axis=1)
        for row, column in enumerate(nearest.tolist()):
            if correlations[row, column] >= alike:
                found.append(Duplicate(start + row, column, min(1.0, float(correlations[row, column]))))
    return sorted(found, key=lambda pair: -pair.correlation)


def _thumbnails(split: Split) -> np.ndarray:
    """Returns f32[n p]: the grey pixels of each thumbnail, minus their mean, scaled to length 1 (or 0)."""
    rows = np.zeros((len(split.labels), SIDE * SIDE), np.float32)
    for index in range(len(rows)):
        image = split.images[index]
        is_picture = image.dtype == np.uint8 and image.shape[2] <= 4
        grey = with_channels(image, 1) if is_picture else image.mean(axis=2, keepdims=True)
        small = cv2.resize(grey.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA).ravel()
        small = small - small.mean()
        length = np.linalg.norm(small)
        rows[index] = small / length if length > 1e-3 * grey.max(initial=1) else 0
    return rows

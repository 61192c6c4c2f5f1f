"""Images that two splits have in common, or nearly so: what is tested on them has been learned by heart."""

from typing import NamedTuple

import cv2
import numpy as np

from flaxcls.data import Split
from flaxcls.data.resize import with_channels

# pixels on a side that images are compared at
SIDE = 16
# correlation of pixels from which two images count as nearly the same
ALIKE = 0.985
_ROWS = 1024


class Duplicate(NamedTuple):
    """first, second: positions in two splits. correlation: of the pixels, 1 where they are the same."""

    first: int
    second: int
    correlation: float


def near_duplicates(first: Split, second: Split, *, alike: float = ALIKE) -> list[Duplicate]:
    """Returns of each example of `first` the one of `second` that is most alike, if it is, the likest pairs first.

    Compared are grey thumbnails of `SIDE` pixels, by the correlation of their pixels, so that brightness, contrast,
    compression and size make little difference; flipped or cropped copies are not found. An image of one colour is
    alike to none.

    Args:
      first, second: examples with images of one shape, u8[n h w c] or floats.
      alike: least correlation.
    """
    ours, theirs = _thumbnails(first), _thumbnails(second)
    found = []
    for start in range(0, len(ours), _ROWS):
        correlations = ours[start : start + _ROWS] @ theirs.T
        nearest = correlations.argmax(axis=1)
        for row, column in enumerate(nearest.tolist()):
            if correlations[row, column] >= alike:
                found.append(Duplicate(start + row, column, min(1.0, float(correlations[row, column]))))
    return sorted(found, key=lambda pair: -pair.correlation)


def _thumbnails(split: Split) -> np.ndarray:
    """Returns f32[n p], of each image the grey pixels of its thumbnail, less their mean, of length 1 (or 0)."""
    made = np.zeros((len(split.labels), SIDE * SIDE), np.float32)
    for index in range(len(made)):
        image = split.images[index]
        grey = with_channels(image, 1) if image.dtype == np.uint8 else image.mean(axis=2, keepdims=True)
        small = cv2.resize(grey.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA).ravel()
        small = small - small.mean()
        length = np.linalg.norm(small)
        made[index] = small / length if length > 1e-3 * grey.max(initial=1) else 0
    return made

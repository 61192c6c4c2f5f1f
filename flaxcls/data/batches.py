"""Batches of examples: batch i of the training stream, and batches padded to one compiled shape."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from flaxcls.data.dataset import Split
from flaxcls.data.images import Images
from flaxcls.data.stream import Order, balanced, batch_indices, batch_mirrored, permutation


@dataclass(frozen=True)
class BatchMaker:
    """A function that returns batch i, from 0, of the training stream, or the rows of it that a process needs.

    rows: rows of the batch to make.
    balanced: True if classes are sampled evenly.
    least_area: smallest share of the area in a random crop of an image before it is resized; None: no crop.
    alternating_flip: True if the batch says which images are mirrored.
    """

    split: Split
    seed: int
    batch_size: int
    rows: slice
    balanced: bool
    least_area: float | None
    alternating_flip: bool = False

    def after_rollbacks(self, rollbacks: int) -> "BatchMaker":
        """Returns the maker for a run after `rollbacks` rollbacks to a checkpoint; each one changes the order."""
        return replace(self, seed=self.seed + rollbacks * 2**32)

    @cached_property
    def _order(self) -> Order:
        return balanced(self.split.labels) if self.balanced else permutation

    def chosen(self, step: int) -> dict[str, np.ndarray]:
        """Returns the indices of the examples in batch `step`, "index" i32[m], and maybe "mirrored" bool[m]."""
        stream: dict[str, Any] = {"count": len(self.split.labels), "batch_size": self.batch_size, "order": self._order}
        chosen = {"index": batch_indices(self.seed, step, **stream)[self.rows].astype(np.int32)}
        if self.alternating_flip:
            chosen["mirrored"] = batch_mirrored(self.seed, step, **stream)[self.rows]
        return chosen

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Returns batch `step`: "image" u8[m h w c], "label" i32[m] and maybe "mirrored" bool[m]."""
        chosen = self.chosen(step)
        index = chosen.pop("index")
        return {"image": self._images(self.split.images, index, step)(), "label": self.split.labels[index], **chosen}

    def without_images(
        self, step: int, *, in_threads: bool = True
    ) -> tuple[dict[str, np.ndarray], Callable[[], np.ndarray]]:
        """Returns batch `step` without its images, and a function that makes them.

        The function holds nothing of the other batches, so that it is small when it is sent to another process. It
        raises InputError for an image that cannot be read, even where another one may take its place.

        in_threads: see `Images`.
        """
        chosen = self.chosen(step)
        index = chosen.pop("index")
        images, rows = self.split.images, index
        if isinstance(images, Images):
            images, rows = images.alone(index, in_threads=in_threads), np.arange(len(index))
        return {"label": self.split.labels[index], **chosen}, self._images(images, rows, step)

    def _images(self, images: np.ndarray | Images, indices: np.ndarray, step: int) -> Callable[[], np.ndarray]:
        if not isinstance(images, Images) or self.least_area is None:
            return partial(images.__getitem__, indices)
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[self.rows]
        return partial(images.random_crops, indices, positions, seed=self.seed, least_area=self.least_area)


def pad_rows(array: np.ndarray, size: int) -> np.ndarray:
    """Returns `array` [n ...] with rows of zeros added up to `size` rows; n must be at most `size`."""
    missing = size - len(array)
    return np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)]) if missing else array


def pad_batch(images: np.ndarray, labels: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """Returns a batch of `size` examples: the given ones, then zeros with mask False."""
    mask = np.arange(size) < len(labels)
    return {"image": pad_rows(images, size), "label": pad_rows(labels, size), "mask": mask}

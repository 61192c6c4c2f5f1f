"""Examples of a data set, drawn: as their files have them, as inputs of a model, and after augmentation."""

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from flaxcls.analysis.pictures import data_url, enlarged, in_colours
from flaxcls.data import Dataset
from flaxcls.data.copies import Place
from flaxcls.data.images import Images
from flaxcls.data.inspection import Refusal
from flaxcls.data.picture import Extent, extent_of
from flaxcls.data.preparation import choose_range
from flaxcls.data.resize import resize, with_channels
from flaxcls.errors import InputError

KEPT = 224  # pixels of the longer side of a picture in the page, at most
SIDE = 96  # pixels of the longer side of a picture on a screen, at most; small ones are enlarged by a whole factor


class Drawing(NamedTuple):
    """A picture: what it shows, its data URL, and its height and width in pixels of the page."""

    what: str
    url: str
    height: int
    width: int


@dataclass(frozen=True)
class Shown:
    """An example and its pictures.

    name: name of the example.
    label: name of its class.
    part: its split.
    size: its height and width.
    pictures: none if it cannot be read.
    """

    name: str
    label: str
    part: str
    size: tuple[int, int]
    pictures: Sequence[Drawing] = ()


class Artist:
    """Draws examples, and keeps why some do not become inputs, or cannot be read.

    dataset: the data set.
    channels: indices of the channels of an input that are shown.
    is_asked: True if these were asked for, so that a file with others is shown in those of an input.
    as_stored: True to draw each example from its file, too.
    scales: for each type of values, those that are black and white; given if the types have no range in common, in
      which case inputs cannot be drawn.
    """

    def __init__(
        self,
        dataset: Dataset,
        channels: Sequence[int],
        *,
        is_asked: bool,
        as_stored: bool,
        scales: Mapping[str, tuple[float, float]],
    ) -> None:
        self._dataset, self._channels, self._is_asked, self._as_stored = dataset, channels, is_asked, as_stored
        self._scales = scales
        self.refused: dict[Place, Refusal] = {}

    def choose(self, indices: np.ndarray, most: int) -> list[int]:
        """Returns up to `most` of the training examples that can be drawn, evenly spread."""
        if len(indices) > most:
            spread = np.linspace(0, len(indices) - 1, most).round().astype(int)
            indices = np.concatenate([indices[spread], np.delete(indices, spread)[:most]])
        found: list[int] = []
        for index in indices.tolist():
            place = Place("train", index)
            if len(found) < most and (self.becomes_input(place) or self._stored(place) is not None):
                found.append(index)
        return found

    def becomes_input(self, place: Place) -> bool:
        """Returns True if an example becomes an input that can be drawn."""
        return self._input(place) is not None

    def describe(self, place: Place) -> Shown:
        """Returns an example without pictures."""
        split = self._dataset.splits[place.part]
        return Shown(
            name=str(place.number) if split.names is None else split.names[place.number],
            label=self._dataset.class_names[split.labels[place.number]],
            part=place.part,
            size=self._dataset.train.images.shape[1:3] if split.heads is None else split.heads[place.number].size,
        )

    def show(self, place: Place, views: Sequence[np.ndarray] = (), *, whole: bool = False) -> Shown:
        """Returns an example with its pictures.

        views: pictures [h w c] after augmentation, which are shown after the input.
        whole: True to draw it from its file, too, before the input. If there is no input, it always is.
        """
        image = self._input(place)
        stored = self._stored(place) if whole or self._as_stored or image is None else None
        pictures = {"file": stored, "input": image}
        pictures |= {f"augmented {number}": view for number, view in enumerate(views, 1)}
        drawings = [self._draw(what, pixels) for what, pixels in pictures.items() if pixels is not None]
        return replace(self.describe(place), pictures=drawings)

    def _input(self, place: Place) -> np.ndarray | None:
        images = self._dataset.splits[place.part].images
        if self._scales:
            return None
        try:
            pixels: np.ndarray = images[place.number]
            return pixels
        except InputError as error:
            assert isinstance(images, Images)
            self.refused[place] = _refusal(images, place.number, error)
            return None

    def _stored(self, place: Place) -> np.ndarray | None:
        """Returns an image in its own size and the values of an input, or None if it cannot be read.

        Its channels are those of its file if they are as many as those of an input, or no colours. Else it is in
        colours, and what is transparent is on white.
        """
        images = self._dataset.splits[place.part].images
        if not isinstance(images, Images):
            of_array: np.ndarray = images[place.number]
            return of_array
        try:
            picture = images.picture(place.number)
            pixels = picture.pixels
            if not images.in_memory:
                scale = self._scales.get(pixels.dtype.name, images.preparation.value_range)
                pixels = replace(images.preparation, channels=pixels.shape[2], value_range=scale).unify(picture)
        except ValueError as error:  # that of `unify`: a file has changed since its header was read
            self.refused[place] = Refusal(str(error), is_readable=False)
            return None
        seen = self._dataset.image_shape[-1]
        if pixels.shape[2] != seen:
            with contextlib.suppress(InputError):  # channels that are no colours
                return with_channels(pixels, seen if self._is_asked else 3, alpha=picture.alpha)
        return pixels

    def _draw(self, what: str, pixels: np.ndarray) -> Drawing:
        """Draws the channels of [h w c] that are shown, or the first of a file that has others."""
        has_channels_of_input = pixels.shape[2] == self._dataset.image_shape[-1]
        picture = in_colours(pixels[..., self._channels] if has_channels_of_input else pixels)
        longest = max(picture.shape[:2])
        if longest > KEPT:
            height, width = (max(1, round(side * KEPT / longest)) for side in picture.shape[:2])
            picture = resize(picture, (height, width))
        height, width = (max(1, round(side * magnification(pixels.shape[:2]))) for side in pixels.shape[:2])
        return Drawing(what, data_url(enlarged(picture, SIDE)), height, width)


def magnification(size: Sequence[int]) -> float:
    """Returns by how much a picture of this height and width is drawn larger."""
    longest = max(size)
    return SIDE // longest if longest <= SIDE else SIDE / longest


def find_refusals(dataset: Dataset) -> list[Refusal]:
    """Reads every image from its file; returns why some do not become inputs."""

    def try_input(place: tuple[Images, int]) -> Refusal | None:
        images, index = place
        try:
            images.original(index)
        except InputError as error:
            return _refusal(images, index, error)
        return None

    with ThreadPoolExecutor() as pool:
        return [found for found in pool.map(try_input, _files_of(dataset)) if found is not None]


def measure_types(dataset: Dataset) -> dict[str, tuple[float, float]]:
    """Reads every image from its file; returns, for each type of values, those that are black and white.

    They are what they would be if there were files of this type alone or, if that is not known, the least and the
    greatest value.
    """

    def measure(place: tuple[Images, int]) -> tuple[str, Extent] | None:
        images, index = place
        try:
            picture = images.picture(index)
        except InputError:
            return None
        return picture.pixels.dtype.name, extent_of(picture)

    with ThreadPoolExecutor() as pool:
        found = list(filter(None, pool.map(measure, _files_of(dataset))))
    scales = {}
    for kind in dict.fromkeys(kind for kind, _ in found):
        low = min(extent.low for other, extent in found if other == kind)
        high = max(extent.high for other, extent in found if other == kind)
        try:
            scales[kind] = choose_range({kind: 1}, low, high, dataset.name) or (0.0, 255.0)
        except InputError:
            scales[kind] = low, max(high, low + 1)
    return scales


def _files_of(dataset: Dataset) -> list[tuple[Images, int]]:
    return [
        (split.images, index)
        for split in dataset.splits.values()
        if isinstance(split.images, Images)
        for index in range(len(split.images))
    ]


def _refusal(images: Images, index: int, error: InputError) -> Refusal:
    try:
        images.picture(index)
    except InputError:
        return Refusal(str(error), is_readable=False)
    return Refusal(str(error), is_readable=True)

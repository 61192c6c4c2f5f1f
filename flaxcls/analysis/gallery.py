"""The pictures with which a data set is looked at before training: some of each class, extremes, and copies."""

import contextlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from flaxcls.analysis.pictures import choose_shown, data_url, describe_shown, enlarged, in_colours
from flaxcls.data import Dataset
from flaxcls.data.images import Images
from flaxcls.data.inspection import Inspection, Place, distortion
from flaxcls.data.preparation import choose_range
from flaxcls.data.resize import resize, with_channels
from flaxcls.errors import InputError

MOST_CLASSES = 20
OF_EACH = 6
MOST_CHANGED = 6
MOST_TRIED = 6  # of one size, until one can be read
MOST_PAIRS = 10
SHOWN = 224  # pixels of the longer side of a picture, at most
SMALL = 96  # small pictures are enlarged to at most this

# indices i64[m] of training examples -> f32[m h w c] in 0..1 for each draw
DrawViews = Callable[[np.ndarray], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Shown:
    """An example and its pictures.

    name: name of the example.
    label: name of its class.
    part: its split.
    pictures: for each picture, what it shows and its data URL.
    size: its height and width.
    """

    name: str
    label: str
    part: str
    pictures: Sequence[tuple[str, str]]
    size: tuple[int, int]


@dataclass(frozen=True)
class Gallery:
    """The pictures of a data set.

    channels: the channels that they show, as text.
    classes: for each class that is shown, its examples.
    omitted: number of the other classes.
    extremes: the smallest and the largest example, and those that change most on their way to an input, with what each
      is.
    not_shown: a line for each of these of whose size none can be read.
    copies: pairs of examples that are the same, in two splits.
    refused: for each file that should have been shown but cannot be, its name and why.
    """

    channels: str
    classes: Sequence[tuple[str, Sequence[Shown]]]
    omitted: int
    extremes: Sequence[tuple[str, Shown]]
    not_shown: Sequence[str]
    copies: Sequence[tuple[Shown, Shown]]
    refused: Sequence[str]


def draw_gallery(
    dataset: Dataset,
    inspection: Inspection,
    *,
    channels: Sequence[int] | None,
    channel_names: Sequence[str],
    draw_views: DrawViews,
) -> Gallery:
    """Returns pictures of a data set; only their files are read.

    Args:
      dataset: the data set.
      inspection: its facts.
      channels: numbers, from 1, of the one or three channels that are shown; None: the first three, or the first of
        two.
      channel_names: of all channels that the model sees.
      draw_views: draws training images after augmentation.

    Raises InputError if the images have no such channels.
    """
    given = [count for count, _ in inspection.kinds]
    seen = dataset.image_shape[-1]
    if channels is not None and (len(channels) not in (1, 3) or not all(1 <= number <= seen for number in channels)):
        raise InputError(
            f"channels is {' '.join(map(str, channels))}, but must be one or three numbers of 1 to {seen}, as "
            f"the model sees {seen} (the files have {', '.join(map(str, given))}; --data.color stored keeps theirs)."
        )
    shown_channels = choose_shown(seen) if channels is None else [number - 1 for number in channels]
    artist = _Artist(dataset, shown_channels, is_asked=channels is not None, as_stored=bool(inspection.problems))
    labels = dataset.train.labels
    counts = np.bincount(labels, minlength=len(dataset.class_names))
    by_size = np.argsort(-counts, kind="stable")
    if len(by_size) > MOST_CLASSES:  # as the table of classes has it: the largest and the smallest
        by_size = np.sort(np.concatenate([by_size[: MOST_CLASSES // 2], by_size[-MOST_CLASSES // 2 :]]))
    else:
        by_size = np.sort(by_size)
    chosen = {int(label): artist.first_readable(np.flatnonzero(labels == label)) for label in by_size}
    # partners in mixup and CutMix are neighbours in the batch, so the classes take turns
    turns = sorted((turn, index) for of_class in chosen.values() for turn, index in enumerate(of_class))
    views = draw_views(np.array([index for _, index in turns])) if turns else []
    augmented = {
        index: [(f"after augmentation, draw {draw + 1}", view[row]) for draw, view in enumerate(views)]
        for row, (_, index) in enumerate(turns)
    }
    extremes, not_shown = _draw_extremes(dataset, inspection, artist)
    pairs = inspection.copies.pairs[:MOST_PAIRS] if inspection.copies else []
    copies = [(artist.show(one), artist.show(other)) for one, other in pairs]
    return Gallery(
        channels=describe_shown(channel_names, shown_channels),
        classes=[
            (
                dataset.class_names[label],
                [s for index in of_class if (s := artist.show(Place("train", index), augmented[index]))],
            )
            for label, of_class in chosen.items()
        ],
        omitted=len(counts) - len(by_size),
        extremes=extremes,
        not_shown=not_shown,
        copies=[(one, other) for one, other in copies if one and other],
        refused=list(artist.refused.values()),
    )


def find_unreadable(dataset: Dataset) -> list[str]:
    """Reads every image from its file; returns, for each that cannot become an input, its name and why."""

    def problem(place: tuple[Images, int]) -> str | None:
        images, index = place
        try:
            images.original(index)
        except InputError as error:
            return str(error)
        return None

    places = [
        (split.images, index)
        for split in dataset.splits.values()
        if isinstance(split.images, Images)
        for index in range(len(split.images))
    ]
    with ThreadPoolExecutor() as pool:
        return [found for found in pool.map(problem, places) if found is not None]


def _draw_extremes(
    dataset: Dataset, inspection: Inspection, artist: "_Artist"
) -> tuple[list[tuple[str, Shown]], list[str]]:
    """Returns an example of each size that stands out, with what it is, and lines on those that are all damaged."""
    titles = [*_name_ends(inspection), *_name_most_changed(inspection)]
    places: dict[tuple[int, int], list[Place]] = {size: [] for _, size in titles}
    for part, split in dataset.splits.items():
        for index, head in enumerate(split.heads or ()):
            if head.size in places and len(places[head.size]) < MOST_TRIED:
                places[head.size].append(Place(part, index))
    extremes, not_shown = [], []
    for title, size in titles:
        drawn = (artist.show(place, whole=True) for place in places[size])
        if shown := next(filter(None, drawn), None):
            extremes.append((title, shown))
        else:
            tried, count = len(places[size]), inspection.sizes[size]
            which = f"the first {tried} of its {count:,} images" if count > tried else f"its {count:,} images"
            not_shown.append(f"{title}, {size[0]} x {size[1]}: none of {which} can be read")
    return extremes, not_shown


def _name_ends(inspection: Inspection) -> list[tuple[str, tuple[int, int]]]:
    """Returns the smallest and the largest size, or the one of all; none if there are no files."""
    if not inspection.from_files:
        return []
    if len(inspection.sizes) == 1:
        return [("of the size of all", next(iter(inspection.sizes)))]
    ends = (("smallest", min), ("largest", max))
    return [(title, choose(inspection.sizes, key=math.prod)) for title, choose in ends]


def _name_most_changed(inspection: Inspection) -> list[tuple[str, tuple[int, int]]]:
    """Returns the sizes of the examples that change most on their way to an input, with by how much."""
    preparation = inspection.preparation
    if preparation is None or not inspection.from_files:
        return []
    by_change = sorted(inspection.sizes, key=lambda size: -distortion(size, preparation))[:MOST_CHANGED]
    said = {"crop": "{:.0%} cut off", "squash": "squashed by {:.0%}", "pad": "{:.0%} of the input empty"}
    return [
        (said[preparation.resize].format(change), size)
        for size in by_change
        if (change := distortion(size, preparation)) >= 0.005
    ]


class _Artist:
    """Draws examples, and keeps the reasons for which some cannot be drawn.

    dataset: the data set.
    channels: indices of the channels of an input that are shown.
    is_asked: True if these were asked for, so that a file with others is shown in those of an input.
    as_stored: True to show each example in its own size, too.
    """

    def __init__(self, dataset: Dataset, channels: Sequence[int], *, is_asked: bool, as_stored: bool) -> None:
        self._dataset, self._channels, self._is_asked, self._as_stored = dataset, channels, is_asked, as_stored
        self.refused: dict[Place, str] = {}

    def first_readable(self, indices: np.ndarray) -> list[int]:
        """Returns up to `OF_EACH` of the training examples that become inputs, evenly spread."""
        if len(indices) > OF_EACH:
            spread = np.linspace(0, len(indices) - 1, OF_EACH).round().astype(int)
            indices = np.concatenate([indices[spread], np.delete(indices, spread)[:OF_EACH]])
        found: list[int] = []
        for index in indices.tolist():
            if len(found) < OF_EACH and self._input(Place("train", index)) is not None:
                found.append(index)
        return found

    def show(self, place: Place, views: Sequence[tuple[str, np.ndarray]] = (), *, whole: bool = False) -> Shown | None:
        """Returns an example with its pictures, or None if it cannot be read.

        views: pictures [h w c] that are shown after the input, with what each is.
        whole: True to show it in its own size, too, before the input.
        """
        split = self._dataset.splits[place.part]
        image = self._input(place)
        pictures = []
        size = self._dataset.image_shape[:2]
        if whole or self._as_stored:
            try:
                stored = self._stored(place)
            except InputError as error:
                self.refused[place] = str(error)
                return None
            size = stored.shape[:2]
            pictures.append(("as the file has it", stored))
        elif split.heads is not None:
            size = split.heads[place.number].size
        if image is not None:
            pictures += [("as the model sees it", image), *views]
        if not pictures:
            return None
        return Shown(
            name=str(place.number) if split.names is None else split.names[place.number],
            label=self._dataset.class_names[split.labels[place.number]],
            part=place.part,
            pictures=[(what, _url(self._coloured(pixels))) for what, pixels in pictures],
            size=(size[0], size[1]),
        )

    def _input(self, place: Place) -> np.ndarray | None:
        try:
            pixels: np.ndarray = self._dataset.splits[place.part].images[place.number]
            return pixels
        except InputError as error:
            self.refused[place] = str(error)
            return None

    def _stored(self, place: Place) -> np.ndarray:
        """Returns an image in its own size, as its file has it or, where that has other channels, in colours.

        What is transparent is then on white. Deep images are `scaled`.
        """
        images = self._dataset.splits[place.part].images
        if not isinstance(images, Images):
            pixels: np.ndarray = images[place.number]
            return pixels
        picture = images.picture(place.number)
        pixels = picture.pixels if picture.pixels.dtype == np.uint8 else scaled(picture.pixels)
        seen = self._dataset.image_shape[-1]
        if pixels.shape[2] != seen:
            with contextlib.suppress(InputError):  # channels that are no colours
                return with_channels(pixels, seen if self._is_asked else 3, alpha=picture.alpha)
        return pixels

    def _coloured(self, pixels: np.ndarray) -> np.ndarray:
        """Returns u8[h w 3] of the channels of [h w c] that are shown, or of the first of a file that has others."""
        has_channels_of_input = pixels.shape[2] == self._dataset.image_shape[-1]
        return in_colours(pixels[..., self._channels] if has_channels_of_input else pixels)


def scaled(pixels: np.ndarray) -> np.ndarray:
    """Returns f32[h w c] in 0..1 of pixels of more than 8 bits, by the depth that they use, or from least to most."""
    known = pixels[np.isfinite(pixels)]
    low, high = float(known.min(initial=0)), float(known.max(initial=0))
    try:
        low, high = choose_range({pixels.dtype.name: 1}, low, high, "") or (0.0, 255.0)
    except InputError:  # signed numbers or floats of unknown meaning
        low = float(known.min()) if known.size else 0.0
        high = float(known.max()) if known.size else 1.0
    grown = (pixels.astype(np.float32) - low) / max(high - low, 1e-12)
    return np.nan_to_num(grown.clip(0, 1)).astype(np.float32)


def _url(picture: np.ndarray) -> str:
    longest = max(picture.shape[:2])
    if longest > SHOWN:
        height, width = (max(1, round(side * SHOWN / longest)) for side in picture.shape[:2])
        picture = resize(picture, (height, width))
    return data_url(enlarged(picture, SMALL))

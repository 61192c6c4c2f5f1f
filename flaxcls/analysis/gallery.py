"""The pictures with which a data set is looked at before training: some of each class, extremes, and copies."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flaxcls.analysis.drawing import Artist, Shown, magnification, measure_types
from flaxcls.analysis.pictures import choose_shown, describe_shown
from flaxcls.data import Dataset
from flaxcls.data.copies import Place, describe_pair
from flaxcls.data.inspection import (
    Inspection,
    Refusal,
    describe_depth,
    distortion,
)
from flaxcls.data.picture import format_shape
from flaxcls.errors import InputError

MOST_CLASSES = 20
OF_EACH = 6
OF_ONE = 60  # if there is only one class, or none
MOST_CHANGED = 6
MOST_TRIED = 6  # of one size, until one can be read
MOST_PAIRS = 10

# indices i64[m] of training examples -> f32[m h w c] in 0..1 for each draw
DrawViews = Callable[[np.ndarray], Sequence[np.ndarray]]


class ShownClass(NamedTuple):
    """A class, the number of its training examples, and those that are shown."""

    name: str
    total: int
    examples: Sequence[Shown]


class ShownPair(NamedTuple):
    """Two examples that are the same: what kind of copies they are, the picture of one of them, and both."""

    kind: str
    shown: Shown
    examples: tuple[Shown, Shown]


@dataclass(frozen=True)
class Gallery:
    """The pictures of a data set.

    channels: the channels that they show, as text.
    scale: sentences on how large they are, and which values are black and white.
    has_inputs: True if some are drawn.
    classes: those that are shown.
    omitted: number of the other classes.
    extremes: the smallest and the largest example, and those that change most on their way to an input, with what each
      is.
    not_shown: a line for each of these of whose size none can be read.
    copies: pairs of examples that are the same, the worst first.
    refused: for the examples that should have been shown but do not become inputs, why.
    """

    channels: str
    scale: str
    has_inputs: bool
    classes: Sequence[ShownClass]
    omitted: int
    extremes: Sequence[tuple[str, Shown]]
    not_shown: Sequence[str]
    copies: Sequence[ShownPair]
    refused: Sequence[Refusal]


def draw_gallery(
    dataset: Dataset,
    inspection: Inspection,
    *,
    channels: Sequence[int] | None,
    channel_names: Sequence[str],
    draw_views: DrawViews,
    has_range: bool = True,
) -> Gallery:
    """Returns pictures of a data set; only their files are read.

    Args:
      dataset: the data set.
      inspection: its facts.
      channels: numbers, from 1, of the one or three channels that are shown; None: the first three, or the first of
        two.
      channel_names: of all channels that the model sees.
      draw_views: draws training images after augmentation.
      has_range: False if the files have values of several types without a range in common. Then each type is measured,
        for which all files are read.

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
    scales = {} if has_range else measure_types(dataset)
    artist = Artist(
        dataset, shown_channels, is_asked=channels is not None, as_stored=bool(inspection.problems), scales=scales
    )
    extremes, not_shown = _draw_extremes(dataset, inspection, artist)
    pairs = inspection.copies.pairs[:MOST_PAIRS] if inspection.copies else []
    classes = _draw_classes(dataset, artist, draw_views)
    return Gallery(
        channels=describe_shown(channel_names, shown_channels),
        scale=_describe_scale(dataset, scales),
        has_inputs=any(
            drawing.what == "input" for of in classes for shown in of.examples for drawing in shown.pictures
        ),
        classes=classes,
        omitted=len(dataset.class_names) - len(classes),
        extremes=extremes,
        not_shown=not_shown,
        copies=[
            ShownPair(
                describe_pair(dataset, (one, other)), artist.show(one), (artist.describe(one), artist.describe(other))
            )
            for one, other in pairs
        ],
        refused=list(artist.refused.values()),
    )


def _draw_classes(dataset: Dataset, artist: Artist, draw_views: DrawViews) -> list[ShownClass]:
    """Returns some training examples of each class, or of the largest and the smallest classes."""
    labels = dataset.train.labels
    counts = np.bincount(labels, minlength=len(dataset.class_names))
    by_size = np.argsort(-counts, kind="stable")
    if len(by_size) > MOST_CLASSES:  # as the table of classes has it: the largest and the smallest
        by_size = np.sort(np.concatenate([by_size[: MOST_CLASSES // 2], by_size[-MOST_CLASSES // 2 :]]))
    else:
        by_size = np.sort(by_size)
    most = OF_EACH if len(counts) > 1 else OF_ONE
    chosen = {int(label): artist.choose(np.flatnonzero(labels == label), most) for label in by_size}
    # partners in mixup and CutMix are neighbours in the batch, so the classes take turns
    turns = sorted((turn, index) for of_class in chosen.values() for turn, index in enumerate(of_class))
    inputs = [index for _, index in turns if artist.becomes_input(Place("train", index))]
    views = draw_views(np.array(inputs)) if inputs else []
    augmented = {index: [view[row] for view in views] for row, index in enumerate(inputs)}
    return [
        ShownClass(
            dataset.class_names[label],
            int(counts[label]),
            [artist.show(Place("train", index), augmented.get(index, ())) for index in of_class],
        )
        for label, of_class in chosen.items()
    ]


def _draw_extremes(
    dataset: Dataset, inspection: Inspection, artist: Artist
) -> tuple[list[tuple[str, Shown]], list[str]]:
    """Returns an example of each size that stands out, with what it is, and lines on those that are all damaged."""
    titles: dict[tuple[int, int], list[str]] = {}
    for title, size in [*_name_ends(inspection), *_name_most_changed(inspection)]:
        titles.setdefault(size, []).append(title)
    places: dict[tuple[int, int], list[Place]] = {size: [] for size in titles}
    for part, split in dataset.splits.items():
        for index, head in enumerate(split.heads or ()):
            if head.size in places and len(places[head.size]) < MOST_TRIED:
                places[head.size].append(Place(part, index))
    extremes, not_shown = [], []
    for size, of_size in titles.items():
        title = ", ".join(of_size)
        drawn = (artist.show(place, whole=True) for place in places[size])
        if shown := next((shown for shown in drawn if shown.pictures), None):
            extremes.append((title, shown))
        else:
            tried, count = len(places[size]), inspection.sizes[size]
            which = f"the first {tried} of its {count:,} images" if count > tried else f"its {count:,} images"
            not_shown.append(f"{title}, {format_shape(size)}: none of {which} can be read")
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


def _describe_scale(dataset: Dataset, scales: dict[str, tuple[float, float]]) -> str:
    """Returns sentences on how large pictures are drawn, and on the values that are black and white in them."""
    size = dataset.image_shape[:2]
    factor = magnification(size)
    drawn = (
        f"at {factor:.0%} of its size" if factor < 1 else f"{factor:.0f} times as large" if factor > 1 else "as it is"
    )
    line = f"A picture of {format_shape(size)}, the size of an input, is drawn {drawn}."
    value_range = dataset.preparation.value_range if dataset.preparation else None
    if scales:
        each = (f"{describe_depth(kind)}: {low:g} is black and {high:g} white" for kind, (low, high) in scales.items())
        line += (
            " The files have no range of values in common, so no input is drawn, and all files of one type have one "
            f"scale: {'; '.join(each)}."
        )
    elif value_range:
        line += f" In all pictures, {value_range[0]:g} is black and {value_range[1]:g} white."
    return line

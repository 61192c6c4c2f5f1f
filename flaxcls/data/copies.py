"""Exact copies: examples that are the same to the last byte of their files or, without files, to the last pixel."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from flaxcls.data.contents import number_of
from flaxcls.data.dataset import Dataset, Split
from flaxcls.data.images import Images


class Place(NamedTuple):
    """An example: its split and its number in it."""

    part: str
    number: int


@dataclass(frozen=True)
class Copies:
    """Examples that are the same to the last byte of their files or, without files, to the last pixel.

    groups: number of groups of two or more examples that are the same.
    within: for each split, the number of its examples that repeat another one of it.
    across: for a pair of splits, the number of examples of the first that are also in the second.
    contradictions: number of groups with several labels.
    pairs: each example that is the same as an earlier one, in the order of train, validation and test, and that one;
      pairs with two labels come first, then those in two splits.
    """

    groups: int = 0
    within: Mapping[str, int] = field(default_factory=dict)
    across: Mapping[tuple[str, str], int] = field(default_factory=dict)
    contradictions: int = 0
    pairs: Sequence[tuple[Place, Place]] = ()


def find_copies(dataset: Dataset) -> Copies | None:
    """Returns the exact copies, or None if the search would have to read every image."""
    parts = {part: found for part, split in dataset.splits.items() if (found := _contents(split)) is not None}
    if len(parts) < len(dataset.splits):
        return None
    _, group_of, counts = np.unique(np.concatenate([*parts.values()]), return_inverse=True, return_counts=True)
    labels = np.concatenate([split.labels for split in dataset.splits.values()])
    highest, lowest = np.full(len(counts), -1), np.full(len(counts), len(dataset.class_names))
    np.maximum.at(highest, group_of, labels)
    np.minimum.at(lowest, group_of, labels)
    across = {
        (first, second): count
        for first, second in (("test", "train"), ("validation", "train"), ("test", "validation"))
        if first in parts and second in parts and (count := int(np.isin(parts[first], parts[second]).sum()))
    }
    return Copies(
        groups=int((counts > 1).sum()),
        within={part: repeated for part, of in parts.items() if (repeated := len(of) - len(np.unique(of)))},
        across=across,
        contradictions=int((highest != lowest).sum()),
        pairs=_pair_copies(dataset, group_of, np.flatnonzero(counts > 1)),
    )


def _pair_copies(dataset: Dataset, group_of: np.ndarray, groups: np.ndarray) -> list[tuple[Place, Place]]:
    """Returns the pairs of `Copies`. group_of: i64[n], the group of each example. groups: those of several examples."""
    places = [Place(part, index) for part, split in dataset.splits.items() for index in range(len(split.labels))]
    members: dict[int, list[Place]] = {}
    for index in np.flatnonzero(np.isin(group_of, groups)).tolist():
        members.setdefault(int(group_of[index]), []).append(places[index])
    pairs = []
    for alike in members.values():
        for number, place in enumerate(alike[1:], 1):
            others = (other for other in alike[:number] if _label(dataset, other) != _label(dataset, place))
            pairs.append((place, next(others, alike[0])))
    return sorted(
        pairs, key=lambda pair: (_label(dataset, pair[0]) == _label(dataset, pair[1]), pair[0].part == pair[1].part)
    )


def _label(dataset: Dataset, place: Place) -> str:
    return dataset.class_names[dataset.splits[place.part].labels[place.number]]


def _contents(split: Split) -> np.ndarray | None:
    """Returns u64[n], equal for the same files or pixels, or None if every image would have to be read."""
    images = split.images
    if split.contents is not None:
        return split.contents
    if isinstance(images, Images) and not images.in_memory:
        return None

    def number(index: int) -> int:
        pixels = images.original(index) if isinstance(images, Images) else images[index]
        return number_of(b"%d %d " % pixels.shape[:2] + pixels.tobytes())

    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(number, range(len(images)))), np.uint64)


def describe_copies(copies: Copies | None) -> str:
    """Returns the line on exact copies."""
    if copies is None:
        return "exact copies: not searched, as every image would have to be read"
    if not copies.groups:
        return "exact copies: none"
    found = [f"{count:,} in {part} repeat{'s' * (count == 1)} another of it" for part, count in copies.within.items()]
    found += [
        f"{count:,} of {first} {'is' if count == 1 else 'are'} also in {second}"
        for (first, second), count in copies.across.items()
    ]
    if copies.contradictions:
        found.append(f"groups with several labels: {copies.contradictions:,}")
    return f"exact copies: {copies.groups:,} group{'s' * (copies.groups > 1)}; {', '.join(found)}"


def list_copies(copies: Copies, dataset: Dataset, most: int = 10) -> list[str]:
    """Returns a line for each of up to `most` pairs of exact copies, the worst first, and one on how many more."""

    def describe(place: Place) -> str:
        return f"{dataset.splits[place.part].ids[place.number]} ({_label(dataset, place)} in {place.part})"

    shown = copies.pairs[:most]
    lines = [f"{describe_pair(dataset, pair)}: {describe(pair[0])}, {describe(pair[1])}" for pair in shown]
    more = len(copies.pairs) - len(lines)
    return [*lines, *[f"... and {more:,} more"] * (more > 0)]


def describe_pair(dataset: Dataset, pair: tuple[Place, Place]) -> str:
    """Returns what is wrong with a pair of exact copies: they have two labels, or are in two splits, or in one."""
    one, other = pair
    if _label(dataset, one) != _label(dataset, other):
        return "two labels"
    return "in two splits" if one.part != other.part else "in one split"

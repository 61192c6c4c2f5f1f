"""What a data set is, before anything is trained on it: its source, splits, sizes, copies and memory, as values."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from flaxcls.data.copies import Copies, find_copies
from flaxcls.data.dataset import Dataset, Split
from flaxcls.data.images import Images
from flaxcls.data.notes import HOW
from flaxcls.data.picture import Head, format_shape
from flaxcls.data.preparation import Preparation
from flaxcls.data.resize import share_kept

GIB = 2**30
# what training does with files that are not readable, by data.unreadable
UNREADABLE = {
    "stop": "training stops at them; those of a folder or a table that cannot be read are left out with "
    "--data.unreadable skip",
    "skip": "training leaves them out (--data.unreadable skip)",
    "replace": "training leaves out those whose headers cannot be read, and takes the next image of the class in "
    "place of each other one (--data.unreadable replace)",
}
UNUSABLE = "training takes the next image of the class in place of each (--data.unreadable replace)"


class Refusal(NamedTuple):
    """Why a file does not become an input, with its name. is_readable: True if it can be read."""

    reason: str
    is_readable: bool


@dataclass(frozen=True)
class Memory:
    """Bytes that the data needs.

    images: all images, decoded, in the channels and type of an input.
    in_memory: True if they are, or would be, kept in memory; False if each is read when it is needed.
    limit: `data.memory` in bytes, up to which images are kept; None: the source does not read it.
    others: what else is needed, such as {"a batch": 1000}.
    available: bytes that are there, for images and all else; None: not known.
    """

    images: int
    in_memory: bool
    limit: float | None
    others: Mapping[str, int]
    available: int | None

    @property
    def needed(self) -> int:
        """The bytes that are needed at the same time."""
        return self.images * self.in_memory + sum(self.others.values())

    @property
    def is_short(self) -> bool:
        """True if more is needed than is there."""
        return self.available is not None and self.needed > self.available


@dataclass(frozen=True)
class Inspection:
    """The facts about a data set.

    name: of the data set.
    source: format and place.
    origins: for each split, its number of examples and where they come from.
    sizes: number of images of each height and width, the most frequent first.
    kinds: number of images by channels and type of their values, the most frequent first.
    from_files: True if the images are files or records of them, whose notes say what is resized.
    preparation: how images become inputs; None if that is not known.
    copies: exact copies; None: they were not searched, as that would read every image.
    memory: what is needed and what is there.
    notes: lines on what was left out, guessed or done.
    problems: lines on what training refuses.
    unreadable: for each file that cannot be read, its name and why.
    on_unreadable: what training does with these, as `data.unreadable` says it.
    unusable: for each file that can be read, but does not become an input, its name and why, if training replaces it;
      else these are problems.
    """

    name: str
    source: str
    origins: Mapping[str, tuple[int, str]]
    sizes: Mapping[tuple[int, int], int]
    kinds: Mapping[tuple[int, str], int]
    from_files: bool
    preparation: Preparation | None
    copies: Copies | None
    memory: Memory
    notes: Sequence[str] = ()
    problems: Sequence[str] = ()
    unreadable: Sequence[str] = ()
    on_unreadable: str = "stop"
    unusable: Sequence[str] = ()


def inspect_dataset(
    dataset: Dataset,
    *,
    memory_limit: float,
    available: int | None,
    others: Mapping[str, int] | None = None,
    problems: Sequence[str] = (),
    on_unreadable: str = "stop",
) -> Inspection:
    """Returns the facts about a data set. Pixels are read only of images in memory, to find copies.

    Args:
      dataset: the data set.
      memory_limit: `data.memory`, in GiB.
      available: bytes of memory that are there, without the images, if they are in memory already; None: not known.
      others: bytes of what else is kept in memory, by its name.
      problems: lines on what training refuses.
      on_unreadable: `data.unreadable`.
    """
    heads = {part: split.heads or _heads_of(split) for part, split in dataset.splits.items()}
    area = sum(math.prod(head.size) for of_part in heads.values() for head in of_part)
    from_files = dataset.train.heads is not None
    return Inspection(
        name=dataset.name,
        source=dataset.source or dataset.name,
        origins={
            part: (len(split.labels), dataset.origins.get(part, "given")) for part, split in dataset.splits.items()
        },
        sizes=dict(Counter(head.size for of_part in heads.values() for head in of_part).most_common()),
        kinds=dict(
            Counter((head.channels, head.dtype) for of_part in heads.values() for head in of_part).most_common()
        ),
        from_files=from_files,
        preparation=dataset.preparation,
        copies=find_copies(dataset),
        memory=_memory(dataset, area, memory_limit if from_files else None, available, others or {}),
        notes=dataset.notes,
        problems=problems,
        unreadable=dataset.unreadable,
        on_unreadable=on_unreadable,
    )


def with_refusals(inspection: Inspection, refusals: Sequence[Refusal]) -> Inspection:
    """Returns the facts with further files that do not become an input."""
    replaces = inspection.on_unreadable == "replace"
    unreadable = [refusal.reason for refusal in refusals if not refusal.is_readable]
    unusable = [refusal.reason for refusal in refusals if refusal.is_readable]
    return replace(
        inspection,
        unreadable=list(dict.fromkeys([*inspection.unreadable, *unreadable])),
        unusable=list(dict.fromkeys(unusable)) if replaces else (),
        problems=list(dict.fromkeys([*inspection.problems, *(() if replaces else unusable)])),
    )


def _heads_of(split: Split) -> Sequence[Head]:
    """Returns the heads of images without files: all have the size of an input, but for `Images` in memory."""
    images = split.images
    if isinstance(images, Images) and images.in_memory:
        shapes = [images.original(index).shape for index in range(len(images))]
        return [Head(shape[:2], shape[2], images.dtype.name) for shape in shapes]
    height, width, channels = images.shape[1:]
    return [Head((height, width), channels, images.dtype.name)] * len(images)


def _memory(
    dataset: Dataset, area: int, limit: float | None, available: int | None, others: Mapping[str, int]
) -> Memory:
    images = dataset.train.images
    needed = area * images.shape[-1] * images.dtype.itemsize
    held = not isinstance(images, Images) or images.in_memory
    there = None if available is None else available + held * needed
    fits = limit is None or needed <= (limit * GIB if there is None else min(limit * GIB, there))
    return Memory(needed, held if limit is None else fits, None if limit is None else limit * GIB, others, there)


def distortion(size: tuple[int, int], preparation: Preparation) -> float:
    """Returns how much an image of this size loses or changes on its way to an input: 0 is nothing, towards 1 is all.

    For crop, it is the share of the image that is cut; for squash, by how much the proportions change; for pad, the
    share of the input that is empty.
    """
    if size == preparation.size:
        return 0.0
    return 1 - share_kept(size, preparation.size)


def describe_memory(memory: Memory) -> str:
    """Returns the line on the memory of the images, of all else, and of the machine."""
    limit = "" if memory.limit is None else f" (data.memory: {memory.limit / GIB:g} GiB)"
    way = "kept in memory" if memory.in_memory else "read from their files in each epoch"
    if not memory.in_memory and memory.limit is not None and memory.images <= memory.limit:
        way += ", as they take more than is there"
    more = "".join(f", {name} {as_bytes(count)}" for name, count in memory.others.items())
    there = "" if memory.available is None else f"; {as_bytes(memory.available)} are there"
    return f"memory: the decoded images take {as_bytes(memory.images)} and are {way}{limit}{more}{there}"


def warn_of_memory(memory: Memory) -> str | None:
    """Returns the warning that more memory is needed than is there, or None."""
    if not memory.is_short:
        return None
    advice = "lower data.memory, so that images are read when they are needed" if memory.in_memory else "lower the size"
    return (
        f"warning: about {as_bytes(memory.needed)} of memory are needed, but {as_bytes(memory.available or 0)} are "
        f"there: {advice}, or the system may end the process"
    )


def describe_splits(inspection: Inspection) -> list[str]:
    """Returns a line for each split with the number of its examples and where they come from."""
    return [f"{part}: {count:,}, {origin}" for part, (count, origin) in inspection.origins.items()]


def describe_sizes(inspection: Inspection, most: int = 5) -> str:
    """Returns the line on the sizes of the images: the most frequent, the smallest and the largest."""
    sizes = inspection.sizes
    if len(sizes) == 1:
        return f"all {format_shape(next(iter(sizes)))}"
    common = ", ".join(f"{format_shape(size)} ({count:,})" for size, count in list(sizes.items())[:most])
    more = f" and {len(sizes) - most:,} more" if len(sizes) > most else ""
    least, largest = min(sizes, key=math.prod), max(sizes, key=math.prod)
    return f"{len(sizes):,} sizes, {common}{more}; smallest {format_shape(least)}, largest {format_shape(largest)}"


def describe_kinds(inspection: Inspection) -> str:
    """Returns the line on channels and depth of the images."""
    total = sum(inspection.kinds.values())
    return ", ".join(
        f"{channels} channel{'s' * (channels > 1)} of {describe_depth(dtype)}"
        + (f" ({count:,})" if count < total else "")
        for (channels, dtype), count in inspection.kinds.items()
    )


def describe_preparation(inspection: Inspection) -> str:
    """Returns the line on what the model sees. Of files, the notes say what is resized, and which values they have."""
    preparation = inspection.preparation
    if preparation is None:
        return "the model sees them as they are"
    others = sum(count for size, count in inspection.sizes.items() if size != preparation.size)
    done = "; none is resized"
    if others:
        resized = f"; {others:,} {'is' if others == 1 else 'are'} {HOW[preparation.resize]} to that"
        done = "" if inspection.from_files else resized
    channels = f"{preparation.channels} channel{'s' * (preparation.channels > 1)}"
    if preparation.alpha:
        channels += f" ({', '.join(preparation.name_channels())})"
    sees = "would see" if inspection.problems else "sees"
    return f"the model {sees} {format_shape(preparation.size)}, {channels}{done}"


def as_bytes(count: float) -> str:
    """Returns a number of bytes in GiB, MiB or KiB."""
    for unit, name in ((GIB, "GiB"), (2**20, "MiB")):
        if count >= unit / 10:
            return f"{count / unit:,.1f} {name}"
    return f"{count / 1024:,.1f} KiB"


def describe_depth(dtype: str) -> str:
    """Returns the depth of values of a type as text."""
    return "floating-point numbers" if dtype.startswith("float") else f"{np.dtype(dtype).itemsize * 8} bits"

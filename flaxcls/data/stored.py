"""Pictures that are read when they are needed: each from a file, or each channel from a file of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from flaxcls.data.decode import name_errors, read_head, read_picture
from flaxcls.data.picture import Head, Picture, check_values, format_shape, shared
from flaxcls.data.resize import resize
from flaxcls.errors import InputError
from flaxcls.storage import printable

# The endings of names that say that a file is an image; a file without one may be an image by its content.
SUFFIXES = (
    *(".avif", ".bmp", ".dds", ".gif", ".heic", ".heif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".jxl", ".pam", ".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff"),
    ".webp",
)


class Stored(Protocol):
    """Pictures, each read when it is requested. Reading may raise InputError.

    What `take` returns for a batch is pickled and sent to a worker process, so it should be small.
    """

    def __len__(self) -> int:
        """Returns the number of pictures."""

    def __getitem__(self, index: int) -> Picture:
        """Returns one picture."""

    def head(self, index: int) -> Head:
        """Returns what is known of one picture without decoding it."""

    def name(self, index: int) -> str:
        """Returns the name of a picture for messages."""

    def take(self, indices: np.ndarray) -> "Stored":
        """Returns the pictures at `indices`, i64[m]."""


def read_bands(paths: Sequence[Path], most_pixels: int | None = None) -> Picture:
    """Returns the picture whose channels are these files. Other sizes are resized to that of the first.

    Raises InputError if a file cannot be read or has several channels, or if no channel has a value.
    """
    size, bands, dtypes = None, [], []
    for path in paths:
        band = read_picture(path, most_pixels, is_channel=True).pixels
        if band.shape[2] != 1:
            raise InputError(
                f"{printable(path)} has {band.shape[2]} channels, but with several columns in data.path_column "
                "each file holds one: name the columns of grey images."
            )
        dtypes.append(band.dtype.name)
        size = size or band.shape[:2]
        resizable = band if band.dtype in (np.uint8, np.uint16) else band.astype(np.float32)
        bands.append(band if band.shape[:2] == size else resize(resizable, size))
    picture = Picture(np.concatenate(bands, axis=2), channel_dtypes=_differing(dtypes))
    return name_errors(printable(paths[0]), lambda: check_values(picture))


def _differing(dtypes: Sequence[str]) -> tuple[str, ...]:
    """Returns the types of the channels, or nothing if all are the same."""
    return tuple(dtypes) if len(set(dtypes)) > 1 else ()


class Files:
    """The pictures in files, as `Stored`. most_pixels: of a picture; None: as many as Pillow reads."""

    def __init__(self, paths: Sequence[Path], most_pixels: int | None = None) -> None:
        self._paths, self._most_pixels = paths, most_pixels

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Picture:
        return read_picture(self._paths[index], self._most_pixels)

    def head(self, index: int) -> Head:
        """Returns what the header of the file says."""
        return read_head(self._paths[index], self.name(index), self._most_pixels)

    def name(self, index: int) -> str:
        """Returns the path of a picture."""
        return printable(self._paths[index])

    def take(self, indices: np.ndarray) -> "Files":
        """Returns the pictures at `indices`, i64[m]."""
        return Files([self._paths[index] for index in indices], self._most_pixels)


class Bands:
    """Pictures whose channels are files of their own, as `Stored`. The first one's size is that of the picture.

    paths: the files of each picture.
    most_pixels: see `Files`.
    columns: names of the channels.
    """

    def __init__(
        self, paths: Sequence[tuple[Path, ...]], most_pixels: int | None = None, columns: Sequence[str] = ()
    ) -> None:
        self._paths, self._most_pixels, self._columns = paths, most_pixels, columns

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Picture:
        return read_bands(self._paths[index], self._most_pixels)

    def head(self, index: int) -> Head:
        """Returns what the headers of the files say together."""
        heads = [read_head(path, printable(path), self._most_pixels) for path in self._paths[index]]
        dtypes = [head.dtype for head in heads]
        dtype = np.result_type(*map(np.dtype, dtypes)).name
        found = (self._describe_sizes(heads), next((head.note for head in heads if head.note), ""))
        note = ", and ".join(filter(None, found))
        return shared(Head(heads[0].size, len(heads), dtype, note, channel_dtypes=_differing(dtypes)))

    def _describe_sizes(self, heads: Sequence[Head]) -> str:
        """Returns the note on channels that have another size than the first, if there are some."""
        others: dict[tuple[int, int], list[str]] = {}
        for number, head in enumerate(heads):
            if head.size != heads[0].size:
                name = self._columns[number] if self._columns else f"channel {number + 1}"
                others.setdefault(head.size, []).append(name)
        named = "; ".join(f"{format_shape(size)}: {', '.join(names)}" for size, names in others.items())
        first = format_shape(heads[0].size)
        return f"channels of several sizes, read at that of the first, {first} ({named})" if others else ""

    def name(self, index: int) -> str:
        """Returns the path of the first channel of a picture."""
        return printable(self._paths[index][0])

    def take(self, indices: np.ndarray) -> "Bands":
        """Returns the pictures at `indices`, i64[m]."""
        return Bands([self._paths[index] for index in indices], self._most_pixels, self._columns)

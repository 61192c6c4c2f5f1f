"""What is done with a decoded picture before the model sees it. A run stores it, so that predictions do the same."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flaxcls.data.picture import Head, Picture
from flaxcls.data.resize import fit_image, with_channels
from flaxcls.errors import InputError

USUAL_SIDE = 224  # pixels; the size for ImageNet, for which most networks are made
LARGEST = 256 * 256  # pixels of images that are not made smaller unless they are asked to be
STRIDE = 32  # pixels; sizes that are chosen are multiples of it, as most networks halve them five times
DEPTHS = (8, 10, 12, 14, 16)  # bits


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes an input of the model.

    size: height and width of the input.
    channels: number of its channels.
    resize: how a picture of another size is brought to it, see `fit_image`.
    value_range: values of the file that become 0 and 1, in float32; None: uint8, of files with 8 bits.
    of_arrays: True if the range is that of floats in arrays, which says nothing of files. Whole numbers in a file are
      then divided by the largest of their type; signed ones, which may begin anywhere, are refused.
    of_bytes: True if the range is also that of files with 8 bits, some of which the run was trained on.
    alpha: True if the last channel of an input is transparency, which only names it.
    """

    size: tuple[int, int]
    channels: int
    resize: str = "crop"
    value_range: tuple[float, float] | None = None
    of_arrays: bool = False
    of_bytes: bool = False
    alpha: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of an input: uint8 in 0..255, or float32 in 0..1."""
        return np.dtype(np.uint8 if self.value_range is None else np.float32)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c) of an input."""
        return (*self.size, self.channels)

    def as_record(self) -> dict[str, Any]:
        """Returns the fields as JSON has them; alpha only if it is true, as earlier versions do not know it."""
        fields = {name: value for name, value in asdict(self).items() if name != "alpha" or value}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Preparation":
        """Returns the preparation in the record of a checkpoint; earlier versions cropped images of 8 bits."""
        if "preparation" not in record:
            height, width, channels = record["image_shape"]
            return cls((height, width), channels)
        values: Any = {name: tuple(v) if isinstance(v, list) else v for name, v in record["preparation"].items()}
        return cls(**values)

    def name_channels(self, columns: Sequence[str] = ()) -> list[str]:
        """Returns the names of the channels of an input, as far as they are known; others are numbered from 1.

        columns: the columns of a table that name the files of each channel, if it has several.
        """
        if len(columns) > 1:
            return list(columns)
        colours = self.channels - self.alpha
        known = {1: ["grey"], 3: ["red", "green", "blue"]}.get(colours)
        return (known or [f"channel {number}" for number in range(1, colours + 1)]) + ["alpha"] * self.alpha

    @property
    def is_deep(self) -> bool:
        """True if the range is one of files with more than 8 bits, in which those of 8 would be black, or white."""
        if self.value_range is None or self.of_arrays or self.of_bytes:
            return False
        low, high = self.value_range
        return low < 0 or high > 255 or high == 1

    def check_depth(self, dtypes: Sequence[str]) -> None:
        """Raises ValueError for values of 8 bits where the range is that of deeper files, and the other way round.

        dtypes: names of the types of the values, in the file or in those of the channels.
        """
        if self.value_range is None and set(dtypes) != {"uint8"}:
            raise ValueError(
                f"its values are {' and '.join(sorted(set(dtypes)))}, but the run was trained on files of 8 bits: give "
                "files of the same depth, or train on deeper ones."
            )
        if self.is_deep and "uint8" in dtypes:
            assert self.value_range is not None
            low, high = self.value_range
            what = "it has" if len(set(dtypes)) == 1 else "one of its channels has"
            raise ValueError(
                f"{what} 8 bits, but the run was trained on files whose values {low:g}..{high:g} become 0..1: give "
                "files of the same depth."
            )

    def has_range_for(self, dtype: np.dtype[Any]) -> bool:
        """True if values of this type are brought to 0..1 by the range, and not by that of their type."""
        return self.value_range is not None and not (self.of_arrays and dtype.kind in "iu")

    def unify(self, picture: Picture) -> np.ndarray:
        """Returns a picture in the channels and values of an input, still in its own size.

        Values outside of the range become its ends. NaN, which also stands for no data, and infinity become 0.

        Raises ValueError if the picture has other channels, a greater depth, or values whose range is not known.
        """
        pixels, alpha = picture.pixels, picture.alpha
        if self.value_range is None:
            self.check_depth(picture.dtypes)
            return with_channels(pixels, self.channels, alpha=alpha)
        low, high = self.value_range
        if not self.has_range_for(pixels.dtype):
            if pixels.dtype.kind == "i":
                raise ValueError(
                    f"its values are {pixels.dtype} of {pixels.min()} to {pixels.max()}, whose range is not known, as "
                    "the run was trained on arrays of floats in 0..1: bring them to 0..1 as those were."
                )
            low, high = 0, np.iinfo(pixels.dtype).max
        scaled = ((pixels.astype(np.float64) - low) / (high - low)).clip(0, 1).astype(np.float32)
        scaled[~np.isfinite(pixels)] = 0
        if alpha:
            top = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else 1
            scaled[..., -1] = pixels[..., -1].astype(np.float32) / top
        return with_channels(scaled, self.channels, alpha=alpha)

    def fit(self, image: np.ndarray) -> np.ndarray:
        """Returns an image, as `unify` returns it, in the size of an input."""
        return fit_image(image, self.size, self.resize)

    def __call__(self, picture: Picture) -> np.ndarray:
        """Returns the picture as an input [h w c]."""
        return self.fit(self.unify(picture))


def choose_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Returns the height and width of an input for images of these sizes: the one that more than half of them have.

    If it is large, a smaller one of about its proportions; if there is none, the usual square.
    """
    size, count = Counter(sizes).most_common(1)[0]
    if 2 * count <= len(sizes):
        return USUAL_SIDE, USUAL_SIDE
    if size[0] * size[1] <= LARGEST:
        return size
    scale = USUAL_SIDE / (size[0] * size[1]) ** 0.5
    height, width = (max(STRIDE, round(side * scale / STRIDE) * STRIDE) for side in size)
    return height, width


def explain_size(sizes: Sequence[tuple[int, int]]) -> str:
    """Returns why `choose_size` chooses the size that it does, as the end of a sentence."""
    size, count = Counter(sizes).most_common(1)[0]
    if 2 * count <= len(sizes):
        return "as no size has more than half"
    if size[0] * size[1] <= LARGEST:
        return "the size of most"
    return f"as they are large: about their proportions, at about the area of {USUAL_SIDE}x{USUAL_SIDE}"


def choose_channels(color: str, heads: Sequence[Head], name: str) -> int:
    """Returns the number of channels of an input. Raises InputError if they are those of the files, which differ."""
    if color != "stored":
        return 3 if color == "rgb" else 1
    counts = Counter(head.channels for head in heads)
    if len(counts) > 1:
        found = (
            f"{channels} channel{'s' * (channels > 1)} ({count:,} image{'s' * (count > 1)})"
            for channels, count in counts.most_common()
        )
        raise InputError(
            f"data.color is stored, but the images of {name} have {' and '.join(found)}: choose data.color rgb or "
            "grey, or leave some out (--data.exclude)."
        )
    return next(iter(counts))


def check_columns(heads: Sequence[Head], columns: Sequence[str], name: str) -> None:
    """Raises InputError if the channels of images are files of several types, which have no range in common.

    columns: names of the columns of the files, in the order of the channels.
    """
    kinds = Counter(head.channel_dtypes for head in heads if head.channel_dtypes)
    if kinds:
        found = (
            ", ".join(f"{column} {dtype}" for column, dtype in zip(columns, dtypes, strict=True))
            + f" ({count:,} images)"
            for dtypes, count in kinds.most_common(3)
        )
        raise InputError(
            f"the columns of {name} have values of several types: {'; '.join(found)}. All channels have one range: "
            "bring the files to one depth, or name one range for the values of all by --data.value-range LOW HIGH "
            "(augment.normalize then evens out what each channel fills of it)."
        )


def choose_range(dtypes: Mapping[str, int], low: float, high: float, name: str) -> tuple[float, float] | None:
    """Returns the range of values that becomes 0..1, or None for files of 8 bits.

    Unsigned numbers get the range of the depth that they use, such as 0..4095 for 12 bits in 16. Signed numbers that
    are stored as unsigned ones, 32768 higher, start there. Floating-point numbers in 0..1 keep their values.

    Args:
      dtypes: types of the values in the files, and the number of files of each.
      low, high: least and greatest value in all of them.
      name: of the data set.

    Raises InputError if the range cannot be known.
    """
    if dtypes.keys() <= {"uint8"}:
        return None
    if dtypes.keys() == {"uint16"}:
        start = 2**15 if low >= 2**15 else 0
        bits = next(bits for bits in DEPTHS if high - start < 2**bits)
        return float(start), float(start + 2**bits - 1)
    if dtypes.keys() == {"float32"} and 0 <= low <= high <= 1:
        return 0.0, 1.0
    if len(dtypes) > 1:
        raise InputError(
            f"the images of {name} have values of several types: "
            + ", ".join(f"{kind} in {count:,} file{'s' * (count > 1)}" for kind, count in sorted(dtypes.items()))
            + ". Leave some out (--data.exclude), bring them to one, or name one range for the values of all by "
            "--data.value-range LOW HIGH."
        )
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-30)) - 1.5)  # the range is 30 to 300 of them
    raise InputError(
        f"the images of {name} have values of {' and '.join(sorted(dtypes))}, from {low:g} to {high:g}, whose range is "
        "not known: name the values that become black and white by --data.value-range LOW HIGH, for example "
        f"{math.floor(low / step) * step:g} {math.ceil(high / step) * step:g}."
    )

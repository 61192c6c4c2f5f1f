"""Lines for whoever trains on images: what is done to them on their way to a model, and what of files is not read."""

import math
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from flaxcls.data.picture import Extent, Head, describe_some, format_shape
from flaxcls.data.preparation import DEPTHS, Preparation
from flaxcls.data.resize import share_kept

FLAT = 0.01  # of the range; an image that uses less is one grey to a model
DIM = 0.125  # of the range; an image that uses less may have a lower depth than others, or others have few extremes
HOW = {"crop": "cropped", "squash": "squashed", "pad": "padded"}
MOST_KINDS = 6  # of what is not read that have a line each


def notes_on_values(
    extents: Collection[Extent], preparation: Preparation, *, is_known: bool = True, options: bool = True, why: str = ""
) -> list[str]:
    """Returns lines on values that become black and white, that lie outside of that range, or that are NaN.

    Args:
      extents: of the pictures.
      preparation: has the range.
      is_known: False if the range is refused.
      options: True to name the option that decides it.
      why: reason for the range, as the end of a sentence.
    """
    if preparation.value_range is None or not extents:
        return []
    low, high = preparation.value_range
    least, greatest = min(extent.low for extent in extents), max(extent.high for extent in extents)
    found, total = f"values of {least:g}..{greatest:g} in the files", len(extents)
    option = _name_options(options, "--data.value-range")
    done = f": {low:g} becomes black and {high:g} white{why}{option}"
    notes = [found + (done if is_known else "; which of them are black and white is not known")]
    outside = sum(extent.low < low or extent.high > high for extent in extents)
    if outside:
        notes.append(f"{describe_some(outside, total, 'has', 'have')} values outside of that, which become its ends")
    used = [(min(extent.high, high) - max(extent.low, low)) / (high - low) for extent in extents]
    flat, dim = sum(share < FLAT for share in used), sum(FLAT <= share < DIM for share in used)
    if flat:
        uses = describe_some(flat, total, "uses", "use")
        notes.append(f"{uses} less than {FLAT:.0%} of that, so that a model sees hardly any differences")
    if dim:
        uses = describe_some(dim, total, "uses", "use")
        notes.append(f"{uses} {FLAT:.0%} to {DIM:.1%} of that, which is little contrast to a model{option}")
    missing = sum(extent.missing > 0 for extent in extents)
    if missing and is_known:
        count, have = sum(extent.missing for extent in extents), describe_some(missing, total, "has", "have")
        notes.append(f"{have} {count:,} NaN or no-data values, which become {low:g}")
    return notes


def explain_range(low: float, high: float) -> str:
    """Returns why `choose_range` chooses a range, as the end of a sentence."""
    if (low, high) == (0, 1):
        return ", as they are floating-point numbers in 0..1"
    *before, last = map(str, DEPTHS)
    above = f" above {low:g}" if low else ""
    bits = round(math.log2(high - low + 1))
    return f", as {bits} bits{above} are the fewest of {', '.join(before)} and {last} that hold them"


def notes_on_resizing(
    heads: Sequence[Head], preparation: Preparation, *, options: bool = True, why: str = ""
) -> list[str]:
    """Returns a line on images that are brought to another size.

    options: True to name the options that decide it. why: reason for the size, as the end of a sentence.
    """
    size, how = preparation.size, preparation.resize
    others = [head.size for head in heads if head.size != size]
    if not others:
        return []
    counts = Counter(others)
    common, count = counts.most_common(1)[0]
    found = f", but {format_shape(common)}"
    if len(counts) > 1:
        most = "most of them" if 2 * count > len(others) else f"{len(counts):,} sizes, most often"
        found = f" ({most} {format_shape(common)})"
    line = (
        f"{describe_some(len(others), len(heads), 'is', 'are')} not {format_shape(size)}{found}: {HOW[how]} to that"
        f"{why and f', {why}'}{_name_options(options, '--data.image-size, --data.resize')}"
    )
    if how == "crop":
        kept = [share_kept(other, size) for other in others]
        line += f"; evaluation sees {np.mean(kept):.0%} of them on average, {min(kept):.0%} at least"
    return [line]


def notes_on_channels(heads: Sequence[Head], preparation: Preparation, *, options: bool = True) -> list[str]:
    """Returns lines on images that are brought to other channels. options: True to name the option that decides it."""
    notes = []
    grey = sum(head.channels - head.alpha == 1 for head in heads)
    if preparation.channels == 3 and grey:
        done = describe_some(grey, len(heads), "is grey and gets", "are grey and get")
        notes.append(f"{done} three equal channels{_name_options(options, '--data.color grey')}")
    colours = sum(head.channels - head.alpha == 3 for head in heads)
    if preparation.channels == 1 and colours:
        done = describe_some(colours, len(heads), "is in colours, which become", "are in colours, which become")
        notes.append(f"{done} grey{_name_options(options, '--data.color')}")
    transparent = sum(head.alpha for head in heads)
    if preparation.channels in (1, 3) and transparent:
        done = describe_some(transparent, len(heads), "is transparent and is", "are transparent and are")
        notes.append(f"{done} laid on white")
    return notes


def notes_on_files(heads: Sequence[Head]) -> list[str]:
    """Returns lines on what of the files is not read."""
    kinds = Counter(head.note for head in heads if head.note).most_common()
    found = [(count, note) for note, count in kinds[:MOST_KINDS]]
    if more := sum(count for _, count in kinds[MOST_KINDS:]):
        found.append((more, "other parts that are not read"))
    return [f"{describe_some(count, len(heads), 'has', 'have', what='file')} {note}" for count, note in found]


def notes_on_heads(heads: Sequence[Head], preparation: Preparation, *, options: bool = True) -> list[str]:
    """Returns the lines of `notes_on_resizing`, `notes_on_channels` and `notes_on_files`."""
    return [
        *notes_on_resizing(heads, preparation, options=options),
        *notes_on_channels(heads, preparation, options=options),
        *notes_on_files(heads),
    ]


def _name_options(options: bool, names: str) -> str:
    return f" ({names})" if options else ""

"""What model.json says about the input: how a file becomes it, and what the program then does with it.

Formulas are Python, so that who follows them can run them. `tests/analysis/export/by_hand.py` does.
"""

from collections.abc import Sequence
from typing import Any

from flaxcls.analysis.classifier import Classifier
from flaxcls.data.preparation import Preparation

VERSION = 1  # of what `describe_preparation` returns; it grows when a step or a field changes its meaning

READING = (
    "Decode the first picture of the file, without its colour profile, and turn it upright by its orientation, in EXIF "
    "or in a TIFF, as Pillow's ImageOps.exif_transpose does. Grey pictures (1, L and LA in Pillow) have one channel. "
    'Others of 8 bits become RGB, as by Pillow\'s convert("RGB"): palettes, CMYK, YCbCr. A TIFF of other channels than '
    "grey or colour keeps them. Transparency, also that of a palette or of a single colour, is one more channel, the "
    "last; colours that a TIFF has multiplied by it are divided by it. Fewer than 8 bits become 0..255. Whole numbers "
    "of more than 8 bits are those of the file, and floating-point numbers are float32. Pillow keeps them in grey PNG "
    "and TIFF (I;16, I and F), but cuts those of several channels to 8 bits without a word, and stretches those of "
    "PGM, PPM and JPEG 2000. Then read TIFF by tifffile.imread(file, key=0), and the others by "
    "cv2.imdecode(numpy.fromfile(file, numpy.uint8), cv2.IMREAD_UNCHANGED), where blue is first and red third, and "
    "grey with transparency has three equal colours. Byte 24 of a PNG, counted from 0, is its number of bits. Of AVIF, "
    "and of HEIC in colour, 8 bits are read. What a TIFF marks as no data (GDAL_NODATA) is NaN, and 0 is black."
)
BANDS = (
    " The channels of a picture are files of their own, each with one channel, from the columns named in files, in "
    "this order. One of another size than the first is scaled to it, as scaling says, before its values become others: "
    "in 8 bits by `uint8`; else by `others`, in float32, and numbers of 16 bits without a sign are then rounded to "
    "whole ones."
)
# how a picture of H rows and W columns comes to h rows and w columns
PLACES = {
    "squash": ("Scale the whole picture to h rows and w columns, whatever its proportions.", {}),
    "crop": (
        "Take `rows` rows from `top` on and `columns` columns from `left` on, and scale them to h rows and w columns.",
        {
            "scale": "min(H / h, W / w)",
            "rows": "max(1, round(h * scale))",
            "columns": "max(1, round(w * scale))",
            "top": "(H - rows) // 2",
            "left": "(W - columns) // 2",
        },
    ),
    "pad": (
        "Scale the whole picture to `rows` rows and `columns` columns, and put it from row `top` and column `left` on "
        "into h rows and w columns of zeros: black, before the program normalises.",
        {
            "scale": "min(h / H, w / W)",
            "rows": "min(h, max(1, round(H * scale)))",
            "columns": "min(w, max(1, round(W * scale)))",
            "top": "(h - rows) // 2",
            "left": "(w - columns) // 2",
        },
    ),
}


def describe_input(preparation: Preparation, bands: Sequence[str] = ()) -> dict[str, Any]:
    """Returns type, layout and meaning of the images that the program takes.

    bands: names of the channels, if each is a file of its own.
    """
    kind, values = ("u8", "0..255") if preparation.value_range is None else ("f32", "0..1")
    colours = {1: "grey", 3: "RGB"}.get(preparation.channels, f"{preparation.channels} channels")
    names = preparation.name_channels(bands)
    if bands or preparation.alpha:
        colours = f"the channels {', '.join(names)}"
    return {
        "images": f"{kind}[b {' '.join(map(str, preparation.shape))}]",
        "values": f"{values}, {colours}",
        "dtype": preparation.dtype.name,
        "axes": ["image", "row", "column", "channel"],
        "channels": names,
    }


def describe_preparation(preparation: Preparation, bands: Sequence[str] = ()) -> dict[str, Any]:
    """Returns what turns a file into an image that the program takes: the values of `Preparation`, and steps.

    Each step has its name, what is to be done, and the values and formulas for it.

    bands: names of the channels, if each is a file of its own.
    """
    reading: dict[str, Any] = {"step": "read", "text": READING}
    if bands:
        takes = _depths_taken(preparation)
        scaling = {name: _describe_scaling(integers=name == "uint8", channels=1) for name in takes if takes[name]}
        reading |= {"text": READING + BANDS, "files": list(bands), "scaling": scaling}
    return {
        "version": VERSION,
        **preparation.as_record(),
        "notation": "Formulas are Python: round() takes the even one of two equally near numbers, // rounds down. "
        "H and W are the height and width of the picture before a step, h and w those of the input.",
        "steps": [
            reading,
            _describe_values(preparation),
            _describe_transparency(preparation),
            _describe_channels(preparation),
            _describe_resize(preparation),
        ],
    }


def describe_program(classifier: Classifier) -> dict[str, Any]:
    """Returns what the program itself does with its input, which is not to be done before."""
    augment = classifier.config.augment
    views = {
        "flip": augment.eval_flip,
        "shift": augment.eval_shift,
        "pattern": augment.eval_pattern,
        "fill": augment.crop_fill,
    }
    return {
        "text": "The program does the rest, in this order: it divides by `divisor`, subtracts `mean` and divides by "
        "`std` in each channel, computes the logits, and divides them by the temperature for the probabilities, their "
        "softmax. With views, the logits are a mean over several images: the normalised one, whose pixel in row r and "
        "column c is at (r, c); if shift is not 0, those that hold there its pixel at (r + shift, c), (r - shift, c), "
        "(r, c + shift) and (r, c - shift) for the pattern cross, or at (r + shift, c + shift) and "
        "(r - shift, c - shift) for diagonal; and if flip is true, the mirror images of all, left to right. Outside of "
        "the image is 0 if fill is zero; if it is reflect, the image mirrored at its first or last pixel, which is not "
        "repeated. In a cross, all have one weight; in a diagonal, those that are not moved have together one half. "
        "null: not done.",
        "divisor": 255 if classifier.preparation.value_range is None else None,
        "mean": None if classifier.mean is None else list(classifier.mean),
        "std": None if classifier.std is None else list(classifier.std),
        "views": views if augment.eval_flip or augment.eval_shift else None,
    }


def _depths_taken(preparation: Preparation) -> dict[str, bool]:
    """Returns whether files of 8 bits, and those of more bits or of floating-point numbers, are for the model."""
    return {"uint8": not preparation.is_deep, "others": preparation.value_range is not None}


def _describe_values(preparation: Preparation) -> dict[str, Any]:
    takes = {"takes": _depths_taken(preparation)}
    if preparation.value_range is None:
        return {
            "step": "values",
            **takes,
            "text": "8 bits, 0..255, stay. A file of more bits or of floating-point numbers is not for this model.",
            "dtype": "uint8",
        }
    low, high = preparation.value_range
    further = ""
    if preparation.of_arrays:
        further = (
            " Whole numbers without a sign have the range of their type: low is 0, high is `largest`. A file of signed "
            "ones is not for this model."
        )
    if preparation.is_deep:
        further += " A file of 8 bits is not for this model."
    return {
        "step": "values",
        **takes,
        "text": f"The values of the file, of whatever type, become 0..1 by `value`, and NaN and infinity become 0."
        f"{further} Transparency becomes `alpha` instead. largest: the largest value of the type, such as 255 or "
        "65535; 1 for floating-point numbers.",
        "low": low,
        "high": high,
        "formulas": {
            "value": "float32(min(max((float64(value) - low) / (high - low), 0), 1))",
            "alpha": "float32(alpha) / float32(largest)",
        },
        "dtype": "float32",
    }


def _describe_transparency(preparation: Preparation) -> dict[str, Any]:
    integers = preparation.value_range is None
    return {
        "step": "transparency",
        "text": "If the last channel is transparency (alpha), and the number of channels is not yet "
        f"{preparation.channels}: lay each of the others on white, and drop it.",
        "formulas": {
            "value": "(value * alpha + 255 * (255 - alpha) + 127) // 255" if integers else "value * alpha + (1 - alpha)"
        },
    }


def _describe_channels(preparation: Preparation) -> dict[str, Any]:
    refused = f"A picture of another number of channels than {preparation.channels} is not for this model then."
    if preparation.channels == 3:
        return {"step": "channels", "text": f"Repeat a single channel three times. {refused}"}
    if preparation.channels != 1:
        return {"step": "channels", "text": f"The channels stay, in their order. {refused}"}
    integers = preparation.value_range is None
    return {
        "step": "channels",
        "text": f"Three channels become one, their luminance (ITU-R BT.601). {refused}",
        "formulas": {
            "value": "(9798 * red + 19235 * green + 3735 * blue + 16384) >> 15"
            if integers
            else "0.299 * red + 0.587 * green + 0.114 * blue"
        },
    }


def _describe_resize(preparation: Preparation) -> dict[str, Any]:
    text, formulas = PLACES[preparation.resize]
    return {
        "step": "resize",
        "text": f"A picture of h rows and w columns stays as it is. Others: {text}",
        "how": preparation.resize,
        "formulas": formulas,
        "scaling": _describe_scaling(integers=preparation.value_range is None, channels=preparation.channels),
    }


def _describe_scaling(*, integers: bool, channels: int) -> dict[str, Any]:
    """Returns how OpenCV scales. The arithmetic is that of its builds for x86-64, in 4.10 as in 5.0.

    integers: True for uint8, False for float32.
    """
    faster = channels in (1, 3, 4)  # OpenCV has code of its own for them, which rounds otherwise
    linear: dict[str, Any] = {
        "text": "Interpolate along each axis between two pixels, half-pixel centres, without antialiasing. Output "
        "pixel i of `new` lies between the input pixels `first` and `first + 1` of `old`; one outside of the picture "
        "means the pixel at the border.",
        "formulas": {
            "position": "(i + 0.5) * (1 / (new / old)) - 0.5"
            if faster and not integers
            else "float32((i + 0.5) * (1 / (new / old)) - 0.5)",
            "first": "floor(position)",
            "share": "position - first",
        },
    }
    area: dict[str, Any] = {
        "text": "Average along each axis. Output pixel i of `new` covers `start` to `end` of `old`, where input pixel "
        "j covers j to j + 1; a pixel counts by its covered share, and not at all if that is 0.001 or less.",
        "formulas": {"start": "i * (1 / (new / old))", "end": "min(start + 1 / (new / old), old)"},
    }
    if integers:
        linear["text"] += (
            " First `row` along the columns, between the pixels a and b, where share is 0 if one of the two is "
            "outside; then `value` along the rows, between row_a and row_b. If both sides become exactly half as long, "
            "it is the `mean` of the four pixels a, b, c, d."
        )
        linear["formulas"] |= {
            "row": "a * round(2048 * (1 - share)) + b * round(2048 * share)",
            "value": "((round(2048 * (1 - share)) * (row_a >> 4) >> 16) + (round(2048 * share) * (row_b >> 4) >> 16) "
            "+ 2) >> 2",
            "mean": "(a + b + c + d + 2) >> 2" if faster else "round((a + b + c + d) / 4)",
        }
        area["text"] += (
            " If both sides are divided by whole numbers, it is the `mean` of `count` pixels from their sum. Else it "
            "is the `value` of the sum of pixels times weights in float32, along the columns, then along the rows."
        )
        area["formulas"] |= {"mean": "round(float32(sum) * float32(1 / count))", "value": "round(sum)"}
    else:
        linear["text"] += (
            " Take `value` along the columns, between the pixels a and b, then along the rows, in float32."
        )
        linear["formulas"]["value"] = "(1 - share) * a + share * b"
        area["text"] += " In float32."
    return {
        "text": "Scale from H rows and W columns to h and w, which here are those of what is scaled: by `area` if the "
        "condition holds, else by `linear`; equal ones stay. OpenCV does the same, for up to 4 channels at a time.",
        "condition": "min(H / h, W / w) >= 1 and max(H / h, W / w) > 2",
        "opencv": "cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA if condition else cv2.INTER_LINEAR)",
        "linear": linear,
        "area": area,
    }

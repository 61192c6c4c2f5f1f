"""Follows model.json: from files to the input of the exported program.

With NumPy and Pillow alone; OpenCV and tifffile only read the files of which Pillow would cut the values to 8 bits.
"""

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageOps

FUNCTIONS = {
    "round": lambda x: np.rint(x).astype(np.int64),
    "floor": lambda x: np.floor(x).astype(np.int64),
    "min": np.minimum,
    "max": np.maximum,
    "float32": np.float32,
    "float64": np.float64,
}


def compute(formula: str, **values: Any) -> Any:
    """Returns the value of a formula of model.json."""
    return eval(formula, FUNCTIONS | {"__builtins__": {}}, values)


def compute_all(formulas: dict[str, str], **values: Any) -> dict[str, Any]:
    """Returns `values` and the values of formulas, of which the later use the earlier."""
    for name, formula in formulas.items():
        values[name] = compute(formula, **values)
    return values


def prepare(description: dict[str, Any], *files: Path) -> np.ndarray:
    """Returns the input [h w c] of a file, or of the files of its channels."""
    preparation = description["preparation"]
    assert preparation["version"] == 1
    steps = {step["step"]: step for step in preparation["steps"]}
    assert list(steps) == ["read", "values", "transparency", "channels", "resize"]
    if "files" in steps["read"]:
        assert len(files) == len(steps["read"]["files"])
        image, has_alpha = join([read(file)[0] for file in files], steps["read"]["scaling"]), False
    else:
        image, has_alpha = read(*files)
    assert steps["values"]["takes"]["uint8" if image.dtype == np.uint8 else "others"], "not for this model"
    image = convert_values(steps["values"], image, has_alpha=has_alpha, of_arrays=preparation["of_arrays"])
    if image.shape[2] != preparation["channels"] and has_alpha:
        image = compute(steps["transparency"]["formulas"]["value"], value=image[..., :-1], alpha=image[..., -1:])
    if image.shape[2] == 1 and preparation["channels"] == 3:
        image = image.repeat(3, axis=2)
    if image.shape[2] == 3 and preparation["channels"] == 1:
        red, green, blue = np.moveaxis(image, 2, 0)
        image = compute(steps["channels"]["formulas"]["value"], red=red, green=green, blue=blue)[..., np.newaxis]
    assert image.shape[2] == preparation["channels"]
    return resize(steps["resize"], image, tuple(preparation["size"])).astype(description["input"]["dtype"])


def read(file: Path) -> tuple[np.ndarray, bool]:
    """Returns the picture [h w c], and True if its last channel is transparency."""
    start = file.read_bytes()[:26]
    if start[:2] == b"P5" or (start[:4] == b"\x89PNG" and start[24] == 16):
        pixels = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels.ndim == 2:
            return pixels[..., np.newaxis], False
        return pixels[..., [2, 1, 0, 3][: pixels.shape[2]]], pixels.shape[2] == 4
    if start[:4] in (b"II*\0", b"MM\0*"):
        with tifffile.TiffFile(file) as tiff:
            page = tiff.pages.first
        if page.samplesperpixel > 1 and page.dtype != np.uint8:
            return tifffile.imread(file, key=0), 1 in page.extrasamples or 2 in page.extrasamples
    with Image.open(file) as opened:
        has_alpha = opened.has_transparency_data
        image = ImageOps.exif_transpose(opened)
        if opened.mode in ("1", "L", "LA"):
            image = image.convert("LA" if has_alpha else "L")
        elif opened.mode != "F" and not opened.mode.startswith("I"):
            image = image.convert("RGBA" if has_alpha else "RGB")
        pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1), has_alpha


def join(bands: list[np.ndarray], scaling: dict[str, Any]) -> np.ndarray:
    """Returns the picture [h w c] of channels [h w 1], which are scaled to the size of the first."""
    size, joined = bands[0].shape[:2], []
    for band in bands:
        assert band.shape[2] == 1
        if band.shape[:2] != size and band.dtype == np.uint8:
            band = scale(scaling["uint8"], band.astype(np.int64), size).astype(np.uint8)
        elif band.shape[:2] != size:
            scaled = scale(scaling["others"], band.astype(np.float32), size)
            band = np.rint(scaled).astype(np.uint16) if band.dtype == np.uint16 else scaled
        joined.append(band)
    return np.concatenate(joined, axis=2)


def convert_values(step: dict[str, Any], pixels: np.ndarray, *, has_alpha: bool, of_arrays: bool) -> np.ndarray:
    """Returns the values as integers, or as float32 in 0..1."""
    if step["dtype"] == "uint8":
        assert pixels.dtype == np.uint8
        return pixels.astype(np.int64)
    whole = pixels.dtype.kind == "u"
    largest = np.iinfo(pixels.dtype).max if whole else 1
    low, high = (0, largest) if whole and of_arrays else (step["low"], step["high"])
    image = compute(step["formulas"]["value"], value=pixels, low=low, high=high)
    image[~np.isfinite(pixels)] = 0
    if has_alpha:
        image[..., -1] = compute(step["formulas"]["alpha"], alpha=pixels[..., -1], largest=largest)
    return image


def resize(step: dict[str, Any], image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the image in the size of the input."""
    if image.shape[:2] == size:
        return image
    at = compute_all(step["formulas"], H=image.shape[0], W=image.shape[1], h=size[0], w=size[1])
    if step["how"] == "squash":
        return scale(step["scaling"], image, size)
    rows, columns = (slice(at[start], at[start] + at[count]) for start, count in (("top", "rows"), ("left", "columns")))
    if step["how"] == "crop":
        return scale(step["scaling"], image[rows, columns], size)
    padded = np.zeros((*size, image.shape[2]), image.dtype)
    padded[rows, columns] = scale(step["scaling"], image, (int(at["rows"]), int(at["columns"])))
    return padded


def scale(scaling: dict[str, Any], image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the image with `size` rows and columns."""
    if image.shape[:2] == size:
        return image
    sides = dict(zip("HWhw", (*image.shape[:2], *size), strict=True))
    averaged = eval(scaling["condition"], {"min": min, "max": max}, sides)
    return average(scaling["area"]["formulas"], image, size) if averaged else interpolate(scaling, image, size)


def interpolate(scaling: dict[str, Any], image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the image interpolated linearly."""
    formulas = dict(scaling["linear"]["formulas"])
    value, row, mean = (formulas.pop(name, None) for name in ("value", "row", "mean"))
    integers = row is not None
    if integers and image.shape[:2] == (2 * size[0], 2 * size[1]):
        four = {"a": image[::2, ::2], "b": image[::2, 1::2], "c": image[1::2, ::2], "d": image[1::2, 1::2]}
        return compute(mean, **four)
    for axis in (1, 0):
        old, new = image.shape[axis], size[axis]
        at = compute_all(formulas, i=np.arange(new), old=old, new=new)
        first, share = at["first"], at["share"].astype(np.float32)
        a, b = (np.take(image, index.clip(0, old - 1), axis) for index in (first, first + 1))
        if integers and axis == 1:
            share[(first < 0) | (first + 1 >= old)] = 0
        share = share.reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        if not integers:
            image = compute(value, share=share, a=a, b=b)
        elif axis == 1:
            image = compute(row, share=share, a=a, b=b)
        else:
            image = compute(value, share=share, row_a=a, row_b=b)
    return image


def average(formulas: dict[str, str], image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the image averaged over areas."""
    (height, width), integers = image.shape[:2], "mean" in formulas
    if integers and height % size[0] == width % size[1] == 0:
        tall, wide = height // size[0], width // size[1]
        total = image.reshape(size[0], tall, size[1], wide, -1).sum((1, 3))
        return compute(formulas["mean"], sum=total, count=tall * wide)
    image = image.astype(np.float32)
    for axis in (1, 0):
        old, new = image.shape[axis], size[axis]
        pixels = np.moveaxis(image, axis, 0)
        averaged = np.zeros((new, *pixels.shape[1:]), np.float32)
        for i in range(new):
            start = compute(formulas["start"], i=i, old=old, new=new)
            end = compute(formulas["end"], start=start, old=old, new=new)
            for j in range(int(start), min(int(end) + 1, old)):
                covered = min(end, j + 1) - max(start, j)
                if covered > 0.001:
                    averaged[i] += pixels[j] * np.float32(covered / (end - start))
        image = np.moveaxis(averaged, 0, axis)
    return compute(formulas["value"], sum=image) if integers else image


if __name__ == "__main__":  # called with model.json, the array to write, and files
    content = json.loads(Path(sys.argv[1]).read_text())
    np.save(sys.argv[2], np.stack([prepare(content, Path(file)) for file in sys.argv[3:]]))

"""Pictures of images, heat maps, filters and feature maps."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from flaxcls.data.resize import with_channels

# Small images are enlarged by a whole factor to at most this many pixels a side.
SHOWN = 224
# A picture on a page is stored without loss up to this many pixels a side.
MOST_PNG = 128


def enlarged(picture: np.ndarray, size: int = SHOWN) -> np.ndarray:
    """Returns [h w ...] enlarged by the largest whole factor that keeps the longer side within `size`."""
    factor = max(1, size // max(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def strength(values: np.ndarray) -> np.ndarray:
    """Returns the result of a method as heat f32[h w] in 0..1.

    For gradients [h w c], the heat of a pixel is the sum of their absolute values, cut off at the 99th percentile,
    because a few values are far above all others. For results [h w], only values that support the class count.
    """
    heat = np.abs(values).sum(axis=2) if values.ndim == 3 else np.maximum(values, 0)
    top = np.percentile(heat, 99) if values.ndim == 3 else heat.max()
    top = top or heat.max()
    return np.clip(heat / top, 0, 1).astype(np.float32) if top > 0 else np.zeros(heat.shape, np.float32)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Returns u8[h w 3]: an image, as `in_colours` takes it, in grey under heat f32[h w] in 0..1.

    The heat goes from black over red to yellow.
    """
    grey = with_channels(with_channels(in_colours(image), 1), 3).astype(np.float32)
    return np.rint(0.4 * grey + 0.6 * _coloured(heat, cv2.COLORMAP_INFERNO)).astype(np.uint8)


def beside(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Returns u8[h w 3]: an image, heat f32[h w] in 0..1, and their overlay, side by side and enlarged."""
    parts = [in_colours(image), _coloured(heat, cv2.COLORMAP_INFERNO), overlay(image, heat)]
    return tiled([enlarged(part) for part in parts], columns=3)


def filters_picture(kernel: np.ndarray) -> np.ndarray:
    """Returns u8[h w 3]: the filters of a kernel f32[h w c n] in a grid; zero is grey.

    Filters with three channels are in colour; others show the mean over their channels. Each has its own scale.
    """
    shown = kernel if kernel.shape[2] == 3 else kernel.mean(axis=2, keepdims=True).repeat(3, axis=2)
    scale = np.abs(shown).max(axis=(0, 1, 2), keepdims=True)
    grey = np.rint(127.5 + 127.5 * shown / np.where(scale > 0, scale, 1)).astype(np.uint8)
    return _grid([grey[..., index] for index in range(grey.shape[3])])


def maps_picture(maps: np.ndarray) -> np.ndarray:
    """Returns u8[h w 3]: the channels of a map f32[h w n] in a grid, each from its least to its largest value."""
    low, high = maps.min(axis=(0, 1), keepdims=True), maps.max(axis=(0, 1), keepdims=True)
    scaled = (maps - low) / np.where(high > low, high - low, 1)
    return _grid([_coloured(scaled[..., index], cv2.COLORMAP_VIRIDIS) for index in range(maps.shape[2])])


def tiled(pictures: Sequence[np.ndarray], *, columns: int) -> np.ndarray:
    """Returns u8[h w 3]: pictures u8[h w 3] of one size in rows, on white."""
    height, width = pictures[0].shape[:2]
    gap = max(2, max(height, width) // 16)
    rows = math.ceil(len(pictures) / columns)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = picture
    return canvas


def write_png(path: Path, picture: np.ndarray) -> None:
    """Writes u8[h w 3] as a PNG file."""
    Image.fromarray(picture).save(path, format="png")


def data_url(picture: np.ndarray) -> str:
    """Returns a picture u8[h w 3] as a data URL: PNG, or JPEG for a large picture, to save space."""
    file, kind = io.BytesIO(), "png" if max(picture.shape[:2]) <= MOST_PNG else "jpeg"
    Image.fromarray(picture).save(file, format=kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def choose_shown(channels: int) -> list[int]:
    """Returns the indices of the channels of an image that are shown: the first three, or the first of two."""
    return list(range(3 if channels >= 3 else 1))


def describe_shown(names: Sequence[str], shown: Sequence[int]) -> str:
    """Returns a text with the channels that are shown. names: of all; shown: indices of three of them, or of one."""
    chosen, colours = [names[index] for index in shown], ["grey"] if len(shown) == 1 else ["red", "green", "blue"]
    text = ", ".join(chosen) if chosen == colours else f"{', '.join(chosen)} as {', '.join(colours)}"
    return text if chosen == list(names) else f"{text}, of {', '.join(names)}"


def in_colours(image: np.ndarray) -> np.ndarray:
    """Returns u8[h w 3] for an input u8[h w c] or floats in 0..1: its channels that `choose_shown` returns."""
    picture = image if image.dtype == np.uint8 else np.rint(255 * image.clip(0, 1)).astype(np.uint8)
    return with_channels(picture[..., choose_shown(picture.shape[2])], 3)


def _grid(pictures: Sequence[np.ndarray]) -> np.ndarray:
    columns = math.ceil(math.sqrt(len(pictures)))
    return tiled([enlarged(picture, 4 * SHOWN // columns) for picture in pictures], columns=columns)


def _coloured(heat: np.ndarray, colours: int) -> np.ndarray:
    """Returns u8[h w 3]: heat f32[h w] in 0..1 in a colour map of OpenCV, whose channels are in reverse order."""
    return cv2.applyColorMap(np.rint(255 * heat).astype(np.uint8), colours)[..., ::-1]

"""Images of any size and channels, converted to the size and channels of a model."""

import cv2
import numpy as np

from flaxcls.errors import InputError


def fit_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the largest centred part of u8|f32[h w c] with the proportions of `size`, scaled to `size`.

    The aspect ratio is kept. An image of that size is returned unchanged.

    size: height and width.
    """
    height, width = size
    if image.shape[:2] == size:
        return image
    scale = min(image.shape[0] / height, image.shape[1] / width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (image.shape[0] - rows) // 2, (image.shape[1] - columns) // 2
    return resize(image[top : top + rows, left : left + columns], size)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns u8|f32[h w c] scaled to `size` (height, width); only bytes are rounded.

    It interpolates between pixels. If one side becomes less than half as long and the other does not grow,
    interpolation would skip pixels. Then it averages over areas, which takes four times as long.
    """
    if image.shape[:2] == size:
        return image
    factors = [old / new for old, new in zip(image.shape[:2], size, strict=True)]
    averaged = min(factors) >= 1 and max(factors) > 2
    scaled = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if averaged else cv2.INTER_LINEAR)
    return scaled.reshape(*size, image.shape[2])  # OpenCV drops the axis of a single channel


def square(side: int | None) -> tuple[int, int] | None:
    """Returns the size (height, width) of a square, or None."""
    return None if side is None else (side, side)


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Returns u8|f32[h w channels] of an image in grey or colour, with or without transparency, of the same type.

    An image with that number of channels is returned unchanged. The background is white: 255, or 1 for floats. Grey is
    repeated for the colour channels. Colours become grey by their luminance (ITU-R BT.601).

    Raises InputError for other numbers of channels.
    """
    if image.ndim == 2:
        image = image[..., np.newaxis]
    given = image.shape[2]
    if given == channels:
        return image
    if given in (2, 4):
        image = _on_white(image[..., :-1], image[..., -1:])
    if image.shape[2] == channels:
        return image
    if image.shape[2] == 1 and channels == 3:
        return np.repeat(image, 3, axis=2)
    if image.shape[2] == 3 and channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., np.newaxis]
    raise InputError(
        f"an image of {given} channels cannot be converted to {channels}: only grey (1 channel, or 2 with "
        "transparency) and colour (3 or 4) are converted to each other."
    )


def _on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    if alpha.dtype != np.uint8:
        return colours * alpha + (1 - alpha)
    alpha = alpha.astype(np.uint16)
    return ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)

"""Images of any size and channels, converted to the size and channels of a model."""

import cv2
import numpy as np


def fit_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the largest centred part of u8[h w c] with the proportions of `size` (height, width), scaled to `size`.

    The aspect ratio is kept. An image of that size is returned unchanged.
    """
    height, width = size
    if image.shape[:2] == size:
        return image
    scale = min(image.shape[0] / height, image.shape[1] / width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (image.shape[0] - rows) // 2, (image.shape[1] - columns) // 2
    return resize(image[top : top + rows, left : left + columns], size)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns u8[h w c] scaled to `size` (height, width).

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
    """Returns u8[h w channels] of an image in grey or colour, with or without transparency; the background is white.

    Grey is repeated for the colour channels. Colours become grey by their luminance (ITU-R BT.601).
    """
    if image.ndim == 2:
        image = image[..., np.newaxis]
    if image.shape[2] in (2, 4):
        alpha = image[..., -1:].astype(np.uint16)
        image = ((image[..., :-1] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    if image.shape[2] == channels:
        return image
    if image.shape[2] == 1 and channels == 3:
        return np.repeat(image, 3, axis=2)
    if image.shape[2] == 3 and channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., np.newaxis]
    raise ValueError(f"an image of {image.shape[2]} channels cannot be converted to {channels} channels.")

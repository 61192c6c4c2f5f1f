"""The one size that a model sees, of images of any."""

import cv2
import numpy as np


def fit_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the largest centred part of u8[h w c] that has the proportions of `size` (height, width), scaled to it.

    The aspect ratio is kept. An image of that size comes back as it is.
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

    It is interpolated between pixels. Where that would leave pixels out, as one side becomes less than half as long and
    the other no longer, it is averaged over areas, which takes four times as long.
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
    """Returns u8[h w channels] of a grey image, one in colours or one with transparency, which is laid on white.

    Grey becomes colours by repetition, colours become grey by their luminance (ITU-R BT.601).
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
    raise ValueError(f"an image of {image.shape[2]} channels cannot be made one of {channels}.")

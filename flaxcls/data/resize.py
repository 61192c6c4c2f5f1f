"""Images of any size and channels, converted to the size and channels of a model."""

import cv2
import numpy as np

from flaxcls.errors import InputError


def fit_image(image: np.ndarray, size: tuple[int, int], how: str = "crop") -> np.ndarray:
    """Returns an image [h w c], of uint8 or float32, brought to `size` (height, width). One of that size is unchanged.

    crop: the largest centred part with the proportions of `size`, scaled.
    squash: the whole image, scaled to `size` in each direction.
    pad: the whole image, scaled in its proportions and centred, with rows or columns of zeros (black) beside it.

    how: crop, squash or pad.
    """
    height, width = size
    if image.shape[:2] == size:
        return image
    if how == "squash":
        return resize(image, size)
    if how == "pad":
        scale = min(height / image.shape[0], width / image.shape[1])
        rows, columns = (
            min(most, max(1, round(side * scale))) for side, most in zip(image.shape[:2], size, strict=True)
        )
        top, left = (height - rows) // 2, (width - columns) // 2
        padded = np.zeros((*size, image.shape[2]), image.dtype)
        padded[top : top + rows, left : left + columns] = resize(image, (rows, columns))
        return padded
    scale = min(image.shape[0] / height, image.shape[1] / width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (image.shape[0] - rows) // 2, (image.shape[1] - columns) // 2
    return resize(image[top : top + rows, left : left + columns], size)


def share_kept(image: tuple[int, int], size: tuple[int, int]) -> float:
    """Returns the share of an image of this height and width that `fit_image` keeps when it crops to `size`."""
    rows, columns = (min(side, size[i] * min(image[0] / size[0], image[1] / size[1])) for i, side in enumerate(image))
    return rows * columns / (image[0] * image[1])


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns an image [h w c], of uint8 or float32, scaled to `size` (height, width).

    It interpolates between pixels. If one side becomes less than half as long and the other does not grow,
    interpolation would skip pixels. Then it averages over areas, which takes four times as long.
    """
    if image.shape[:2] == size:
        return image
    factors = [old / new for old, new in zip(image.shape[:2], size, strict=True)]
    averaged = min(factors) >= 1 and max(factors) > 2
    if averaged and image.shape[2] > 4:  # OpenCV averages at most 4 channels
        return np.concatenate([resize(image[..., start : start + 4], size) for start in range(0, image.shape[2], 4)], 2)
    scaled = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if averaged else cv2.INTER_LINEAR)
    return scaled.reshape(*size, image.shape[2])  # OpenCV drops the axis of a single channel


def with_channels(image: np.ndarray, channels: int, *, alpha: bool | None = None) -> np.ndarray:
    """Returns an image [h w channels] of one in grey or colour, with or without transparency; the background is white.

    Grey is repeated for the colour channels. Colours become grey by their luminance (ITU-R BT.601). An image that has
    so many channels already is unchanged, whatever they mean.

    Args:
      image: [h w c] or [h w], uint8 in 0..255 or float32 in 0..1.
      channels: 1, 3, or the channels of the image.
      alpha: True if its last channel is transparency; None: if it has 2 or 4.

    Raises InputError if the channels cannot be converted.
    """
    if image.ndim == 2:
        image = image[..., np.newaxis]
    given = image.shape[2]
    if given == channels:
        return image
    if alpha or (alpha is None and given in (2, 4)):
        image = _on_white(image[..., :-1], image[..., -1:])
    if image.shape[2] == channels:
        return image
    if image.shape[2] == 1 and channels == 3:
        return np.repeat(image, 3, axis=2)
    if image.shape[2] == 3 and channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., np.newaxis]
    raise InputError(
        f"an image of {given} channel{'s' * (given > 1)} cannot be converted to {channels}: only grey (1 channel, "
        "or 2 with transparency) and colour (3, or 4 with transparency) are converted to each other. "
        "--data.color stored trains on the channels of the files."
    )


def _on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    if alpha.dtype != np.uint8:
        return colours * alpha + (1 - alpha)
    alpha = alpha.astype(np.uint16)
    return ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)

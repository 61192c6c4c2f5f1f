import numpy as np
import pytest

from flaxcls.data.resize import fit_image, resize, with_channels
from flaxcls.errors import InputError

BYTES = np.random.default_rng(0).integers(0, 256, (12, 18, 4), dtype=np.uint8)


@pytest.mark.parametrize("size", [(12, 12), (24, 24), (4, 6), (5, 5)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_floats_are_scaled_like_bytes_without_rounding(size, channels):
    image = BYTES[..., :channels]
    floats = image.astype(np.float32) / 255
    for scale in (resize, fit_image):
        scaled = scale(floats, size)
        assert (scaled.dtype, scaled.shape) == (np.float32, (*size, channels))
        np.testing.assert_allclose(255 * scaled, scale(image, size), atol=1)
    halved = resize(floats[:2, :2].repeat(8, axis=0).repeat(8, axis=1) / 1000, (4, 4))
    assert len(np.unique(halved)) > 1  # bytes would all be 0


@pytest.mark.parametrize("read", [1, 2, 3, 4])
@pytest.mark.parametrize("needed", [1, 3])
def test_floats_become_grey_and_colour_as_bytes_do(read, needed):
    image = BYTES[..., :read]
    converted = with_channels(image.astype(np.float32) / 255, needed)
    np.testing.assert_allclose(255 * converted, with_channels(image, needed), atol=1)


def test_an_image_with_the_channels_that_are_needed_is_unchanged():
    for channels in (2, 4):
        assert with_channels(BYTES[..., :channels], channels).tobytes() == BYTES[..., :channels].tobytes()
    with pytest.raises(InputError, match="an image of 4 channels cannot be converted to 5"):
        with_channels(BYTES, 5)

"""A batch that is split over two devices: the same numbers, and no image is sent."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls import augment
from flaxcls.augment import on_images
from flaxcls.sharding import batch_sharding, make_mesh, replicated
from tests.slow import all_slow_but

IMAGES = np.random.default_rng(0).integers(0, 256, (16, 18, 18, 3), dtype=np.uint8)
STEPS = {
    "resized_crop": on_images(partial(augment.random_resized_crop, size=(9, 9))),
    "colour": on_images(partial(augment.random_color_jitter, contrast=0.4, saturation=0.3, hue=0.1)),
    "cutmix": partial(augment.random_cutmix, num_classes=3),
    "trivial_augment": on_images(augment.trivial_augment),
    "views": lambda key, batch: {
        "image": augment.average_views(lambda x: x.mean(axis=(1, 2)), batch["image"], shift=1)
    },
}


@pytest.mark.parametrize("name", all_slow_but(STEPS, "resized_crop", "mixup"))
def test_devices_change_nothing_and_send_no_image(name):
    mesh = make_mesh()
    assert mesh.size == 2
    batch = {"image": jnp.array(IMAGES), "label": jnp.arange(16) % 3}
    split = jax.device_put(batch, batch_sharding(mesh))
    key = jax.device_put(jax.random.key(0), replicated(mesh))
    step = jax.jit(STEPS[name], out_shardings=batch_sharding(mesh)).lower(key, split).compile()
    one = jax.jit(STEPS[name])(jax.random.key(0), batch)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), step(key, split), one)
    # draws may be put together, a few numbers an image; images may not
    sent = [
        np.prod([int(n) for n in shape.split(",") if n])
        for shape in re.findall(
            r"\w+\[([\d,]*)\][^=]* (?:all-gather|all-to-all|collective-permute|all-reduce)", step.as_text()
        )
    ]
    assert max(sent, default=0) < 16 * 18 * 18, sent

"""The transform of a run: the numbers that runs in progress depend on, and the steps between flip and scaling."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls import augment

pytestmark = pytest.mark.usefixtures("strict_types")

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), dtype=np.uint8)
BATCH = {"image": jnp.array(IMAGES), "label": jnp.arange(8) % 3}
KEY = jax.random.key(5)


def test_crop_and_flip_draw_what_they_always_drew():
    crop_key, flip_key = jax.random.split(KEY)
    offsets = np.asarray(jax.random.randint(crop_key, (8, 2), 0, 5))
    flips = np.asarray(jax.random.bernoulli(flip_key, 0.5, (8,)))
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    expected = np.stack([p[r : r + 6, c : c + 6] for p, (r, c) in zip(padded, offsets, strict=True)])
    expected = np.where(flips[:, None, None, None], expected[:, :, ::-1], expected)
    options = {"random_flips": True, "crop_padding": 2, "crop_fill": "reflect"}
    result = augment.make_transform(**options)(KEY, BATCH)
    np.testing.assert_array_equal(result["image"], augment.to_float(jnp.array(expected)))
    # and steps change nothing of that
    seen = []
    augment.make_transform(**options, operations=[lambda key, batch: seen.append(batch["image"]) or batch])(KEY, BATCH)
    np.testing.assert_array_equal(seen[0], expected)


def test_steps_happen_in_order_before_scaling_and_in_training_alone():
    keys = []

    def darker(key, images):
        keys.append(np.asarray(jax.random.key_data(key)))
        return images // 2

    mix = partial(augment.random_mixup, num_classes=3, group=4)
    transform = augment.make_transform(mean=[0.5] * 3, std=[0.5] * 3, operations=[augment.on_images(darker), mix, mix])
    result = transform(KEY, BATCH)
    assert result["label"].shape == (8, 3)
    assert result["image"].dtype == jnp.float32
    assert float(result["image"].max()) < 0.01  # half of the range, then normalised
    once = mix(jax.random.fold_in(KEY, 3), {**BATCH, "image": BATCH["image"] // 2})
    np.testing.assert_array_equal(result["label"], mix(jax.random.fold_in(KEY, 4), once)["label"])
    for used in jax.random.key_data(jax.random.split(KEY)):
        assert not np.array_equal(keys[0], used)
    plain = transform(None, BATCH)
    assert plain["label"] is BATCH["label"]
    np.testing.assert_allclose(plain["image"], IMAGES / 127.5 - 1, atol=1e-6)


def test_the_transform_is_random_in_training_alone():
    transform = augment.make_transform(mean=[0.5] * 3, std=[0.25] * 3, random_flips=True, crop_padding=1)
    plain = transform(None, BATCH)
    np.testing.assert_allclose(plain["image"], (IMAGES / np.float32(255) - 0.5) / 0.25, rtol=1e-4, atol=1e-6)
    one, same, other = (transform(jax.random.key(seed), BATCH)["image"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, plain["image"])
    assert plain["label"] is BATCH["label"]


def test_images_that_the_batch_says_are_mirrored_before_the_crop():
    mirrored = np.arange(8) % 3 == 0
    sides = np.where(mirrored[:, None, None, None], IMAGES[:, :, ::-1], IMAGES)
    transform = augment.make_transform(crop_padding=2)
    result = transform(KEY, {**BATCH, "mirrored": jnp.array(mirrored)})
    assert result.keys() == BATCH.keys()
    np.testing.assert_array_equal(result["image"], transform(KEY, {**BATCH, "image": jnp.array(sides)})["image"])

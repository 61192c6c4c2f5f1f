"""Mixed images pixel by pixel, and labels by counted pixels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls import augment

pytestmark = pytest.mark.usefixtures("strict_types")

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (8, 5, 6, 3), dtype=np.uint8)
CLASSES = np.array([0, 1, 2, 3, 0, 2, 1, 3])
LABELS = np.eye(4, dtype=np.float32)[CLASSES]
PARTNER = [1, 2, 3, 0, 5, 6, 7, 4]  # in groups of four


def test_mixup():
    ratios = np.linspace(0, 1, 8, dtype=np.float32)
    images, labels = augment.mixup(jnp.array(IMAGES), jnp.array(LABELS), jnp.array(ratios), group=4)
    for i, share in enumerate(ratios):
        j = PARTNER[i]
        np.testing.assert_allclose(images[i], share * IMAGES[i] + (1 - share) * IMAGES[j].astype(float), atol=0.501)
        np.testing.assert_allclose(labels[i], share * LABELS[i] + (1 - share) * LABELS[j], atol=1e-6)
    assert images.dtype == jnp.uint8


def test_cutmix_labels_are_the_pixels_shares():
    boxes = np.array([[0, 0, 5, 6], [0, 0, 0, 0], [1, 2, 3, 4]] + [[2, 1, 2, 5]] * 5, np.int32)
    images, labels = augment.cutmix(jnp.array(IMAGES), jnp.array(LABELS), jnp.array(boxes), group=4)
    for i, (top, left, height, width) in enumerate(boxes):
        j = PARTNER[i]
        expected = IMAGES[i].copy()
        expected[top : top + height, left : left + width] = IMAGES[j, top : top + height, left : left + width]
        np.testing.assert_array_equal(images[i], expected)
        share = height * width / 30
        np.testing.assert_allclose(labels[i], (1 - share) * LABELS[i] + share * LABELS[j], atol=1e-6)


def test_random_cutmix_counts_what_it_cut():
    values = np.arange(64, dtype=np.uint8)
    batch = {
        "image": jnp.array(np.broadcast_to(values[:, None, None, None], (64, 9, 7, 1))),
        "label": jnp.arange(64),
        "mask": jnp.ones(64, bool),
    }
    mixed = jax.jit(partial(augment.random_cutmix, num_classes=64))(jax.random.key(0), batch)
    counts = np.stack([np.bincount(np.asarray(image).ravel(), minlength=64) for image in mixed["image"]])
    np.testing.assert_allclose(mixed["label"], counts / 63, atol=1e-6)
    assert 0.6 < counts[np.arange(64), np.arange(64)].mean() / 63 < 0.8
    assert mixed["mask"].all()


def test_random_mixup_draws_a_share_for_each():
    batch = {"image": jnp.array(IMAGES), "label": jnp.array(CLASSES)}
    mix = jax.jit(partial(augment.random_mixup, num_classes=4))
    one, same, other = (mix(jax.random.key(seed), batch) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one["image"], same["image"])
    assert not np.array_equal(one["label"], other["label"])
    np.testing.assert_allclose(one["label"].sum(axis=1), 1, atol=1e-6)
    assert len(np.unique(np.asarray(one["label"]).max(axis=1))) > 4


@pytest.mark.parametrize("mix", [augment.random_mixup, augment.random_cutmix])
def test_nothing_outside_the_group_matters(mix):
    changed = IMAGES.copy()
    changed[:4] = 0
    mix = jax.jit(partial(mix, num_classes=4, group=4))
    one, other = (
        mix(jax.random.key(0), {"image": jnp.array(images), "label": jnp.array(CLASSES)})
        for images in (IMAGES, changed)
    )
    np.testing.assert_array_equal(one["image"][4:], other["image"][4:])
    assert not np.array_equal(one["image"][:4], other["image"][:4])


@pytest.mark.parametrize("group", [1, 3, 16])
def test_a_group_that_does_not_divide_the_batch_is_refused(group):
    with pytest.raises(ValueError, match=f"group is {group}, but must be 2 or more and divide the batch of 8"):
        augment.mixup(jnp.array(IMAGES), jnp.array(LABELS), jnp.ones(8), group=group)


def test_wrong_numbers_are_refused():
    batch = {"image": jnp.array(IMAGES), "label": jnp.array(LABELS)}
    with pytest.raises(ValueError, match=r"alpha is 0, but must be more"):
        augment.random_mixup(jax.random.key(0), batch, num_classes=4, alpha=0)
    with pytest.raises(ValueError, match=r"of 4 classes, but num_classes is 5"):
        augment.random_mixup(jax.random.key(0), batch, num_classes=5)
    with pytest.raises(ValueError, match=r"size is 6, but must be .* of 5x6"):
        augment.random_cutout(jax.random.key(0), batch["image"], size=6)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_cutout(size):
    centers = RNG.integers(0, 5, (8, 2)).astype(np.int32)
    centers[:3] = [[0, 0], [4, 5], [2, 3]]
    expected = IMAGES.copy()
    for image, (row, column) in zip(expected, centers, strict=True):
        top, left = row - size // 2, column - size // 2
        image[max(top, 0) : top + size, max(left, 0) : left + size] = 7
    np.testing.assert_array_equal(augment.cutout(jnp.array(IMAGES), jnp.array(centers), size=size, fill=7), expected)


def test_random_cutout_is_centred_anywhere():
    images = jnp.ones((4000, 4, 5, 1), jnp.uint8)
    dots = 1 - np.asarray(augment.random_cutout(jax.random.key(0), images, size=1))
    counts = dots.reshape(4000, 20).sum(axis=0)
    assert counts.sum() == 4000
    assert counts.min() > 140
    assert counts.max() < 260


def test_random_mix_is_mixup_or_cutmix_as_a_coin_decides():
    batch = {"image": jnp.array(IMAGES), "label": jnp.array(CLASSES)}
    either = jax.jit(partial(augment.random_mix, num_classes=4, mixup_alpha=0.4, cutmix_alpha=1.0))
    parts = {
        "mixup": jax.jit(partial(augment.random_mixup, num_classes=4, alpha=0.4)),
        "cutmix": jax.jit(partial(augment.random_cutmix, num_classes=4, alpha=1.0)),
    }
    seen = []
    for seed in range(20):
        key = jax.random.key(seed)
        coin_key, mix_key = jax.random.split(key)
        name = "mixup" if jax.random.bernoulli(coin_key) else "cutmix"
        seen.append(name)
        jax.tree.map(np.testing.assert_array_equal, either(key, batch), parts[name](mix_key, batch))
    assert 5 <= seen.count("mixup") <= 15

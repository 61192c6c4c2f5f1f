"""Which steps a configuration makes, and in which order."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls import augment
from flaxcls.config import AugmentConfig
from tests.slow import all_slow_but

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3), dtype=np.uint8)
BATCH = {"image": jnp.array(IMAGES), "label": jnp.arange(8) % 3}
KEY = jax.random.key(7)
OPTIONS = {
    "resized_crop": 0.3,
    "rotate": 20.0,
    "translate": 0.1,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "cutout": 5,
    "mixup": 0.4,
    "cutmix": 1.0,
}
ALONE = {
    "resized_crop": lambda key, x: augment.random_resized_crop(key, x, size=(12, 12), scale=(0.3, 1.0)),
    "rotate": lambda key, x: augment.random_affine(key, x, degrees=20),
    "translate": lambda key, x: augment.random_affine(key, x, shift=0.1),
    "brightness": lambda key, x: augment.random_color_jitter(key, x, brightness=0.4),
    "contrast": lambda key, x: augment.random_color_jitter(key, x, contrast=0.4),
    "saturation": lambda key, x: augment.random_color_jitter(key, x, saturation=0.4),
    "hue": lambda key, x: augment.random_color_jitter(key, x, hue=0.1),
    "cutout": lambda key, x: augment.random_cutout(key, x, size=5, fill=9),
    "mixup": lambda key, x: augment.random_mixup(key, {**BATCH, "image": x}, num_classes=3, alpha=0.4)["image"],
    "cutmix": lambda key, x: augment.random_cutmix(key, {**BATCH, "image": x}, num_classes=3, alpha=1.0)["image"],
}


def steps(**options):
    config = replace(AugmentConfig(), **options)
    return augment.make_operations(config, image_size=(12, 12), num_classes=3, blank=9.0)


def test_the_default_makes_none():
    assert steps() == []


@pytest.mark.parametrize("name", all_slow_but(OPTIONS, "resized_crop", "rotate", "saturation", "cutmix"))
def test_an_option_alone_makes_its_own_step(name):
    (step,) = steps(**{name: OPTIONS[name]})
    result = jax.jit(step)(KEY, BATCH)["image"]
    np.testing.assert_array_equal(result, jax.jit(ALONE[name])(KEY, BATCH["image"]))
    assert not np.array_equal(result, IMAGES)


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        ({"policy": "trivial_augment"}, augment.trivial_augment),
        ({"policy": "rand_augment"}, augment.rand_augment),
        (
            {"policy": "rand_augment", "layers": 1, "magnitude": 20.0},
            lambda key, x: augment.rand_augment(key, x, layers=1, magnitude=20),
        ),
    ],
)
def test_policies(options, policy):
    (step,) = steps(**options)
    np.testing.assert_array_equal(jax.jit(step)(KEY, BATCH)["image"], jax.jit(policy)(KEY, BATCH["image"]))


def test_rotation_and_translation_are_one_warp_and_colours_one_pass_and_mixing_is_last():
    made = steps(**OPTIONS, policy="trivial_augment")
    assert len(made) == 6  # crop, warp, colours, policy, cutout, mixing
    batch = BATCH
    for step in made[:-1]:
        batch = jax.jit(step)(KEY, batch)
    assert batch["label"].shape == (8,)
    mixed = jax.jit(made[-1])(KEY, batch)
    mix = partial(augment.random_mix, num_classes=3, mixup_alpha=0.4, cutmix_alpha=1.0)
    expected = jax.jit(mix)(KEY, batch)
    jax.tree.map(np.testing.assert_array_equal, mixed, expected)

"""Each operation of a policy is what its name says: the function of that name, alone; strengths are torchvision's."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls import augment
from flaxcls.augment import policies

pytestmark = pytest.mark.usefixtures("strict_types")

IMAGES = np.random.default_rng(0).integers(20, 200, (14, 20, 18, 3), dtype=np.uint8)
STRENGTHS = np.array([0, 0, 0, 3, 100, 0.4, 1.7, 0.2, 1.9, -25, 0.3, -0.2, 4, -5], np.float32)


def shear(images, down, right):
    matrices = augment.affine_matrices(jnp.zeros(1), jnp.zeros((1, 2)), jnp.stack([down, right])[None])
    return augment.warp(images, matrices, fill=128, method="nearest")


def one_op(name, image, strength):
    """The operation on a single image, by the function that is tested elsewhere."""
    images, s, zero = image[None], strength[None], jnp.zeros_like(strength)
    match name:
        case "identity":
            return images
        case "autocontrast" | "equalize":
            return getattr(augment, name)(images)
        case "posterize":
            return augment.posterize(images, s.astype(jnp.int32))
        case "rotate":
            return augment.rotate(images, s, fill=128, method="nearest")
        case "shear_x":
            return shear(images, zero, strength)
        case "shear_y":
            return shear(images, strength, zero)
        case "translate_x":
            return augment.translate(images, jnp.stack([zero, strength])[None], fill=128, method="nearest")
        case "translate_y":
            return augment.translate(images, jnp.stack([strength, zero])[None], fill=128, method="nearest")
        case _:
            return getattr(augment, name)(images, s)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_each_image_has_its_own_operation(dtype):
    ops = np.random.default_rng(1).permutation(14).astype(np.int32)
    images = IMAGES if dtype == np.uint8 else IMAGES / np.float32(255)
    alone = jax.jit(one_op, static_argnums=0)
    result = jax.jit(augment.apply_ops)(jnp.array(images), jnp.array(ops), jnp.array(STRENGTHS[ops]))
    assert result.dtype == dtype
    for i, op in enumerate(ops):
        expected = np.asarray(alone(augment.OPS[op], IMAGES[i], STRENGTHS[op])[0])
        expected = expected if dtype == np.uint8 else expected / 255
        np.testing.assert_allclose(result[i], expected, atol=1e-6, err_msg=augment.OPS[op])
        assert augment.OPS[op] == "identity" or not np.array_equal(result[i], images[i])


def strengths(name, level, sign):
    reach = policies._Reach(30, 0.3, 40, 50, 0.9, 4)
    ops = jnp.array([augment.OPS.index(name)], jnp.int32)
    return float(policies._strengths(ops, jnp.array([level]), jnp.array([sign]), reach)[0])


@pytest.mark.parametrize(
    ("name", "none", "full", "back"),
    [
        ("rotate", 0, 30, -30),
        ("shear_x", 0, 0.3, -0.3),
        ("translate_x", 0, 40, -40),
        ("translate_y", 0, 50, -50),
        ("saturation", 1, 1.9, 0.1),
        ("posterize", 8, 4, 4),
        ("solarize", 255, 0, 0),
        ("equalize", 0, 0, 0),
    ],
)
def test_strengths(name, none, full, back):
    found = strengths(name, 0.0, 1.0), strengths(name, 1.0, 1.0), strengths(name, 1.0, -1.0)
    np.testing.assert_allclose(found, (none, full, back), rtol=1e-6)


def test_every_operation_and_level_is_drawn_about_equally_often():
    ops, levels, signs = policies._draw(jax.random.key(0), 14_000)
    counts = np.bincount(np.asarray(ops), minlength=14)
    assert counts.min() > 850
    assert counts.max() < 1150
    assert len(np.unique(np.asarray(levels))) == 31
    assert (float(levels.min()), float(levels.max())) == (0, 1)
    assert abs(float(signs.mean())) < 0.05


@pytest.mark.parametrize("policy", [augment.rand_augment, augment.trivial_augment])
def test_a_policy_is_its_key_and_each_image_alone(policy):
    policy = jax.jit(policy)
    changed = IMAGES.copy()
    changed[0] = 0
    one, same, other = (policy(jax.random.key(0), jnp.array(images)) for images in (IMAGES, IMAGES, changed))
    np.testing.assert_array_equal(one, same)
    np.testing.assert_array_equal(one[1:], other[1:])
    assert not np.array_equal(one, policy(jax.random.key(1), jnp.array(IMAGES)))
    assert one.dtype == jnp.uint8


def test_gray_images_and_wrong_magnitudes():
    images = jnp.array(IMAGES[..., :1])
    ops, strengths = jnp.arange(14), jnp.array(STRENGTHS)
    result = jax.jit(augment.apply_ops)(images, ops, strengths)
    np.testing.assert_array_equal(
        result[9], augment.rotate(images[9:10], strengths[9:10], fill=128, method="nearest")[0]
    )
    with pytest.raises(ValueError, match=r"magnitude is 31, but must be in 0\.\.30"):
        augment.rand_augment(jax.random.key(0), images, magnitude=31)


TORCHVISION = json.loads((Path(__file__).parent / "torchvision_magnitudes.json").read_text())
THEIR_NAMES = {
    "Identity": "identity", "ShearX": "shear_x", "ShearY": "shear_y", "TranslateX": "translate_x",
    "TranslateY": "translate_y", "Rotate": "rotate", "Brightness": "brightness", "Color": "saturation",
    "Contrast": "contrast", "Sharpness": "sharpness", "Posterize": "posterize", "Solarize": "solarize",
    "AutoContrast": "autocontrast", "Equalize": "equalize",
}  # fmt: skip


def drawn(policy, monkeypatch, **options):
    """Returns operation -> the strengths that a policy gives it, those of blends as distance from 1, without signs."""
    calls = []
    monkeypatch.setattr(policies, "apply_ops", lambda images, *call, **_: calls.append(call) or images)
    policy(jax.random.key(0), jnp.zeros((14_000, 40, 32, 1), jnp.uint8), **options)
    (ops, strengths), *_ = ((np.asarray(ops), np.asarray(strengths)) for ops, strengths in calls)
    found = {name: strengths[ops == place] for place, name in enumerate(augment.OPS)}
    for name in policies._BLENDS:
        found[name] = found[name] - 1
    found["posterize"] = found["posterize"].round()
    return {name: np.abs(values) for name, values in found.items()}


@pytest.mark.parametrize(("place", "level"), [(0, 0), (1, 9), (2, 30)])
def test_rand_augments_strengths_are_torchvisions(monkeypatch, place, level):
    found = drawn(augment.rand_augment, monkeypatch, layers=1, magnitude=level)
    for theirs, ours in THEIR_NAMES.items():
        expected = np.full_like(found[ours], TORCHVISION["rand_augment"][theirs][place])
        np.testing.assert_allclose(found[ours], expected, rtol=1e-5, atol=1e-5, err_msg=ours)


def test_trivial_augments_strengths_reach_as_far_as_torchvisions(monkeypatch):
    found = drawn(augment.trivial_augment, monkeypatch)
    for theirs, ours in THEIR_NAMES.items():
        none, _, full = TORCHVISION["trivial_augment"][theirs]
        reached = sorted([found[ours].min(), found[ours].max()])
        np.testing.assert_allclose(reached, sorted([none, full]), rtol=1e-5, atol=1e-5, err_msg=ours)

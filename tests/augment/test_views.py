"""Test-time augmentation against views made by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from flaxcls import augment, create_state, eval_step
from flaxcls.config import AugmentConfig
from flaxcls.errors import InputError
from flaxcls.models.cnn import CNN

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 5, 6, 2)).astype(np.float32)


def by_hand(image):
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    views = [padded[r : r + 5, c : c + 6] for r, c in [(1, 1), (2, 1), (0, 1), (1, 2), (1, 0)]]
    return np.stack(views + [view[:, ::-1] for view in views])


@pytest.mark.usefixtures("strict_types")
def test_views():
    np.testing.assert_array_equal(augment.make_views(jnp.array(IMAGES), shift=1), [by_hand(i) for i in IMAGES])
    np.testing.assert_array_equal(augment.make_views(jnp.array(IMAGES), flips=False)[:, 0], IMAGES)
    assert augment.make_views(jnp.array(IMAGES)).shape == (3, 2, 5, 6, 2)


@pytest.mark.usefixtures("strict_types")
def test_logits_are_averaged():
    weights = RNG.normal(size=(60, 4)).astype(np.float32)
    predict = lambda images: jnp.tanh(images.reshape(-1, 60) @ weights)  # noqa: E731
    result = augment.average_views(predict, jnp.array(IMAGES), shift=1)
    expected = [np.tanh(by_hand(i).reshape(10, 60) @ weights).mean(axis=0) for i in IMAGES]
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_a_state_is_evaluated_with_views():
    model = CNN(3, widths=(4,), dense=(8,), norm="batch")
    state = create_state(jax.random.key(0), model, optax.sgd(0.1), image_shape=(8, 8, 1))
    batch = {"image": jnp.array(RNG.normal(size=(16, 8, 8, 1)), jnp.float32), "label": jnp.arange(16) % 3}
    views = augment.AverageViews(model, shift=1)
    assert jax.tree.structure(views.init(jax.random.key(0), batch["image"], train=False)) == jax.tree.structure(
        state.eval_variables
    )

    # the model's logits on the mirrored and moved images, one view at a time
    predict = partial(model.apply, state.eval_variables, train=False)
    padded = np.pad(batch["image"], ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = [padded[:, r : r + 8, c : c + 8] for r, c in [(1, 1), (2, 1), (0, 1), (1, 2), (1, 0)]]
    logits = np.mean([predict(jnp.array(v)) for part in parts for v in (part, part[:, :, ::-1])], axis=0)
    np.testing.assert_allclose(views.apply(state.eval_variables, batch["image"], train=False), logits, atol=1e-5)

    sums = eval_step(state, batch, model=views)
    expected = optax.softmax_cross_entropy_with_integer_labels(jnp.array(logits), batch["label"]).sum()
    np.testing.assert_allclose(sums.loss, expected, rtol=1e-5)


def diagonal_by_hand(image):
    """Returns the image and its two moves by a pixel, reflected at the border, and then their mirror images."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    views = [padded[r : r + 5, c : c + 6] for r, c in [(1, 1), (2, 2), (0, 0)]]
    return np.stack(views + [view[:, ::-1] for view in views])


@pytest.mark.usefixtures("strict_types")
@pytest.mark.parametrize("flips", [True, False])
def test_a_diagonal_counts_the_image_where_it_is_one_half(flips):
    options = {"shift": 1, "fill": "reflect", "pattern": "diagonal", "flips": flips}
    expected = np.stack([diagonal_by_hand(image) for image in IMAGES])[:, : 6 if flips else 3]
    np.testing.assert_array_equal(augment.make_views(jnp.array(IMAGES), **options), expected)

    weights = RNG.normal(size=(60, 4)).astype(np.float32)
    predict = lambda images: jnp.tanh(images.reshape(-1, 60) @ weights)  # noqa: E731
    here, one, other = (
        np.mean([np.tanh(expected[:, v].reshape(-1, 60) @ weights) for v in views], axis=0)
        for views in ([(0, 3), (1, 4), (2, 5)] if flips else [(0,), (1,), (2,)])
    )
    result = augment.average_views(predict, jnp.array(IMAGES), **options)
    np.testing.assert_allclose(result, here / 2 + (one + other) / 4, atol=1e-5)


def test_a_diagonal_of_no_pixels_is_the_image_and_its_mirror_image():
    predict = lambda images: jnp.tanh(images[:, :2, 0, 0])  # noqa: E731
    cross, diagonal = (augment.average_views(predict, jnp.array(IMAGES), pattern=p) for p in ("cross", "diagonal"))
    np.testing.assert_array_equal(cross, diagonal)


def test_an_unknown_pattern():
    with pytest.raises(InputError, match=r"unknown pattern 'diagnal'. Did you mean 'diagonal'\?"):
        augment.make_views(jnp.array(IMAGES), pattern="diagnal")


def test_the_configuration_names_the_views():
    class Rows(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            return images[:, 0, :, 0]

    assert isinstance(augment.with_views(Rows(), AugmentConfig()), Rows)
    for options in ({"flips": True}, {"flips": False, "shift": 1}, {"flips": True, "shift": 2, "pattern": "diagonal"}):
        config = AugmentConfig(crop_fill="reflect", **{f"eval_{name.rstrip('s')}": v for name, v in options.items()})
        logits = augment.with_views(Rows(), config).apply({}, jnp.array(IMAGES), train=False)
        expected = augment.AverageViews(Rows(), fill="reflect", **options).apply({}, jnp.array(IMAGES), train=False)
        np.testing.assert_array_equal(logits, expected)
        assert not np.allclose(logits, IMAGES[:, 0, :, 0])


def test_a_padded_batch_is_evaluated_with_the_diagonal_as_a_full_one():
    model = CNN(3, widths=(4,), dense=(8,), norm="batch")
    state = create_state(jax.random.key(0), model, optax.sgd(0.1), image_shape=(5, 6, 2))
    views = augment.AverageViews(model, shift=1, fill="reflect", pattern="diagonal")
    step = jax.jit(partial(eval_step, model=views))
    full = {"image": jnp.array(IMAGES), "label": jnp.arange(3)}
    padded = {
        "image": jnp.concatenate([full["image"], jnp.full((2, 5, 6, 2), jnp.nan)]),
        "label": jnp.array([0, 1, 2, 99, 99]),
        "mask": jnp.arange(5) < 3,
    }
    one, other = step(state, full), step(state, padded)
    assert (one.correct, one.count) == (other.correct, other.count)
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-5)

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxcls.analysis.activations import choose_layer, feature_maps, first_layer_filters, grad_cam, map_layers
from flaxcls.errors import InputError
from flaxcls.models import CNN, MODELS
from tests.slow import all_slow_but

RNG = np.random.default_rng(0)


class Linear(nn.Module):
    """A 1x1 convolution, mean, dense: all of Grad-CAM can be written down."""

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(2)(nn.Conv(3, (1, 1), name="maps")(images).mean(axis=(1, 2)))


class Twice(nn.Module):
    """Calls one convolution twice, then one of a single pixel, as squeeze-and-excitation does, and a dense layer."""

    @nn.compact
    def __call__(self, images, train):
        shared = nn.Conv(images.shape[-1], (3, 3), name="shared")
        x = nn.relu(shared(nn.relu(shared(images))))
        x = nn.Conv(4, (1, 1), name="pixel")(x.mean(axis=(1, 2), keepdims=True))
        return nn.Dense(2)(x[:, 0, 0])


class Flat(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(2)(images.reshape(len(images), -1))


def initial(model, shape):
    images = RNG.random(shape, np.float32)
    return model.init(jax.random.key(0), images, train=False), images


def test_grad_cam_of_a_linear_case():
    model = Linear()
    variables, images = initial(model, (2, 4, 5, 3))
    images -= 0.5  # so that some of the map is negative, where the picture is 0
    kernel, bias = (np.asarray(variables["params"]["maps"][name], np.float64) for name in ("kernel", "bias"))
    dense = np.asarray(variables["params"]["Dense_0"]["kernel"], np.float64)
    for classes in ([0, 0], [1, 0]):
        maps = images @ kernel[0, 0] + bias
        expected = np.maximum((maps * dense[:, classes].T[:, None, None] / 20).sum(axis=3), 0)
        expected /= expected.max(axis=(1, 2), keepdims=True)
        assert (expected == 0).any()
        found = grad_cam(model, variables, images, classes)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(feature_maps(model, variables, images), maps, rtol=1e-5, atol=1e-6)


def test_a_map_smaller_than_the_image_is_interpolated():
    model = CNN(3, widths=(4, 4), dense=())
    variables, images = initial(model, (2, 8, 8, 1))
    found = grad_cam(model, variables, images, [0, 1])
    assert found.shape == (2, 8, 8)
    assert found.min() >= 0
    np.testing.assert_allclose(found.max(axis=(1, 2)), 1)
    assert feature_maps(model, variables, images).shape == (2, 4, 4, 4)
    assert feature_maps(model, variables, images, "Conv_0").shape == (2, 8, 8, 4)
    assert not np.allclose(grad_cam(model, variables, images, [0, 1], layer="Conv_0"), found)


def test_where_nothing_speaks_for_the_class():
    model = Linear()
    variables, images = initial(model, (1, 4, 4, 3))
    zero = jax.tree.map(np.zeros_like, variables)
    np.testing.assert_array_equal(grad_cam(model, zero, images, [0]), np.zeros((1, 4, 4)))


def test_the_last_call_of_a_layer_counts():
    model = Twice()
    variables, images = initial(model, (2, 6, 6, 2))
    conv = {"params": variables["params"]["shared"]}
    layer = nn.Conv(2, (3, 3))
    second = layer.apply(conv, nn.relu(layer.apply(conv, images)))
    np.testing.assert_allclose(feature_maps(model, variables, images, "shared"), second, rtol=1e-5, atol=1e-6)

    def tail(maps):
        pixel = variables["params"]["pixel"]
        x = nn.relu(maps).mean(axis=(1, 2)) @ pixel["kernel"][0, 0] + pixel["bias"].reshape(1, -1)
        return (x @ variables["params"]["Dense_0"]["kernel"])[:, 1].sum()

    weights = jax.grad(tail)(second).mean(axis=(1, 2), keepdims=True)
    expected = np.maximum((weights * second).sum(axis=3), 0)
    expected /= np.maximum(expected.max(axis=(1, 2), keepdims=True), 1e-30)
    assert expected.max() == 1
    np.testing.assert_allclose(grad_cam(model, variables, images, [1, 1]), expected, rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_not_there():
    model = CNN(3, widths=(4,), norm="batch")
    variables, images = initial(model, (1, 8, 8, 1))
    with pytest.raises(InputError, match=r"unknown layer 'Conf_0'. Did you mean 'Conv_0'\? Known: Conv_0, Batch"):
        grad_cam(model, variables, images, [0], layer="Conf_0")
    with pytest.raises(InputError, match="unknown layer 'Dense_0'"):
        feature_maps(model, variables, images, "Dense_0")
    variables, images = initial(Flat(), (1, 8, 8, 1))
    with pytest.raises(InputError, match="no layer with an output"):
        grad_cam(Flat(), variables, images, [0])
    with pytest.raises(InputError, match="no filters to show"):
        first_layer_filters(Flat(), variables, images)


LAYERS = {
    "cnn": ("BatchNorm_2", (8, 8, 64)),
    "resnet18": ("stage3_block2", (2, 2, 256)),
    "resnet34": ("stage3_block6", (2, 2, 256)),
    "resnet50": ("stage4_block1/BatchNorm_0", (2, 2, 512)),
    "resnet20": ("stage3_block3", (8, 8, 64)),
    "resnet56": ("stage3_block9", (8, 8, 64)),
    "wide_resnet_16_4": ("BatchNorm_0", (8, 8, 256)),
    "wide_resnet_28_10": ("BatchNorm_0", (8, 8, 640)),
    "vgg11": ("BatchNorm_7", (2, 2, 512)),
    "mobilenet_v2": ("BatchNorm_39", (2, 2, 576)),
    "convnext_tiny": ("LayerNorm_3", (2, 2, 384)),
}


@pytest.mark.parametrize("name", all_slow_but(MODELS, "cnn", "resnet18"))
def test_every_model_has_a_layer_and_filters(name):
    model, images = MODELS[name](3), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    found = map_layers(model, variables, images)
    path, shape = found[choose_layer(found, None)]
    assert (path, shape.shape[1:]) == LAYERS[name]
    zeros = jax.tree.map(lambda array: np.zeros(array.shape, np.float32), variables)
    zeros["params"]["Conv_0"]["kernel"] += 1
    assert np.all(first_layer_filters(model, zeros, images))


def test_the_first_layer_is_the_one_that_is_called_first():
    class Named(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            x = nn.Conv(2, (3, 3), name="stem")(images)
            return nn.Conv(4, (1, 1), name="head")(x).mean(axis=(1, 2))

    variables, images = initial(Named(), (1, 6, 6, 1))
    assert first_layer_filters(Named(), {"params": dict(sorted(variables["params"].items()))}, images).shape == (
        3,
        3,
        1,
        2,
    )


def test_a_network_that_computes_in_bfloat16():
    model = CNN(3, widths=(4,), dense=(), dtype=jnp.dtype("bfloat16"))
    variables, images = initial(model, (1, 8, 8, 1))
    assert grad_cam(model, variables, images, [0]).dtype == np.float32
    assert feature_maps(model, variables, images).dtype == np.float32

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxcls.config import ModelConfig
from flaxcls.errors import InputError
from flaxcls.models import CNN, build_model
from flaxcls.models.layers import ACTIVATIONS
from flaxcls.models.summary import count


def init(model, shape=(1, 32, 32, 3)):
    return model.init(jax.random.key(0), jnp.zeros(shape), train=False)


def test_the_tutorials_network_has_its_122570_parameters():
    variables = jax.eval_shape(lambda: init(CNN(10, widths=(32, 64, 64), dense=(64,), padding="valid")))
    assert count(variables["params"]) == 122_570


def test_it_computes_what_its_layers_say():
    model = CNN(2, widths=(3, 4), dense=(5,), padding="valid", pooling="average", activation="tanh")
    images = jax.random.normal(jax.random.key(1), (2, 9, 9, 1))
    params = init(model, images.shape)["params"]
    x = jnp.tanh(nn.Conv(3, (3, 3), padding="VALID").apply({"params": params["Conv_0"]}, images))
    x = nn.avg_pool(x, (2, 2), strides=(2, 2))
    x = jnp.tanh(nn.Conv(4, (3, 3), padding="VALID").apply({"params": params["Conv_1"]}, x))
    x = jnp.tanh(nn.Dense(5).apply({"params": params["Dense_0"]}, x.reshape(2, -1)))
    expected = nn.Dense(2).apply({"params": params["Dense_1"]}, x)
    np.testing.assert_allclose(model.apply({"params": params}, images, train=False), expected, rtol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_every_activation_and_norm_gives_finite_logits(activation, norm):
    model = CNN(7, widths=(4, 4), dense=(), norm=norm, activation=activation)
    logits = model.apply(init(model, (2, 8, 8, 1)), jnp.ones((2, 8, 8, 1)), train=False)
    chex.assert_shape(logits, (2, 7))
    chex.assert_tree_all_finite(logits)


def test_kernels_are_glorot_uniform_and_biases_zero():
    params = init(CNN(10))["params"]
    for fan, layer in ((9 * (3 + 32), "Conv_0"), (9 * (64 + 64), "Conv_2")):
        kernel = params[layer]["kernel"]
        limit = (6 / fan) ** 0.5
        assert 0.95 * limit < jnp.abs(kernel).max() <= limit
        assert abs(float(jnp.mean(kernel))) < 0.1 * limit
        assert not params[layer]["bias"].any()


def test_bfloat16_computes_in_bfloat16_and_keeps_the_rest_float32():
    model = CNN(3, widths=(4,), dense=(), norm="batch", dtype=jnp.dtype("bfloat16"))
    variables = init(model, (2, 8, 8, 1))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, updated = model.apply(variables, jnp.ones((2, 8, 8, 1)), train=True, mutable=["batch_stats"])
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype("float32")}
    text = jax.jit(lambda x: model.apply(variables, x, train=False)).lower(jnp.ones((2, 8, 8, 1))).as_text()
    assert "tensor<2x8x8x4xbf16>" in text


def test_dropout_acts_in_training_alone():
    model = CNN(3, widths=(4,), dense=(64,), dropout=0.5)
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    variables = init(model, images.shape)
    apply = lambda train, seed: model.apply(variables, images, train=train, rngs={"dropout": jax.random.key(seed)})  # noqa: E731
    assert jnp.array_equal(apply(False, 0), apply(False, 1))
    assert not jnp.array_equal(apply(True, 0), apply(True, 1))


@pytest.mark.parametrize(
    ("size", "padding", "message"),
    [
        (3, "same", "2x2 pooling window does not fit a feature map of 1x1"),
        (5, "valid", "convolution with padding 'valid'"),
    ],
)
def test_an_image_too_small_for_the_network(size, padding, message):
    with pytest.raises(InputError, match=message):
        init(CNN(3, padding=padding), (1, size, size, 1))


def test_an_option_that_a_model_does_not_take_is_refused():
    for option in ({"widths": (8,)}, {"pooling": "max"}):
        name = next(iter(option))
        with pytest.raises(InputError, match=f"model.{name} is .*, but resnet20 does not take it.* are .*dropout"):
            build_model(ModelConfig(name="resnet20", **option), 10)
    assert build_model(ModelConfig(name="resnet20", stochastic_depth=0.1, norm="group"), 10).norm == "group"


def test_the_config_describes_the_model():
    config = ModelConfig(widths=(5,), dense=(6,), kernel_size=5, padding="valid", activation="gelu", dtype="bfloat16")
    assert build_model(config, 4) == CNN(4, (5,), (6,), 5, "valid", "gelu", "max", "batch", 0.2, jnp.dtype("bfloat16"))
    assert build_model(ModelConfig(), 4) == CNN(4, (32, 64, 64), (128,), norm="batch", dropout=0.2)

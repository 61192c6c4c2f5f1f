"""Tests of all networks: their published sizes, and their behaviour in training and evaluation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxcls.errors import InputError
from flaxcls.models import MODELS, VGG, ConvNeXt, ResNet, mobilenet_v2, wide_resnet
from flaxcls.models.layers import NORMS
from flaxcls.models.summary import count
from tests.slow import all_slow_but

TORCHVISION = "num_params in torchvision's table of weights"
# name, classes, options, parameters, source
# By hand, resnet20: kernels 432 + 13,824 + 50,688 + 202,752, classifier 650, norms 1,376.
# By hand, resnet56 has 12 convolutions more in each stage, of 2,304 + 32, 9,216 + 64 and 36,864 + 128 parameters.
PUBLISHED = [
    ("resnet18", 1000, {}, 11_689_512, TORCHVISION),
    ("resnet34", 1000, {}, 21_797_672, TORCHVISION),
    ("resnet50", 1000, {}, 25_557_032, TORCHVISION),
    ("resnet50", 1000, {"squeeze_excitation": True}, 28_088_024, "osmr/imgclsmob's table (SE-ResNet-50)"),
    ("resnet18", 10, {"small_images": True}, 11_173_962, "the usual ResNet-18 for CIFAR, as in kuangliu/pytorch-cifar"),
    ("resnet20", 10, {}, 269_722, "He et al. 2016, table 6: 0.27M; its digits by hand"),
    ("resnet56", 10, {}, 853_018, "He et al. 2016, table 6: 0.85M; its digits by hand"),
    ("resnet20", 10, {"projection": True}, 272_474, "osmr/imgclsmob's table (ResNet-20, of option B)"),
    ("wide_resnet_28_10", 10, {}, 36_479_194, "Zagoruyko and Komodakis 2016: 36.5M; osmr/imgclsmob"),
    ("wide_resnet_28_10", 100, {}, 36_536_884, "osmr/imgclsmob"),
    ("wide_resnet_16_4", 10, {}, 2_748_890, "this count is ours: no source with all digits was found"),
    ("vgg11", 1000, {}, 132_868_840, TORCHVISION + " (vgg11_bn)"),
    ("vgg11", 1000, {"norm": "none"}, 132_863_336, TORCHVISION + " (vgg11)"),
    ("mobilenet_v2", 1000, {}, 3_504_872, TORCHVISION),
    ("convnext_tiny", 1000, {}, 28_589_128, TORCHVISION),
]

# One of each family, small, with everything random switched on.
SMALL = {
    "resnet": (ResNet(3, (1, 1), (4, 8), small_images=True, dropout=0.5, stochastic_depth=0.5), 8),
    "wide_resnet": (wide_resnet(3, depth=10, widen=1, dropout=0.5, stochastic_depth=0.5), 8),
    "vgg": (VGG(3, depths=(1, 1), widths=(4, 8), dense=(16,)), 8),
    "mobilenet": (mobilenet_v2(3, stages=((1, 8, 1, 1), (2, 8, 2, 2))), 8),
    "convnext": (ConvNeXt(3, depths=(1, 1), widths=(8, 16), stochastic_depth=0.9, layer_scale=1.0), 8),
}
EXPECTED_STATE = {"resnet": True, "wide_resnet": True, "vgg": True, "mobilenet": True, "convnext": False}


def shapes(model, size):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((2, size, size, 3)), train=False))


@pytest.mark.parametrize(("name", "classes", "options", "parameters", "source"), PUBLISHED)
def test_the_number_of_parameters_is_the_published_one(name, classes, options, parameters, source):
    size = 224 if classes == 1000 else 32
    assert count(shapes(MODELS[name](classes, **options), size)["params"]) == parameters, source


def test_each_registered_network_has_a_published_size():
    assert {row[0] for row in PUBLISHED} == set(MODELS) - {"cnn"}


def test_vgg_flattens_a_small_image_to_a_smaller_dense_layer():
    small, large = (shapes(MODELS["vgg11"](10), size)["params"] for size in (32, 224))
    assert small["Dense_0"]["kernel"].shape == (512, 4096)
    assert large["Dense_0"]["kernel"].shape == (7 * 7 * 512, 4096)


@pytest.mark.parametrize("name", all_slow_but(SMALL, "resnet"))
def test_training_is_random_and_updates_statistics_and_evaluation_neither(name):
    model, size = SMALL[name]
    images = jax.random.normal(jax.random.key(1), (4, size, size, 3))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: jnp.float32(rng.uniform(0, 0.5, leaf.shape)), shapes(model, size))
    state = [collection for collection in variables if collection != "params"]
    assert bool(state) == EXPECTED_STATE[name]

    @jax.jit
    def train(key):
        # the same rng stream as in train_step
        return model.apply(variables, images, train=True, rngs={"params": key}, mutable=state)

    (one, updated), (same, _), (other, _) = (train(jax.random.key(seed)) for seed in (2, 2, 3))
    assert jnp.array_equal(one, same)
    assert not jnp.array_equal(one, other)
    for old, new in zip(jax.tree.leaves({c: variables[c] for c in state}), jax.tree.leaves(updated), strict=True):
        assert not jnp.array_equal(old, new)

    logits = model.apply(variables, images, train=False)  # draws nothing: it is given no key
    chex.assert_shape(logits, (4, 3))
    chex.assert_tree_all_finite((logits, one, updated))


@pytest.mark.parametrize("name", all_slow_but(SMALL, "mobilenet"))
def test_bfloat16_keeps_parameters_statistics_and_logits_float32(name):
    model, size = SMALL[name]
    model = model.clone(dtype=jnp.dtype("bfloat16"))
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    variables = shapes(model, size)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    dtypes = set()

    def record(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if context.module.path:
            dtypes.add(output.dtype)
        return output

    def apply(variables, images):
        with nn.intercept_methods(record):
            return model.apply(variables, images, train=False)

    assert jax.eval_shape(apply, variables, images).dtype == jnp.float32
    assert dtypes == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", [name for name in SMALL if name != "convnext"])
def test_each_norm_gives_its_own_parameters(name, norm):
    model, size = SMALL[name]
    variables = shapes(model.clone(norm=norm), size)
    assert ("batch_stats" in variables) == (norm == "batch")
    names = {path[-2].key.split("_")[0] for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])}
    assert names - {"Conv", "Dense", "classifier"} == {
        "batch": {"BatchNorm"}, "group": {"GroupNorm"}, "layer": {"LayerNorm"}, "none": set(),
    }[norm]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet50", 31),
        ("resnet20", 3),
        ("wide_resnet_16_4", 3),
        ("vgg11", 31),
        ("mobilenet_v2", 28),
        ("convnext_tiny", 31),
    ],
)
def test_an_image_too_small_for_the_network(name, size):
    with pytest.raises(InputError, match=f"too small for the network: {size}x{size} pixels.* use larger images"):
        shapes(MODELS[name](10), size)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxcls.models import ResNet, resnet18, resnet20, wide_resnet
from flaxcls.models.resnet import PreActivationBlock, ResidualBlock
from tests.slow import slow

SHARED = {
    "norm": "batch",
    "activation": "relu",
    "drop": 0.0,
    "squeeze_excitation": False,
    "zero_init": False,
    "dtype": jnp.dtype("float32"),
    "axis_name": None,
}
BASIC = {"bottleneck": False, "projection": True, **SHARED}


def conv(x, kernel, stride=1):
    """Convolves by NumPy: x [b h w c], kernel [k k c d], k // 2 zeros on each side."""
    size = kernel.shape[0]
    padded = np.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    rows, columns = (-(-length // stride) for length in x.shape[1:3])
    out = np.zeros((x.shape[0], rows, columns, kernel.shape[3]))
    for row in range(rows):
        for column in range(columns):
            window = padded[:, row * stride : row * stride + size, column * stride : column * stride + size]
            out[:, row, column] = np.einsum("bijc,ijcd->bd", window, kernel)
    return out


def norm(x, variables, name):
    scale, bias = (variables["params"][name][key] for key in ("scale", "bias"))
    mean, var = (variables["batch_stats"][name][key] for key in ("mean", "var"))
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def relu(x):
    return np.maximum(x, 0)


def random_variables(module, x):
    """Returns variables with nothing at its initial value, as NumPy arrays of float64."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.uniform(0.2, 1.0, leaf.shape) * rng.choice((-1, 1), leaf.shape[-1:]), shapes)


def apply(module, variables, x):
    variables = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), variables)
    return module.apply(variables, x.astype(np.float32), train=False)


def positive_variance(variables):
    for stats in variables["batch_stats"].values():
        stats["var"] = np.abs(stats["var"])
    return variables


X = np.random.default_rng(1).standard_normal((2, 5, 4, 3))  # an odd height: stride 2 rounds up


def test_a_block_without_projection_by_numpy():
    module = ResidualBlock(4, stride=2, **{**BASIC, "projection": False, "squeeze_excitation": True})
    variables = positive_variance(random_variables(module, X))
    params = variables["params"]
    y = relu(norm(conv(X, params["Conv_0"]["kernel"], 2), variables, "BatchNorm_0"))
    y = norm(conv(y, params["Conv_1"]["kernel"]), variables, "BatchNorm_1")
    dense = lambda x, name: x @ excitation[name]["kernel"] + excitation[name]["bias"]  # noqa: E731
    excitation = params["SqueezeExcitation_0"]
    gate = 1 / (1 + np.exp(-dense(relu(dense(y.mean(axis=(1, 2)), "Dense_0")), "Dense_1")))
    shortcut = np.concatenate([X[:, ::2, ::2], np.zeros((2, 3, 2, 1))], axis=-1)
    expected = relu(shortcut + y * gate[:, None, None, :])
    np.testing.assert_allclose(apply(module, variables, X), expected, rtol=1e-4, atol=1e-5)


def test_a_pre_activation_block_by_numpy():
    module = PreActivationBlock(4, stride=2, dropout=0.0, **SHARED)
    variables = positive_variance(random_variables(module, X))
    params = variables["params"]
    shared = relu(norm(X, variables, "BatchNorm_0"))
    y = relu(norm(conv(shared, params["Conv_1"]["kernel"], 2), variables, "BatchNorm_1"))
    expected = conv(shared, params["Conv_0"]["kernel"], 2) + conv(y, params["Conv_2"]["kernel"])
    np.testing.assert_allclose(apply(module, variables, X), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", slow("group")])
@pytest.mark.parametrize("zero_init", [True, False])
@pytest.mark.parametrize("block", ["basic", "bottleneck", "pre_activation"])
def test_zero_initialised_blocks_start_as_the_identity(block, zero_init, norm):
    options = {"norm": norm, "zero_init": zero_init}
    if block == "pre_activation":
        module = PreActivationBlock(8, stride=1, dropout=0.0, **{**SHARED, **options})
    else:
        bottleneck = block == "bottleneck"
        module = ResidualBlock(2 if bottleneck else 8, stride=1, **{**BASIC, "bottleneck": bottleneck, **options})
    x = jax.random.uniform(jax.random.key(1), (2, 4, 4, 8))  # positive: a relu follows the sum
    y, _ = module.init_with_output(jax.random.key(0), x, train=False)
    assert jnp.array_equal(x, y) == zero_init


def maps(module, shape):
    """Returns the shape of what each submodule returns for images of `shape`."""

    def run():
        init = module.init_with_output(jax.random.key(0), jnp.zeros(shape), train=False, capture_intermediates=True)
        return init[1]["intermediates"]

    return {name: call["__call__"][0].shape for name, call in jax.eval_shape(run).items() if name != "__call__"}


def test_the_stem_suits_the_image():
    last = lambda model, size, block: maps(model, (1, size, size, 3))[block]  # noqa: E731
    assert last(resnet18(10), 224, "stage4_block2") == (1, 7, 7, 512)
    assert last(resnet18(10), 32, "stage4_block2") == (1, 1, 1, 512)
    assert last(resnet18(10, small_images=True), 32, "stage4_block2") == (1, 4, 4, 512)
    assert last(resnet20(10), 32, "stage3_block3") == (1, 8, 8, 64)


def test_the_stride_of_a_bottleneck_is_on_its_3x3_convolution():
    module = ResidualBlock(2, stride=2, **{**BASIC, "bottleneck": True})
    convolutions = {name: shape for name, shape in maps(module, (1, 8, 8, 8)).items() if "Conv" in name}
    assert convolutions == {
        "Conv_0": (1, 8, 8, 2),
        "Conv_1": (1, 4, 4, 2),
        "Conv_2": (1, 4, 4, 8),
        "Conv_3": (1, 4, 4, 8),
    }


def test_kernels_are_he_normal_in_their_fan_out():
    model = ResNet(3, (1,), (64,), small_images=True)
    params = model.init(jax.random.key(0), jnp.zeros((1, 1, 1, 3)), train=False)["params"]
    kernel = params["stage1_block1"]["Conv_0"]["kernel"]
    assert float(kernel.std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert abs(kernel).max() > 3.5 * kernel.std()  # not truncated


@pytest.mark.parametrize("model", [ResNet(3, (2, 2), (4, 8)), wide_resnet(3, depth=10, widen=1)], ids=["plain", "wide"])
def test_the_drop_rate_rises_linearly_to_the_last_block(model):
    drops = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, ResidualBlock | PreActivationBlock) and context.method_name == "__call__":
            drops.append(context.module.drop)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        model = model.clone(stochastic_depth=0.6)
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    blocks = len(drops)
    np.testing.assert_allclose(drops, [0.6 * (index + 1) / blocks for index in range(blocks)])


def test_a_depth_that_is_none():
    with pytest.raises(ValueError, match="depth is 12, but must be 6 n"):
        wide_resnet(3, 12, 1)


@pytest.mark.parametrize("options", [{"bottleneck": True}, {"projection": False}])
def test_pre_activation_has_one_form(options):
    model = wide_resnet(3, 10, 1, **options)
    with pytest.raises(ValueError, match="bottleneck must be False and projection True"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))

"""The network of the CIFAR-10 speed runs (Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU")."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcls.models.layers import UNIFORM_FAN_IN, check_size, identity_init, max_pool, unit_deviation
from flaxcls.models.whitening import whitening_kernel


@jax.custom_jvp
def exact_gelu(x: jax.Array) -> jax.Array:
    """Returns x times the normal distribution function of x (Hendrycks and Gimpel 2016), not its approximation.

    In float32 or wider it is computed by erf, as erfc takes a GPU twice as long: within 1.1e-6, and 0 below some -5.5,
    where the value is -1e-7. Its derivative is computed from x, which needs no second array to be kept.
    """
    wide = _wide(x)
    return (wide * _normal_distribution(wide)).astype(x.dtype)


@exact_gelu.defjvp
def _exact_gelu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (change,) = primals, tangents
    wide = _wide(x)
    density = jnp.exp(-jnp.square(wide) / 2) / (2 * jnp.pi) ** 0.5
    slope = _normal_distribution(wide) + wide * density
    return exact_gelu(x), slope.astype(x.dtype) * change


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _normal_distribution(x: jax.Array) -> jax.Array:
    return (1 + jax.lax.erf(x / 2**0.5)) / 2


class FixedConv(nn.Module):
    """A convolution without padding whose bias is trained, and whose kernel stays as it is at first.

    The kernel is in the collection `constants`: no gradient of it is computed, and no optimizer sees it.

    features: how many filters; with whiten, two for each value of a patch.
    size: height and width of the kernel, in pixels.
    whiten: whether its filters whiten the images of `init`; else they are random.
    """

    features: int
    size: int
    whiten: bool
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps [b h w c] to [b h-size+1 w-size+1 features]."""
        patch = self.size * self.size * images.shape[-1]

        def make_kernel() -> jax.Array:
            if self.whiten:
                return whitening_kernel(images, self.size)
            return UNIFORM_FAN_IN(self.make_rng("params"), (self.size, self.size, images.shape[-1], self.features))

        kernel = self.variable("constants", "kernel", make_kernel)
        # uniform within 1 / sqrt(fan_in of the kernel), which is PyTorch's rule for a bias
        width = patch**-0.5
        bias = self.param("bias", lambda key: jax.random.uniform(key, (self.features,), minval=-width, maxval=width))
        x = jax.lax.conv_general_dilated(
            images.astype(self.dtype),
            kernel.value.astype(self.dtype),
            window_strides=(1, 1),
            padding="VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return x + bias.astype(self.dtype)[None, None, None]


class Airbench(nn.Module):
    """A fixed 2x2 whitening, groups of two 3x3 convolutions with one pooling each, and a linear classifier.

    The parameters are whitening/bias, Conv_*/kernel, BatchNorm_*/bias and head/kernel; the kernel of the whitening is
    constants/whitening/kernel. 32x32 pixels become 31, 15, 7 and 3 on a side, and 1 before the classifier; other sizes
    leave more there, and the parameters belong to one of them. Images are to be normalised.

    num_classes: k, how many logits there are.
    whiten: whether the fixed kernel is `whitening.whitening_kernel` of the images that the module is initialised on,
      which should then be a few thousand: `create_state(..., images=)`, or model.init_images of a run. Otherwise it is
      random, and learning is slower.
    widths: channels of the convolutions of each group.
    head_init: initializer of the classifier, which has no bias.
    logit_scale: factor of the logits.
    activation: after the whitening and in the groups.
    dtype: of the computation; parameters and statistics are float32.
    axis_name: the mapped axis over which batch statistics are taken under pmap or shard_map; jit needs none.
    """

    num_classes: int
    whiten: bool = False
    widths: tuple[int, ...] = (64, 256, 256)
    head_init: nn.initializers.Initializer = unit_deviation(UNIFORM_FAN_IN)
    logit_scale: float = 1 / 256
    activation: Callable[[jax.Array], jax.Array] = exact_gelu
    dtype: jnp.dtype = jnp.dtype("float32")
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps images f32[b h w c] to logits f32[b k]. Raises InputError where the images are too small."""
        check_size(images, 3 * 2 ** len(self.widths) + 1, "use larger images or fewer widths")
        size, conv_init = 2, identity_init()
        x = FixedConv(2 * size * size * images.shape[-1], size, whiten=self.whiten, dtype=self.dtype, name="whitening")(
            images
        )
        x = self.activation(x)
        for width in self.widths:
            for pool in (True, False):
                # a row or column that the pooling would drop is not computed
                padding = [(1, 1 - side % 2 if pool else 1) for side in x.shape[1:3]]
                x = nn.Conv(width, (3, 3), padding=padding, use_bias=False, kernel_init=conv_init, dtype=self.dtype)(x)
                x = self.activation(self._normalize(max_pool(x, 2) if pool else x, train))
        x = max_pool(x, 3)
        x = x.reshape(x.shape[0], -1)
        logits = nn.Dense(self.num_classes, use_bias=False, kernel_init=self.head_init, dtype=self.dtype, name="head")(
            x
        )
        return logits.astype(jnp.float32) * self.logit_scale

    def _normalize(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.6,
            epsilon=1e-12,
            use_scale=False,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )(x)

"""The network of the CIFAR-10 speed runs (Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU")."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcls.models.layers import UNIFORM_FAN_IN, check_size, identity_init, max_pool, unit_deviation
from flaxcls.models.whitening import whitening_kernel


@jax.custom_jvp
def exact_gelu(x: jax.Array) -> jax.Array:
    """Returns x times the normal distribution function of x (Hendrycks and Gimpel 2016), without approximation.

    It is computed with erf, in float32 or wider, because erfc takes twice as long on a GPU. The error is below 1.1e-6;
    below about x = -5.5 the result is 0 instead of -1e-7. The derivative is computed from x, so that no second array
    is kept.
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
    """A convolution without padding whose bias is trained, and whose kernel keeps its initial values.

    The kernel is in the collection `constants`: it has no gradient, and no optimizer sees it.

    features: number of filters; with whiten, twice the number of values of a patch.
    size: height and width of the kernel, in pixels.
    whiten: True if the filters whiten the images of `init`; False if they are random.
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
        # uniform within 1 / sqrt(fan-in of the kernel), PyTorch's rule for a bias
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
    constants/whitening/kernel. The side of a 32x32 image becomes 31, 15, 7 and 3 pixels, and 1 before the classifier.
    Larger images leave more pixels there, so the parameters fit one image size only. Images must be normalised.

    num_classes: k, the number of logits.
    whiten: True if the fixed kernel is the `whitening.whitening_kernel` of the images on which the module is
      initialised. Give it a few thousand: `create_state(..., images=)`, or model.init_images of a run. Otherwise the
      kernel is random, and learning is slower.
    widths: channels of the convolutions of each group.
    head_init: initializer of the classifier, which has no bias.
    logit_scale: factor of the logits.
    activation: activation function after the whitening and in the groups.
    dtype: type of the computation; parameters and statistics are float32.
    axis_name: the mapped axis over which batch statistics are computed under pmap or shard_map; jit needs none.
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
        """Maps images f32[b h w c] to logits f32[b k]. Raises InputError if the images are too small."""
        check_size(images, 3 * 2 ** len(self.widths) + 1, "use larger images or fewer widths")
        size, conv_init = 2, identity_init()
        x = FixedConv(2 * size * size * images.shape[-1], size, whiten=self.whiten, dtype=self.dtype, name="whitening")(
            images
        )
        x = self.activation(x)
        for width in self.widths:
            for pool in (True, False):
                # does not compute a row or column that the pooling would drop
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

"""Small modules with the contracts of other people's: each has one trait that the package's own networks lack."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx


class ConfigDict:
    """Options by name that may change, and so cannot be hashed, like those of ml_collections."""

    __hash__ = None

    def __init__(self, **options):
        vars(self).update(options)

    def __eq__(self, other):
        return vars(self) == vars(other)


class Network(nn.Module):
    """Two dense layers, with what subclasses add between them."""

    @nn.compact
    def __call__(self, images, train):
        hidden = nn.relu(self.first(images.reshape(len(images), -1)))
        return nn.Dense(3)(self.between(hidden, train))

    def first(self, x):
        return nn.Dense(8)(x)

    def between(self, x, train):
        return x


class ByConfigDict(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, images, train):
        x = nn.relu(nn.Conv(self.config.features, (3, 3))(images))
        return nn.Dense(3)(x.reshape(len(x), -1))


class Bfloat16(nn.Module):
    """Keeps its parameters in 16 bits."""

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(3, param_dtype=jnp.bfloat16)(images.reshape(len(images), -1))


class Sowing(Network):
    """Adds a loss of its activations, as mixtures of experts do for their balance."""

    def between(self, x, train):
        self.sow("losses", "activity", 0.1 * jnp.mean(x**2))
        return x


class SowingVectors(Network):
    def between(self, x, train):
        self.sow("losses", "activity", jnp.mean(x**2, axis=1))
        return x


class SowingMetrics(Network):
    """Sows into a collection that the step knows nothing of, which grows."""

    def between(self, x, train):
        self.sow("metrics", "activity", x.mean())
        return x


class EightBits(Network):
    def first(self, x):
        return nn.Dense(8, dot_general_cls=nn.Fp8DirectDotGeneralOp)(x)


class Partitioned(Network):
    def first(self, x):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), ("data", None))
        return nn.Dense(8, kernel_init=init)(x)


class Rematerialised(nn.Module):
    """Scans over layers, each computed again in the backward pass."""

    @nn.compact
    def __call__(self, images, train):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return x + nn.tanh(nn.Dense(8)(x)), None

        layers = nn.scan(nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = layers()(nn.Dense(8)(images.reshape(len(images), -1)), None)
        return nn.Dense(3)(x)


class KeepingAKey(Network):
    """Keeps a random key among its variables."""

    def between(self, x, train):
        key = self.variable("noise", "key", lambda: jax.random.key(3))
        if train and not self.is_initializing():
            x = x + 0.1 * jax.random.normal(key.value, x.shape)
            key.value = jax.random.fold_in(key.value, 0)
        return x


class KeepingNone(Network):
    def between(self, x, train):
        self.variable("extra", "nothing", lambda: None)
        return x


class KeepingAnEmptyArray(Network):
    def between(self, x, train):
        self.variable("extra", "empty", lambda: jnp.zeros((0, 3)))
        return x


class ChangingAType(Network):
    def between(self, x, train):
        count = self.variable("counters", "seen", lambda: jnp.zeros((), jnp.bfloat16))
        if train and not self.is_initializing():
            count.value = count.value.astype(jnp.float32) + 1
        return x


class ReturningATuple(Network):
    @nn.compact
    def __call__(self, images, train):
        x = nn.Dense(3)(images.reshape(len(images), -1))
        return x, {"pre_logits": x}


class Deterministic(nn.Module):
    """Takes `deterministic` in place of `train`."""

    @nn.compact
    def __call__(self, images, deterministic):
        x = nn.Dropout(0.5, deterministic=deterministic)(images.reshape(len(images), -1))
        return nn.Dense(3)(x)


class InNNX(nnx.Module):
    """An nnx module with dropout and batch normalisation."""

    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(64, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, images, train):
        x = self.norm(self.first(images.reshape(len(images), -1)), use_running_average=not train)
        return self.last(self.dropout(nnx.relu(x), deterministic=not train))

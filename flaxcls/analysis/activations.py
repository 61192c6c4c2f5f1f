"""The outputs of a model's layers, and Grad-CAM, which shows where they support a class."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from flaxcls.errors import InputError, unknown


def grad_cam(
    model: nn.Module,
    variables: Any,
    images: jax.Array | np.ndarray,
    classes: jax.Array | np.ndarray,
    *,
    layer: str | None = None,
) -> np.ndarray:
    """Returns f32[b h w] in 0..1: high where the active channels of a layer support the class.

    Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization". The
    largest value of an image is 1, or 0 if no pixel supports the class. The map of the layer is interpolated to the
    size of the image.

    Args:
      model: called as `model(images, train=False)`.
      variables: the variables of the model.
      images: f32[b h w c], as the model takes them.
      classes: i32[b], the classes whose logits are explained.
      layer: path of a module with an output [b h' w' n], such as "stage4_block2/Conv_1"; if it is called several times,
        the last call counts. None: the last such module whose map has more than one pixel.

    Raises InputError if the model has no such module.
    """
    images = jnp.asarray(images, jnp.float32)
    return np.asarray(_bound(_grad_cam, model, layer)(variables, images, jnp.asarray(classes, jnp.int32)))


def feature_maps(
    model: nn.Module, variables: Any, images: jax.Array | np.ndarray, layer: str | None = None
) -> np.ndarray:
    """Returns f32[b h' w' n], the output of a layer, named as in `grad_cam`. Raises InputError if there is none."""
    return np.asarray(_bound(_feature_maps, model, layer)(variables, jnp.asarray(images, jnp.float32)))


def _bound(f: Any, model: nn.Module, layer: str | None) -> Any:
    """Returns the compiled `f` with its first two arguments bound; a model that cannot be hashed compiles each time."""
    try:
        hash(model)
    except TypeError:
        return jax.jit(partial(f.__wrapped__, model, layer))
    return partial(f, model, layer)


def map_layers(model: nn.Module, variables: Any, images: Any) -> list[tuple[str, jax.ShapeDtypeStruct]]:
    """Returns the path and shape of each module output [b h w n], in the order in which the calls end.

    Nothing is computed; shapes are enough for variables and images. A module that is called twice is listed twice.
    """
    found: list[tuple[str, jax.ShapeDtypeStruct]] = []

    def record(path: str, output: jax.Array) -> jax.Array:
        found.append((path, jax.ShapeDtypeStruct(output.shape, output.dtype)))
        return output

    jax.eval_shape(lambda variables, images: _apply_with(model, variables, images, record), variables, images)
    return found


def choose_layer(found: Sequence[tuple[str, jax.ShapeDtypeStruct]], layer: str | None) -> int:
    """Returns the index in `map_layers` of a layer, named as in `grad_cam`. Raises InputError if there is none."""
    if not found:
        raise InputError(
            "the model has no layer with an output [b h w c], which Grad-CAM and feature maps need: use the other "
            "methods, and name no layer."
        )
    if layer is None:
        large = [index for index, (_, shape) in enumerate(found) if shape.shape[1] * shape.shape[2] > 1]
        return large[-1] if large else len(found) - 1
    calls = [index for index, (path, _) in enumerate(found) if path == layer]
    if not calls:
        raise InputError(unknown("layer", layer, dict(found)))
    return calls[-1]


def first_layer_filters(model: nn.Module, variables: Any, images: Any) -> np.ndarray:
    """Returns f32[h w c n], the kernel of the first convolution that is called. Raises InputError if there is none.

    The shape of the images is enough.
    """
    found: list[np.ndarray] = []

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        node = variables["params"]
        for name in context.module.path:
            node = node.get(name, {})
        kernel = node.get("kernel")
        if kernel is not None and kernel.ndim == 4:
            found.append(np.asarray(kernel, np.float32))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(partial(model.apply, train=False), variables, images)
    if not found:
        raise InputError("the model has no two-dimensional convolution, so it has no filters to show.")
    return found[0]


@partial(jax.jit, static_argnums=(0, 1))
def _grad_cam(model: nn.Module, layer: str | None, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
    found = map_layers(model, variables, images)
    index = choose_layer(found, layer)
    shape = found[index][1]

    def score(added: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, activation = _apply(model, variables, images, index, added)
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum(), activation

    gradient, activation = jax.grad(score, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
    weights = gradient.astype(jnp.float32).mean(axis=(1, 2), keepdims=True)
    small = jax.nn.relu((weights * activation.astype(jnp.float32)).sum(axis=3))
    large = jax.image.resize(small, images.shape[:3], "linear")
    largest = large.max(axis=(1, 2), keepdims=True)
    return jnp.where(largest > 0, large / jnp.where(largest > 0, largest, 1), 0)


@partial(jax.jit, static_argnums=(0, 1))
def _feature_maps(model: nn.Module, layer: str | None, variables: Any, images: jax.Array) -> jax.Array:
    index = choose_layer(map_layers(model, variables, images), layer)
    return _apply(model, variables, images, index)[1].astype(jnp.float32)


def _apply_with(model: nn.Module, variables: Any, images: jax.Array, change: Callable[[str, Any], Any]) -> Any:
    """Applies the model, and replaces each module output [b h w c] by `change(path, output)`."""

    def intercept(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = call(*args, **kwargs)
        is_map = context.method_name == "__call__" and context.module.path and getattr(output, "ndim", 0) == 4
        return change("/".join(context.module.path), output) if is_map else output

    with nn.intercept_methods(intercept):
        return model.apply(variables, images, train=False)


def _apply(
    model: nn.Module, variables: Any, images: jax.Array, index: int, added: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the logits, and the output of call `index` plus `added`."""
    seen: list[jax.Array] = []

    def change(path: str, output: jax.Array) -> jax.Array:
        del path
        if added is not None and len(seen) == index:
            output = output + added
        seen.append(output)
        return output

    logits = _apply_with(model, variables, images, change)
    return logits, seen[index]

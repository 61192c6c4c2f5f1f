"""A table of a model's layers, with their shapes, parameters and FLOPs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import meta
from rich.table import Table

from flaxcls.contract import init_variables


@dataclass(frozen=True)
class Layer:
    """One call of one module: its path and type, the shape of its output without the batch axis, and its size.

    flops: floating-point operations of its matrix products or convolutions in the forward pass of one image. A
      multiply-add counts as two; other operations are not counted.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    flops: int


def layers(model: nn.Module, image_shape: Sequence[int]) -> list[Layer]:
    """Returns the innermost modules of `model` in the order in which they are called on an image (h, w, c).

    Nothing is computed. Operations outside of submodules and the model's own parameters are not listed. If a module is
    called again, its parameters are counted once.
    """
    found: list[Layer] = []

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        before = len(found)
        output = call(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__" and len(found) == before and isinstance(output, jax.Array):
            path, params = "/".join(module.path), meta.unbox(module.variables.get("params", {}))
            called_before = any(layer.path == path for layer in found)
            found.append(
                Layer(
                    path=path,
                    kind=type(module).__name__,
                    shape=output.shape[1:],
                    parameters=0 if called_before else count(params),
                    flops=_flops(module, output),
                )
            )
        return output

    def run(key: jax.Array) -> None:
        with nn.intercept_methods(record):
            init_variables(model, key, jnp.zeros((1, *image_shape), jnp.float32))

    jax.eval_shape(run, jax.random.key(0))
    return found


def _flops(module: nn.Module, output: jax.Array) -> int:
    """Counts one product of the kernel, trained or not, with the input for each output position (all its features)."""
    kernels = [meta.unbox(variables["kernel"]) for variables in module.variables.values() if "kernel" in variables]
    if not kernels or not hasattr(module, "features"):
        return 0
    features = math.prod(np.atleast_1d(module.features).tolist())
    return 2 * math.prod(kernels[0].shape) * (math.prod(output.shape[1:]) // features)


def count(params: Any) -> int:
    """Returns the number of numbers in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def table(model: nn.Module, image_shape: Sequence[int]) -> Table:
    """Returns a printable table of the layers of `model`."""
    rows = layers(model, image_shape)
    made = Table(title=f"{type(model).__name__} on images of {'x'.join(map(str, image_shape))}", title_justify="left")
    for header in ("layer", "type"):
        made.add_column(header)
    for header in ("output", "parameters", "MFLOPs"):
        made.add_column(header, justify="right")
    for row in rows:
        mflops = f"{row.flops / 1e6:,.3f}" if row.flops else ""
        shape = " x ".join(map(str, row.shape))
        made.add_row(row.path, row.kind, shape, f"{row.parameters:,}" if row.parameters else "", mflops)
    made.add_section()
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(partial(init_variables, model), jax.random.key(0), image)
    total = count(shapes["params"])
    made.add_row("total", "", "", f"{total:,}", f"{sum(row.flops for row in rows) / 1e6:,.3f}")
    return made

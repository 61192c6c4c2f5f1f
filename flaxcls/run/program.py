"""The caller's own model and optimizer, as far as they can be read, so that a run does not go on with others."""

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from flaxcls.errors import InputError
from flaxcls.run.checks import trace
from flaxcls.run.result import device, versions
from flaxcls.state import TrainState
from flaxcls.types import Batch

LONGEST = 300  # characters of a module's description


def describe_program(
    model: nn.Module,
    create: Callable[..., TrainState],
    step: Callable[..., Any],
    state: TrainState,
    batch: Batch,
) -> dict[str, str]:
    """Returns the description of a module, and the hash of the operations of its initialisation and training.

    Args:
      model: the module.
      create: key -> the state before the first step.
      step: (state, batch, key) -> (state, metrics).
      state, batch: shapes and types.

    Raises:
      InputError: if the step cannot be traced, or would change the structure, a shape or a type of the state.
    """
    key = jax.random.key(0)
    digest = hashlib.sha256()
    for traced in (trace(jax.make_jaxpr(step), state, batch, key), trace(jax.make_jaxpr(create), key)):
        digest.update(_without_addresses(traced.pretty_print(use_color=False)).encode())
        for constant in _constants(traced):
            digest.update(f"{constant.dtype} {constant.shape}".encode())
            digest.update(constant.tobytes())
    libraries = ", ".join(f"{name} {version}" for name, version in versions().items())
    return {
        "model": " ".join(_without_addresses(repr(model)).split())[:LONGEST],
        "hash": digest.hexdigest(),
        "made with": f"{libraries}; {device()}",
    }


def compare_programs(recorded: dict[str, str] | None, current: dict[str, str], *, allow_changes: bool) -> list[str]:
    """Returns the lines to say where a run goes on with another model or optimizer than it was started with.

    Args:
      recorded: from `describe_program`, {} for the package's own, or None if the record does not tell.
      current: the same for this session.
      allow_changes: True to go on with another one.

    Raises:
      InputError: if it is another one by equal versions and devices, unless `allow_changes`.
    """
    if recorded is None or recorded.get("hash") == current.get("hash"):
        return []
    before, after = (program.get("model", "the package's own") for program in (recorded, current))
    if before != after:
        change = f"model: {before} -> {after}"
    else:
        change = "the operations of a step, by its model, its optimizer or an option"
    if recorded and current and recorded["made with"] != current["made with"]:
        return [f"{change}; or only how it is traced, as the run was made with {recorded['made with']}"]
    if not allow_changes:
        raise InputError(
            f"the run was started with another program, which differs in {change}. Give it the model and the optimizer "
            "that it was started with, start a new run in another workdir, or go on with allow_changes."
        )
    return [change]


def _constants(program: Any) -> Iterator[np.ndarray]:
    """Yields the arrays in a traced program, and in the programs inside it."""
    for constant in getattr(program, "consts", ()):
        yield _numbers(constant)
    for operation in getattr(program, "jaxpr", program).eqns:
        for value in operation.invars:
            if isinstance(value, jax.extend.core.Literal):
                yield _numbers(value.val)
        for value in jax.tree.leaves([*operation.params.values()]):
            if hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns"):
                yield from _constants(value)


def _numbers(constant: Any) -> np.ndarray:
    is_key = jnp.issubdtype(jnp.result_type(constant), jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(constant) if is_key else constant)


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)

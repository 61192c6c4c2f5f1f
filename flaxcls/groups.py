"""Parameters in groups by their paths: each its own factors of the learning rate and of the decay."""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import optax

from flaxcls.config import OptimConfig
from flaxcls.errors import InputError, unknown
from flaxcls.regularizers import weight_mask
from flaxcls.types import Params


def factors(config: OptimConfig, params: Params) -> list[tuple[float, float]]:
    """Returns (factor of the learning rate, factor of the decay) of each parameter, in path order.

    The first key that matches a path such as Dense_0/kernel decides. Where none does, the rate's factor is 1, and the
    decay's is 1 at weights and 0 at biases and normalisation.

    Raises:
      InputError: for a key that decides nothing, with the paths there are.
    """
    paths = _paths(params)
    rates = _first_matches(config.rate_factors, paths, "optim.rate_factors")
    decays = _first_matches(config.decay_factors, paths, "optim.decay_factors")
    defaults = map(float, jax.tree.leaves(weight_mask(params)))
    return [
        (1.0 if rate is None else float(rate), default if decay is None else float(decay))
        for rate, decay, default in zip(rates, decays, defaults, strict=True)
    ]


def by_group(
    config: OptimConfig, optimizer: Callable[[float, float], optax.GradientTransformation]
) -> optax.GradientTransformationExtraArgs:
    """Returns what updates each parameter by `optimizer(factor of the rate, factor of the decay)`.

    Its `init` raises InputError, as `factors` does. The optimizers must act parameter by parameter.
    """

    def grouped(tree: Any) -> optax.GradientTransformationExtraArgs:
        pairs = factors(config, tree)
        names = {pair: "rate {} decay {}".format(*pair) for pair in sorted(set(pairs))}
        labels = jax.tree.unflatten(jax.tree.structure(tree), [names[pair] for pair in pairs])
        return optax.partition({name: optimizer(*pair) for pair, name in names.items()}, labels)

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        return grouped(grads).update(grads, state, params, **extra)

    return optax.GradientTransformationExtraArgs(lambda params: grouped(params).init(params), update)


def matching(globs: Sequence[str], params: Params, name: str) -> Any:
    """Returns the tree of `params` with True where one of the globs matches a path such as Dense_0/kernel.

    Raises:
      InputError: for a glob that matches nothing, with the paths there are; `name` says whose globs they are.
    """
    paths = _paths(params)
    _check_each_matches(globs, paths, name)
    matches = [any(fnmatchcase(path, glob) for glob in globs) for path in paths]
    return jax.tree.unflatten(jax.tree.structure(params), matches)


def _paths(params: Params) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def _check_each_matches(globs: Iterable[str], paths: list[str], name: str) -> None:
    for glob in globs:
        if not any(fnmatchcase(path, glob) for path in paths):
            raise InputError(f"{name}: {unknown('parameter', glob, paths)}")


def _first_matches(by_glob: dict[str, float], paths: list[str], name: str) -> list[float | None]:
    """Returns the value of the first key that matches each path, or None."""
    _check_each_matches(by_glob, paths, name)
    keys = [next((key for key in by_glob if fnmatchcase(path, key)), None) for path in paths]
    for key in by_glob:
        if key not in keys:
            raise InputError(f"{name}: {key!r} stands behind keys that match the same parameters: put it before them.")
    return [None if key is None else by_glob[key] for key in keys]

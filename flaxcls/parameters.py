"""Selection of parameters: by globs over their paths, such as `Dense_0/kernel`, and of the weights among them."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax

from flaxcls.errors import InputError, unknown
from flaxcls.types import Params

__all__ = ["first_matches", "matching", "parameter_paths", "weight_mask", "weights"]


def parameter_paths(params: Params) -> list[str]:
    """Returns the path of each parameter, in tree order."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def matching(globs: Sequence[str], params: Params, name: str) -> Any:
    """Returns a tree like `params`, with True for each parameter whose path at least one glob matches.

    Args:
      globs: such as `Dense_*`.
      params: the tree of parameters.
      name: the option that contains the globs, for the error message.

    Raises:
      InputError: if a glob matches no parameter; the message lists the paths.
    """
    paths = parameter_paths(params)
    _check_each_matches(globs, paths, name)
    matches = [any(fnmatchcase(path, glob) for glob in globs) for path in paths]
    return jax.tree.unflatten(jax.tree.structure(params), matches)


def first_matches(by_glob: Mapping[str, float], params: Params, name: str) -> list[float | None]:
    """Returns, for each parameter in tree order, the value of the first glob that matches its path, or None.

    Raises:
      InputError: if a glob matches no parameter, or only parameters that an earlier glob matches.
    """
    paths = parameter_paths(params)
    _check_each_matches(by_glob, paths, name)
    keys = [next((key for key in by_glob if fnmatchcase(path, key)), None) for path in paths]
    for key in by_glob:
        if key not in keys:
            raise InputError(f"{name}: {key!r} stands behind keys that match the same parameters: put it before them.")
    return [None if key is None else by_glob[key] for key in keys]


def weight_mask(params: Params) -> Any:
    """Returns a tree like `params`, with True for weights, and False for biases and scales of normalisation layers.

    A weight has two axes or more and is not named bias or scale.
    """

    def is_weight(path: tuple[Any, ...], leaf: jax.Array) -> bool:
        return leaf.ndim > 1 and getattr(path[-1], "key", None) not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(is_weight, params)


def weights(params: Params) -> list[jax.Array]:
    """Returns the weights among `params`, in tree order."""
    leaves, masks = jax.tree.leaves(params), jax.tree.leaves(weight_mask(params))
    return [leaf for leaf, is_weight in zip(leaves, masks, strict=True) if is_weight]


def _check_each_matches(globs: Iterable[str], paths: list[str], name: str) -> None:
    for glob in globs:
        if not any(fnmatchcase(path, glob) for path in paths):
            raise InputError(f"{name}: {unknown('parameter', glob, paths)}")

"""Whether two trees hold the same bits."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcls.run.processes import whole_array


def fingerprint(variables: Any) -> str:
    """Returns the SHA-256 over path, type, shape and bytes of each array of a tree, in path order."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return fingerprint_of_paths({jax.tree_util.keystr(path): leaf for path, leaf in leaves})


def fingerprint_of_paths(leaves: Mapping[str, Any]) -> str:
    """Returns the same of arrays by their paths, as `jax.tree_util.keystr` writes them."""
    digest = hashlib.sha256()
    for path in sorted(leaves):
        leaf = leaves[path]
        array = whole_array(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()

"""What the processes of one run, each on a host of its own, do together; one process alone pays nothing for it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxcls.errors import InputError, StorageError, exit_code
from flaxcls.places import as_path

_LONGEST = 8192  # bytes of a path, or of what is wrong with it


def is_first() -> bool:
    """Whether this is the process that writes what is written once: configuration, logs and result."""
    return jax.process_index() == 0


def share(make: Callable[[], Path]) -> Path:
    """Returns, on all processes, the path that `make` gives on the first, once all have come here.

    Raises what it raises there, and the same words, as InputError or StorageError, on the others.
    """
    if jax.process_count() == 1:
        return make()
    wait_for_all("the run directory is opened")
    word: dict[str, Any] = {}
    try:
        if is_first():
            word = {"path": str(make())}
    except BaseException as error:
        word = {"error": str(error)[:1000], "code": exit_code(error)}
        raise
    finally:
        text = json.dumps(word).encode().ljust(_LONGEST, b" ")
        shared = multihost_utils.broadcast_one_to_all(np.frombuffer(text, np.uint8))
    word = json.loads(shared.tobytes())
    if "error" in word:
        raise (InputError if word["code"] == exit_code(InputError()) else StorageError)(word["error"])
    return as_path(word["path"])


def agree(good: bool) -> bool:
    """Returns whether it is good on all processes."""
    return good if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(good)).all())


def whole_array(array: Any) -> np.ndarray:
    """Returns all of an array; where other processes hold parts of it, all of them must ask for it."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def wait_for_all(what: str) -> None:
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def cores() -> int:
    """Returns how many cores this process may use; macOS does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

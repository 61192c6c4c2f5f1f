"""What the processes of one run, each on a host of its own, do together; one process alone pays nothing for it."""

import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxcls.errors import InputError

_LONGEST = 4096  # bytes of a path


def is_first() -> bool:
    """Whether this is the process that writes what is written once: configuration, logs and result."""
    return jax.process_index() == 0


def share(make: Callable[[], Path]) -> Path:
    """Returns, on all processes, the path that `make` gives on the first, once all have come here.

    Raises what it raises there, and InputError on the others.
    """
    if jax.process_count() == 1:
        return make()
    wait_for_all("the run directory is opened")
    text = b""
    try:
        if is_first():
            text = str(make()).encode()
    finally:
        shared = multihost_utils.broadcast_one_to_all(np.frombuffer(text.ljust(_LONGEST, b"\0"), np.uint8))
    path = shared.tobytes().rstrip(b"\0").decode()
    if not path:
        raise InputError("the first process could not open the run directory; it says why.")
    return Path(path)


def wait_for_all(what: str) -> None:
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def cores() -> int:
    """Returns how many cores this process may use; macOS does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

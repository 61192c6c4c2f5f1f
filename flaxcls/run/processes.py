"""What the processes of one run, each on a host of its own, do together; one process alone pays nothing for it."""

from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

_LONGEST = 4096  # bytes of a path


def is_first() -> bool:
    """Whether this is the process that writes what is written once: configuration, logs and result."""
    return jax.process_index() == 0


def share(path: Path | None) -> Path:
    """Returns, on all processes, the path that the first one gave."""
    if jax.process_count() == 1:
        assert path is not None
        return path
    text = str(path).encode() if is_first() else b""
    padded = np.frombuffer(text.ljust(_LONGEST, b"\0"), np.uint8)
    return Path(multihost_utils.broadcast_one_to_all(padded).tobytes().rstrip(b"\0").decode())


def wait_for_all(what: str) -> None:
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)

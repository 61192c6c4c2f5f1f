"""Joint actions of the processes of a run, each on its own host; for a single process they cost nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxcls.errors import InputError, StorageError, exit_code
from flaxcls.storage import as_path

T = TypeVar("T")
_MESSAGE_BYTES = 8192  # of a shared value or an error


def is_first() -> bool:
    """Returns True on the one process that writes configuration, logs and result."""
    return jax.process_index() == 0


def path_from_first(make: Callable[[], Path]) -> Path:
    """Returns, on all processes, the path that `make` returns on the first one. Waits for all processes.

    Raises the error of `make` on the first process; on the others, InputError or StorageError with the same text.
    """
    if jax.process_count() == 1:
        return make()
    return as_path(value_from_first(lambda: str(make())))


def value_from_first(make: Callable[[], Any]) -> Any:
    """Returns, on all processes, the value of `make` on the first one, converted to JSON and back.

    Waits and raises like `path_from_first`.
    """
    if jax.process_count() == 1:
        return json.loads(json.dumps(make()))
    wait_for_all("the first process shares a value")
    message: dict[str, Any] = {}
    try:
        if is_first():
            message = {"value": make()}
    except BaseException as error:
        message = {"error": str(error)[:600], "code": exit_code(error)}
        raise
    finally:
        text = json.dumps(message).encode().ljust(_MESSAGE_BYTES, b" ")
        assert len(text) == _MESSAGE_BYTES, f"{len(text)} bytes are more than the processes can share"
        received = multihost_utils.broadcast_one_to_all(np.frombuffer(text, np.uint8))
    message = json.loads(received.tobytes())
    if "error" in message:
        raise (InputError if message["code"] == exit_code(InputError()) else StorageError)(message["error"])
    return message["value"]


def all_agree(good: bool) -> bool:
    """Returns True if `good` is True on all processes."""
    return good if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(good)).all())


def run_on_all(do: Callable[[], T], what: str) -> T:
    """Returns the result of `do`, or raises on all processes if it fails on one.

    Args:
      do: a function that waits for no other process.
      what: what `do` does, such as "read its part of step 3".

    Raises:
      Exception: on a process where `do` fails, its error.
      StorageError: on the other processes, with the numbers and errors of those that failed.
    """
    problem: Exception | None = None
    try:
        value = do()
    except Exception as error:
        problem = error
    if not all_agree(problem is None):
        problems = _gather_lines("" if problem is None else str(problem))
        raise problem or StorageError("; ".join(f"process {i} could not {what}: {why}" for i, why in problems.items()))
    return value


def _gather_lines(line: str) -> dict[int, str]:
    """Returns, on all processes, the lines of all, without empty ones: number of the process -> line."""
    if jax.process_count() == 1:
        return {0: line} if line else {}
    text = " ".join(line.split()).encode()[:300].ljust(300)
    rows = multihost_utils.process_allgather(np.frombuffer(text, np.uint8))
    lines = [row.tobytes().decode(errors="replace").strip() for row in rows]
    return {number: line for number, line in enumerate(lines) if line}


def whole_array(array: Any) -> np.ndarray:
    """Returns all of an array; if other processes hold parts of it, all processes must call this."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def wait_for_all(what: str) -> None:
    """Returns when all processes have called this, with the same text."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)

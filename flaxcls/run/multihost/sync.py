"""What the processes of one run, each on a host of its own, do together; one process alone pays nothing for it."""

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
_LONGEST = 8192  # bytes of what is shared, or of what is wrong with it


def is_first() -> bool:
    """Whether this is the process that writes what is written once: configuration, logs and result."""
    return jax.process_index() == 0


def path_from_first(make: Callable[[], Path]) -> Path:
    """Returns, on all processes, the path that `make` gives on the first, once all have come here.

    Raises what it raises there, and the same words, as InputError or StorageError, on the others.
    """
    if jax.process_count() == 1:
        return make()
    return as_path(value_from_first(lambda: str(make())))


def value_from_first(make: Callable[[], Any]) -> Any:
    """Returns, on all processes, what `make` gives on the first, as JSON has it; errors are those of `share`."""
    if jax.process_count() == 1:
        return json.loads(json.dumps(make()))
    wait_for_all("the first one tells")
    word: dict[str, Any] = {}
    try:
        if is_first():
            word = {"value": make()}
    except BaseException as error:
        word = {"error": str(error)[:600], "code": exit_code(error)}
        raise
    finally:
        text = json.dumps(word).encode().ljust(_LONGEST, b" ")
        assert len(text) == _LONGEST, f"{len(text)} bytes are more than the processes can share"
        told = multihost_utils.broadcast_one_to_all(np.frombuffer(text, np.uint8))
    word = json.loads(told.tobytes())
    if "error" in word:
        raise (InputError if word["code"] == exit_code(InputError()) else StorageError)(word["error"])
    return word["value"]


def all_agree(good: bool) -> bool:
    """Returns whether it is good on all processes."""
    return good if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(good)).all())


def run_on_all(do: Callable[[], T], what: str) -> T:
    """Returns what `do` gives. Where it fails on one process it raises on all: there the error, else StorageError.

    what: it does, such as "read its part of step 3". It is to wait for no other process.
    """
    problem: Exception | None = None
    try:
        value = do()
    except Exception as error:
        problem = error
    if not all_agree(problem is None):
        told = _lines_of_all("" if problem is None else str(problem))
        raise problem or StorageError("; ".join(f"process {i} could not {what}: {why}" for i, why in told.items()))
    return value


def _lines_of_all(line: str) -> dict[int, str]:
    """Returns, on all processes, what each says in a line, by its number; without those that say nothing."""
    if jax.process_count() == 1:
        return {0: line} if line else {}
    text = " ".join(line.split()).encode()[:300].ljust(300)
    lines = multihost_utils.process_allgather(np.frombuffer(text, np.uint8))
    said = [row.tobytes().decode(errors="replace").strip() for row in lines]
    return {number: words for number, words in enumerate(said) if words}


def whole_array(array: Any) -> np.ndarray:
    """Returns all of an array; where other processes hold parts of it, all of them must ask for it."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def wait_for_all(what: str) -> None:
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)

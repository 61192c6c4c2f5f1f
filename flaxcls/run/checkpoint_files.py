"""What is in the checkpoints of a run, read without the process that writes them."""

import contextlib
import errno
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from flaxcls.errors import StorageError
from flaxcls.places import absolute, children, in_bucket, os_errors
from flaxcls.run.fingerprint import fingerprint_of_paths

SEAL = "record_sha256"
RECORD = "record/metadata"  # where orbax puts it
COMMITTED = "commit_success.txt"  # which orbax writes last, where it cannot rename a folder


def read_steps(directory: Path) -> list[int]:
    """Returns the steps of the finished checkpoints in a directory that may be another process's."""
    return sorted(int(path.name) for path in children(directory) if path.name.isdigit() and _is_whole(path))


def _is_whole(path: Path) -> bool:
    return not in_bucket(path) or (path / COMMITTED).exists()


def unfinished(directory: Path) -> dict[int, Path]:
    """Returns the checkpoints that were not written to their end, by step."""
    found = {}
    for path in children(directory):
        match = re.match(r"(\d+)(\.orbax-checkpoint-tmp|$)", path.name)
        if match and (match[2] or not _is_whole(path)):
            found[int(match[1])] = path
    return found


def read_record(directory: Path, step: int) -> dict[str, Any]:
    """Returns the record of the checkpoint at `step`; StorageError if it is not the one that was saved."""
    try:
        with os_errors():
            record: dict[str, Any] = json.loads((directory / str(step) / RECORD).read_text())
        intact = SEAL not in record or record == sealed(record)
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(f"the record of step {step} cannot be read: {damage(error)}.") from error
    if not intact:
        raise StorageError(f"the record of step {step} is not the one that was saved.")
    return record


def read_arrays(directory: Path, step: int, record: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns the arrays of the state at `step` by their paths in `TrainState`, such as ".params['Dense_0']['bias']".

    Neither the model nor the optimizer need be known. Raises StorageError if they are not those of the `record`.
    """
    place = directory / str(step) / "state"
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        tree = ocp.StandardCheckpointHandler().metadata(absolute(place)).tree
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), tree)
        restored = jax.device_get(read_tree(place, like))
    except Exception as error:  # whatever reading a damaged file comes to
        raise StorageError(f"the arrays of step {step} cannot be read: {damage(error)}.") from error
    # orbax names what it holds by keys alone; the record has the names that the hash was made with
    by_keys = {_keys(jax.tree_util.keystr(path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(restored)}
    names = {_keys(name): name for name in record["arrays"]}
    if by_keys.keys() == names.keys():
        arrays = {name: by_keys[keys] for keys, name in names.items()}
        if fingerprint_of_paths(arrays) == record["sha256"]:
            return arrays
    raise StorageError(f"the arrays of step {step} are not those that were saved.")


def read_tree(place: Path, like: Any) -> Any:
    """Returns the arrays that orbax has written to the folder `place`, of the shapes, types and shardings of `like`.

    A process reads its own parts and waits for no other, so that it may fail alone. Raises whatever is wrong.
    """
    with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        return handler.restore(absolute(place), args=ocp.args.StandardRestore(like))


def _keys(path: str) -> tuple[str, ...]:
    return tuple("".join(found) for found in re.findall(r"\.(\w+)|\['([^']*)'\]|\[(\d+)\]", path))


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a record with the SHA-256 of all else that is in it."""
    record = {name: value for name, value in record.items() if name != SEAL}
    return {**record, SEAL: hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()}


def damage(error: Exception) -> str:
    """Returns what reading a checkpoint failed of, if that is the checkpoint's fault; raises the error if it is not."""
    elsewhere = (errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE)
    # as TensorStore and gRPC say it, in errors of other types
    says = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED")
    if isinstance(error, MemoryError) or any(word in str(error) for word in says):
        raise error
    if isinstance(error, OSError) and error.errno in elsewhere:
        raise error
    return first_line(error)


def first_line(error: BaseException) -> str:
    """Returns what an error says in its first line, or else its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

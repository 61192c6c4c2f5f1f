"""The files of a run's checkpoints, read without the process that writes them."""

import asyncio
import contextlib
import errno
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from flaxcls.errors import StorageError
from flaxcls.run.multihost.sync import whole_array
from flaxcls.storage import absolute, children, in_bucket, os_errors

FORMAT = 1  # of the record; a later version that adds fields counts up
SEAL = "record_sha256"
RECORD = "record/metadata"  # the path that orbax chooses
MAYBE_WHOLE = "a checkpoint that may be whole cannot be read"
COMMITTED = "commit_success.txt"  # orbax writes it last, where it cannot rename a folder


def read_steps(directory: Path) -> list[int]:
    """Returns the steps of the finished checkpoints in a directory, where another process may be writing."""
    return sorted(int(path.name) for path in children(directory) if path.name.isdigit() and _is_whole(path))


def _is_whole(path: Path) -> bool:
    return not in_bucket(path) or (path / COMMITTED).exists()


def unfinished(directory: Path) -> dict[int, Path]:
    """Returns the checkpoints that were not written to their end: step -> path."""
    paths = {}
    for path in children(directory):
        match = re.match(r"(\d+)(\.orbax-checkpoint-tmp|$)", path.name)
        if match and (match[2] or not _is_whole(path)):
            paths[int(match[1])] = path
    return paths


def read_record(directory: Path, step: int) -> dict[str, Any]:
    """Returns the record of the checkpoint at `step`. Raises StorageError if it is not the one that was saved."""
    try:
        with os_errors():
            data = (directory / str(step) / RECORD).read_bytes()
        record: dict[str, Any] = json.loads(data)
        intact = SEAL not in record or record == sealed(record)
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(f"the record of step {step} cannot be read: {damage(error)}.") from error
    if not intact:
        raise StorageError(f"the record of step {step} is not the one that was saved.")
    return record


def read_arrays(directory: Path, step: int, record: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns the arrays of the state at `step` by their paths in `TrainState`, such as ".params['Dense_0']['bias']".

    This needs neither the model nor the optimizer. Raises StorageError if the arrays do not match the `record`.
    """
    place = directory / str(step) / "state"
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        tree = ocp.StandardCheckpointHandler().metadata(absolute(place)).tree
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), tree)
        restored = jax.device_get(read_tree(place, like))
    except Exception as error:  # reading a damaged file can raise anything
        raise StorageError(f"the arrays of step {step} cannot be read: {damage(error)}.") from error
    # orbax stores only the keys of each path; the record has the full paths, which went into the hash
    by_keys = {_keys(jax.tree_util.keystr(path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(restored)}
    names = {_keys(name): name for name in record["arrays"]}
    if by_keys.keys() == names.keys():
        arrays = {name: by_keys[keys] for keys, name in names.items()}
        if fingerprint_of_paths(arrays) == record["sha256"]:
            return arrays
    raise StorageError(f"the arrays of step {step} are not the ones that were saved.")


def read_tree(place: Path, like: Any) -> Any:
    """Returns the arrays that orbax has written to the folder `place`, with the shapes, types and shardings of `like`.

    Each process reads its own parts and waits for no other, so it may fail alone. Raises the errors of `damage`, or
    the error that reading failed with.
    """
    arrays = ocp.type_handlers.create_type_handler_registry((jax.Array, _ArrayReader()))
    args = ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like))
    with contextlib.closing(ocp.PyTreeCheckpointHandler(type_handler_registry=arrays)) as handler:
        try:
            return handler.restore(absolute(place), args=args)
        except Exception as error:
            # the error of TensorStore, without the one that orbax puts around it
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            _raise_if_maybe_whole(cause)
            raise cause from None


class _ArrayReader(ocp.type_handlers.ArrayHandler):  # type: ignore[misc]  # orbax has no types
    async def deserialize(self, infos: Sequence[Any], args: Sequence[Any] | None = None) -> Sequence[Any]:
        """Reads arrays like orbax, but waits for all the tasks that it starts.

        If one array cannot be read, orbax closes the event loop while other tasks still read. These would then write
        tracebacks from their threads.
        """
        earlier = asyncio.all_tasks()
        try:
            return await super().deserialize(infos, args)
        finally:
            if started := asyncio.all_tasks() - earlier:
                await asyncio.wait(started)


def _keys(path: str) -> tuple[str, ...]:
    """Returns the keys in a path, such as params, Dense_0 and bias of ".params['Dense_0']['bias']"."""
    return tuple("".join(groups) for groups in re.findall(r"\.(\w+)|\['([^']*)'\]|\[(\d+)\]", path))


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a record with the SHA-256 of its other entries."""
    record = {name: value for name, value in record.items() if name != SEAL}
    return {**record, SEAL: hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()}


def damage(error: Exception) -> str:
    """Returns the problem of a checkpoint, from the error that reading it failed with.

    Raises StorageError if the storage does not answer or denies access, and the error itself if memory runs out: then
    the checkpoint may be whole.
    """
    _raise_if_maybe_whole(error)
    return first_line(error)


def _raise_if_maybe_whole(error: Exception) -> None:
    if isinstance(error, MemoryError) or MAYBE_WHOLE in str(error):  # this or another process has found it already
        raise error
    if _is_from_storage(error):
        raise StorageError(f"{MAYBE_WHOLE}: {first_line(error)}.") from error


def _is_from_storage(error: Exception) -> bool:
    """Returns True if an error is about the disk, the network or the bucket, and not about the file itself."""
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    if type(error).__module__.split(".")[0] in ("gcsfs", "google", "aiohttp"):
        return True
    # TensorStore puts it into the text of errors of other types
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return int(code[1]) not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    codes = "RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED"
    return re.search(codes, str(error)) is not None


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text, or the name of its type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def fingerprint(tree: Any) -> str:
    """Returns the SHA-256 of the path, type, shape and bytes of each array of a tree, in the order of the paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return fingerprint_of_paths({jax.tree_util.keystr(path): leaf for path, leaf in leaves})


def fingerprint_of_paths(leaves: Mapping[str, Any]) -> str:
    """Like `fingerprint`, for a mapping from path, as `jax.tree_util.keystr` writes it, to array."""
    digest = hashlib.sha256()
    for path in sorted(leaves):
        leaf = leaves[path]
        array = whole_array(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()

"""What is in the checkpoints of a run, read without the process that writes them."""

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

FORMAT = 1  # of the record; a later version may add fields, and then counts up
SEAL = "record_sha256"
RECORD = "record/metadata"  # where orbax puts it
MAYBE_WHOLE = "a checkpoint that may be whole cannot be read"
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

    A process reads its own parts and waits for no other, so that it may fail alone. Raises what `damage` raises, or
    whatever else is wrong.
    """
    arrays = ocp.type_handlers.create_type_handler_registry((jax.Array, _ArrayReader()))
    args = ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like))
    with contextlib.closing(ocp.PyTreeCheckpointHandler(type_handler_registry=arrays)) as handler:
        try:
            return handler.restore(absolute(place), args=args)
        except Exception as error:
            # what TensorStore says, and not what orbax puts around it
            said = error.__cause__ if isinstance(error.__cause__, Exception) else error
            _raise_where_it_may_be_whole(said)
            raise said from None


class _ArrayReader(ocp.type_handlers.ArrayHandler):  # type: ignore[misc]  # it is not typed
    async def deserialize(self, infos: Sequence[Any], args: Sequence[Any] | None = None) -> Sequence[Any]:
        """Reads arrays as orbax does, but ends together with what it begins.

        Where one cannot be read, orbax closes the event loop under those that still read the others, which then write
        tracebacks from threads of their own.
        """
        before = asyncio.all_tasks()
        try:
            return await super().deserialize(infos, args)
        finally:
            if others := asyncio.all_tasks() - before:
                await asyncio.wait(others)


def _keys(path: str) -> tuple[str, ...]:
    return tuple("".join(found) for found in re.findall(r"\.(\w+)|\['([^']*)'\]|\[(\d+)\]", path))


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a record with the SHA-256 of all else that is in it."""
    record = {name: value for name, value in record.items() if name != SEAL}
    return {**record, SEAL: hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()}


def damage(error: Exception) -> str:
    """Returns what reading a checkpoint failed of, if that is the checkpoint's fault.

    Raises StorageError where the storage does not answer or forbids it, and the error itself where memory ends.
    """
    _raise_where_it_may_be_whole(error)
    return first_line(error)


def _raise_where_it_may_be_whole(error: Exception) -> None:
    if isinstance(error, MemoryError) or MAYBE_WHOLE in str(error):  # the latter as this or another process has said
        raise error
    if _of_the_storage(error):
        raise StorageError(f"{MAYBE_WHOLE}: {first_line(error)}.") from error


def _of_the_storage(error: Exception) -> bool:
    """Whether an error tells of the disk, the network or the bucket, and nothing of what is there."""
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    if type(error).__module__.split(".")[0] in ("gcsfs", "google", "aiohttp"):
        return True
    # as TensorStore says it, in errors of other types
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return int(code[1]) not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    says = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED")
    return any(word in str(error) for word in says)


def first_line(error: BaseException) -> str:
    """Returns what an error says in its first line, or else its name."""
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

"""Data in a bucket, copied to this machine: record by record it would take a request each, of some 30 ms."""

import os
from pathlib import Path
from typing import Any

from filelock import FileLock

from flaxcls.errors import InputError
from flaxcls.places import children, os_errors


def copied(folder: Path, root: Path) -> Path:
    """Copies `folder`, in a bucket below `root`, and returns where its `root` is on this machine.

    That is in ~/.cache/flaxcls/data (or $XDG_CACHE_HOME). Files that are there already, of the same size and time, are
    left. The processes of one machine wait for the one that copies.

    Raises InputError if it cannot be copied.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flaxcls" / "data"
    here = cache / str(root).removeprefix("gs://")
    to = here / str(folder).removeprefix(f"{root}/")
    try:
        to.mkdir(parents=True, exist_ok=True)
        with FileLock(to.with_name(f"{to.name}.lock")), os_errors():
            _copy(folder, to)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be copied to {to}: {error.strerror or error}. Make room there, or name another place by "
            "the environment's XDG_CACHE_HOME."
        ) from error
    return here


def _copy(folder: Path, to: Path) -> None:
    for path in children(folder):
        target = to / path.name
        if path.is_dir():
            target.mkdir(exist_ok=True)
            _copy(path, target)
            continue
        there: Any = path.stat()  # of etils, which has names of its own
        if target.exists() and (target.stat().st_size, int(target.stat().st_mtime)) == (there.length, there.mtime):
            continue
        partial = target.with_name(f"{path.name}.partial")
        copy: Any = path
        copy.copy(partial, overwrite=True)
        os.utime(partial, (there.mtime, there.mtime))
        partial.replace(target)

"""One process at a time in a run directory.

A bucket has no lock that the system lets go when its process dies. There, the last to come has the run, so that what
was preempted can go on at once; one that still runs notices before it writes again, and ends.
"""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from flaxcls.errors import InputError
from flaxcls.storage import in_bucket, os_errors

LOCK, OWNER = "lock", "lock.json"
_THIS = uuid4().hex  # tells this process from all others


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the run directory `workdir`, which is there, for this process.

    The system lets the lock of a dead process go, so that nothing has to be cleared away after a crash. A run directory
    in a bucket is taken from whoever had it; `check_held` tells them.

    Raises InputError, with the process and host that hold it, if another process does.
    """
    if in_bucket(workdir):
        _take(workdir)
        try:
            yield
        finally:
            with suppress(OSError), os_errors():
                if _is_ours(workdir):
                    (workdir / OWNER).unlink(missing_ok=True)
        return
    lock = FileLock(workdir / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"the run directory {workdir} is in use by {_owner(workdir)}: wait for it or stop it, or name another "
            "--workdir."
        ) from None
    try:
        _take(workdir)
        yield
    finally:
        try:
            (workdir / OWNER).unlink(missing_ok=True)
        finally:
            lock.release()


def check_held(workdir: Path) -> None:
    """Raises InputError if another process has taken the run directory, which it can in a bucket, and OSError."""
    if in_bucket(workdir):
        with os_errors():
            if not _is_ours(workdir):
                raise InputError(
                    f"the run directory {workdir} was taken over by {_owner(workdir)}, so this process ends and writes "
                    "nothing more there: go on with one of the two alone, or name another --workdir."
                )


def _take(workdir: Path) -> None:
    owner = {"pid": os.getpid(), "host": platform.node(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
    (workdir / OWNER).write_text(json.dumps({**owner, "process": _THIS}) + "\n")


def _is_ours(workdir: Path) -> bool:
    try:
        return bool(json.loads((workdir / OWNER).read_text())["process"] == _THIS)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def _owner(workdir: Path) -> str:
    try:
        owner = json.loads((workdir / OWNER).read_text())
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"

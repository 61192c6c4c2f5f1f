"""The lock of a run directory, which one process at a time may hold.

A bucket has no lock that the system releases when its process dies. There, the last process to start takes the run, so
that a preempted run can go on at once. A process that still runs notices this before its next write, and ends.
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
_TOKEN = uuid4().hex  # identifies this process


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the run directory `workdir`, which must exist, for this process.

    The system releases the lock of a dead process, so nothing must be deleted by hand after a crash. In a bucket, the
    run directory is taken from the process that had it; its next `check_held` raises.

    Raises InputError, with the process and host of the holder, if another process holds the directory.
    """
    if in_bucket(workdir):
        _write_owner(workdir)
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
            f"the run directory {workdir} is in use by {_describe_owner(workdir)}: wait for it or stop it, "
            "or name another --workdir."
        ) from None
    try:
        _write_owner(workdir)
        yield
    finally:
        try:
            (workdir / OWNER).unlink(missing_ok=True)
        finally:
            lock.release()


def check_held(workdir: Path) -> None:
    """Raises InputError if another process has taken this run directory in a bucket, OSError if it cannot be read."""
    if in_bucket(workdir):
        with os_errors():
            if not _is_ours(workdir):
                raise InputError(
                    f"the run directory {workdir} was taken over by {_describe_owner(workdir)}, so this process ends "
                    "and writes nothing more there: continue only one of the two, or name another --workdir."
                )


def _write_owner(workdir: Path) -> None:
    owner = {"pid": os.getpid(), "host": platform.node(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
    (workdir / OWNER).write_text(json.dumps({**owner, "process": _TOKEN}) + "\n")


def _is_ours(workdir: Path) -> bool:
    try:
        return bool(json.loads((workdir / OWNER).read_text())["process"] == _TOKEN)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def _describe_owner(workdir: Path) -> str:
    try:
        owner = json.loads((workdir / OWNER).read_text())
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"

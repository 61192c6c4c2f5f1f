"""One process at a time in a run directory."""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from flaxcls.errors import InputError

LOCK, OWNER = "lock", "lock.json"


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the run directory `workdir`, which is there, for this process.

    The system lets the lock of a dead process go, so that nothing has to be cleared away after a crash.

    Raises InputError, with the process and host that hold it, if another process does.
    """
    lock = FileLock(workdir / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"the run directory {workdir} is in use by {_owner(workdir)}: wait for it or stop it, or name another "
            "--workdir."
        ) from None
    try:
        owner = {"pid": os.getpid(), "host": platform.node(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        (workdir / OWNER).write_text(json.dumps(owner) + "\n")
        yield
    finally:
        try:
            (workdir / OWNER).unlink(missing_ok=True)
        finally:
            lock.release()


def _owner(workdir: Path) -> str:
    try:
        owner = json.loads((workdir / OWNER).read_text())
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"

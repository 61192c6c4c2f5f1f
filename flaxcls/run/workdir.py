"""The run directory: config.json, metrics.jsonl, tensorboard/, checkpoints/ and, at the end, result.json.

Nothing in it is overwritten unless the user asks for it. changes.jsonl keeps the options that resumed runs changed.
A run on images in files keeps examples.parquet, the list of its examples, and unread.jsonl, those that could not be
read.
"""

import contextlib
import errno
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from flaxcls.config import FREE_DATA, Config
from flaxcls.config_json import differences, from_json, to_json
from flaxcls.errors import InputError, StorageError
from flaxcls.run.lock import LOCK, OWNER, locked
from flaxcls.storage import PARTIAL, absolute, append, children, in_bucket, os_errors, remove, write_whole

CONFIG, CHANGES, METRICS, RESULT, CHECKPOINTS, TENSORBOARD, PROFILE = (
    "config.json",
    "changes.jsonl",
    "metrics.jsonl",
    "result.json",
    "checkpoints",
    "tensorboard",
    "profile",
)


def has_run(workdir: Path) -> bool:
    """Returns True if a run has been started in `workdir`."""
    return (workdir / CONFIG).is_file()


def read_config(workdir: Path) -> Config:
    """Returns the configuration of the run in `workdir`. Raises InputError if there is no run."""
    if not has_run(workdir):
        raise InputError(
            f"{workdir} has no {CONFIG}, so there is no run to resume: leave --resume out to start one there, "
            "or name the directory of a run with --workdir."
        )
    return from_json((workdir / CONFIG).read_text())


# Fields, or changes of fields, that are allowed when a run is resumed: they alter no number of the training.
FREE = frozenset(
    {
        *(f"data.{name}" for name in FREE_DATA),
        "loop.eval_batch_size",
        "loop.eval_every",
        "loop.save_every",
        "loop.log_every",
        "loop.on_nan: 'stop' -> 'rollback'",  # not skip, which compiles another program with other bits
        "loop.on_nan: 'rollback' -> 'stop'",
        "loop.nan_limit",
        "loop.profile",
        "mesh.fsdp",
        "stop.patience",
        "stop.min_delta",
    }
)


def check_workdir(
    workdir: Path | None, config: Config, *, resume: bool, overwrite: bool, allow_changes: bool = False
) -> None:
    """Raises InputError if `workdir` holds another run, or no run to resume; it changes nothing."""
    if resume and overwrite:
        raise InputError("resume and overwrite are both set, but a run is either continued or replaced: choose one.")
    if resume and workdir is None:
        raise InputError("resume needs the run's directory: name it with --workdir.")
    place = absolute(workdir or Path("runs"))
    if set("[*?") & set(str(place)):
        raise InputError(
            f"the run directory {place} has one of [ * ? in its path, which orbax takes for a pattern when "
            "it writes checkpoints: name another --workdir."
        )
    if workdir is None:
        return
    if resume:
        changes = differences(read_config(workdir), config)
        changed = [line for line in changes if not {line, line.split(":")[0]} & FREE]
        if changed and not allow_changes:
            raise InputError(
                f"the run in {workdir} was started with another configuration:\n  "
                + "\n  ".join(changed)
                + "\nTo resume it, leave these options as they were. Or start a new run in another --workdir, or go on "
                "with the new values with --allow-changes; the changes are then kept in changes.jsonl."
            )
        return
    if _list_contents(workdir) and not overwrite:
        raise InputError(
            f"the run directory {workdir} is not empty: continue that run with --resume, replace it with --overwrite, "
            "or name another --workdir."
        )
    if overwrite and _list_contents(workdir) and not has_run(workdir):
        raise InputError(
            f"{workdir} is not empty and has no {CONFIG}, so it is no run directory, and --overwrite does not delete "
            "it: name another --workdir."
        )


@contextlib.contextmanager
def open_workdir(
    workdir: Path | None,
    config: Config,
    *,
    name: str,
    resume: bool,
    overwrite: bool,
    allow_changes: bool = False,
) -> Iterator[Path]:
    """Makes the run directory, with config.json in it, and holds it for this process; None makes one below runs/.

    Raises InputError if it cannot be written, if another process holds it, or if `check_workdir` raises; StorageError
    if the disk is full.
    """
    with contextlib.ExitStack() as stack:
        try:
            workdir = workdir or _make_new(name)
            with os_errors():
                if not in_bucket(workdir):
                    workdir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(workdir))
                # again, because another process may have begun or ended a run there in between
                check_workdir(workdir, config, resume=resume, overwrite=overwrite, allow_changes=allow_changes)
                if not resume:
                    _delete_run(workdir)
                    write_whole(workdir / CONFIG, to_json(config))
                elif not in_bucket(workdir):
                    (workdir / METRICS).open("a").close()
        except OSError as error:
            problem = f"the run directory {workdir or 'below runs'} cannot be written: {error.strerror or error}."
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise StorageError(f"{problem} Make room, or name another with --workdir.") from error
            raise InputError(f"{problem} Name another with --workdir.") from error
        yield workdir


def note_changes(workdir: Path, config: Config, step: int, further: list[str]) -> list[str]:
    """Writes `config` as the run's, and returns its differences from the previous one; changes.jsonl keeps them.

    further: changes of other things than the configuration, which are kept and returned with them.
    """
    changes = [*differences(read_config(workdir), config), *further]
    if changes:
        append(workdir / CHANGES, json.dumps({"step": step, "changes": changes}) + "\n")
        write_whole(workdir / CONFIG, to_json(config))
    return changes


def with_absolute_paths(config: Config) -> Config:
    """Returns the configuration with an absolute path to the data; a URL stays unchanged."""
    place = config.data.dir
    if place is None or "://" in place:
        return config
    return replace(config, data=replace(config.data, dir=str(Path(place).expanduser().absolute())))


def _list_contents(workdir: Path) -> list[Path]:
    """Returns the contents of the directory, if it exists, without the files that a start leaves if it is cut off."""
    ignored = (LOCK, OWNER, f"{CONFIG}{PARTIAL}")
    return [path for path in children(workdir) if path.name not in ignored]


def _delete_run(workdir: Path) -> None:
    """Deletes the run in `workdir`, except its configuration, which the caller then replaces.

    The old checkpoints go first, on a disk in one step, so that an interruption never mixes two runs.
    """
    if in_bucket(workdir):
        remove(workdir / CHECKPOINTS)
    elif (workdir / CHECKPOINTS).exists():
        (workdir / CHECKPOINTS).rename(workdir / f"{CHECKPOINTS}{PARTIAL}")
    for path in _list_contents(workdir):
        if path.name != CONFIG:
            remove(path)


def _make_new(name: str) -> Path:
    """Makes a new directory below runs/, named after `name` and the time, and returns it."""
    Path("runs").mkdir(exist_ok=True)
    stem = f"{name.replace('/', '-').replace(':', '-')}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in range(100):
        path = Path("runs") / (f"{stem}-{number}" if number else stem)
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
    raise FileExistsError(errno.EEXIST, "a hundred runs started within this second")

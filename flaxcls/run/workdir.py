"""The run directory: config.json, metrics.jsonl, tensorboard/, checkpoints/ and, at the end, result.json.

Nothing in it is overwritten unless that is said.
"""

import contextlib
import errno
import shutil
from datetime import datetime
from pathlib import Path

from flaxcls.config import Config, differences, from_json, to_json
from flaxcls.errors import InputError

CONFIG, METRICS, RESULT, CHECKPOINTS, TENSORBOARD = (
    "config.json",
    "metrics.jsonl",
    "result.json",
    "checkpoints",
    "tensorboard",
)


def read_config(workdir: Path) -> Config:
    """Returns the configuration of the run in `workdir`. Raises InputError if there is no run."""
    path = workdir / CONFIG
    if not path.is_file():
        raise InputError(
            f"{workdir} has no {CONFIG}, so there is no run to resume: leave --resume out to start one there, "
            "or name the directory of a run with --workdir."
        )
    return from_json(path.read_text())


def check_workdir(workdir: Path | None, config: Config, *, resume: bool, overwrite: bool) -> None:
    """Raises InputError if `workdir` holds another run, or no run to resume; it changes nothing."""
    if resume and overwrite:
        raise InputError("resume and overwrite are both set, but a run is either continued or replaced: choose one.")
    if resume and workdir is None:
        raise InputError("resume needs the run's directory: name it with --workdir.")
    if workdir is None:
        return
    if resume:
        changed = differences(read_config(workdir), config)
        if changed:
            raise InputError(
                f"the run in {workdir} was started with another configuration:\n  "
                + "\n  ".join(changed)
                + "\nLeave these options as they were to resume it, or start a new run in another --workdir."
            )
        return
    if workdir.is_dir() and any(workdir.iterdir()) and not overwrite:
        raise InputError(
            f"the run directory {workdir} is not empty: continue that run with --resume, replace it with --overwrite, "
            "or name another --workdir."
        )
    if overwrite and workdir.is_dir() and any(workdir.iterdir()) and not (workdir / CONFIG).is_file():
        raise InputError(
            f"{workdir} is not empty and has no {CONFIG}, so it is no run directory, and --overwrite does not delete "
            "it: name another --workdir."
        )


def open_workdir(workdir: Path | None, config: Config, *, name: str, resume: bool, overwrite: bool) -> Path:
    """Returns the run directory, made and with config.json in it; None makes a fresh one below runs/.

    `check_workdir` comes first. Raises InputError if it cannot be written.
    """
    try:
        if workdir is None:
            workdir = _fresh(name)
        elif overwrite and workdir.is_dir():
            shutil.rmtree(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        if resume:
            (workdir / METRICS).open("a").close()
        else:
            (workdir / CONFIG).write_text(to_json(config))
    except OSError as error:
        raise InputError(
            f"the run directory {workdir or 'below runs'} cannot be written: {error.strerror}. "
            "Name another with --workdir."
        ) from error
    return workdir


def _fresh(name: str) -> Path:
    Path("runs").mkdir(exist_ok=True)
    stem = f"{name.replace('/', '-').replace(':', '-')}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in range(100):
        path = Path("runs") / (f"{stem}-{number}" if number else stem)
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
    raise FileExistsError(errno.EEXIST, "a hundred runs started within this second")

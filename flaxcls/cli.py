"""The parts that commands share: option types, exit codes, experiment files, and what `--resume` means."""

import hashlib
import json
import os
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from flaxcls.config import Config, DataConfig
from flaxcls.config_json import to_json
from flaxcls.errors import DivergenceError, InputError, Interrupted, StorageError, WorkerError, exit_code, unknown
from flaxcls.run.workdir import has_run, read_config
from flaxcls.storage import as_path, in_bucket
from flaxcls.validation import choices, validate

NAMES = ConstructorRegistry()


@dataclass(frozen=True)
class TableOptions:
    """The columns and files of a table of images to predict, which needs no labels."""

    path_column: tuple[str, ...] = ()
    """Column of paths, or a column for each channel of the image; without it, as in training, or one with a usual
    name."""
    image_dir: str | None = None
    """Folder of the paths, relative to that of the table; without it, the same, or one beside it with all files."""
    suffix: str | None = None
    """Text that is added to each path, such as .png; without it, nothing, or the one with which all files are there."""

    def as_in(self, trained_on: DataConfig) -> dict[str, Any]:
        """Returns arguments for `find_images`, with the columns of a run's own table where none are named."""
        return {
            "path_columns": self.path_column or trained_on.path_column,
            "image_dir": self.image_dir,
            "suffix": self.suffix,
        }


@NAMES.primitive_rule
def _choice_option(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[str | None] | None:
    """Returns the parser of an option with a few known names; its error for a mistyped name suggests one."""
    names = choices(type_info.type)
    if not names:
        return None
    known = {str(name): name for name in names}

    def parse(words: list[str]) -> str | None:
        if words[0] not in known:
            raise ValueError(unknown("name", words[0], known))
        return known[words[0]]

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(known) + "}",
        instance_from_str=parse,
        is_instance=lambda value: value in names,
        str_from_instance=lambda value: [str(value)],
    )


@NAMES.primitive_rule
def _pairs_option(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[dict[str, float]] | None:
    """Returns the parser of an option that takes pairs of a path and a number.

    Without this rule, tyro makes an option of each key if the default is not empty.
    """
    if type_info.type not in (dict[str, float], dict[str, int]):
        return None
    kind = int if type_info.type == dict[str, int] else float

    def parse(words: list[str]) -> dict[str, float]:
        if len(words) % 2:
            raise ValueError(
                f"{' '.join(words)!r} is no list of pairs: give each path and its number, all separated by spaces."
            )
        return {path: kind(number) for path, number in zip(words[::2], words[1::2], strict=True)}

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"[PATH {kind.__name__.upper()} ...]",
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [str(word) for pair in value.items() for word in pair],
    )


def run_command(work: Callable[[], int]) -> int:
    """Runs a command, from the parsing of its arguments on, and returns its exit code.

    The code is the one that `work` returns, 0 if a run stopped as asked, or 130 after SIGINT. An error that a user can
    cause is printed, and its `exit_code` is returned. If the reader of the output has gone, as after `| head`, it is
    141, as of a command that SIGPIPE ends.
    """
    try:
        try:
            return _run(work)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # Python would do it at its end, where nobody can catch the error
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        return 128 + signal.SIGPIPE
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # what rich makes of it
            return 128 + signal.SIGPIPE
        raise


def _run(work: Callable[[], int]) -> int:
    try:
        return work()
    except Interrupted:
        return 0
    except KeyboardInterrupt:
        return 130
    except (InputError, DivergenceError, StorageError, WorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_code(error)


def local_out(out: Path | None, default: Path) -> Path:
    """Returns the path that a command writes to.

    Raises InputError if it is in a bucket: only runs can be written there.
    """
    place = default if out is None else as_path(out)
    if in_bucket(place):
        raise InputError(
            f"{place} is in a bucket, but the output of this command is written to this machine: name a place there "
            "by --out."
        )
    return place


def expand_resume(args: Sequence[str]) -> list[str]:
    """Returns the arguments with `--resume` and `--resume auto` each as one word, as the parser needs them."""
    expanded: list[str] = []
    for index, arg in enumerate(args):
        if arg == "--resume":
            expanded.append("--resume=auto" if args[index + 1 : index + 2] == ["auto"] else "--resume=yes")
        elif not (arg == "auto" and expanded and expanded[-1] == "--resume=auto" and args[index - 1] == "--resume"):
            expanded.append(arg)
    return expanded


def resolve_resume(
    resume: Literal["no", "yes", "auto"], workdir: Path | None, *, overwrite: bool
) -> Literal["no", "yes"]:
    """Returns yes or no for `--resume`; auto becomes yes if `workdir` holds a run.

    Raises InputError for auto without a directory, or together with overwrite.
    """
    if resume != "auto":
        return resume
    if workdir is None or overwrite:
        raise InputError(
            "resume is auto, which needs the run's directory, named with --workdir, and does not go with overwrite."
        )
    return "yes" if has_run(workdir) else "no"


def base_config(experiment: Path | None, resumed: Path | None, default: Config | None) -> Config:
    """Returns the configuration that the options change: the first that is given of the arguments.

    Args:
      experiment: a Python file that defines CONFIG.
      resumed: the directory of a run that is resumed.
      default: the caller's own; None: `Config()`.
    """
    if experiment is not None:
        return load_experiment(experiment)
    if resumed is not None:
        return read_config(resumed)
    return default or Config()


def shared_hash(config: Config, *settings: object) -> str:
    """Returns a hash of the configuration and settings that all processes of a run must share."""
    shared: dict[str, Any] = json.loads(to_json(config))
    for name in ("dir", "image_dir", "memory", "workers"):  # each host may have its own
        del shared["data"][name]
    text = json.dumps([version("flaxcls"), shared, *settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def load_experiment(path: Path) -> Config:
    """Runs a Python file and returns its CONFIG. Raises InputError if it has none, or an invalid one."""
    if not path.is_file():
        raise InputError(f"the experiment {path} is no file: name a Python file that defines CONFIG.")
    try:
        compile(path.read_bytes(), path, "exec")
    except (SyntaxError, ValueError) as error:
        raise InputError(f"the experiment {path} is not Python: {error}.") from error
    try:
        config = runpy.run_path(str(path)).get("CONFIG")
    except (Exception, SystemExit) as error:
        raise InputError(f"the experiment {path} does not run: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise InputError(
            f"the experiment {path} defines no CONFIG that is a flaxcls.config.Config (found: {config!r}): "
            "add CONFIG = Config(...) to it."
        )
    validate(config)
    return config

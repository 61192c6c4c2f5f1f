"""The command `python -m flaxcls.train`: it parses, calls `fit` and prints."""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from flaxcls.cli import NAMES, load_experiment
from flaxcls.config import Config
from flaxcls.config_json import to_json
from flaxcls.errors import DivergenceError, InputError, Interrupted, StorageError, exit_code
from flaxcls.run import dry_run, fit
from flaxcls.run.multihost.join import Distributed, joined
from flaxcls.run.multihost.sync import is_first
from flaxcls.run.runtime import tune_malloc, use_compilation_cache, use_cpu_flags
from flaxcls.run.workdir import has_run, read_config
from flaxcls.storage import as_path
from flaxcls.validation import validate


@dataclass(frozen=True)
class Command:
    """Trains an image classifier: without arguments a small CNN on scikit-learn's digits."""

    experiment: tyro.conf.Positional[Path | None] = None
    """A Python file that defines CONFIG, whose values then are the defaults of the options."""
    workdir: Path | None = None
    """Run directory, which may be gs://BUCKET/PATH; without it a fresh one below runs/."""
    resume: Literal["no", "yes", "auto"] = "no"
    """Continue the run in the run directory; its configuration is the default of the options. auto: if there is one.
    Alone it means yes."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the run in the run directory."""
    allow_changes: tyro.conf.FlagCreatePairsOff[bool] = False
    """With --resume, go on with options that give other numbers, if the arrays stay alike; the run keeps them."""
    stop_after: int | None = None
    """Save and stop after this step; --resume goes on as if nothing had happened."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Show network, schedule, first batch, memory and work of the run; train and write nothing."""
    distributed: Distributed = field(default_factory=Distributed)
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def parse(args: list[str], default: Config | None = None) -> Command:
    """Returns the command, with the options on top of the experiment's, the resumed run's or the default configuration.

    Whether there is a run for `--resume auto` is looked up here, so before any process of a new one makes its files.

    Raises SystemExit for an option that is not known, and InputError for a file without a configuration.
    """
    args = _with_resume_written_out(args)
    first = _parse([arg for arg in args if arg not in ("-h", "--help")], Config())
    if first.workdir is not None:
        first = replace(first, workdir=as_path(first.workdir))
    if first.resume == "auto":
        if first.workdir is None or first.overwrite:
            raise InputError(
                "resume is auto, which needs the run's directory, named with --workdir, and does not go with overwrite."
            )
        first = replace(first, resume="yes" if has_run(first.workdir) else "no")
    if first.experiment is not None:
        default = load_experiment(first.experiment)
    elif first.resume == "yes" and first.workdir is not None:
        default = read_config(first.workdir)
    return replace(_parse(args, default or Config()), resume=first.resume, workdir=first.workdir)


def _with_resume_written_out(args: Sequence[str]) -> list[str]:
    """Returns the arguments with --resume, which may stand alone or before auto, as one word."""
    written: list[str] = []
    for index, arg in enumerate(args):
        if arg == "--resume":
            written.append("--resume=auto" if args[index + 1 : index + 2] == ["auto"] else "--resume=yes")
        elif not (arg == "auto" and written and written[-1] == "--resume=auto" and args[index - 1] == "--resume"):
            written.append(arg)
    return written


def _parse(args: list[str], default: Config) -> Command:
    return tyro.cli(Command, args=args, default=Command(config=default), prog="python -m flaxcls.train", registry=NAMES)


def main(
    args: list[str] | None = None,
    *,
    default: Config | None = None,
    parts: Callable[[Config], dict[str, Any]] = lambda config: {},
) -> int:
    """Runs the command and returns its exit code.

    An experiment with a model of its own has this as its command, too.

    Args:
      args: of the command line.
      default: the configuration that options are on top of.
      parts: of a configuration, the dataset, model and tx that `fit` is given.

    0 after the run or as far as it was to go, 2 for bad input, 3 for NaN or infinity, 4 where nothing more can be
    written, 130 after SIGINT. SIGTERM raises SystemExit with 143.
    """
    tune_malloc()
    use_cpu_flags()
    use_compilation_cache()
    console = Console()
    try:
        command = parse(sys.argv[1:] if args is None else args, default)
        validate(command.config)
        with joined(command.distributed, _alike(command)):
            _run(command, parts, console)
    except Interrupted:
        return 0
    except KeyboardInterrupt:
        return 130
    except (InputError, DivergenceError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_code(error)
    return 0


def _alike(command: Command) -> str:
    """Returns a hash of what must be the same for all processes of a run."""
    config = json.loads(to_json(command.config))
    for name in ("dir", "memory", "workers"):  # which a host may have of its own
        del config["data"][name]
    what = [version("flaxcls"), config, command.resume, command.stop_after, command.dry_run, command.allow_changes]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _run(command: Command, parts: Callable[[Config], dict[str, Any]], console: Console) -> None:
    options: dict[str, Any] = {
        "workdir": command.workdir,
        "resume": command.resume == "yes",
        "overwrite": command.overwrite,
        "allow_changes": command.allow_changes,
        "console": console,
        **parts(command.config),
    }
    if command.dry_run:
        dry_run(command.config, **options)
        return
    result = fit(command.config, **options, stop_after=command.stop_after)
    if is_first():
        console.print(result.table())


if __name__ == "__main__":
    sys.exit(main())

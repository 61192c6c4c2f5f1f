"""The command `python -m flaxcls.train`: it parses, calls `fit` and prints."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from flaxcls.cli import NAMES, base_config, expand_resume, resolve_resume, run_command, shared_hash
from flaxcls.config import Config
from flaxcls.run import dry_run, fit
from flaxcls.run.multihost.join import Distributed, joined
from flaxcls.run.multihost.sync import is_first
from flaxcls.run.runtime import tune_malloc, use_compilation_cache, use_cpu_flags
from flaxcls.storage import as_path
from flaxcls.validation import validate

Parts = Callable[[Config], dict[str, Any]]


@dataclass(frozen=True)
class Command:
    """Trains an image classifier. Without arguments: a small CNN on scikit-learn's digits."""

    experiment: tyro.conf.Positional[Path | None] = None
    """Python file that defines CONFIG; the values of CONFIG are then the defaults of the options."""
    workdir: Path | None = None
    """Run directory; may be gs://BUCKET/PATH. Without it, the run gets a new directory in runs/."""
    resume: Literal["no", "yes", "auto"] = "no"
    """Continue the run in the run directory, with its configuration as the defaults. auto: start one if there is none.
    Alone, it is yes."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the run in the run directory."""
    allow_changes: tyro.conf.FlagCreatePairsOff[bool] = False
    """With --resume: accept options that change the results, but not the shapes of arrays; changes.jsonl keeps them."""
    stop_after: int | None = None
    """Save and stop after this step; --resume continues as if the run had never stopped."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Show the network, schedule, first batch, memory and work of the run. Nothing is trained or written."""
    distributed: Distributed = field(default_factory=Distributed)
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def parse(args: list[str], default: Config | None = None) -> Command:
    """Returns the command; its options change the configuration of the experiment, the resumed run or `default`.

    `--resume auto` is resolved here, before any process of a new run writes its files. Raises SystemExit for an unknown
    option, and InputError for a file without a configuration.
    """
    args = expand_resume(args)
    first = _parse([arg for arg in args if arg not in ("-h", "--help")], Config())
    workdir = None if first.workdir is None else as_path(first.workdir)
    resume = resolve_resume(first.resume, workdir, overwrite=first.overwrite)
    config = base_config(first.experiment, workdir if resume == "yes" else None, default)
    return replace(_parse(args, config), resume=resume, workdir=workdir)


def _parse(args: list[str], default: Config) -> Command:
    return tyro.cli(Command, args=args, default=Command(config=default), prog="python -m flaxcls.train", registry=NAMES)


def main(args: list[str] | None = None, *, default: Config | None = None, parts: Parts = lambda config: {}) -> int:
    """Runs the command and returns its exit code. An experiment with its own model calls this, too.

    Args:
      args: the arguments; None: those of the command line.
      default: the configuration that the options change.
      parts: a function from the configuration to the dataset, model and tx for `fit`.

    The exit code is 0 if the run ended or stopped as asked, 2 for bad input, 3 for NaN or infinity, 4 if files cannot
    be written, and 130 after SIGINT. SIGTERM raises SystemExit with 143.
    """
    tune_malloc()
    use_cpu_flags()
    use_compilation_cache()
    return run_command(lambda: _run(parse(sys.argv[1:] if args is None else args, default), parts))


def _run(command: Command, parts: Parts) -> int:
    config, console = command.config, Console()
    validate(config)
    alike = (command.resume, command.stop_after, command.dry_run, command.allow_changes)
    with joined(command.distributed, shared_hash(config, *alike)):
        options: dict[str, Any] = {"workdir": command.workdir, "overwrite": command.overwrite, "console": console}
        options |= {"resume": command.resume == "yes", "allow_changes": command.allow_changes, **parts(config)}
        if command.dry_run:
            dry_run(config, **options)
            return 0
        result = fit(config, **options, stop_after=command.stop_after)
        if is_first():
            console.print(result.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The command `python -m flaxcls.train`: it parses, calls `fit` and prints."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from flaxcls.cli import NAMES, load_experiment
from flaxcls.config import Config
from flaxcls.errors import DivergenceError, InputError, Interrupted, StorageError
from flaxcls.run import dry_run, fit
from flaxcls.run.compilation import use_compilation_cache, use_cpu_flags
from flaxcls.run.memory import tune_malloc
from flaxcls.run.workdir import read_config
from flaxcls.validation import validate


@dataclass(frozen=True)
class Command:
    """Trains an image classifier: without arguments a small CNN on scikit-learn's digits."""

    experiment: tyro.conf.Positional[Path | None] = None
    """A Python file that defines CONFIG, whose values then are the defaults of the options."""
    workdir: Path | None = None
    """Run directory; without it a fresh one below runs/."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue the run in the run directory; its configuration is the default of the options."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the run in the run directory."""
    allow_changes: tyro.conf.FlagCreatePairsOff[bool] = False
    """With --resume, go on with options that give other numbers, if the arrays stay alike; the run keeps them."""
    stop_after: int | None = None
    """Save and stop after this step; --resume goes on as if nothing had happened."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Show network, schedule, first batch, memory and work of the run; train and write nothing."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def parse(args: list[str], default: Config | None = None) -> Command:
    """Returns the command, with the options on top of the experiment's, the resumed run's or the default configuration.

    Raises SystemExit for an option that is not known, and InputError for a file without a configuration.
    """
    first = _parse([arg for arg in args if arg not in ("-h", "--help")], Config())
    if first.experiment is not None:
        default = load_experiment(first.experiment)
    elif first.resume and first.workdir is not None:
        default = read_config(first.workdir)
    return _parse(args, default or Config())


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
        options: dict[str, Any] = {
            "workdir": command.workdir,
            "resume": command.resume,
            "overwrite": command.overwrite,
            "allow_changes": command.allow_changes,
            "console": console,
            **parts(command.config),
        }
        if command.dry_run:
            dry_run(command.config, **options)
            return 0
        result = fit(command.config, **options, stop_after=command.stop_after)
    except Interrupted:
        return 0
    except KeyboardInterrupt:
        return 130
    except (InputError, DivergenceError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 3 if isinstance(error, DivergenceError) else 4
    console.print(result.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())

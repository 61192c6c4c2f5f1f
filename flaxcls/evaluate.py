"""The command `python -m flaxcls.evaluate`: it parses, calls `evaluate_run` and prints."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.markup import escape

from flaxcls.analysis.evaluation import evaluate_run, write
from flaxcls.analysis.loading import config_path, load_run
from flaxcls.analysis.tables import list_notes, per_class, summary
from flaxcls.analysis.tensorboard import write_events
from flaxcls.cli import NAMES, local_out, run_command
from flaxcls.config import DataConfig
from flaxcls.config_json import from_json
from flaxcls.errors import InputError
from flaxcls.run.workdir import CHECKPOINTS
from flaxcls.storage import as_path


@dataclass(frozen=True)
class Command:
    """Evaluates the best parameters of a run; writes metrics, ROC curves, predictions and pictures for TensorBoard."""

    run: tyro.conf.Positional[Path]
    """Run directory, made by flaxcls.train."""
    split: Literal["train", "validation", "test"] = "test"
    """Split to evaluate; its images are not augmented."""
    step: int | None = None
    """Checkpoint to evaluate; without it, the one with the best parameters."""
    out: Path | None = None
    """Directory for the results; without it, RUN/evaluation/SPLIT."""
    data: DataConfig = field(default_factory=DataConfig)
    """Source of the examples. An option that is left out has the value of the run; shown are those of RUN, if the help
    is asked for with it, or else of a run without options."""


def parse(args: list[str]) -> Command:
    """Returns the command; its options change the data configuration of the run.

    Raises SystemExit for an unknown option, and InputError if there is no run.
    """
    words = [arg for arg in args if arg not in ("-h", "--help")]
    if not words and args:
        return _parse(args, DataConfig())
    run = as_path(_parse(words, DataConfig()).run)
    text = config_path(run).read_bytes().decode(errors="replace")
    try:
        return replace(_parse(args, from_json(text).data), run=run)
    except InputError:
        if (run / CHECKPOINTS).is_dir():
            load_run(run)  # raises a clearer error if a later version wrote the run
        raise


def _parse(args: list[str], data: DataConfig) -> Command:
    default = Command(run=tyro.MISSING, data=data)
    return tyro.cli(Command, args=args, default=default, prog="python -m flaxcls.evaluate", registry=NAMES)


def main(args: list[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 for bad input, 4 if storage fails, or 130 after SIGINT."""
    return run_command(lambda: _evaluate(parse(sys.argv[1:] if args is None else args)))


def _evaluate(command: Command) -> int:
    console = Console()
    out = local_out(command.out, command.run / "evaluation" / command.split)
    evaluation = evaluate_run(command.run, split=command.split, data=command.data, step=command.step)
    files = [*write(evaluation, out), write_events(evaluation, out)]
    console.print(summary(evaluation))
    if table := per_class(evaluation):
        console.print(table)
    for note in list_notes(evaluation):
        console.print(escape(note), soft_wrap=True)
    for file in files:
        console.print(escape(f"written: {file}"), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

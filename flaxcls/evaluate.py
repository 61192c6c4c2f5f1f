"""The command `python -m flaxcls.evaluate`: it parses, calls `evaluate_run` and prints."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.markup import escape

from flaxcls.analysis.classifier import config_path, load_run
from flaxcls.analysis.evaluation import evaluate_run, write
from flaxcls.analysis.tables import per_class, summary
from flaxcls.analysis.tensorboard import write_events
from flaxcls.cli import NAMES, local_out
from flaxcls.config import DataConfig
from flaxcls.config_json import from_json
from flaxcls.errors import InputError
from flaxcls.run.workdir import CHECKPOINTS
from flaxcls.storage import as_path


@dataclass(frozen=True)
class Command:
    """Evaluates a run's best parameters: writes metrics, ROC curves, predictions and pictures for TensorBoard."""

    run: tyro.conf.Positional[Path]
    """Run directory, as flaxcls.train has made it."""
    split: Literal["train", "validation", "test"] = "test"
    """Examples to evaluate; none is augmented."""
    step: int | None = None
    """Another checkpoint than that of the best parameters."""
    out: Path | None = None
    """Directory to write to; without it RUN/evaluation/SPLIT."""
    data: DataConfig = field(default_factory=DataConfig)
    """Where the examples come from; what is left out is as it was in the run."""


def parse(args: list[str]) -> Command:
    """Returns the command, with the options on top of the run's own data.

    Raises SystemExit for an option that is not known, and InputError where there is no run.
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
            load_run(run)  # which says so if it is of a later version
        raise


def _parse(args: list[str], data: DataConfig) -> Command:
    default = Command(run=tyro.MISSING, data=data)
    return tyro.cli(Command, args=args, default=default, prog="python -m flaxcls.evaluate", registry=NAMES)


def main(args: list[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 for bad input, 130 after SIGINT."""
    console = Console()
    try:
        command = parse(sys.argv[1:] if args is None else args)
        out = local_out(command.out, command.run / "evaluation" / command.split)
        evaluation = evaluate_run(command.run, split=command.split, data=command.data, step=command.step)
        files = [*write(evaluation, out), write_events(evaluation, out)]
    except KeyboardInterrupt:
        return 130
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console.print(summary(evaluation))
    if table := per_class(evaluation):
        console.print(table)
    for path, note in evaluation.metrics["notes"].items():
        console.print(escape(f"{path}: {note}"))
    for file in files:
        console.print(escape(f"written: {file}"), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

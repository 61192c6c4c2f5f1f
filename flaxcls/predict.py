"""The command `python -m flaxcls.predict`: it parses, predicts image files and prints."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flaxcls.analysis.inference import calibrated
from flaxcls.analysis.loading import load_run
from flaxcls.analysis.prediction import find_images, predict_files, write
from flaxcls.cli import NAMES, TableOptions, run_command
from flaxcls.errors import InputError
from flaxcls.storage import as_path, check_new


@dataclass(frozen=True)
class Command:
    """Predicts the classes of image files with a trained run."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    paths: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PATH...")]
    """Images, folders of them, globs in quotes, or tables of their paths."""
    data: TableOptions = field(default_factory=TableOptions)
    top: int = 1
    """Number of classes listed for each image, the most probable first."""
    format: Literal["table", "csv", "jsonl", "parquet"] | None = None
    """None: by the ending of --out; without --out, a table on a terminal and CSV in a pipe."""
    out: Path | None = None
    """New file to write to, instead of the standard output."""
    batch_size: int = 256
    """Number of images computed at once."""
    max_pixels: int | None = None
    """Pixels of the largest image that is read, so that no file fills the memory; None: as in training."""


def main(args: list[str] | None = None) -> int:
    """Runs the command and returns its exit code.

    It is 0, 1 for unreadable files, 2 for bad input, 4 if storage fails, or 130 after SIGINT.
    """
    return run_command(lambda: _predict(tyro.cli(Command, args=args, prog="python -m flaxcls.predict", registry=NAMES)))


def _predict(command: Command) -> int:
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    out, known = command.out, {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet"}
    form = command.format or (known.get(out.suffix, "csv") if out else "table" if sys.stdout.isatty() else "csv")
    if command.batch_size < 1:
        raise InputError(f"batch_size is {command.batch_size}, but must be 1 or more.")
    if form == "parquet" and out is None:
        raise InputError("Parquet cannot go to the standard output: name a file by --out.")
    if out is not None:
        check_new(out)
    run = as_path(command.run)
    classifier = load_run(run)
    classes = len(classifier.class_names)
    if not 1 <= command.top <= classes:
        raise InputError(f"top is {command.top}, but the model has {classes} classes: ask for 1 to {classes}.")
    images, notes = find_images(command.paths, **command.data.as_in(classifier.config.data))
    for note in notes:
        errors.print(note)
    classifier, reason = calibrated(run, classifier)
    if reason is not None:
        errors.print(f"The probabilities are not calibrated: {reason}")
    parts = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*parts, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("", total=len(images))
        found = predict_files(
            classifier,
            images,
            batch_size=command.batch_size,
            most_pixels=command.max_pixels or classifier.config.data.max_pixels,
            advance=lambda count: progress.advance(task, count),
        )
    for note in found.notes:
        errors.print(note)
    write(found, command.top, form, out)
    if found.unreadable:
        errors.print(found.complaint)
    return 1 if found.unreadable else 0


if __name__ == "__main__":
    sys.exit(main())

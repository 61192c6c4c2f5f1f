"""The command `python -m flaxcls.report`: it parses, reads the runs and writes one page."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.markup import escape

from flaxcls.analysis.report import read_run, render
from flaxcls.cli import NAMES, local_out, run_command
from flaxcls.errors import InputError
from flaxcls.storage import as_path, printable, write_whole


@dataclass(frozen=True)
class Command:
    """Writes report.html, a page on one run or a comparison of several. It opens without network or server."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN [RUN ...]")]]
    """Run directories, made by flaxcls.train."""
    split: Literal["train", "validation", "test"] = "test"
    """Split to evaluate; its images are not augmented."""
    data_dir: Path | None = None
    """Directory of the data, if it has moved since training."""
    out: Path | None = None
    """File to write; without it, report.html in the run directory, or in the current one for several runs."""


def main(args: list[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 for bad input, 4 if storage fails, or 130 after SIGINT."""
    return run_command(lambda: _report(tyro.cli(Command, args=args, prog="python -m flaxcls.report", registry=NAMES)))


def _report(command: Command) -> int:
    console = Console()
    if not command.runs:
        raise InputError("no run was given: name at least one run directory.")
    if len({run.resolve() for run in command.runs}) < len(command.runs):
        raise InputError("a run is given twice: name each run once.")
    contents, runs = [], [as_path(run) for run in command.runs]
    out = local_out(command.out, runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    for run, name in zip(runs, _names(command.runs), strict=True):
        console.print(escape(f"evaluating {run} on its {command.split} split"), soft_wrap=True)
        contents.append(read_run(run, name=name, split=command.split, data_dir=command.data_dir))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, printable(render(contents)))
    except OSError as error:
        raise InputError(
            f"the report cannot be written to {out}: {error.strerror or error}. Name another --out."
        ) from error
    console.print(escape(f"written: {out} ({out.stat().st_size / 2**20:.1f} MiB)"), soft_wrap=True)
    return 0


def _names(runs: tuple[Path, ...]) -> list[str]:
    """Returns the names of the directories, or their paths if two have the same name."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


if __name__ == "__main__":
    sys.exit(main())

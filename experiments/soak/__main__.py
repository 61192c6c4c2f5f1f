"""The command `python -m experiments.soak`: every fault at many moments, and a comparison of each resumed run.

    python -m experiments.soak --moments 5                    # the table of README.md, about 25 minutes on 2 cores
    python -m experiments.soak --moments 2 --faults sigterm   # one fault

The directory of a lost run stays, and the exit code is 1.
"""

import json
import random
import signal
import sys
import tempfile
from pathlib import Path
from typing import get_args

import tyro
from rich.console import Console
from rich.table import Table

from experiments.soak import memory
from experiments.soak.faults import FaultName, Row, soak


def command(
    moments: int = 10,
    dispatch: tuple[int, ...] = (1, 4),
    faults: tuple[FaultName, ...] = get_args(FaultName),
    seed: int = 0,
    memory_steps: int = 2000,
    workdir: Path | None = None,
) -> int:
    """Kills runs, resumes them, and compares them with undisturbed runs.

    Args:
      moments: moments of each fault and each number of steps a dispatch.
      dispatch: numbers of steps a dispatch.
      faults: the faults.
      seed: chooses the moments.
      memory_steps: steps of the run whose memory, threads and open files are watched afterwards; 0: no such run.
      workdir: directory for the runs; default: a temporary directory.
    """
    if 0 < memory_steps < 2 * memory.SETTLED:
        sys.exit(f"memory_steps is {memory_steps}, but must be 0, or {2 * memory.SETTLED} or more to settle first.")
    console = Console()
    place = workdir or Path(tempfile.mkdtemp(prefix="soak-"))
    rows = soak(place, faults=faults, moments=moments, dispatch=dispatch, rng=random.Random(seed), console=console)
    console.print(table(rows))
    (place / "soak.json").write_text(json.dumps([row.as_json() for row in rows], indent=2) + "\n")
    for row in rows:
        for loss in row.losses:
            console.print(f"lost: {loss}", highlight=False, soft_wrap=True)
    grown = False
    if memory_steps:
        usage = memory.watch(place / "memory", steps=memory_steps)
        console.print(memory.table(usage))
        grown = memory.grows(usage)
    return int(grown or any(row.losses for row in rows))


def table(rows: list[Row]) -> Table:
    """Returns the table to print at the end."""
    printed = Table(title="a run killed, and resumed", title_justify="left")
    for header in ("fault", "steps a dispatch", "moments tried", "resumed equal", "lost"):
        printed.add_column(header, justify="left" if header == "fault" else "right")
    for row in rows:
        printed.add_row(row.fault, str(row.dispatch), str(row.tried), str(row.equal), str(len(row.losses)))
    total = (sum(row.tried for row in rows), sum(row.equal for row in rows), sum(len(row.losses) for row in rows))
    printed.add_section()
    printed.add_row("all", "", *map(str, total))
    return printed


if __name__ == "__main__":
    # a shell ignores SIGINT for background programs, and the runs would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(tyro.cli(command, prog="python -m experiments.soak"))

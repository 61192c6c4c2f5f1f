"""What benchmarks share: programs that are measured from outside, repeats in turn, and rows for a table and JSON."""

import json
import os
import platform
import re
import select
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Ran:
    """A program that ran: when it began (seconds since 1970), seconds until it ended, and its peak of resident memory.

    Of the processes that a program starts, the peak is that of the largest, not of all together.
    """

    began: float
    seconds: float
    peak_bytes: int


class ProgramError(RuntimeError):
    """A program that was to be measured has failed; the text ends with its error, or with its last line."""


def run(
    command: Sequence[str | Path],
    env: Mapping[str, str] | None = None,
    started: Callable[[int], None] | None = None,
) -> Ran:
    """Runs a program in a terminal of its own, so that it shows its progress as it does to a user.

    Args:
      command: the program and its arguments.
      env: environment variables beside those of this process.
      started: called with the program's process group when it has begun; without this, it shares ours.

    Raises:
      ProgramError: if it fails; what it printed goes to stderr.
    """
    with tempfile.TemporaryDirectory() as place:
        took, launcher = Path(place) / "took.json", Path(__file__).with_name("child.py")
        ours, its = os.openpty()
        start = [sys.executable, "-I", "-S", str(launcher), str(took), *map(str, command)]
        whole = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40", **(env or {})}
        group = None if started is None else 0
        with subprocess.Popen(
            start, env=whole, stdin=subprocess.DEVNULL, stdout=its, stderr=its, process_group=group
        ) as process:
            os.close(its)
            if started is not None:
                started(process.pid)
            printed = _read(ours, process)
            process.wait()
        measured = json.loads(took.read_text()) if took.exists() else {"code": process.returncode}
    if measured.pop("code") != 0:
        printed = Text.from_ansi(printed).plain
        print(printed, file=sys.stderr)
        lines = printed.split("\n") if printed.strip() else ["it printed nothing"]
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
        raise ProgramError(f"failed: {(errors or [line for line in lines if line.strip()])[-1][:200]}")
    return Ran(**measured)


def _read(descriptor: int, process: "subprocess.Popen[bytes]") -> str:
    """Returns what is printed to a terminal until a process has ended, and closes it.

    Those that it has started may live on, and hold the terminal, for a while.
    """
    parts: list[bytes] = []
    try:
        while True:
            if select.select([descriptor], [], [], 0.2)[0]:
                if not (part := os.read(descriptor, 65536)):
                    break
                parts.append(part)
            elif process.poll() is not None:
                break
    except OSError:  # how Linux says that nobody holds the other end any more
        pass
    finally:
        os.close(descriptor)
    return b"".join(parts).decode(errors="replace").replace("\r\n", "\n")


def in_turn(names: Sequence[str], repeats: int) -> Iterator[str]:
    """Yields each name once a repeat, every time another one first, so that none is always measured after the same."""
    for repeat in range(repeats):
        turn = repeat % len(names)
        yield from [*names[turn:], *names[:turn]]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Returns ours / theirs of each repeat."""
    return [one / other for one, other in zip(ours, theirs, strict=True)]


@dataclass(frozen=True)
class Row:
    """One system's measurements of one quantity.

    values: of the repeats, in their order.
    ratios: of flaxcls to this system within each repeat; none for flaxcls itself.
    versions: of the libraries that the system ran with.
    note: what else is to be known, such as why there are no values.
    """

    system: str
    quantity: str
    unit: str
    values: list[float]
    ratios: list[float] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    note: str = ""


def compare(
    quantity: str,
    unit: str,
    values: Mapping[str, list[float]],
    *,
    ours: str = "flaxcls",
    versions: Mapping[str, dict[str, str]] | None = None,
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """Returns a row for each system, with the ratios of `ours` to it; one without values has failed."""
    return [
        Row(
            system,
            quantity,
            unit,
            found,
            ratios(values[ours], found) if system != ours and found else [],
            (versions or {}).get(system, {}),
            (notes or {}).get(system, ""),
        )
        for system, found in values.items()
    ]


def tables(rows: Sequence[Row]) -> list[Table]:
    """Returns a table for each quantity: n, median, least and largest value, and the same of the ratios.

    The ratios are of the one system that has none to itself: flaxcls or, within it, what others are changes of.
    """
    made = []
    for title in dict.fromkeys((row.quantity, row.unit) for row in rows):
        table = Table(title=escape(", ".join(title)), title_justify="left")
        shown = [row for row in rows if (row.quantity, row.unit) == title]
        ours = (
            [row.system for row in shown if row.values and not row.ratios] if any(row.ratios for row in shown) else []
        )
        for header in ("", "n", "median", "spread", f"{escape(ours[0])} to it" if ours else ""):
            table.add_column(header, justify="right" if header in ("n", "median", "spread") else "left")
        for row in shown:
            table.add_row(*map(escape, _cells(row)))
        made.append(table)
    return made


def _cells(row: Row) -> list[str]:
    values, shares = row.values, row.ratios
    ratio = f"{statistics.median(shares):.3f} ({min(shares):.3f} to {max(shares):.3f})" if shares else ""
    return [
        row.system,
        str(len(values)),
        _shown(statistics.median(values)) if values else "",
        f"{_shown(min(values))} to {_shown(max(values))}" if values else "",
        " ".join(filter(None, (ratio, row.note))),
    ]


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def report(rows: Sequence[Row], out: Path, settings: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the table, and writes the rows as JSON, each with the machine, the settings, medians and spreads."""
    console = console or Console()
    where = {"processor": processor(), "cores": cores(), "platform": platform.platform(terse=True)}
    console.print(f"{where['cores']} cores of {where['processor']}; " + _listed(settings))
    for versions in {_listed(row.versions): row.versions for row in rows if row.versions}.values():
        names = dict.fromkeys(row.system for row in rows if row.versions == versions)
        console.print(f"{', '.join(names)}: {_listed(versions)}", highlight=False)
    for table in tables(rows):
        console.print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = [{**_with_summary(row), **where, "settings": dict(settings)} for row in rows]
    out.write_text(json.dumps(kept, indent=1) + "\n")


def _with_summary(row: Row) -> dict[str, Any]:
    def summary(values: list[float]) -> dict[str, float] | None:
        return {"median": statistics.median(values), "min": min(values), "max": max(values)} if values else None

    return {**asdict(row), "n": len(row.values), "summary": summary(row.values), "ratio": summary(row.ratios)}


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def processor() -> str:
    """Returns its name."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""Shared code of the benchmarks: programs measured from outside, repeats in turn, and rows for a table and JSON."""

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
    """A finished program: its start (seconds since 1970), its seconds, and its peak of resident memory.

    If a program starts others, the peak is that of the largest process, not the sum.
    """

    began: float
    seconds: float
    peak_bytes: int


class ProgramError(RuntimeError):
    """A measured program failed; the text ends with its error, or with its last line."""


def run(
    command: Sequence[str | Path],
    env: Mapping[str, str] | None = None,
    started: Callable[[int], None] | None = None,
) -> Ran:
    """Runs a program in a terminal of its own, so that it shows its progress as to a user.

    Args:
      command: the program and its arguments.
      env: environment variables to add to those of this process.
      started: called with the program's process group after the start; without it, the program shares our group.

    Raises:
      ProgramError: if the program fails; its output goes to stderr.
    """
    with tempfile.TemporaryDirectory() as place:
        costs, launcher = Path(place) / "costs.json", Path(__file__).with_name("child.py")
        reading_end, terminal = os.openpty()
        start = [sys.executable, "-I", "-S", str(launcher), str(costs), *map(str, command)]
        whole = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40", **(env or {})}
        group = None if started is None else 0
        with subprocess.Popen(
            start, env=whole, stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal, process_group=group
        ) as process:
            os.close(terminal)
            if started is not None:
                started(process.pid)
            printed = _read(reading_end, process)
            process.wait()
        measured = json.loads(costs.read_text()) if costs.exists() else {"code": process.returncode}
    if measured.pop("code") != 0:
        printed = Text.from_ansi(printed).plain
        print(printed, file=sys.stderr)
        lines = printed.split("\n") if printed.strip() else ["it printed nothing"]
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
        raise ProgramError(f"failed: {(errors or [line for line in lines if line.strip()])[-1][:200]}")
    return Ran(**measured)


def _read(descriptor: int, process: "subprocess.Popen[bytes]") -> str:
    """Returns the output of a process to a terminal until the process ends, and closes the terminal.

    Processes that it started may live on for a while, and hold the terminal open.
    """
    chunks: list[bytes] = []
    try:
        while True:
            if select.select([descriptor], [], [], 0.2)[0]:
                if not (chunk := os.read(descriptor, 65536)):
                    break
                chunks.append(chunk)
            elif process.poll() is not None:
                break
    except OSError:  # on Linux: no process holds the other end any more
        pass
    finally:
        os.close(descriptor)
    return b"".join(chunks).decode(errors="replace").replace("\r\n", "\n")


def in_turn(names: Sequence[str], repeats: int) -> Iterator[str]:
    """Yields each name once a repeat, each time starting with another, so that none always follows the same one."""
    for repeat in range(repeats):
        turn = repeat % len(names)
        yield from [*names[turn:], *names[:turn]]


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Returns the ratio of the two values of each repeat."""
    return [one / other for one, other in zip(numerators, denominators, strict=True)]


@dataclass(frozen=True)
class Row:
    """One system's measurements of one quantity.

    values: one of each repeat, in order.
    ratios: flaxcls to this system within each repeat; empty for flaxcls itself.
    versions: of the system's libraries.
    note: further information, such as why there are no values.
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
    """Returns a row for each system, with the ratios of the system `ours` to it; a system without values failed."""
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

    The ratios are those of the one system that has none to itself: flaxcls, or its unchanged form.
    """
    printed = []
    for title in dict.fromkeys((row.quantity, row.unit) for row in rows):
        table = Table(title=escape(", ".join(title)), title_justify="left")
        of_title = [row for row in rows if (row.quantity, row.unit) == title]
        has_ratios = any(row.ratios for row in of_title)
        compared = [row.system for row in of_title if row.values and not row.ratios] if has_ratios else []
        for header in ("", "n", "median", "spread", f"{escape(compared[0])} to it" if compared else ""):
            table.add_column(header, justify="right" if header in ("n", "median", "spread") else "left")
        for row in of_title:
            table.add_row(*map(escape, _cells(row)))
        printed.append(table)
    return printed


def _cells(row: Row) -> list[str]:
    values, shares = row.values, row.ratios
    ratio = f"{statistics.median(shares):.3f} ({min(shares):.3f} to {max(shares):.3f})" if shares else ""
    return [
        row.system,
        str(len(values)),
        _format(statistics.median(values)) if values else "",
        f"{_format(min(values))} to {_format(max(values))}" if values else "",
        " ".join(filter(None, (ratio, row.note))),
    ]


def _format(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def report(rows: Sequence[Row], out: Path, settings: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the table, and writes the rows as JSON, each with the machine, the settings, medians and spreads."""
    console = console or Console()
    where = {"processor": processor(), "cores": cores(), "platform": platform.platform(terse=True)}
    console.print(f"{where['cores']} cores of {where['processor']}; " + _join(settings))
    for versions in {_join(row.versions): row.versions for row in rows if row.versions}.values():
        names = dict.fromkeys(row.system for row in rows if row.versions == versions)
        console.print(f"{', '.join(names)}: {_join(versions)}", highlight=False)
    for table in tables(rows):
        console.print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    records = [{**_with_summary(row), **where, "settings": dict(settings)} for row in rows]
    out.write_text(json.dumps(records, indent=1) + "\n")


def _with_summary(row: Row) -> dict[str, Any]:
    def summary(values: list[float]) -> dict[str, float] | None:
        return {"median": statistics.median(values), "min": min(values), "max": max(values)} if values else None

    return {**asdict(row), "n": len(row.values), "summary": summary(row.values), "ratio": summary(row.ratios)}


def _join(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def processor() -> str:
    """Returns the name of the processor."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""The faults, each a function that disturbs a run once, and `soak`, which runs them."""

import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import Progress

from experiments.soak import run as run_file
from experiments.soak.outcome import differences, outcome
from experiments.soak.trap import COMPILATION, EVALUATION, LINE
from flaxcls.run.workdir import CHECKPOINTS, CONFIG, RESULT

MOST_TRIES = 20


@dataclass
class Subject:
    """A run to disturb. reference: the undisturbed run that it is compared with."""

    workdir: Path
    options: list[str]
    reference: "Reference"
    rng: random.Random

    def start(self, trap: dict[str, Any] | None = None) -> subprocess.Popen[str]:
        """Starts or resumes the run, as a user would; with a trap, by the command of `trap.py`."""
        arguments = ["--workdir", str(self.workdir)]
        arguments += ["--resume"] if (self.workdir / CONFIG).exists() else self.options
        command = ["flaxcls.train"] if trap is None else ["experiments.soak.trap", json.dumps(trap)]
        # some processes compile anew, as on a user's machine; the others use the cache
        compiles_anew = (trap or {}).get("point") == COMPILATION or self.rng.random() < 0.2
        cache = self.workdir.parent / "compiled"
        return subprocess.Popen(
            [sys.executable, "-m", *command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                "JAX_COMPILATION_CACHE_DIR": str(cache),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_ENABLE_COMPILATION_CACHE": str(not compiles_anew).lower(),
            },
        )

    def kill_after(self, seconds: float) -> bool:
        """Starts the run, and kills it after `seconds`; returns True if it was still running."""
        process = self.start()
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return True
        assert process.returncode == 0, f"it ended with {process.returncode} by itself: {output}"
        return False

    def kill_at(self, point: str, at: int, delay: float = 0.0) -> bool:
        """Starts the run with a trap; returns True if the trap killed it."""
        process = self.start({"point": point, "at": at, "delay": delay})
        output, _ = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), f"it ended with {process.returncode} by itself: {output}"
        return process.returncode == -signal.SIGKILL


@dataclass(frozen=True)
class Reference:
    """The undisturbed run. points: number of moments of each kind; compilations: seconds of each compilation."""

    outcome: dict[str, Any]
    seconds: float
    points: dict[str, int]
    compilations: list[float]


# run -> True if it was disturbed; raises AssertionError if the run ended in another way than it should
Fault = Callable[[Subject], bool]


def _at(point: str) -> Fault:
    return lambda subject: subject.kill_at(point, subject.rng.randint(1, subject.reference.points[point]))


def _any_time(subject: Subject) -> bool:
    return subject.kill_after(subject.rng.uniform(0, subject.reference.seconds))


def _compilation(subject: Subject) -> bool:
    seconds = subject.reference.compilations
    (index,) = subject.rng.choices(range(len(seconds)), weights=seconds)
    return subject.kill_at(COMPILATION, index + 1, delay=subject.rng.uniform(0.001, seconds[index]))


def _restart(subject: Subject) -> bool:
    """Kills a run late, and again while it restores, cuts its logs, compiles, or a little later; often twice."""
    late = subject.kill_at(
        "save", subject.rng.randint(subject.reference.points["save"] // 4, subject.reference.points["save"])
    )
    again = [
        subject.kill_after(subject.rng.uniform(0, subject.reference.seconds / 2))
        if subject.rng.random() < 0.5
        else subject.kill_at("other files", subject.rng.randint(1, 12))
        for _ in range(subject.rng.randint(1, 2))
    ]
    return late and any(again)


def _damage(subject: Subject) -> bool:
    """Kills a run in the middle of a save, and then damages a random file of the newest whole checkpoint."""
    killed = subject.kill_at("save", subject.rng.randint(60, subject.reference.points["save"]))
    steps = sorted(int(path.name) for path in (subject.workdir / CHECKPOINTS).iterdir() if path.name.isdigit())
    files = [path for path in (subject.workdir / CHECKPOINTS / str(steps[-1])).rglob("*") if path.is_file()]
    path = subject.rng.choice(files)
    data = bytearray(path.read_bytes())
    kind = subject.rng.choice(["flip", "truncate", "remove"])
    if kind == "flip" and data:
        data[subject.rng.randrange(len(data))] ^= 1 << subject.rng.randrange(8)
        path.write_bytes(data)
    elif kind == "truncate":
        path.write_bytes(data[: subject.rng.randrange(max(len(data), 1))])
    else:
        path.unlink()
    return killed and len(steps) > 1


def _signal(number: signal.Signals) -> Fault:
    def send(subject: Subject) -> bool:
        process = subject.start()
        assert process.stdout is not None
        output = ""
        for line in process.stdout:
            output += line
            if "run directory" in line:
                break
        timer = threading.Timer(subject.rng.uniform(0, 0.6 * subject.reference.seconds), process.send_signal, [number])
        timer.start()
        output += process.communicate()[0]
        timer.cancel()
        has_ended = (subject.workdir / RESULT).exists()  # then the signal came when the process only had to exit
        if process.returncode == 0 or (has_ended and process.returncode == -number):
            return False
        assert process.returncode == 128 + number, f"exit code {process.returncode} after {number.name}: {output}"
        assert "--resume goes on from the latest checkpoint" in output, output
        assert not list((subject.workdir / CHECKPOINTS).glob("*tmp*")), "the save was not finalised"
        return True

    return send


FaultName = Literal[
    "any", "compilation", "evaluation", "save", "finalisation", "deletion", "lines", "files", "restart", "damage",
    "sigterm", "sigint",
]  # fmt: skip
FAULTS: dict[FaultName, tuple[str, Fault]] = {
    "any": ("SIGKILL at any time", _any_time),
    "compilation": ("SIGKILL in a compilation", _compilation),
    "evaluation": ("SIGKILL in an evaluation", _at(EVALUATION)),
    "save": ("SIGKILL in a save", _at("save")),
    "finalisation": ("SIGKILL between a save and its finalisation", _at("finalisation")),
    "deletion": ("SIGKILL in the deletion of an old checkpoint", _at("deletion of an old checkpoint")),
    "lines": ("SIGKILL between a line of metrics and its events", _at(LINE)),
    "files": ("SIGKILL before config, logs or result are written", _at("other files")),
    "restart": ("SIGKILL, and again in the restart", _restart),
    "damage": ("SIGKILL, and the newest checkpoint damaged", _damage),
    "sigterm": ("SIGTERM at any time", _signal(signal.SIGTERM)),
    "sigint": ("SIGINT at any time", _signal(signal.SIGINT)),
}


@dataclass
class Row:
    """One line of the table. losses: directory and reason of each run that ended unlike the undisturbed one."""

    fault: str
    dispatch: int
    tried: int = 0
    equal: int = 0
    losses: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Returns the row as a JSON object."""
        return dict(vars(self))


def soak(
    place: Path,
    *,
    faults: Sequence[FaultName],
    moments: int,
    dispatch: Sequence[int],
    rng: random.Random,
    console: Console,
    experiment: Path = Path(run_file.__file__),
) -> list[Row]:
    """Disturbs `moments` runs by each fault, for each number of steps a dispatch, and resumes and compares them."""
    cores: queue.Queue[int] = queue.Queue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)
    # each run has a core of its own, as XLA's spinning threads would slow the others down
    pin_to_core = lambda: os.sched_setaffinity(0, {cores.get()})  # noqa: E731
    rows = [Row(FAULTS[name][0], steps) for name in faults for steps in dispatch]
    with Progress(console=console) as progress, ThreadPoolExecutor(cores.qsize(), initializer=pin_to_core) as pool:
        task = progress.add_task("runs", total=len(dispatch) + len(rows) * moments)

        def options(steps: int) -> list[str]:
            return [str(experiment), "--loop.steps-per-dispatch", str(steps)]

        def prepare(steps: int) -> Reference:
            reference = _run_undisturbed(place / f"undisturbed-{steps}", options(steps))
            progress.advance(task)
            return reference

        references = dict(zip(dispatch, pool.map(prepare, dispatch), strict=True))

        def attempt(row: Row, name: FaultName, number: int, rng: random.Random) -> None:
            workdir = place / f"{name}-{row.dispatch}-{number}"
            subject = Subject(workdir, options(row.dispatch), references[row.dispatch], rng)
            problem = _disturb_and_compare(subject, FAULTS[name][1])
            row.tried += 1
            if problem:
                row.losses.append(f"{workdir}: {problem}")
            else:
                row.equal += 1
                shutil.rmtree(workdir)
            progress.advance(task)

        jobs = [
            pool.submit(attempt, row, name, number, random.Random(rng.random()))
            for (name, row) in zip([name for name in faults for _ in dispatch], rows, strict=True)
            for number in range(moments)
        ]
        for job in jobs:
            job.result()
    return rows


def _run_undisturbed(workdir: Path, options: list[str]) -> Reference:
    counts = workdir.with_suffix(".json")
    subject = Subject(workdir, options, None, random.Random(0))  # type: ignore[arg-type]
    began = time.perf_counter()
    process = subject.start({"point": "", "at": 0, "counts": str(counts)})
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the undisturbed run ended with {process.returncode}: {output}")
    seconds = time.perf_counter() - began
    return Reference(outcome(workdir), seconds, **json.loads(counts.read_text()))


def _disturb_and_compare(subject: Subject, fault: Fault) -> str | None:
    """Returns a description of the loss, or None if the resumed run equals the undisturbed one, bit by bit."""
    try:
        for _ in range(MOST_TRIES):
            if fault(subject):
                break
            shutil.rmtree(subject.workdir, ignore_errors=True)  # the run ended before the moment came
        else:
            return f"in {MOST_TRIES} runs, the moment never came"
        process = subject.start()
        output, _ = process.communicate()
        if process.returncode:
            return f"the resumed run ended with {process.returncode}: {output}"
        different = differences(subject.reference.outcome, outcome(subject.workdir))
    except Exception as error:  # a missing or unreadable file is a loss, too
        return f"{type(error).__name__}: {error}"
    return f"other {' and '.join(different)} than the undisturbed run" if different else None

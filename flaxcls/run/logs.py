"""What the user sees while training: progress, metrics.jsonl and TensorBoard event files."""

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from flaxcls.run.checkpoint import Restored
from flaxcls.run.lock import check_held
from flaxcls.run.workdir import METRICS, TENSORBOARD
from flaxcls.storage import Outbox, in_bucket, remove, write_whole

SENT_EVERY = 60  # seconds; a bucket takes an object again once a second at most


class Logs:
    """Writes each line of metrics to metrics.jsonl and TensorBoard, and shows progress; to be closed.

    What was written after the step of `restored` (by a run that went on longer than its last checkpoint) is cut off
    first, and the event files, which hold the same values, are written anew. In a bucket, the files are those of the
    last `flush`, or of a minute ago.

    workdir: the run directory; without it no file is written.
    """

    def __init__(self, workdir: Path | None, *, console: Console, total_steps: int, restored: Restored | None) -> None:
        start = restored.step if restored else 0
        self._files = None if workdir is None else _Files(workdir, restored)
        self._began, self._start, self._total_steps = time.perf_counter(), start, total_steps
        self._console = console
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=12),
            TextColumn("step {task.completed}/{task.total}"),
            _Metrics(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
            refresh_per_second=4,  # each takes time from a CPU that trains
        )
        self._task = self._progress.add_task("", total=total_steps, completed=start, epoch=0, shown={})
        self._progress.start()

    def advance(self, step: int, epoch: int) -> None:
        """Moves the progress bar to `step`."""
        self._progress.update(self._task, completed=step, epoch=epoch)

    def write(self, split: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Writes one line of values, measured on `split` after `step`."""
        line: dict[str, Any] = {"step": step, "epoch": epoch, "split": split, **values}
        if self._files is not None:
            self._files.write(line)
        if split == "train":
            self._progress.update(self._task, shown=values)
            if not self._console.is_terminal:
                elapsed = time.perf_counter() - self._began
                left = elapsed * (self._total_steps - step) / max(step - self._start, 1)
                shown = f"epoch {epoch:3d}  step {step:6d}/{self._total_steps}  {_shown(values)}"
                self.say(f"{shown}  {left / 60:.1f} min left")

    def flush(self) -> None:
        """Returns when what was written is in the run directory, as it must be before a checkpoint of it is.

        Raises InputError if another process has taken that over.
        """
        if self._files is not None:
            self._files.send()

    def say(self, line: str) -> None:
        """Prints a line, above the progress bar where there is one."""
        self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def show(self, renderable: RenderableType) -> None:
        """Prints a table, above the progress bar where there is one."""
        self._progress.console.print(renderable)

    def __enter__(self) -> "Logs":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if self._files is not None:
            self._files.close()


class _Files:
    """metrics.jsonl and the event files, of the lines up to a step and those that are written from there on."""

    def __init__(self, workdir: Path, restored: Restored | None) -> None:
        self._workdir, self._outbox = workdir, Outbox(workdir)
        folder = self._outbox.folder
        kept = _truncate(workdir / METRICS, folder / METRICS, restored)
        self._metrics = (folder / METRICS).open("a")
        remove(workdir / TENSORBOARD)
        (folder / TENSORBOARD).mkdir()
        # not its SummaryWriter, whose thread would swallow what a full disk says, and then wait for ever
        self._tensorboard = EventsWriter(str(folder / TENSORBOARD / "events"))
        for line in kept:
            self._add_scalars(line)
        self.send()

    def write(self, line: Mapping[str, Any]) -> None:
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        self._add_scalars(line)
        if in_bucket(self._workdir) and time.monotonic() - self._sent > SENT_EVERY:
            self.send()

    def send(self) -> None:
        """Copies the files into a bucket, if the run directory is in one and still this process's."""
        check_held(self._workdir)
        self._outbox.send()
        self._sent = time.monotonic()

    def _add_scalars(self, line: Mapping[str, Any]) -> None:
        for name, value in line.items():
            if name not in ("step", "epoch", "split"):
                summary = scalar(f"{line['split']}/{name}", value)
                self._tensorboard.write_event(Event(wall_time=time.time(), step=line["step"], summary=summary))
        self._tensorboard.flush()

    def close(self) -> None:
        with self._outbox:
            with contextlib.closing(self._tensorboard), self._metrics:
                pass
            self.send()


class _Metrics(ProgressColumn):
    def render(self, task: Task) -> Text:
        shown: dict[str, Any] = task.fields["shown"]
        return Text(_shown(shown) if shown else "" if task.completed else "compiling")


def _shown(values: Mapping[str, float]) -> str:
    parts = [f"loss {values['loss']:.4f}", f"accuracy {values['accuracy']:.2%}"]
    parts += [f"{values['images_per_second']:,.0f} images/s", f"{1e3 * values['step_seconds']:.3g} ms/step"]
    return "  ".join(parts + ([f"MFU {values['mfu']:.0%}"] if "mfu" in values else []))


def _truncate(path: Path, to: Path, restored: Restored | None) -> list[dict[str, Any]]:
    """Writes the lines of `path` that were written before the checkpoint was to `to`, and returns them.

    A line cut short by a crash goes too; so do those of an evaluation after its step that was put off, and of the
    training up to there if that evaluation was the last and brought the line about.
    """
    step, record = (restored.step, restored.record) if restored else (0, {})
    at_step = {"validation": record.get("evaluated", True), "train": record.get("meter", {}).get("steps", 0) == 0}
    kept, lines = [], []
    for text in path.read_text().splitlines(keepends=True) if path.exists() else []:
        line = json.loads(text) if text.endswith("\n") else None
        if line is None or line["step"] > step:
            break
        if line["step"] < step or at_step[line["split"]]:
            kept.append(text)
            lines.append(line)
    write_whole(to, "".join(kept))
    return lines

"""The output of a run while it trains: progress, metrics.jsonl and TensorBoard event files."""

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

from flaxcls.errors import InputError
from flaxcls.run.checkpoint import Restored
from flaxcls.run.lock import check_held
from flaxcls.run.workdir import METRICS, TENSORBOARD
from flaxcls.storage import Outbox, in_bucket, remove, write_whole

SENT_EVERY = 60  # seconds; a bucket accepts one write of an object per second at most


class Logs:
    """The lines of metrics in metrics.jsonl and TensorBoard, and the progress on the console; to be closed.

    First, the lines after the step of `restored` are deleted, which a run writes if it goes on past its last
    checkpoint. The event files hold the same values and are written anew. Files in a bucket are updated by each
    `flush`, and by a line if the last update was more than a minute ago.

    workdir: the run directory; None: no file is written.
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
            _MetricsColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
            refresh_per_second=4,  # each refresh takes time from a CPU that trains
        )
        self._task = self._progress.add_task("", total=total_steps, completed=start, epoch=0, metrics={})
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
            self._progress.update(self._task, metrics=values)
            if not self._console.is_terminal:
                elapsed = time.perf_counter() - self._began
                seconds_left = elapsed * (self._total_steps - step) / max(step - self._start, 1)
                text = f"epoch {epoch:3d}  step {step:6d}/{self._total_steps}  {_format_metrics(values)}"
                self.say(f"{text}  {seconds_left / 60:.1f} min left")

    def flush(self) -> None:
        """Returns when all lines are in the run directory; a checkpoint may be saved only after that.

        Raises InputError if another process has taken the run directory.
        """
        if self._files is not None:
            self._files.send()

    def say(self, line: str) -> None:
        """Prints a line, above the progress bar if there is one."""
        self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def show(self, renderable: RenderableType) -> None:
        """Prints a table, above the progress bar if there is one."""
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
    """metrics.jsonl and the event files: the lines up to a step, and the new ones after it."""

    def __init__(self, workdir: Path, restored: Restored | None) -> None:
        self._workdir, self._outbox = workdir, Outbox(workdir)
        folder = self._outbox.folder
        earlier_lines = _copy_up_to(restored, workdir / METRICS, folder / METRICS)
        self._metrics = (folder / METRICS).open("a")
        remove(workdir / TENSORBOARD)
        (folder / TENSORBOARD).mkdir()
        # not SummaryWriter: its thread would hide the error of a full disk, and then wait for ever
        self._tensorboard = EventsWriter(str(folder / TENSORBOARD / "events"))
        for line in earlier_lines:
            self._add_scalars(line)
        self.send()

    def write(self, line: Mapping[str, Any]) -> None:
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        self._add_scalars(line)
        if in_bucket(self._workdir) and time.monotonic() - self._sent_at > SENT_EVERY:
            self.send()

    def send(self) -> None:
        """Copies the files into the bucket, if the run directory is in one. Raises like `check_held`."""
        check_held(self._workdir)
        self._outbox.send()
        self._sent_at = time.monotonic()

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


class _MetricsColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        metrics: dict[str, Any] = task.fields["metrics"]
        return Text(_format_metrics(metrics) if metrics else "" if task.completed else "compiling")


def _format_metrics(values: Mapping[str, float]) -> str:
    parts = [f"loss {values['loss']:.4f}", f"accuracy {values['accuracy']:.2%}"]
    parts += [f"{values['images_per_second']:,.0f} images/s", f"{1e3 * values['step_seconds']:.3g} ms/step"]
    return "  ".join(parts + ([f"MFU {values['mfu']:.0%}"] if "mfu" in values else []))


def _copy_up_to(restored: Restored | None, path: Path, target: Path) -> list[dict[str, Any]]:
    """Copies the lines of `path` that were written before the checkpoint to `target`, and returns them.

    A line that a crash cut short is dropped. So is the line of an evaluation at the step of the checkpoint, if the
    checkpoint was saved without it; and the line of training up to this step, if that evaluation ended the training and
    so caused the line.

    Raises InputError for another line that is no JSON.
    """
    step, record = (restored.step, restored.record) if restored else (0, {})
    kept_at_step = {"validation": record.get("evaluated", True), "train": record.get("meter", {}).get("steps", 0) == 0}
    texts, lines = [], []
    for text in path.read_bytes().decode(errors="replace").splitlines(keepends=True) if path.exists() else []:
        try:
            line = json.loads(text) if text.endswith("\n") else None
        except ValueError as error:
            raise InputError(f"{path} is damaged: {error}. Delete the lines that are not JSON.") from error
        if line is None or line["step"] > step:
            break
        if line["step"] < step or kept_at_step[line["split"]]:
            texts.append(text)
            lines.append(line)
    write_whole(target, "".join(texts))
    return lines

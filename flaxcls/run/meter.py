"""The training metrics between two lines of the log, read from the device as late as possible."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax

from flaxcls.errors import DivergenceError

# (step, the means of the metrics since the last line and the last of the other values, images per second)
WriteLine = Callable[[int, dict[str, float], float], None]


class Meter:
    """The means of the metrics between two lines of the log, and the speed.

    Steps are added as soon as they are dispatched, and read later: the host never waits for a device that has no other
    step to do. A step whose update was dropped is left out of the means.

    batch_size: images of a step.
    logs: step -> True if a line is due.
    write: writes a line.
    record: `as_record` of the meter of a checkpoint, or empty.
    say: gets a message about each dropped update.
    skip_limit: the most updates in a row that may be dropped; 0 if no update is dropped.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        logs: Callable[[int], bool],
        write: WriteLine,
        record: dict[str, Any],
        say: Callable[[str], None] = lambda line: None,
        skip_limit: int = 0,
    ) -> None:
        self._batch_size, self._logs, self._write = batch_size, logs, write
        self._say, self._skip_limit = say, skip_limit
        self._pending: list[tuple[int, dict[str, jax.Array], dict[str, jax.Array]]] = []
        self._sums: dict[str, float] = dict(record.get("sums", {}))
        self._steps: int = record.get("steps", 0)
        self._mark = time.perf_counter()
        self._interval_seconds, self._interval_images = 0.0, 0
        self.seconds: float = record.get("seconds", 0.0)
        self.images: int = record.get("images", 0)
        self.skipped: int = record.get("skipped", 0)
        self._skipped_in_interval: int = record.get("skipped_in_interval", 0)
        self._skipped_in_a_row: int = record.get("skipped_in_a_row", 0)

    def add(self, step: int, metrics: dict[str, jax.Array], extra: dict[str, jax.Array]) -> None:
        """Adds the values of a dispatch of k steps that ends with `step`: arrays f32[k].

        A line holds the means of `metrics` and the last values of `extra`.
        """
        self._pending.append((step, metrics, extra))

    def skip_time(self) -> None:
        """Leaves the time since the last reading out of the speed, for example compilation, evaluation and saving."""
        self._mark = time.perf_counter()

    def read(self, upto: int) -> None:
        """Waits for the steps up to `upto`, and writes the lines that are due.

        Raises:
          DivergenceError: if a loss or gradient is not finite, or too many updates in a row were dropped.
        """
        ready = [item for item in self._pending if item[0] <= upto]
        self._pending = self._pending[len(ready) :]
        values = jax.device_get([(metrics, extra) for _, metrics, extra in ready])
        self._count_time(sum(len(metrics["loss"]) for metrics, _ in values) * self._batch_size)
        for (step, _, _), (metrics, extra) in zip(ready, values, strict=True):
            count = len(metrics["loss"])
            for index in range(count):
                self._add_step(step - count + 1 + index, {name: float(value[index]) for name, value in metrics.items()})
            if self._logs(step):
                self.write(step, {name: value[-1] for name, value in extra.items()})

    def _add_step(self, step: int, metrics: dict[str, float]) -> None:
        problem = _find_problem(step, metrics)
        if metrics.pop("skipped", 0.0):
            self.skipped += 1
            self._skipped_in_interval += 1
            self._skipped_in_a_row += 1
            problem = problem or f"the parameters are not finite after step {step}"
            if self._skipped_in_a_row > self._skip_limit:
                raise DivergenceError(
                    f"{problem}, and {self._skipped_in_a_row} updates in a row were dropped, more than loop.nan_limit."
                )
            self._say(f"{problem}: the update is dropped, {self._skipped_in_a_row} in a row, {self.skipped} in all")
            return
        if problem:
            raise DivergenceError(f"{problem}.")
        self._skipped_in_a_row = 0
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps += 1

    def write(self, step: int, extra: dict[str, Any] | None = None) -> None:
        """Writes the line of the interval up to `step`, if it has any steps; they must have been read."""
        if self._steps:
            values = {name: total / self._steps for name, total in self._sums.items()}
            values |= {name: float(value) for name, value in (extra or {}).items()}
            if self._skip_limit:
                values["skipped"] = self._skipped_in_interval
            self._write(step, values, self._take_speed())
            self._sums, self._steps, self._skipped_in_interval = {}, 0, 0

    def as_record(self) -> dict[str, Any]:
        """Returns the values from which a resumed run goes on; all steps must have been read."""
        return {
            "sums": self._sums,
            "steps": self._steps,
            "seconds": self.seconds,
            "images": self.images,
            "skipped": self.skipped,
            "skipped_in_interval": self._skipped_in_interval,
            "skipped_in_a_row": self._skipped_in_a_row,
        }

    def _count_time(self, images: int) -> None:
        now = time.perf_counter()
        self._interval_seconds += now - self._mark
        self._interval_images += images
        self.seconds += now - self._mark
        self.images += images
        self._mark = now

    def _take_speed(self) -> float:
        """Returns the images per second of the interval, and starts the next interval."""
        speed = self._interval_images / max(self._interval_seconds, 1e-9)
        self._interval_seconds, self._interval_images = 0.0, 0
        return speed


def _find_problem(step: int, metrics: dict[str, float]) -> str | None:
    for name, quantity in (("loss", "loss"), ("grad_norm", "norm of the gradient")):
        if not math.isfinite(metrics[name]):
            return f"the {quantity} is {metrics[name]} at step {step}"
    return None

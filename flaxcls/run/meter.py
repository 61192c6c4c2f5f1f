"""The training metrics between two lines of the log, read from the device as late as can be."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax

from flaxcls.errors import DivergenceError

# (step, mean of each metric since the last line and what was measured last alone, images a second)
WriteLine = Callable[[int, dict[str, float], float], None]


class Meter:
    """Averages the metrics of the steps between two lines.

    Steps are added as soon as they are dispatched and read later, so that the device is never waited for while it has
    nothing else to do. A resumed run goes on from `record`: the sums of an interval that is not over, and the time.
    Steps whose update was dropped are told to `say` and left out of the means.

    skip_limit: the most updates in a row that may be dropped; 0 where none are.
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
        """Takes what a dispatch that ends with `step` has measured: f32[k] of its k steps.

        Of metrics a line holds the means, of `extra` the last.
        """
        self._pending.append((step, metrics, extra))

    def skip_time(self) -> None:
        """Leaves the time since the last reading out of the speed: compilation, evaluation, saving."""
        self._mark = time.perf_counter()

    def read(self, upto: int) -> None:
        """Waits for the steps up to this one, and writes the lines that are due.

        Raises:
          DivergenceError: if the loss or the gradient of one of them is not finite, or too many were dropped.
        """
        ready = [item for item in self._pending if item[0] <= upto]
        self._pending = self._pending[len(ready) :]
        read = jax.device_get([(metrics, extra) for _, metrics, extra in ready])
        self._time(sum(len(metrics["loss"]) for metrics, _ in read) * self._batch_size)
        for (step, _, _), (metrics, extra) in zip(ready, read, strict=True):
            count = len(metrics["loss"])
            for index in range(count):
                self._take(step - count + 1 + index, {name: float(value[index]) for name, value in metrics.items()})
            if self._logs(step):
                self.write(step, {name: value[-1] for name, value in extra.items()})

    def _take(self, step: int, metrics: dict[str, float]) -> None:
        problem = _problem(step, metrics)
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
        """Writes the line of the interval up to `step`, all of whose steps have been read, if there are any."""
        if self._steps:
            values = {name: total / self._steps for name, total in self._sums.items()}
            values |= {name: float(value) for name, value in (extra or {}).items()}
            if self._skip_limit:
                values["skipped"] = self._skipped_in_interval
            self._write(step, values, self._speed())
            self._sums, self._steps, self._skipped_in_interval = {}, 0, 0

    def as_record(self) -> dict[str, Any]:
        """Returns what a resumed run goes on from, when all steps have been read."""
        return {
            "sums": self._sums,
            "steps": self._steps,
            "seconds": self.seconds,
            "images": self.images,
            "skipped": self.skipped,
            "skipped_in_interval": self._skipped_in_interval,
            "skipped_in_a_row": self._skipped_in_a_row,
        }

    def _time(self, images: int) -> None:
        now = time.perf_counter()
        self._interval_seconds += now - self._mark
        self._interval_images += images
        self.seconds += now - self._mark
        self.images += images
        self._mark = now

    def _speed(self) -> float:
        speed = self._interval_images / max(self._interval_seconds, 1e-9)
        self._interval_seconds, self._interval_images = 0.0, 0
        return speed


def _problem(step: int, metrics: dict[str, float]) -> str | None:
    for name, what in (("loss", "loss"), ("grad_norm", "norm of the gradient")):
        if not math.isfinite(metrics[name]):
            return f"the {what} is {metrics[name]} at step {step}"
    return None

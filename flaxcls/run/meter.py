"""The training metrics between two lines of the log, read from the device as late as can be."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax

from flaxcls.errors import DivergenceError

# (step, mean of each metric since the last line and what was measured at the step alone, images a second)
WriteLine = Callable[[int, dict[str, float], float], None]


class Meter:
    """Averages the metrics of the steps between two lines.

    Steps are added as soon as they are dispatched and read later, so that the device is never waited for while it has
    nothing else to do. A resumed run goes on from `record`: the sums of an interval that is not over, and the time.
    """

    def __init__(
        self, *, batch_size: int, logs: Callable[[int], bool], write: WriteLine, record: dict[str, Any]
    ) -> None:
        self._batch_size, self._logs, self._write = batch_size, logs, write
        self._pending: list[tuple[int, dict[str, jax.Array], dict[str, jax.Array]]] = []
        self._sums: dict[str, float] = dict(record.get("sums", {}))
        self._steps: int = record.get("steps", 0)
        self._mark = time.perf_counter()
        self._interval_seconds, self._interval_images = 0.0, 0
        self.seconds: float = record.get("seconds", 0.0)
        self.images: int = record.get("images", 0)

    def add(self, step: int, metrics: dict[str, jax.Array], extra: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step that has been dispatched, and what its line is to hold beside their means."""
        self._pending.append((step, metrics, extra))

    def skip_time(self) -> None:
        """Leaves the time since the last reading out of the speed: compilation, evaluation, saving."""
        self._mark = time.perf_counter()

    def read(self, upto: int) -> None:
        """Waits for the steps up to this one, and writes the lines that are due.

        Raises:
          DivergenceError: if the loss or the gradient of one of them is not finite.
        """
        ready = [item for item in self._pending if item[0] <= upto]
        self._pending = self._pending[len(ready) :]
        read = jax.device_get([(metrics, extra) for _, metrics, extra in ready])
        self._time(len(ready) * self._batch_size)
        for (step, _, _), (metrics, extra) in zip(ready, read, strict=True):
            _check_finite(step, metrics)
            for name, value in metrics.items():
                self._sums[name] = self._sums.get(name, 0.0) + float(value)
            self._steps += 1
            if self._logs(step):
                self.write(step, extra)

    def write(self, step: int, extra: dict[str, Any] | None = None) -> None:
        """Writes the line of the interval up to `step`, all of whose steps have been read, if there are any."""
        if self._steps:
            means = {name: total / self._steps for name, total in self._sums.items()}
            self._write(step, {**means, **{name: float(value) for name, value in (extra or {}).items()}}, self._speed())
            self._sums, self._steps = {}, 0

    def as_record(self) -> dict[str, Any]:
        """Returns what a resumed run goes on from, when all steps have been read."""
        return {"sums": self._sums, "steps": self._steps, "seconds": self.seconds, "images": self.images}

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


def _check_finite(step: int, metrics: dict[str, Any]) -> None:
    for name in ("loss", "grad_norm"):
        if not math.isfinite(metrics[name]):
            what = "loss" if name == "loss" else "norm of the gradient"
            raise DivergenceError(f"the {what} is {float(metrics[name])} at step {step}.")

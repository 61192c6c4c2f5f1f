"""A trace of a few steps of a run, for TensorBoard's profile plugin and for Perfetto."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType

import jax

from flaxcls.run.meter import Meter
from flaxcls.storage import Outbox

# dispatches before it begins, the first of which compiles, and those that it holds
BEFORE, TRACED = 5, 5


class Trace:
    """Writes one trace into the folder `place`, which is made, unless that is None.

    The time that this takes is left out of the meter's speed.
    """

    def __init__(self, place: Path | None, meter: Meter) -> None:
        self._place, self._meter = place, meter
        self._count, self._running = 0, False

    def dispatch(self, step: int) -> AbstractContextManager[object]:
        """Returns the context in which the dispatch after `step` is to be made. Raises what the meter's `read` does."""
        if self._place is None:
            return nullcontext()
        if self._count in (BEFORE, BEFORE + TRACED):
            self._meter.read(step)  # waits for what was dispatched
            if self._running:
                self._stop()
            else:
                self._outbox = Outbox(self._place)
                jax.profiler.start_trace(self._outbox.folder)
                self._running = True
            self._meter.skip_time()
        self._count += 1
        return jax.profiler.StepTraceAnnotation("train", step_num=step) if self._running else nullcontext()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            with self._outbox:
                jax.profiler.stop_trace()
                self._outbox.send()

    def __enter__(self) -> "Trace":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

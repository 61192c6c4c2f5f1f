"""A trace of a few steps of a run, for TensorBoard's profile plugin and for Perfetto."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType

import jax

from flaxcls.run.meter import Meter
from flaxcls.storage import Outbox

# dispatches before the trace, the first of which compiles, and dispatches in the trace
BEFORE, TRACED = 5, 5


class Trace:
    """One trace of a run, written into the folder `place`, which is created; to be closed. None: no trace.

    The time for starting and writing it is left out of the speed of the meter.
    """

    def __init__(self, place: Path | None, meter: Meter) -> None:
        self._place, self._meter = place, meter
        self._dispatches, self._running = 0, False

    def dispatch(self, step: int) -> AbstractContextManager[object]:
        """Returns the context for the dispatch after `step`. Raises DivergenceError like `Meter.read`."""
        if self._place is None:
            return nullcontext()
        if self._dispatches in (BEFORE, BEFORE + TRACED):
            self._meter.read(step)  # waits for the steps that were dispatched
            if self._running:
                self._stop()
            else:
                self._outbox = Outbox(self._place)
                jax.profiler.start_trace(self._outbox.folder)
                self._running = True
            self._meter.skip_time()
        self._dispatches += 1
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

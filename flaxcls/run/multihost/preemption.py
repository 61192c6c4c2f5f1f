"""SIGTERM and SIGINT, as a request that the training loop reads between two steps."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """While open, notes the first SIGTERM or SIGINT instead of dying of it; to be closed.

    The second one ends the process at once, even within a compilation, where Python handles no signal. Outside of the
    main thread, which alone may handle signals, nothing is noted, nor is a signal that is ignored or another's.

    Where there are several processes, JAX's own handler of SIGTERM is left alone, for it makes all of them agree on the
    poll at which they stop, whichever was signalled; SIGINT is passed on to it.

    signal: the one that came to this process, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._together = jax.process_count() > 1
        self._polls, self._agreed = 0, False
        self._write: int | None = None
        self._wakeup_before = -1

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            wanted = [number for number in SIGNALS if not (self._together and number == signal.SIGTERM)]
            ours = [number for number in wanted if signal.getsignal(number) not in (signal.SIG_IGN, None)]
            self._before = {number: signal.signal(number, self._note) for number in ours}
            read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            threading.Thread(target=_end_at_the_second, args=(read, set(ours)), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._write is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._write)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        if self._together:
            os.kill(os.getpid(), signal.SIGTERM)

    def poll(self) -> bool:
        """Returns whether to stop here. All processes call it equally often, and get the same answer."""
        if not self._together:
            return self.signal is not None
        self._polls += 1
        self._agreed = self._agreed or multihost_utils.reached_preemption_sync_point(self._polls)
        return self._agreed

    def exception(self) -> BaseException:
        """Returns what the signal would have raised: KeyboardInterrupt, or SystemExit with the code 143.

        Its attribute `agreed` says that all processes stop here.
        """
        error = KeyboardInterrupt() if self.signal == signal.SIGINT else SystemExit(128 + signal.SIGTERM)
        error.agreed = True  # type: ignore[union-attr]
        return error


def _end_at_the_second(pipe: int, numbers: set[signal.Signals]) -> None:
    """Ends the process at the second of these signals; the system writes each to the pipe as it comes."""
    came = 0
    while byte := os.read(pipe, 1):
        came += byte[0] in numbers
        if came == 2:
            os._exit(128 + byte[0])
    os.close(pipe)

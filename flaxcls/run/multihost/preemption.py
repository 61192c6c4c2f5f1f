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
    """A request to stop, made by the first SIGTERM or SIGINT while this is open; to be closed.

    The second signal ends the process at once, even during a compilation, when Python handles no signal. A signal is
    left alone if it is ignored or has a handler outside of Python. Both are left alone if this is opened outside of the
    main thread, the only one that may handle signals.

    With several processes, JAX's own handler of SIGTERM stays: it makes all of them agree on the poll at which they
    stop, whichever process got the signal. SIGINT is passed on to it.

    signal: the signal that this process got, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._old_handlers: dict[signal.Signals, Any] = {}
        self._has_peers = jax.process_count() > 1
        self._polls, self._agreed = 0, False
        self._pipe_in: int | None = None
        self._old_wakeup = -1

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            wanted = [number for number in SIGNALS if not (self._has_peers and number == signal.SIGTERM)]
            handled = [number for number in wanted if signal.getsignal(number) not in (signal.SIG_IGN, None)]
            self._old_handlers = {number: signal.signal(number, self._note) for number in handled}
            pipe_out, self._pipe_in = os.pipe()
            os.set_blocking(self._pipe_in, False)
            self._old_wakeup = signal.set_wakeup_fd(self._pipe_in, warn_on_full_buffer=False)
            threading.Thread(target=_exit_at_second_signal, args=(pipe_out, set(handled)), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        if self._pipe_in is not None:
            signal.set_wakeup_fd(self._old_wakeup)
            os.close(self._pipe_in)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        for handled in self._old_handlers:
            signal.signal(handled, signal.SIG_DFL)
        if self._has_peers:
            os.kill(os.getpid(), signal.SIGTERM)

    def poll(self) -> bool:
        """Returns True if training must stop here. All processes call it equally often and get the same answer."""
        if not self._has_peers:
            return self.signal is not None
        self._polls += 1
        self._agreed = self._agreed or multihost_utils.reached_preemption_sync_point(self._polls)
        return self._agreed

    def exception(self) -> BaseException:
        """Returns the exception for the signal: KeyboardInterrupt, or SystemExit with the code 143.

        Its attribute `agreed` says that all processes stop here.
        """
        error = KeyboardInterrupt() if self.signal == signal.SIGINT else SystemExit(128 + signal.SIGTERM)
        error.agreed = True  # type: ignore[union-attr]
        return error


def _exit_at_second_signal(pipe: int, numbers: set[signal.Signals]) -> None:
    """Ends the process at the second of these signals; Python writes each signal to the pipe when it arrives."""
    count = 0
    while byte := os.read(pipe, 1):
        count += byte[0] in numbers
        if count == 2:
            os._exit(128 + byte[0])
    os.close(pipe)

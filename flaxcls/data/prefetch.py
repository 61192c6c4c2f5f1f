"""Batches that worker processes or threads make before they are needed."""

import contextlib
import itertools
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import cloudpickle
import numpy as np

from flaxcls.data.batches import BatchMaker
from flaxcls.errors import InputError, WorkerError

# batches that each worker makes ahead: enough that a slow batch does not delay the next one
AHEAD = 2


@contextlib.contextmanager
def made_ahead(maker: BatchMaker, start: int, end: int, *, workers: int) -> Iterator[Iterator[dict[str, np.ndarray]]]:
    """Yields an iterator over batches `start` to `end` - 1 that makes them before they are needed; closes the workers.

    The workers start when the first batch is requested. A worker process knows one batch at a time, so that its memory
    does not grow with the data set. It does not import the main program, and SIGINT and SIGTERM do not reach it. Its
    images come back through a socket: a container may have little shared memory, and a process that fills it is killed.

    workers: processes that make batches. 0: threads of this process.

    Raises, when a batch is requested:
      InputError: if one of its files cannot be read, and no other one may take its place.
      WorkerError: if a worker process cannot be started, or is killed.
    """
    with contextlib.closing(_make_ahead(maker, range(start, end), workers)) as batches:
        yield batches


def _make_ahead(maker: BatchMaker, steps: range, workers: int) -> Generator[dict[str, np.ndarray], None, None]:
    left, ahead = iter(steps), AHEAD * max(workers, 1)
    waiting: deque[tuple[dict[str, np.ndarray], Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(workers or AHEAD) as threads, contextlib.ExitStack() as stack:
        idle: queue.SimpleQueue[Callable[[Callable[[], np.ndarray]], np.ndarray]] = queue.SimpleQueue()
        for _ in range(workers):
            idle.put(stack.enter_context(_worker()))
        stack.callback(threads.shutdown, wait=False, cancel_futures=True)  # before the workers are killed

        def make(step: int, make_images: Callable[[], np.ndarray]) -> np.ndarray:
            try:
                if not workers:
                    return make_images()
                ask = idle.get()  # there is one for each thread
                try:
                    return ask(make_images)
                finally:
                    idle.put(ask)
            except InputError:  # only here all images are known, one of which may take the place of another
                made: np.ndarray = maker(step)["image"]
                return made

        while True:
            for step in itertools.islice(left, ahead - len(waiting)):
                batch, make_images = maker.without_images(step, in_threads=not workers)
                waiting.append((batch, threads.submit(make, step, make_images)))
            if not waiting:
                return
            batch, images = waiting.popleft()
            yield {"image": images.result(), **batch}


@contextlib.contextmanager
def _worker() -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Starts a process and yields a function that lets it call a function and returns the result; kills the process."""
    ours, its = socket.socketpair()
    with ours, ours.makefile("rb") as replies:
        with its:
            process = _start(its.fileno())

        def ask(function: Callable[[], Any]) -> Any:
            request = cloudpickle.dumps(function)  # it may be of the main program, which the worker does not import
            try:
                ours.sendall(pickle.dumps(request))
                reply = pickle.load(replies)
            except (OSError, EOFError, pickle.UnpicklingError) as error:
                raise WorkerError(_how_it_ended(process.wait())) from error
            if isinstance(reply, Exception):
                raise reply
            return reply

        try:
            yield ask
        finally:
            process.kill()  # it holds nothing that must be closed
            process.wait()


def _start(descriptor: int) -> subprocess.Popen[bytes]:
    """Starts a worker on a socket. It inherits that SIGINT and SIGTERM, which a terminal sends to all, are blocked."""
    # without the folder that it starts in, which may hold modules of any name (-P)
    command = [sys.executable, "-P", "-m", "flaxcls.data.worker", str(descriptor)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        return subprocess.Popen(command, env=environment, pass_fds=[descriptor], stdin=subprocess.DEVNULL)
    except OSError as error:
        raise WorkerError(f"a worker process cannot be started: {error}. Fewer may be: lower data.workers.") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _how_it_ended(code: int) -> str:
    """Returns what is known of a worker that ended before its time. code: as `Popen.returncode`."""
    if code == -signal.SIGKILL:
        return (
            "a worker process, which makes batches, was killed: most likely, the memory ran out. Lower data.workers; "
            "with 0, threads of the main process make the batches."
        )
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return f"a worker process, which makes batches, {how}. What it printed may say why."

"""Batches made ahead of their use, by worker processes or threads."""

import contextlib
import gc
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path

import numpy as np

# how many are made ahead by each worker: enough that one slow batch does not hold the next up
AHEAD = 2
_NUMBERS = itertools.count()


@contextlib.contextmanager
def made_ahead(
    make: Callable[[int], dict[str, np.ndarray]], start: int, end: int, *, workers: int
) -> Iterator[Iterator[dict[str, np.ndarray]]]:
    """Gives the batches `start` up to `end` one after the other, made before they are asked for; closes the workers.

    Workers start at the first of them, with the signals blocked that the thread which asks for it has blocked.

    workers: processes that make them, which start anew what the program was started with; 0: threads of this one.
    """
    import grain  # it imports orbax
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain reads its flags, which a program that is not absl's never parses
        flags.FLAGS.mark_as_parsed()
    prefix = f"flaxcls-{os.getpid()}-{next(_NUMBERS)}-"
    batches = grain.MapDataset.range(start, end).map(make)
    options = grain.ReadOptions(num_threads=1 if workers else AHEAD, prefetch_buffer_size=AHEAD)
    stream = batches.to_iter_dataset(options)
    if workers:
        processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD)
        stream = stream.mp_prefetch(processes, worker_init_fn=partial(_start_worker, prefix))

    def copies() -> Iterator[dict[str, np.ndarray]]:
        iterator = iter(stream)
        try:
            for batch in iterator:  # the memory that it was sent in is given back with the last reference
                yield {name: np.array(values) for name, values in batch.items()}
        finally:
            iterator.close()

    made = copies()
    try:
        yield made
    finally:
        made.close()  # type: ignore[attr-defined]  # a generator
        gc.collect()  # what was made and never asked for lies in cycles of grain's
        _give_back_shared_memory(prefix)


def _give_back_shared_memory(prefix: str) -> None:
    """Deletes what grain 0.2.18 forgets: what a worker had sent and nobody has received."""
    if any(Path("/dev/shm").glob(f"{prefix}*")):
        time.sleep(0.2)  # grain deletes what was received in a thread of its own
    for path in Path("/dev/shm").glob(f"{prefix}*"):
        with contextlib.suppress(FileNotFoundError):
            shared_memory.SharedMemory(path.name).unlink()


def leave_signals_to_others() -> None:
    """Blocks SIGINT and SIGTERM for this thread, and so for what it starts: the main thread decides what they do."""
    resource_tracker.ensure_running()  # whose start would end the block
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})


def _start_worker(prefix: str, index: int, count: int) -> None:
    """Names the shared memory of this worker, and ends it where its parent has been killed and cannot close it."""
    vars(shared_memory).update(_SHM_NAME_PREFIX=f"/{prefix}", _SHM_SAFE_NAME_LENGTH=len(prefix) + 17)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

"""Batches that worker processes or threads make before they are needed."""

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

# batches that each worker makes ahead: enough that a slow batch does not delay the next one
AHEAD = 2
_NUMBERS = itertools.count()


@contextlib.contextmanager
def made_ahead(
    make: Callable[[int], dict[str, np.ndarray]], start: int, end: int, *, workers: int
) -> Iterator[Iterator[dict[str, np.ndarray]]]:
    """Yields an iterator over batches `start` to `end` - 1 that makes them before they are needed; closes the workers.

    The workers start when the first batch is requested. They block the same signals as the thread that requests it.

    workers: processes that make batches; each of them imports the main program again. 0: threads of this process.
    """
    import grain  # it imports orbax
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain reads its flags, which only an absl program parses
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
            for batch in iterator:  # its shared memory is released with the last reference to it
                yield {name: np.array(values) for name, values in batch.items()}
        finally:
            iterator.close()

    copied_batches = copies()
    try:
        yield copied_batches
    finally:
        copied_batches.close()  # type: ignore[attr-defined]  # a generator
        gc.collect()  # batches that were never requested are in reference cycles of grain
        _delete_shared_memory(prefix)


def _delete_shared_memory(prefix: str) -> None:
    """Deletes the shared memory that grain 0.2.18 forgets: of batches that were sent and never received."""
    if any(Path("/dev/shm").glob(f"{prefix}*")):
        time.sleep(0.2)  # grain deletes received memory in a thread of its own
    for path in Path("/dev/shm").glob(f"{prefix}*"):
        with contextlib.suppress(FileNotFoundError):
            shared_memory.SharedMemory(path.name).unlink()


def leave_signals_to_others() -> None:
    """Blocks SIGINT and SIGTERM for this thread and for everything that it starts; the main thread handles them."""
    resource_tracker.ensure_running()  # started later, it would end the block
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})


def _start_worker(prefix: str, index: int, count: int) -> None:
    """Names the shared memory of this worker, and ends the worker if its parent is killed and cannot close it."""
    vars(shared_memory).update(_SHM_NAME_PREFIX=f"/{prefix}", _SHM_SAFE_NAME_LENGTH=len(prefix) + 17)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

"""The batches of a run on their way to the devices, made while earlier ones are trained on."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from flaxcls.data.images import Images
from flaxcls.data.workers import leave_signals_to_others, made_ahead
from flaxcls.run.processes import cores
from flaxcls.run.setup import Setup

# (start, end) -> batches from `start` up to `end`, on the devices
Batches = Callable[[int, int], Any]


@contextmanager
def feed(setup: Setup, start: int, rollbacks: int) -> Iterator[Batches]:
    """Gives what returns the batches of each dispatch from `start` on, to be asked for one after the other.

    Images that are read or scaled take a while: worker processes or threads make the next batches meanwhile, and a
    thread puts those of the next dispatch on the devices. Others are only picked from an array, or there. Raises
    InputError, when they are asked for, where a file cannot be read.
    """
    images, plan = setup.dataset.train.images, setup.plan
    if setup.config.data.on_device or not isinstance(images, Images):
        yield partial(setup.batches, rollbacks=rollbacks)
        return
    workers = setup.config.data.workers
    if workers is None:
        workers = 0 if images.in_memory else cores()
    with (
        made_ahead(setup.batch_maker(rollbacks), start, plan.total_steps, workers=workers) as made,
        ThreadPoolExecutor(1, initializer=leave_signals_to_others) as thread,
    ):

        def load(start: int) -> Future[Any]:
            count = plan.dispatch_end(start) - start
            return thread.submit(lambda: setup.placed([next(made) for _ in range(count)]))

        loading = load(start) if start < plan.total_steps else None

        def batches(start: int, end: int) -> Any:
            nonlocal loading
            assert loading is not None
            ready = loading.result()
            loading = load(end) if end < plan.total_steps else None
            return ready

        yield batches

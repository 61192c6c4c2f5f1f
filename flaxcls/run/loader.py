"""The training batches of a run: made ahead, put on the devices, or picked there."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypedDict

import jax
import numpy as np
from jax.sharding import Mesh, Sharding

from flaxcls.data import Split
from flaxcls.data.batches import BatchMaker
from flaxcls.data.images import Images
from flaxcls.data.prefetch import made_ahead
from flaxcls.run.plan import Plan
from flaxcls.run.runtime import cores
from flaxcls.sharding import batch_sharding, batches_sharding, local_rows, on_devices, replicated
from flaxcls.types import Batch

# (start, end) -> the batches of the steps from `start` up to `end`, on the devices
Batches = Callable[[int, int], Any]


class Picked(TypedDict):
    """The batches of k steps, as indices into a split on the devices.

    split: its n examples, as one batch.
    chosen: index i32[k b], the examples of each batch, and the other arrays [k b] that `BatchMaker.chosen` returns.
    """

    split: Batch
    chosen: dict[str, jax.Array]


@dataclass(frozen=True)
class Loader:
    """Loads the training batches of a run.

    maker: makes the rows of batch i that belong to the devices of this process.
    mesh: the devices, which share each batch.
    on_device: the whole training split is on the devices, and batches are picked there.
    workers: processes that make batches; None: one for each core, or none for images in memory.
    """

    maker: BatchMaker
    mesh: Mesh
    on_device: bool = False
    workers: int | None = None

    @cached_property
    def resident(self) -> Batch:
        """The training split on the devices, put there on first access."""
        return place_split(self.maker.split, replicated(self.mesh))

    def load(self, start: int, end: int, rollbacks: int = 0) -> Any:
        """Returns the batches of the steps from `start` up to `end`: arrays [k b ...], or `Picked`.

        rollbacks: how often the run has gone back to a checkpoint; each time the data order is another one.
        """
        maker = self.maker.after_rollbacks(rollbacks)
        if self.on_device:
            return Picked(split=self.resident, chosen=self.place([maker.chosen(step) for step in range(start, end)]))
        return self.place([maker(step) for step in range(start, end)])

    def place(self, made: Sequence[dict[str, np.ndarray]]) -> Any:
        """Puts batches, as the maker makes them, on the devices, as arrays [k b ...].

        If the CPU is the only device they stay NumPy arrays, which a call takes in half the time.
        """
        arrays = {name: np.stack([batch[name] for batch in made]) for name in made[0]}
        if self.mesh.size == 1 and jax.default_backend() == "cpu":
            return arrays
        return {name: self._place(array) for name, array in arrays.items()}

    def _place(self, rows: np.ndarray) -> jax.Array:
        """Returns an array [k b ...] on the devices, of which this process has the rows of its own devices."""
        size = self.maker.batch_size
        first = local_rows(batch_sharding(self.mesh), size).start

        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[1].indices(size)
            return rows[index[0], start - first : stop - first]

        shape = (len(rows), size, *rows.shape[2:])
        return jax.make_array_from_callback(shape, batches_sharding(self.mesh), part)


def place_split(split: Split, sharding: Sharding) -> Batch:
    """Puts all examples of a split on the devices, as they are stored."""
    images = split.images if isinstance(split.images, np.ndarray) else split.images[:]
    placed: Batch = on_devices({"image": images, "label": split.labels}, sharding)
    return placed


def pick(split: Batch, sharding: Sharding, *, index: jax.Array, **more: jax.Array) -> Any:
    """Returns the examples of a split on the devices at `index`, i32[b], as a batch with the arrays `more`."""
    batch = jax.tree.map(lambda array: array.at[index].get(mode="promise_in_bounds"), split)
    return jax.lax.with_sharding_constraint({**batch, **more}, sharding)


@contextmanager
def feed(loader: Loader, plan: Plan, start: int, rollbacks: int = 0) -> Iterator[Batches]:
    """Yields a function that returns the batches of each dispatch from step `start` on, to be called in their order.

    Images that must be read or resized are made ahead by worker processes or threads, and another thread puts the
    batches of the next dispatch on the devices. All others are only picked from an array, when they are asked for.

    Raises:
      InputError: when a batch is asked for and one of its files cannot be read.
      WorkerError: when a batch is asked for and a worker process was killed.
    """
    images = loader.maker.split.images
    if loader.on_device or not isinstance(images, Images):
        yield partial(loader.load, rollbacks=rollbacks)
        return
    workers = loader.workers
    if workers is None:
        workers = 0 if images.in_memory else cores()
    maker = loader.maker.after_rollbacks(rollbacks)
    with (
        made_ahead(maker, start, plan.total_steps, workers=workers) as made,
        ThreadPoolExecutor(1) as thread,
    ):

        def load(start: int) -> Future[Any]:
            count = plan.dispatch_end(start) - start
            return thread.submit(lambda: loader.place([next(made) for _ in range(count)]))

        loading = load(start) if start < plan.total_steps else None

        def batches(start: int, end: int) -> Any:
            nonlocal loading
            assert loading is not None
            ready = loading.result()
            loading = load(end) if end < plan.total_steps else None
            return ready

        yield batches

"""Two virtual CPU devices, no silent broadcasting, and small data that the tests share."""

import contextlib
import functools
import gc
import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.flags import COMPILED_SOON, xla_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if COMPILED_SOON not in os.environ.get("XLA_FLAGS", ""):  # else it is inherited: by a worker, or what a test started
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(2)}"
    # Many tests, and the processes that they start, compile the same small programs.
    _CACHE = tempfile.TemporaryDirectory(prefix="flaxcls-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    # of an entry that another process is writing, which is then compiled anew
    os.environ["PYTHONWARNINGS"] = "ignore:Error reading persistent compilation cache entry"
with contextlib.suppress(AttributeError, KeyError):
    # a core for each worker of pytest-xdist, before XLA counts them: its threads of one spin in the way of the others
    _CORES = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_CORES[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(_CORES)]})

import jax
import numpy as np
import pytest
from rich.console import Console

import flaxcls.run.loop
import flaxcls.run.resume
import flaxcls.run.setup
from flaxcls.config import AugmentConfig, Config, LoopConfig, ModelConfig, OptimConfig, StopConfig
from flaxcls.data import Dataset, from_arrays, load_dataset
from flaxcls.run.setup import Setup, make_setup

# A shell ignores it for what it starts in the background, and whatever is started here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Files that take minutes, which start first, so that no core waits for one of them in the end.
_LONGEST = (
    "join",
    "loop",
    "tutorial",
    "bucket",
    "soak",
    "gpu",
    "experiments",
    "topology",
    "pods",
    "sync",
    "dispatch",
    "nan",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files of _LONGEST first, in their order; the others stay in theirs."""
    names = [f"test_{name}" for name in _LONGEST]
    items.sort(key=lambda item: names.index(item.path.stem) if item.path.stem in names else len(names))


_seen: set[Path] = set()  # the file of the last test


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Hides from the garbage collector what other files have left in memory, mostly modules and compiled programs.

    `fit` collects garbage once a run. Otherwise this takes a third of the time of a small run.
    """
    if _seen != {item.path}:
        _seen.clear()
        _seen.add(item.path)
        gc.collect()
        gc.freeze()


@pytest.fixture
def strict_types():
    """Forbids implicit conversions between types (optax's Adam makes some, so not every test can use it)."""
    with jax.numpy_dtype_promotion("strict"):
        yield


def make_stripes(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns noisy images u8[count 8 8 1] of horizontal, vertical or no stripes, and their labels 0, 1, 2."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 60, (count, 8, 8, 1), dtype=np.uint8)
    images[labels == 0, ::2] += 150
    images[labels == 1, :, ::2] += 150
    return images, labels


_SETUPS: list[tuple[tuple, Setup, tuple]] = []
_load_digits = functools.cache(load_dataset)


def forget_programs() -> None:
    """Lets the next run under `shared_programs` make and compile its own."""
    _SETUPS.clear()


@pytest.fixture
def shared_programs(monkeypatch):
    """Lets runs of one configuration, data set, model and optimizer share the programs that they compile.

    Compiling takes most of their time.

    Modules ask for it by `pytestmark = pytest.mark.usefixtures("shared_programs")`. A run in another process, such as a
    command that a test starts, compiles its own programs.
    """

    def load(config, listing=None):
        return _load_digits(config) if config.source == "digits" else load_dataset(config, listing)

    def make(config, dataset, model, tx, eval_params=None):
        given = (dataset, model, tx, eval_params)
        key = (repr(config), *map(id, given), jax.default_backend(), flaxcls.run.setup.make_mesh)
        found = [setup for known, setup, _ in _SETUPS if known == key]
        if not found:
            found = [make_setup(config, *given)]
            _SETUPS[:] = [
                *_SETUPS[-30:],
                (key, found[0], given),
            ]  # it keeps them alive, so that no other object gets their id
        return found[0]

    monkeypatch.setattr(flaxcls.run.loop, "load_dataset", load)
    monkeypatch.setattr(flaxcls.run.resume, "load_dataset", load)
    monkeypatch.setattr(flaxcls.run.loop, "make_setup", make)


@pytest.fixture(scope="session")
def stripes() -> Dataset:
    images, labels = make_stripes(150)
    return from_arrays(images, labels, class_names=("rows", "columns", "none"), name="stripes")


@pytest.fixture
def small_config() -> Config:
    """A run of 3 epochs, 11 steps, on the stripes, with everything random switched on."""
    return Config(
        augment=AugmentConfig(crop_padding=1),
        model=ModelConfig(widths=(4,), dense=(8,), norm="batch", dropout=0.2),
        optim=OptimConfig(learning_rate=1e-2, warmup_epochs=0.0, ema_decay=0.9),
        loop=LoopConfig(epochs=3, batch_size=32, log_every=2),
        stop=StopConfig(),
    )


@pytest.fixture
def plain_config(small_config: Config) -> Config:
    """The same run without anything random but the order, whose program takes a third of the time to compile."""
    return replace(
        small_config,
        augment=AugmentConfig(crop_padding=0),
        model=ModelConfig(widths=(4,), dense=()),
        optim=replace(small_config.optim, ema_decay=None),
    )


@pytest.fixture
def quiet() -> Console:
    return Console(quiet=True)

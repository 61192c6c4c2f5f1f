import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import cloudpickle
import numpy as np
import psutil
import pytest
from PIL import Image

from flaxcls.data.batches import BatchMaker
from flaxcls.data.dataset import Split
from flaxcls.data.images import Images
from flaxcls.data.picture import Picture
from flaxcls.data.prefetch import made_ahead
from flaxcls.data.preparation import Preparation
from flaxcls.data.stored import Files
from flaxcls.errors import InputError, WorkerError


def make(paths, **options):
    split = Split(Images(Files(paths), Preparation((16, 16), 3)), np.arange(len(paths), dtype=np.int32) % 3)
    defaults = {"seed": 1, "batch_size": 8, "rows": slice(0, 8), "balanced": False, "least_area": 0.3}
    return BatchMaker(split, **{**defaults, **options})


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    place, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(20):
        size = (20 + number, 30 - number, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(place / f"{number:02d}.png")
    return sorted(place.iterdir())


@pytest.mark.parametrize("workers", [0, 2])
def test_they_are_those_that_one_process_makes_from_any_step_on(paths, workers):
    maker = make(paths, alternating_flip=True)
    with made_ahead(maker, 3, 9, workers=workers) as made:
        batches = list(made)
    assert len(batches) == 6
    for step, batch in enumerate(batches, 3):
        expected = maker(step)
        assert batch.keys() == expected.keys() == {"image", "label", "mirrored"}
        for name, values in expected.items():
            np.testing.assert_array_equal(batch[name], values)


def test_an_image_is_cut_differently_each_time_it_comes(paths):
    maker = make(paths[:1], batch_size=1, rows=slice(0, 1))  # an epoch is a batch
    assert len({maker(step)["image"].tobytes() for step in range(5)}) == 5


def test_the_rows_of_a_batch_are_a_part_of_the_same_batch(paths):
    whole = make(paths, alternating_flip=True)(4)
    part = make(paths, alternating_flip=True, rows=slice(2, 6))(4)
    for name, values in whole.items():
        np.testing.assert_array_equal(part[name], values[2:6])


def workers_of(pid):
    """Returns the processes that make batches for another one."""
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if "flaxcls.data.worker" in child.cmdline()]


def test_workers_are_closed_and_use_no_shared_memory(paths):
    """A container often has 64 MiB of it; a process that needs more ends by a bus error."""

    def shared(process):
        return {place.path for place in process.memory_maps() if place.path.startswith("/dev/shm")}

    before = shared(psutil.Process())  # that of other tests
    with made_ahead(make(paths), 0, 1000, workers=2) as made:
        next(made)
        workers = workers_of(os.getpid())
        assert len(workers) == 2
        assert set().union(*map(shared, workers)) == set()
        assert shared(psutil.Process()) == before
    assert workers_of(os.getpid()) == []


def test_no_worker_starts_before_a_batch_is_requested(paths):
    with made_ahead(make(paths), 0, 1000, workers=2):
        assert workers_of(os.getpid()) == []


def test_what_is_sent_to_a_worker_does_not_grow_with_the_data_set(paths):
    many = [Path(f"images/{number:06d}.png") for number in range(50_000)]
    sizes = [len(cloudpickle.dumps(make(some).without_images(3)[1])) for some in (many[:100], many)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)
    assert sizes[1] < 5000


class Threads(Files):
    """Pictures of one value: the number of threads that the process has when it is read."""

    def take(self, indices):
        return Threads([self._paths[index] for index in indices])

    def __getitem__(self, index):
        return Picture(np.full((16, 16, 3), threading.active_count(), np.uint8))


def test_a_worker_reads_in_one_thread_as_others_work_beside_it(paths):
    split = Split(Images(Threads(paths), Preparation((16, 16), 3)), np.zeros(len(paths), np.int32))
    with made_ahead(replace(make(paths), split=split), 0, 2, workers=1) as made:
        assert {value for batch in made for value in np.unique(batch["image"])} == {1}


def test_a_worker_that_is_killed_is_said(paths):
    with made_ahead(make(paths), 0, 1000, workers=1) as made:
        next(made)
        (worker,) = workers_of(os.getpid())
        worker.kill()
        with pytest.raises(WorkerError, match=r"was killed: most likely, the memory ran out\. Lower data\.workers"):
            list(made)


class StrangeError(Exception):
    """An error that cannot be pickled."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Strange(Files):
    def __getitem__(self, index):
        raise StrangeError("this", "that")

    def take(self, indices):
        return self


def test_any_error_of_a_worker_is_that_of_the_batch(paths):
    split = Split(Images(Strange(paths), Preparation((16, 16), 3)), np.zeros(len(paths), np.int32))
    maker = replace(make(paths), split=split)
    with made_ahead(maker, 0, 4, workers=1) as made, pytest.raises(RuntimeError, match="this and that") as raised:
        next(made)
    assert 'raise StrangeError("this", "that")' in str(raised.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_cannot_be_read_is_named(paths, tmp_path, workers):
    (tmp_path / "broken.png").write_text("no image")
    maker = make([*paths[:7], tmp_path / "broken.png"])
    with made_ahead(maker, 0, 4, workers=workers) as made, pytest.raises(InputError, match=r"broken\.png is no image"):
        list(made)


# Workers do not import it, so that it needs no guard; its own class reaches them by value.
PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path
from flaxcls.data.dataset import Split
from flaxcls.data.images import Images
from flaxcls.data.stored import Files
from flaxcls.data.prefetch import made_ahead
from flaxcls.data.preparation import Preparation
from tests.data.test_prefetch import make

class Mine(Files):
    def take(self, indices):
        return Mine([self._paths[index] for index in indices])

    def __getitem__(self, index):
        picture = super().__getitem__(index)
        return picture._replace(pixels=255 - picture.pixels)

paths = sorted(Path(sys.argv[1]).iterdir())
maker = make(paths)
maker = replace(maker, split=Split(Images(Mine(paths), Preparation((16, 16), 3)), maker.split.labels))
with made_ahead(maker, 0, 10**6, workers=2) as made:
    for step, batch in enumerate(made):
        assert step > 1 or (batch["image"] == maker(step)["image"]).all()
        print("made", flush=True)
"""


@pytest.mark.slow
def test_workers_end_where_their_parent_is_killed(paths, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "program.py", paths[0].parent],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert process.stdout.readline() == b"made\n"
    workers = workers_of(process.pid)
    assert len(workers) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    _, alive = psutil.wait_procs(workers, timeout=20)
    for worker in alive:
        worker.kill()
    assert not alive

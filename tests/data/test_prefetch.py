import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from flaxcls.data.batches import BatchMaker
from flaxcls.data.dataset import Split
from flaxcls.data.images import Images
from flaxcls.data.prefetch import AHEAD, made_ahead
from flaxcls.data.preparation import Preparation
from flaxcls.data.stored import Files
from flaxcls.errors import InputError


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


def shared_memory():
    """Returns what the workers of this process have sent; other processes may test at the same time."""
    return {path.name for path in Path("/dev/shm").glob(f"flaxcls-{os.getpid()}-*")}


def workers_of(pid):
    """Returns the processes that the one started to work for it (another tracks their shared memory)."""
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_workers_are_closed_and_leave_no_shared_memory(paths):
    with made_ahead(make(paths), 0, 1000, workers=2) as made:
        next(made)
        assert len(workers_of(os.getpid())) == 2
        deadline = time.monotonic() + 20
        while len(shared_memory()) < 2 * AHEAD:  # batches that were made and that nobody asks for
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert workers_of(os.getpid()) == []
    assert not shared_memory()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_cannot_be_read_is_named(paths, tmp_path, workers):
    (tmp_path / "broken.png").write_text("no image")
    maker = make([*paths[:7], tmp_path / "broken.png"])
    with made_ahead(maker, 0, 4, workers=workers) as made, pytest.raises(InputError, match=r"broken\.png is no image"):
        list(made)


PROGRAM = """
import sys
import time
from pathlib import Path
from flaxcls.data.prefetch import made_ahead
from tests.data.test_prefetch import make

if __name__ == "__main__":
    with made_ahead(make(sorted(Path(sys.argv[1]).iterdir())), 0, 10**6, workers=2) as made:
        for _ in made:
            print("made", flush=True)
"""


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

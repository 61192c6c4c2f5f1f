"""A disk that is full, or becomes read-only: noticed at the next dispatch, and nothing that was whole is lost."""

import contextlib
import gc
import subprocess
import time

import pytest

from flaxcls.errors import StorageError
from flaxcls.run import fit
from flaxcls.run.checkpoint import Checkpoints
from flaxcls.run.loader import Loader

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("no right to mount a tmpfs")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(place):
    with (place / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1024))


# of the event loop that orbax leaves behind on Python 3.11 where a save has failed
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_stops_the_run_and_the_last_whole_checkpoint_restores(
    small_disk, small_config, stripes, quiet, tmp_path, monkeypatch
):
    expected = fit(small_config, dataset=stripes, workdir=tmp_path / "whole", console=quiet).fingerprint
    batches, asked = Loader.load, []

    def batches_of_a_full_disk(self, index, end, **options):
        asked.append(index)
        if index == 5:  # the save after step 4 has had the time to end well
            time.sleep(2)
            fill(small_disk)
        if index == 7:  # the save after step 7 has been given the time to fail
            time.sleep(2)
        return batches(self, index, end, **options)

    monkeypatch.setattr(Loader, "load", batches_of_a_full_disk)
    with pytest.raises(StorageError, match=r"Once that is mended, --workdir .*run --resume goes on from"):
        fit(small_config, dataset=stripes, workdir=small_disk / "run", console=quiet)
    assert asked[-1] <= 7
    monkeypatch.undo()
    (small_disk / "filler").unlink()
    with Checkpoints(small_disk / "run" / "checkpoints") as checkpoints:
        assert checkpoints.latest_step == 4
    result = fit(small_config, dataset=stripes, workdir=small_disk / "run", console=quiet, resume=True)
    assert result.fingerprint == expected
    gc.collect()  # while the filter holds


@pytest.fixture
def made_read_only():
    """Makes a folder read-only while it is in use: it is mounted over itself, and then so again."""
    mounted = []

    def make_read_only(place):
        for options in (["--bind", place, place], ["-o", "remount,bind,ro", place]):
            if subprocess.run(["mount", *options], check=False, capture_output=True).returncode != 0:
                pytest.skip("no right to mount")
            mounted.append(place)

    yield make_read_only
    for place in mounted[:1]:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_a_place_that_becomes_read_only_stops_the_run_and_the_last_checkpoint_restores(
    made_read_only, small_config, stripes, quiet, tmp_path, monkeypatch
):
    expected = fit(small_config, dataset=stripes, workdir=tmp_path / "whole", console=quiet).fingerprint
    place, batches, asked = tmp_path / "run" / "checkpoints", Loader.load, []

    def batches_of_a_read_only_disk(self, start, end, **options):
        asked.append(start)
        if start == 5:
            time.sleep(2)  # for the save after step 4
            made_read_only(place)
        if start == 7:
            time.sleep(2)
        return batches(self, start, end, **options)

    monkeypatch.setattr(Loader, "load", batches_of_a_read_only_disk)
    with pytest.raises(StorageError, match=r"Read-only file system.* --resume goes on from"):
        fit(small_config, dataset=stripes, workdir=tmp_path / "run", console=quiet)
    assert asked[-1] <= 7
    monkeypatch.undo()
    subprocess.run(["mount", "-o", "remount,bind,rw", place], check=True)
    result = fit(small_config, dataset=stripes, workdir=tmp_path / "run", console=quiet, resume=True)
    assert result.fingerprint == expected
    gc.collect()

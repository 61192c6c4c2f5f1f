"""A full disk, made of a small tmpfs: noticed at the next dispatch, and nothing that was whole is lost."""

import contextlib
import gc
import subprocess
import time

import pytest

from flaxcls.errors import StorageError
from flaxcls.run import fit
from flaxcls.run.checkpoint import Checkpoints
from flaxcls.run.setup import Setup


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
    batches, asked = Setup.batches, []

    def batches_of_a_full_disk(self, index, end, **options):
        asked.append(index)
        if index == 5:  # the save after step 4 has had the time to end well
            time.sleep(2)
            fill(small_disk)
        if index == 7:  # the save after step 7 has been given the time to fail
            time.sleep(2)
        return batches(self, index, end, **options)

    monkeypatch.setattr(Setup, "batches", batches_of_a_full_disk)
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

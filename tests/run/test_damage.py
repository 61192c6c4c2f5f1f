"""Checkpoints damaged on the disk: the newest intact one is used, and nothing is deleted or overwritten."""

import hashlib
import io
import json
import shutil
from dataclasses import replace

import pytest
from rich.console import Console

from flaxcls.errors import InputError, Interrupted, StorageError
from flaxcls.run import fit
from flaxcls.run.checkpoint import Checkpoints
from flaxcls.run.checkpoint_files import read_arrays, read_record
from tests.slow import slow

pytestmark = pytest.mark.usefixtures("shared_programs")


def largest_array_file(step):
    return max((path for path in (step / "state").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(step):
    path = largest_array_file(step)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(step):
    """Flips one that an array holds: the file also has bytes that nothing reads, at places that differ by the run."""
    path, record = largest_array_file(step), read_record(step.parent, int(step.name))
    whole = path.read_bytes()
    for place in range(len(whole) // 2, len(whole)):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        try:
            read_arrays(step.parent, int(step.name), record)
        except StorageError:
            return
    raise AssertionError("no bit of the second half is one of an array")


def lose_metadata(step):
    (step / "state" / "_METADATA").unlink()


def lose_the_record(step):
    shutil.rmtree(step / "record")


def lose_a_part_of_the_record(step):
    path = step / "record" / "metadata"
    record = json.loads(path.read_text())
    del record["early_stopping"]
    path.write_text(json.dumps(record))


def flip_a_bit_of_the_record(step):
    """Changes values so that the record could still come from a run."""
    path = step / "record" / "metadata"
    text = path.read_text()
    assert '"bad": 0' in text
    path.write_text(text.replace('"bad": 0', '"bad": 1'))


def spoil_the_record(step):
    for path in (step / "record").rglob("*"):
        path.write_text("{")


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


DAMAGES = [
    truncate, flip_a_bit, lose_metadata, lose_the_record, lose_a_part_of_the_record, flip_a_bit_of_the_record,
    spoil_the_record, empty,
]  # fmt: skip
QUICK = (flip_a_bit, lose_the_record)


@pytest.fixture
def run(stripes, small_config, tmp_path):
    def run(**options):
        text = io.StringIO()
        console = Console(file=text, width=200)
        result = fit(small_config, dataset=stripes, workdir=tmp_path / "run", console=console, **options)
        return result, text.getvalue()

    return run


@pytest.fixture(scope="module")
def expected():
    return {}


@pytest.fixture
def stopped(run, expected, tmp_path):
    """A run stopped after step 8, with the checkpoints of steps 7 and 8, and how it ends undisturbed."""
    if not expected:
        expected["fingerprint"] = run()[0].fingerprint
        shutil.rmtree(tmp_path / "run")
    with pytest.raises(Interrupted):
        run(stop_after=8)
    assert steps(tmp_path / "run" / "checkpoints") == ["7", "8"]
    return expected["fingerprint"]


def steps(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("damage", [damage if damage in QUICK else slow(damage) for damage in DAMAGES])
def test_the_newest_intact_one_is_used_and_the_damaged_one_set_aside(run, stopped, tmp_path, damage):
    damage(tmp_path / "run" / "checkpoints" / "8")
    result, text = run(resume=True)
    assert "the checkpoint of step 8 is damaged and was set aside" in text
    assert "continuing after step 7" in text
    assert result.fingerprint == stopped
    assert steps(tmp_path / "run" / "damaged") == ["8"]


def test_there_is_one_before_it_even_where_the_latest_is_the_best(run, stopped, tmp_path):
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(Interrupted):
        run(stop_after=7)
    flip_a_bit(tmp_path / "run" / "checkpoints" / "7")
    result, text = run(resume=True)
    assert "continuing after step 4" in text
    assert result.fingerprint == stopped


@pytest.mark.parametrize("damage", [flip_a_bit, slow(empty)])
def test_a_damaged_best_is_said_and_set_aside_and_the_run_goes_on(run, stopped, tmp_path, damage):
    damage(tmp_path / "run" / "checkpoints" / "7")
    result, text = run(resume=True)
    assert "the best checkpoint, step 7, is damaged" in text
    assert "continuing after step 8" in text
    assert result.best_step == 11
    assert steps(tmp_path / "run" / "damaged") == ["7"]


def contents(directory):
    return {
        path.relative_to(directory): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and path.name not in ("lock", "lock.json")
    }


def test_where_none_is_intact_nothing_is_touched(run, stopped, tmp_path):
    for step in ("7", "8"):
        flip_a_bit(tmp_path / "run" / "checkpoints" / step)
    before = contents(tmp_path / "run")
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"no checkpoint in .* is intact:\n  step 8: .*\n  step 7: .*\n.*--overwrite"
        ):
            run(resume=True)
    assert contents(tmp_path / "run") == before


def test_another_runs_data_are_no_damage(run, stopped, small_config, stripes, quiet, tmp_path):
    other = replace(stripes, train=stripes.train.take(range(100)))
    with pytest.raises(InputError, match="the run was started with examples"):
        fit(small_config, dataset=other, workdir=tmp_path / "run", console=quiet, resume=True)
    assert steps(tmp_path / "run" / "checkpoints") == ["7", "8"]


def test_one_damaged_after_the_other_gets_a_place_of_its_own(tmp_path):
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        for expected in ("3", "3-1", "3-2"):
            (tmp_path / "run" / "checkpoints" / "3").mkdir()
            assert checkpoints.set_aside(3).name == expected

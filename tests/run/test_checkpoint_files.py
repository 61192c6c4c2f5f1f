"""Checkpoints read without the model: those of any state come back by the names in their record, or an error does."""

import errno
import gc
import sys

import jax
import numpy as np
import optax
import pytest

from flaxcls import create_state
from flaxcls.errors import StorageError
from flaxcls.models import CNN
from flaxcls.run.checkpoint import Checkpoints
from flaxcls.run.checkpoint_files import damage, read_arrays, read_record, read_steps, read_tree


@pytest.fixture(scope="module")
def state():
    model = CNN(3, widths=(4,), dense=(), norm="batch")
    return create_state(jax.random.key(0), model, optax.adamw(1e-3), image_shape=(8, 8, 1), ema=True)


def by_path(state):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


@pytest.fixture
def directory(state, tmp_path):
    record = {"loss": 0.1 + 0.2, "arrays": dict.fromkeys(by_path(state))}
    with Checkpoints(tmp_path) as checkpoints:
        for step in (3, 12):
            checkpoints.save(step, state, record, best_step=None)
    return tmp_path


def test_all_arrays_are_named_as_in_the_state(directory, state):
    (directory / "20.orbax-checkpoint-tmp").mkdir()
    assert read_steps(directory) == [3, 12]
    record = read_record(directory, 12)
    assert record["loss"] == 0.1 + 0.2
    arrays = read_arrays(directory, 12, record)
    assert arrays.keys() == by_path(state).keys()
    for name, leaf in by_path(state).items():
        np.testing.assert_array_equal(arrays[name], leaf, err_msg=name)


def test_what_was_not_saved_so_is_an_error(directory):
    record = read_record(directory, 12)
    with pytest.raises(StorageError, match="the arrays of step 12 are not the ones that were saved"):
        read_arrays(directory, 12, {**record, "sha256": "0" * 64})
    with pytest.raises(StorageError, match="the arrays of step 20 cannot be read"):
        read_arrays(directory, 20, record)
    path = directory / "12" / "record" / "metadata"
    path.write_text(path.read_text().replace("0.3", "0.4"))
    with pytest.raises(StorageError, match="the record of step 12 is not the one that was saved"):
        read_record(directory, 12)
    with pytest.raises(StorageError, match="the record of step 20 cannot be read"):
        read_record(directory, 20)


def test_what_cannot_be_read_is_said_briefly_and_leaves_nothing_behind(state, directory, monkeypatch, caplog):
    """On 3.11 some 25 reads went on after the error, in threads, and each told of the event loop that was closed."""
    untold = []
    monkeypatch.setattr(sys, "unraisablehook", untold.append)
    files = [path for path in (directory / "12" / "state").rglob("d/*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    for _ in range(20):
        with pytest.raises(ValueError, match=r"^OUT_OF_RANGE: Error reading "):
            read_tree(directory / "12" / "state", state)
    gc.collect()
    assert untold == []
    assert caplog.messages == []


@pytest.mark.parametrize(
    "error",
    [
        OSError("Forbidden: gs://bucket/run"),
        OSError(errno.EIO, "Input/output error"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
        ValueError("UNKNOWN: Error reading 'x' [os_error_code='5']"),
        ValueError("UNAVAILABLE: Error reading 'x'"),
        StorageError("process 1 could not read its part: a checkpoint that may be whole cannot be read: no"),
    ],
)
def test_a_fault_of_the_storage_is_no_damage(error):
    with pytest.raises(StorageError, match="a checkpoint that may be whole cannot be read: "):
        damage(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file"),
        ValueError("OUT_OF_RANGE: Error reading 'x'"),
        ValueError("NOT_FOUND: 'x' [os_error_code='2']"),
        KeyError("early_stopping"),
    ],
)
def test_what_is_missing_or_other_than_it_was_is_damage(error):
    assert damage(error) in str(error)

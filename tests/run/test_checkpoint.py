from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcls import create_state
from flaxcls.models import CNN
from flaxcls.run.checkpoint import Checkpoints
from flaxcls.run.checkpoint_files import fingerprint, read_record


def make_state(seed=0):
    model = CNN(3, widths=(4,), dense=(), norm="batch")
    return create_state(jax.random.key(seed), model, optax.adamw(1e-3), image_shape=(8, 8, 1), ema=True)


def steps(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def test_everything_comes_back_bit_by_bit(tmp_path):
    state = make_state()
    record = {"loss": 0.1 + 0.2, "nothing": None, "list": [1, 2.5]}
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(3, state, record, best_step=None)
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest_step == 3
        assert read_record(tmp_path / "c", 3).items() >= {**record, "sha256": fingerprint(state)}.items()
        restored = checkpoints.restore_state(3, make_state(1))
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal_dtypes(restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_the_two_latest_and_the_best_are_kept_over_a_restart(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        for step, best in ((10, 10), (20, 20), (30, 20), (35, 20)):
            checkpoints.save(step, state, {}, best_step=best)
    assert steps(tmp_path) == [20, 30, 35]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(40, state, {}, best_step=20)
    assert steps(tmp_path) == [20, 35, 40]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(50, state, {}, best_step=50)
    assert steps(tmp_path) == [40, 50]


def test_saving_in_the_background_and_donating_the_buffers_do_not_mix_up(tmp_path):
    """`save` writes the state as it was at the call, although its buffers are reused at once."""
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = make_state().replace(params={"large": jnp.zeros((512, 1024))}, ema=None)
    with Checkpoints(tmp_path) as checkpoints:
        for number in range(1, 4):
            state = step(state)
            checkpoints.save(number, state, {}, best_step=number)
            expected = np.array(state.params["large"])
            for _ in range(20):
                state = step(state)
            checkpoints.wait()
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
            np.testing.assert_array_equal(checkpoints.restore_state(number, like).params["large"], expected)


@pytest.mark.parametrize("finished", [[], [1]])
def test_a_step_half_written_is_set_aside(tmp_path, finished):
    directory = tmp_path / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        for step in finished:
            checkpoints.save(step, make_state(), {}, best_step=None)
    for _ in range(2):
        (directory / "2.orbax-checkpoint-tmp").mkdir()
        (directory / "2.orbax-checkpoint-tmp" / "half").write_text("precious")
        with Checkpoints(directory) as checkpoints:
            restored = checkpoints.restore_newest(make_state(1), lambda record: None)
            assert (restored.passed_over if restored else None) == (
                {2: "it was not written to its end"} if finished else None
            )
            assert (restored.step if restored else None) == (1 if finished else None)
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(2, make_state(), {}, best_step=None)
    assert steps(directory) == [*finished, 2]
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == [
        "2.orbax-checkpoint-tmp", "2.orbax-checkpoint-tmp-1",
    ]  # fmt: skip


def test_an_empty_directory_has_no_step(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.latest_step is None


def test_relative_paths_are_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints(Path("here")) as checkpoints:
        checkpoints.save(1, make_state(), {}, best_step=None)
    assert steps(tmp_path / "here") == [1]


def test_saving_a_step_twice_is_saving_it_once(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), {"first": True}, best_step=None)
        checkpoints.save(1, make_state(), {"first": False}, best_step=None)
        checkpoints.wait()
        assert read_record(tmp_path, 1)["first"] is True


def test_a_record_can_be_replaced(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), {"first": True}, best_step=None)
        checkpoints.wait()
        checkpoints.replace_record(1, {"first": False})
    with Checkpoints(tmp_path) as checkpoints:
        assert read_record(tmp_path, 1).items() >= {"first": False, "sha256": fingerprint(make_state())}.items()
        checkpoints.restore_state(1, make_state(1))


def test_what_a_rollback_goes_back_to_is_kept_however_many_signals_come(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, state, {}, best_step=None)
        for step in (11, 12, 13):
            checkpoints.save(step, state, {}, best_step=None, planned=False)
    assert steps(tmp_path) == [10, 12, 13]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_newest(state, lambda record: None).step == 13
        checkpoints.save(14, state, {}, best_step=None, planned=False)
        checkpoints.wait()
        assert steps(tmp_path) == [10, 13, 14]
        assert checkpoints.roll_back(state, lambda record: None).step == 10
    assert steps(tmp_path) == [10]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore_newest(state, lambda record: None)
        checkpoints.save(11, state, {}, best_step=None, planned=False)
        checkpoints.wait()
        checkpoints.replace_record(11, {})  # the evaluation that had been put off is done
        checkpoints.save(12, state, {}, best_step=None, planned=False)
        checkpoints.wait()
        assert checkpoints.roll_back(state, lambda record: None).step == 11

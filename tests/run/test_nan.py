"""`fit` with NaN: it stops, drops the update, or goes back to a checkpoint with another data order."""

import io
import json
import os
import signal
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import flaxcls.data.batches
import flaxcls.run.loop
from flaxcls.errors import DivergenceError, InputError, Interrupted
from flaxcls.run import fit
from flaxcls.run.loader import Loader
from tests.run.test_loop import metrics
from tests.slow import slow

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture
def run(stripes, small_config, tmp_path):
    def run(workdir="run", *, on_nan="stop", nan_limit=3, **options):
        config = replace(small_config, loop=replace(small_config.loop, on_nan=on_nan, nan_limit=nan_limit))
        text = io.StringIO()
        console = Console(file=text, width=250)
        try:
            result = fit(config, dataset=stripes, workdir=tmp_path / workdir, console=console, **options)
        finally:
            run.text = text.getvalue()
        return result

    return run


@pytest.fixture
def poison(monkeypatch):
    """Makes the images of step s, from 1, NaN where `when(s, rollbacks)` says so."""

    def poison(when):
        batches = Loader.load

        def poisoned(self, start, end, *, rollbacks=0):
            found = batches(self, start, end, rollbacks=rollbacks)
            images = found["image"].astype(jnp.float32) / 255
            bad = jnp.asarray([jnp.nan if when(step + 1, rollbacks) else 1.0 for step in range(start, end)])
            return {**found, "image": images * bad[:, None, None, None, None]}

        monkeypatch.setattr(Loader, "load", poisoned)

    return poison


def test_skip_drops_the_update_and_goes_on_to_the_same_bits_after_a_restart(run, poison, tmp_path):
    poison(lambda step, rollbacks: step in (2, 3, 8))
    whole = run("whole", on_nan="skip")
    assert "the loss is nan at step 3: the update is dropped, 2 in a row, 2 in all" in run.text
    assert (whole.skipped_updates, whole.steps) == (3, 11)
    assert json.loads((tmp_path / "whole" / "result.json").read_text())["skipped_updates"] == 3
    train = [line for line in metrics(tmp_path / "whole") if line["split"] == "train"]
    assert [line["skipped"] for line in train] == [1, 1, 0, 1, 0, 0]
    assert all(np.isfinite(line["loss"]) for line in train)
    with pytest.raises(Interrupted):
        run(on_nan="skip", stop_after=3)
    result = run(on_nan="skip", resume=True)
    assert result.fingerprint == whole.fingerprint
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert result.skipped_updates == 3


@pytest.mark.slow
def test_without_nan_it_alters_nothing(run):
    stop, skip, rollback = (run(on_nan, on_nan=on_nan) for on_nan in ("stop", "skip", "rollback"))
    assert rollback.fingerprint == stop.fingerprint
    assert skip.validation["loss"] == pytest.approx(stop.validation["loss"], rel=1e-4)  # another program, other bits
    with pytest.raises(InputError, match=r"loop\.on_nan: 'stop' -> 'skip'"):
        run("stop", on_nan="skip", resume=True)


def test_the_learning_rate_that_is_logged_is_that_of_the_updates_that_were_made(run, poison, tmp_path):
    run("plain")
    poison(lambda step, rollbacks: step in (2, 3))
    run(on_nan="skip")
    plain, dropped = (
        {line["step"]: line["learning_rate"] for line in metrics(tmp_path / name) if "learning_rate" in line}
        for name in ("plain", "run")
    )
    assert dropped[8] == plain[6]


def test_skip_ends_where_nothing_helps(run, poison, tmp_path):
    poison(lambda step, rollbacks: step >= 6)
    with pytest.raises(DivergenceError, match=r"more than loop\.nan_limit\. The checkpoint of step 7 .* is kept"):
        run(on_nan="skip", nan_limit=2)
    assert not (tmp_path / "run" / "result.json").exists()


def test_rollback_goes_back_and_sees_the_data_in_another_order(run, poison, tmp_path, monkeypatch):
    poison(lambda step, rollbacks: step == 9 and rollbacks < 2)
    seeds, batch_indices = set(), flaxcls.data.batches.batch_indices

    def noted(seed, *args, **options):
        seeds.add(seed)
        return batch_indices(seed, *args, **options)

    monkeypatch.setattr(flaxcls.data.batches, "batch_indices", noted)
    result = run(on_nan="rollback")
    assert "the loss is nan at step 9. Back to step 7, with another data order: rollback 1 of 3" in run.text
    assert "rollback 2 of 3" in run.text
    assert len(seeds) == 3
    assert (result.rollbacks, result.steps) == (2, 11)
    steps = [(line["step"], line["split"]) for line in metrics(tmp_path / "run")]
    assert steps == sorted(set(steps), key=lambda item: (item[0], item[1] == "validation"))  # no line twice


def test_rollback_before_the_first_checkpoint_starts_anew(run, poison):
    poison(lambda step, rollbacks: step == 2 and rollbacks == 0)
    result = run(on_nan="rollback")
    assert "Back to the beginning, with another data order: rollback 1 of 3" in run.text
    assert result.steps == 11


def test_rollback_ends_after_as_many_times_as_allowed(run, poison):
    poison(lambda step, rollbacks: step == 9)
    with pytest.raises(DivergenceError, match=r"That is after 2 rollbacks, .* The checkpoint of step 7"):
        run(on_nan="rollback", nan_limit=2)


@pytest.mark.slow
@pytest.mark.parametrize("signals", [[8, 9], *map(slow, ([8], [2], [5, 6, 8]))])
def test_a_run_that_signals_stopped_rolls_back_to_where_it_would_have_without_them(
    run, poison, monkeypatch, tmp_path, signals
):
    poison(lambda step, rollbacks: step == 10 and rollbacks == 0)
    whole = run("whole", on_nan="rollback")
    batches = Loader.load

    def batches_and_signal(self, start, end, **options):
        if signals and start == signals[0] - 1:
            signals.pop(0)
            os.kill(os.getpid(), signal.SIGTERM)
        return batches(self, start, end, **options)

    monkeypatch.setattr(Loader, "load", batches_and_signal)
    signals, resume = list(signals), False
    while signals:
        with pytest.raises(SystemExit):
            run(on_nan="rollback", resume=resume)
        resume = True
    result = run(on_nan="rollback", resume=True)
    assert "Back to step 7, with another data order: rollback 1 of 3" in run.text
    assert result.fingerprint == whole.fingerprint
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_a_run_that_stopped_can_go_on_with_rollbacks(run, poison):
    poison(lambda step, rollbacks: step == 9 and rollbacks == 0)
    with pytest.raises(DivergenceError, match=r"or go on from it with --resume --loop\.on-nan rollback"):
        run()
    assert run(on_nan="rollback", resume=True).rollbacks == 1


def test_another_period_of_saving_loses_no_checkpoint_in_a_rollback(
    run, poison, small_config, stripes, quiet, tmp_path
):
    with pytest.raises(Interrupted):
        run(stop_after=8)  # 4 and 7 were saved after evaluations
    poison(lambda step, rollbacks: step == 10 and rollbacks == 0)
    loop = replace(small_config.loop, on_nan="rollback", eval_every=3, save_every=11)
    text = io.StringIO()
    config, console = replace(small_config, loop=loop), Console(file=text, width=250)
    fit(config, dataset=stripes, workdir=tmp_path / "run", resume=True, console=console)
    assert "Back to step 7" in text.getvalue()


def test_an_evaluation_that_a_signal_put_off_and_that_then_diverges_is_rolled_back_past(run, monkeypatch, tmp_path):
    evaluate, seen, signalled = flaxcls.run.loop.evaluate, [], []

    def diverges_at_step_7_once(eval_step, state, *args, **options):
        seen.append(int(state.step))
        values = evaluate(eval_step, state, *args, **options)
        if seen[-1] == 7 and not signalled:
            os.kill(os.getpid(), signal.SIGTERM)
            signalled.append(seen.pop())
            return None
        return {**values, "loss": float("inf")} if seen.count(7) == 1 and seen[-1] == 7 else values

    monkeypatch.setattr(flaxcls.run.loop, "evaluate", diverges_at_step_7_once)
    with pytest.raises(SystemExit):
        run(on_nan="rollback")
    result = run(on_nan="rollback", resume=True)
    assert "the validation loss is inf after step 7. Back to step 4" in run.text
    assert result.rollbacks == 1


def test_fewer_rollbacks_than_there_have_been_are_enough(run, poison):
    poison(lambda step, rollbacks: (step == 9 and rollbacks < 2) or step == 11)
    with pytest.raises(DivergenceError):
        run(on_nan="rollback", nan_limit=2)
    with pytest.raises(DivergenceError):
        run(on_nan="rollback", nan_limit=1, resume=True)

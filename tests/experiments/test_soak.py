"""A few moments of a few faults; `python -m experiments.soak` tries many of all."""

import json
import random

import pytest
from rich.console import Console

from experiments.soak import memory, run
from experiments.soak.__main__ import table
from experiments.soak.faults import FAULTS, Row, soak
from experiments.soak.outcome import differences, outcome
from flaxcls.run import fit
from flaxcls.run.utilization import SPEEDS
from tests.flags import xla_flags


def sabotaged(subject):
    """Does more than a crash can: it changes the run's configuration."""
    assert subject.kill_at("save", 40)
    path = subject.workdir / "config.json"
    path.write_text(path.read_text().replace('"min_delta": 0.05', '"min_delta": 0.0'))
    return True


def broken(subject):
    """Leaves nothing to resume, which the second kill of a restart comes upon."""
    assert subject.kill_at("save", 40)
    (subject.workdir / "config.json").write_text("{")
    return subject.kill_at("save", 1)


@pytest.mark.slow
def test_a_run_that_was_killed_ends_as_the_undisturbed_one_and_one_that_does_not_is_a_loss(
    tmp_path, monkeypatch, quiet
):
    monkeypatch.setenv("XLA_FLAGS", "")  # as optimised as a user's run
    monkeypatch.setitem(FAULTS, "sabotaged", ("sabotaged", sabotaged))
    monkeypatch.setitem(FAULTS, "broken", ("broken", broken))
    monkeypatch.setitem(FAULTS, "never", ("never", lambda subject: False))
    seed = random.SystemRandom().randrange(2**32)
    faults = ["save", "restart", "lines", "sabotaged", "broken", "never"]
    rows = soak(tmp_path, faults=faults, moments=1, dispatch=[1], rng=random.Random(seed), console=quiet)
    assert [row.losses for row in rows[:3]] == [[]] * 3, f"the seed was {seed}"
    assert [(row.tried, row.equal) for row in rows] == [(1, 1)] * 3 + [(1, 0)] * 3
    assert "than the undisturbed run" in rows[3].losses[0]
    assert "it ended with 2 by itself: error: the configuration is not JSON" in rows[4].losses[0]
    assert "in 20 runs, the moment never came" in rows[5].losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["save", "sigterm"])
def test_so_does_one_of_several_steps_a_dispatch(fault, tmp_path, monkeypatch, quiet):
    monkeypatch.setenv("XLA_FLAGS", xla_flags(1))
    seed = random.SystemRandom().randrange(2**32)
    (row,) = soak(tmp_path, faults=[fault], moments=1, dispatch=[2], rng=random.Random(seed), console=quiet)
    assert row.losses == [], f"the seed was {seed}"
    assert (row.tried, row.equal) == (1, 1)


def test_the_run_has_everything_on_that_could_be_forgotten():
    config = run.CONFIG
    switches = (config.augment.crop_padding, config.augment.mixup, config.model.dropout, config.optim.ema_decay)
    assert all([*switches, config.optim.plateau_patience, config.stop.patience])
    assert (config.model.norm, config.optim.accumulate) == ("batch", 2)
    assert config.loop.epochs * config.data.train_examples // config.loop.batch_size >= 200
    assert config.data.train_examples // config.loop.batch_size % config.loop.save_every  # checkpoints within epochs


@pytest.fixture
def finished(stripes, small_config, quiet, tmp_path):
    return fit(small_config, dataset=stripes, workdir=tmp_path / "run", console=quiet).workdir


def test_what_differs_is_noticed(finished):
    before = outcome(finished)
    assert differences(before, outcome(finished)) == []
    lines = (finished / "metrics.jsonl").read_text().splitlines(keepends=True)
    for changed in (lines[1:], [*lines, lines[-1]], [lines[0].replace('"loss": 1', '"loss": 2'), *lines[1:]]):
        (finished / "metrics.jsonl").write_text("".join(changed))
        assert differences(before, outcome(finished)) == ["metrics"]
    slower = [json.dumps({**json.loads(line), **dict.fromkeys(SPEEDS, 1.0)}) + "\n" for line in lines]
    (finished / "metrics.jsonl").write_text("".join(slower))
    assert differences(before, outcome(finished)) == []
    result = json.loads((finished / "result.json").read_text())
    (finished / "result.json").write_text(json.dumps({**result, "fingerprint": "0"}))
    assert differences(before, outcome(finished)) == ["result"]
    (path,) = (finished / "tensorboard").iterdir()
    path.write_bytes(b"")
    assert differences(before, outcome(finished)) == ["result", "events"]


def test_the_table():
    console = Console(width=100)
    with console.capture() as captured:
        console.print(table([Row("one", 1, tried=3, equal=3), Row("other", 4, tried=2, equal=1, losses=["x: y"])]))
    assert captured.get().splitlines()[-2].replace("│", " ").split() == ["all", "5", "4", "1"]


def test_growth_is_noticed():
    steady = [
        {"step": step, "memory": 400 + step % 3, "threads": 20, "pool": 5, "files": 9} for step in range(50, 2001, 50)
    ]
    assert not memory.grows(steady)
    assert memory.slope(steady) == pytest.approx(0, abs=0.2)
    assert memory.grows([{**s, "memory": 400 + s["step"] / 500} for s in steady])
    assert memory.grows([{**s, "threads": 20 + s["step"] // 1200} for s in steady])
    assert memory.grows([{**s, "files": 9 + s["step"] // 1200} for s in steady])
    assert not memory.grows([{**s, "memory": 500 if s["step"] < 500 else 400} for s in steady])  # it settles first
    given_back = [{**s, "memory": s["step"] / 500 + (600 if s["step"] < 1400 else 400)} for s in steady]
    assert memory.slope(given_back) == pytest.approx(2, abs=0.2)
    assert not memory.grows([{**s, "threads": 22 if s["step"] == 1800 else 20} for s in steady])  # in a save

"""Programs that take turns, and the throughput and the memory that are measured of programs."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from tensorboardX import SummaryWriter

from experiments.benchmarks import memory, throughput, turns
from experiments.benchmarks.measure import ProgramError, Ran, run
from experiments.benchmarks.peers.systems import Span, Task, Trained, events, spans
from experiments.benchmarks.throughput import ThroughputOptions, choose_systems, measure
from experiments.benchmarks.turns import TimeSlice, running_seconds, take_turns

TICKS = """
import sys, time
with open(sys.argv[1], "w") as file:
    for _ in range(100):
        print(time.time(), file=file)
        time.sleep(0.01)
"""


def ticking(path):
    return lambda started: run([sys.executable, "-S", "-c", TICKS, path], started=started)


def endless(groups):
    def program(started):
        def told(group):
            groups.append(group)
            started(group)

        return run([sys.executable, "-S", "-c", "import time; time.sleep(30)"], started=told)

    return program


def living(groups):
    """Returns the processes of the groups that have not ended."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) in groups and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def test_one_program_runs_while_the_other_is_held(tmp_path):
    _, slices = take_turns({name: ticking(tmp_path / name) for name in "ab"}, 0.25, needed="a")
    for name in "ab":
        ticks = [float(line) for line in (tmp_path / name).read_text().splitlines()]
        assert len(ticks) == 100
        assert len(slices[name]) >= 3
        late = 0.1  # until a signal is obeyed
        assert all(any(one.began <= tick <= one.ended + late for one in slices[name]) for tick in ticks)
        assert running_seconds(slices[name], ticks[0], ticks[-1]) < 0.8 * (ticks[-1] - ticks[0])


def test_a_peer_that_fails_leaves_the_others_their_turns(tmp_path, capsys):
    def failing(started):
        return run([sys.executable, "-S", "-c", "raise ValueError('no compiler')"], started=started)

    def not_begun(started):
        raise ProgramError("no such file")

    jobs, _ = take_turns(
        {"fails": failing, "whole": ticking(tmp_path / "whole"), "none": not_begun}, 0.2, needed="whole"
    )
    assert jobs["whole"].exception() is None
    assert str(jobs["none"].exception()) == "no such file"
    with pytest.raises(ProgramError, match="ValueError: no compiler"):
        jobs["fails"].result()


def test_where_what_is_needed_fails_all_end(capsys):
    groups = []
    began = time.perf_counter()
    with pytest.raises(ProgramError, match="failed"):
        take_turns(
            {"other": endless(groups), "needed": lambda started: run(["false"], started=started)}, 0.2, needed="needed"
        )
    assert len(groups) == 1
    assert time.perf_counter() - began < 15


def test_what_is_interrupted_leaves_no_program_held(monkeypatch, capsys):
    groups = []
    send = os.killpg

    def interrupted(group, number):
        send(group, number)
        if number == signal.SIGCONT:
            raise KeyboardInterrupt

    monkeypatch.setattr(turns.os, "killpg", interrupted)
    with pytest.raises(KeyboardInterrupt):
        take_turns({"one": endless(groups), "other": endless(groups)}, 0.2, needed="one")
    assert len(groups) == 2
    until = time.monotonic() + 10
    while living(groups) and time.monotonic() < until:
        time.sleep(0.1)
    assert living(groups) == []


def test_only_the_slices_within_a_time_count():
    slices = [TimeSlice(0.0, 1.0), TimeSlice(2.0, 3.0), TimeSlice(4.0, 5.0)]
    assert running_seconds(slices, 0.5, 4.25) == 0.5 + 1 + 0.25
    assert running_seconds(slices, 1.0, 2.0) == 0


def test_the_times_of_events_are_read_from_the_files_of_tensorboard(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for step, at in enumerate((100.5, 107.25, 120.0)):
            writer.add_scalar("validation/loss", 0.5, step, walltime=at)
            writer.add_scalar("train/loss", 0.5, step, walltime=at + 1)
    assert events(tmp_path, "validation/loss") == [(0, 100.5), (1, 107.25), (2, 120.0)]


def test_training_is_timed_from_a_validation_to_the_last_line_before_the_next():
    trained = [(50, 5.0), (100, 11.0), (150, 16.0), (200, 22.0), (234, 24.0), (250, 30.0), (312, 39.0)]
    validated = [(78, 8.0), (156, 18.0), (234, 25.0), (312, 40.0)]
    training, epochs = spans(trained, validated, batch_size=10)
    assert training == [Span(8.0, 16.0, 720), Span(18.0, 24.0, 780)]  # and not the last, whose last steps compile
    assert epochs == [Span(8.0, 18.0, 780), Span(18.0, 25.0, 780)]
    assert spans([], validated[:3], 10) == ([], [Span(8.0, 18.0, 780)])


def trained_at(*ended, images=100, ran=30.0):
    """A run of `ran` seconds whose epochs ended then, of which the training took all but a second."""
    began = [0.0, *ended[:-1]]
    training = [Span(start, end - 1, images) for start, end in zip(began, ended, strict=True)]
    epochs = [Span(start, end, images) for start, end in zip(began, ended, strict=True)]
    return Trained(training, epochs, 0.5, {}, Ran(0.0, ran, 2**20))


def test_a_speed_is_of_what_ended_while_all_trained_and_of_the_own_turns():
    slices = [TimeSlice(0.0, 4.0), TimeSlice(8.0, 100.0)]
    found = measure(trained_at(10.0, 20.0, 30.0), slices, until=25.0)
    assert found.images_per_second == 200 / (4 + 1 + 9)
    assert found.epoch_seconds == (4 + 2 + 10) / 2
    slow = measure(trained_at(10.0), slices, until=8.0)  # and so not yet
    assert (slow.images_per_second, slow.epoch_seconds) == (100 / (4 + 1), 4 + 2)
    with pytest.raises(ProgramError, match="no log line between two validations: give more --examples"):
        measure(replace(trained_at(10.0), training=[]), slices, until=8.0)


@pytest.fixture
def tried():
    return []


@pytest.fixture
def systems(tried):
    """Systems that come to something at once, and one that fails."""

    def named(name, trained):
        def system(task, place, started):
            assert place.is_dir()
            tried.append(name)
            if trained is None:
                raise ProgramError("failed: no compiler")
            return trained

        return system

    return {
        "flaxcls": named("flaxcls", trained_at(11.0, 16.0, images=200, ran=20.0)),
        "slow": named("slow", trained_at(11.0, 31.0, ran=40.0)),  # of which flaxcls has not seen the end
        "broken": named("broken", None),
        "plain": named("plain", replace(trained_at(11.0, images=400), epochs=[])),
    }


TASK = Task(Path(), None, 4, 64)


def test_a_peer_that_fails_has_a_row_that_says_so_and_is_not_tried_again(systems, tried, quiet, monkeypatch):
    monkeypatch.setattr(throughput, "running_seconds", lambda slices, began, ended: ended - began)
    rows = throughput.rows_of(*throughput.train_all(systems, TASK, 2, 0.1, quiet))
    assert tried == ["flaxcls", "slow", "broken", "plain", "slow", "plain", "flaxcls"]
    assert [(row.system, row.unit, row.values, row.ratios, row.note) for row in rows] == [
        ("flaxcls", "images/s", [400 / 14] * 2, [], ""),
        ("slow", "images/s", [10.0] * 2, [40 / 14] * 2, ""),
        ("broken", "images/s", [], [], "failed: no compiler"),
        ("plain", "images/s", [40.0] * 2, [10 / 14] * 2, ""),
        ("flaxcls", "s", [8.0] * 2, [], ""),
        ("slow", "s", [11.0] * 2, [8 / 11] * 2, ""),
    ]
    with pytest.raises(ProgramError, match="no compiler"):
        throughput.train_all({"flaxcls": systems["broken"]}, TASK, 1, 0.1, quiet)


def test_memory_is_measured_one_after_another_and_without_what_fails(systems, tried, quiet):
    done, failed = memory.train_all(systems, TASK, 2, quiet)
    assert tried == ["flaxcls", "slow", "broken", "plain", "slow", "plain", "flaxcls"]
    assert {name: len(runs) for name, runs in done.items()} == {"flaxcls": 2, "slow": 2, "broken": 0, "plain": 2}
    assert failed == {"broken": "failed: no compiler"}
    with pytest.raises(ProgramError, match="no compiler"):
        memory.train_all({"flaxcls": systems["broken"]}, TASK, 1, quiet)


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"epochs": 2}, "epochs is 2, but must be 3 or more"), ({"turn": 0.0}, "turn is 0.0, but must be a number")],
)
def test_too_few_epochs_and_no_turns_are_refused(options, problem, tmp_path):
    with pytest.raises(SystemExit, match=problem):
        throughput.main(ThroughputOptions(tmp_path, **options))


def test_flaxcls_is_compared_with_the_systems_that_were_asked_for():
    systems = dict.fromkeys(["flaxcls", "Keras", "PyTorch"])
    assert [*choose_systems(systems, ())] == ["flaxcls", "Keras", "PyTorch"]
    assert [*choose_systems(systems, ("PyTorch",))] == ["flaxcls", "PyTorch"]
    with pytest.raises(SystemExit, match=r"only names \['Torch'\], but the systems are flaxcls, Keras, PyTorch"):
        choose_systems(systems, ("Torch",))

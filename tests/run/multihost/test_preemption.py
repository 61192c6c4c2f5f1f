"""Signals: the step under way is finished and saved, and what is resumed ends with the same bits."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

import flaxcls.run.loop
from flaxcls.run import fit
from flaxcls.run.checkpoint import Checkpoints
from flaxcls.run.checkpoint_files import read_record, read_steps
from flaxcls.run.loader import Loader
from flaxcls.run.multihost.preemption import StopRequest
from tests.run.test_loop import metrics
from tests.slow import slow

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Holds the result and the lines of an undisturbed run, once the first test has asked for them."""
    return {}


@pytest.fixture
def run(stripes, small_config, tmp_path, quiet, whole):
    def run(workdir="run", **options):
        return fit(small_config, dataset=stripes, workdir=tmp_path / workdir, console=quiet, **options)

    if not whole:
        result = run("whole")
        whole.update(result=result, metrics=metrics(result.workdir), record=record(result))
    return run


def record(result):
    checkpoints = result.workdir / "checkpoints"
    record = read_record(checkpoints, read_steps(checkpoints)[-1])
    return {**record, "meter": {k: v for k, v in record["meter"].items() if k != "seconds"}}


def agrees(result, whole):
    assert result.fingerprint == whole["result"].fingerprint
    assert (result.test, result.validation) == (whole["result"].test, whole["result"].validation)
    assert metrics(result.workdir) == whole["metrics"]
    assert record(result)["early_stopping"] == whole["record"]["early_stopping"]


@pytest.mark.parametrize(
    ("step", "number", "error"),
    [
        slow(1, signal.SIGINT, KeyboardInterrupt),
        slow(3, signal.SIGTERM, SystemExit),
        (4, signal.SIGINT, KeyboardInterrupt),
        slow(11, signal.SIGTERM, SystemExit),
    ],
)
def test_a_signal_during_a_step(run, whole, monkeypatch, step, number, error):
    batches = Loader.load

    def batches_and_signal(self, start, end, **options):
        if start == step - 1:
            os.kill(os.getpid(), number)
        return batches(self, start, end, **options)

    monkeypatch.setattr(Loader, "load", batches_and_signal)
    before = signal.getsignal(number)
    with pytest.raises(error) as raised:
        run()
    assert raised.type is KeyboardInterrupt or raised.value.code == 143
    assert signal.getsignal(number) is before
    monkeypatch.undo()
    agrees(run(resume=True), whole)


@pytest.mark.parametrize("count", [2, *map(slow, (1, 3, 4, 5))])
def test_signals_during_evaluation_again_and_again(run, whole, monkeypatch, count):
    """Evaluations come after steps 4, 7 and 11, then of the best parameters on test and validation."""
    evaluate = flaxcls.run.loop.evaluate
    calls = []

    def evaluate_and_signal(*args, **options):
        calls.append(None)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, **options)

    monkeypatch.setattr(flaxcls.run.loop, "evaluate", evaluate_and_signal)
    with pytest.raises(SystemExit):
        run()
    calls.clear()
    count = 1
    with pytest.raises(SystemExit):  # the evaluation that is due comes first, and is stopped once more
        run(resume=True)
    monkeypatch.undo()
    agrees(run(resume=True), whole)


def test_a_crash_after_an_evaluation_that_a_signal_had_put_off_writes_no_line_twice(run, whole, monkeypatch):
    evaluate = flaxcls.run.loop.evaluate

    def signalled(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, **options)

    def fails(*args, **options):
        raise RuntimeError("the power fails")

    monkeypatch.setattr(flaxcls.run.loop, "evaluate", signalled)
    with pytest.raises(SystemExit):
        run()
    monkeypatch.undo()
    monkeypatch.setattr(Checkpoints, "save", fails)
    with pytest.raises(RuntimeError, match="the power fails"):
        run(resume=True)
    monkeypatch.undo()
    agrees(run(resume=True), whole)


def test_outside_of_the_main_thread_nothing_is_noted():
    seen = []

    def other():
        with StopRequest() as request:
            seen.append((request.signal, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


OPTIONS = ["--loop.epochs", "400", "--model.widths", "4", "--model.dense", "8", "--loop.log-every", "5"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), slow(signal.SIGINT, 130)])
def test_the_command_says_how_to_go_on_and_ends_with_the_signals_code(tmp_path, number, code):
    command = [sys.executable, "-m", "flaxcls.train", *OPTIONS, "--workdir", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (lines.exists() and lines.read_text()):
        time.sleep(0.05)
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert "stopped; --workdir run --resume goes on from the latest checkpoint" in output
    assert "Traceback" not in errors
    last = json.loads(lines.read_text().splitlines()[-1])["step"]
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.latest_step >= last


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    program = (
        "import signal, os, time\n"
        "from flaxcls.run.multihost.preemption import StopRequest\n"
        "with StopRequest() as request:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print(request.signal.name, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "SIGTERM\n"
    assert done.returncode == -signal.SIGINT


@pytest.mark.parametrize("number", [slow(signal.SIGTERM), signal.SIGINT])
def test_a_second_signal_ends_it_also_where_python_handles_none(number):
    """As in a compilation: a long call of C code."""
    program = (
        "import hashlib\n"
        "from flaxcls.run.multihost.preemption import StopRequest\n"
        "with StopRequest():\n"
        "    print('ready', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'x', b'y', 2 * 10**9)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            time.sleep(1)  # until it is in there
            process.send_signal(number)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            process.send_signal(number)
            assert process.wait(timeout=10) == 128 + number
        finally:
            process.kill()


def test_it_leaves_nothing_behind():
    before = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with StopRequest():
            pass
    deadline = time.monotonic() + 10
    while threading.active_count() > before[0] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))) == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        slow("loop", "log_every", 3),
        ("loop", "eval_every", 2),
        slow("loop", "eval_batch_size", 4),
        slow("loop", "save_every", 5),
        slow("stop", "min_delta", 0.5),
        ("stop", "patience", 9),
    ],
)
def test_what_alters_no_number_may_change_when_resuming(
    run, whole, small_config, stripes, quiet, tmp_path, part, name, value
):
    with pytest.raises(flaxcls.errors.Interrupted):
        run(stop_after=5)
    config = replace(small_config, **{part: replace(getattr(small_config, part), **{name: value})})
    result = fit(config, dataset=stripes, workdir=tmp_path / "run", console=quiet, resume=True)
    assert result.steps == whole["result"].steps
    (line,) = (tmp_path / "run" / "changes.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 5
    assert json.loads(line)["changes"][0].startswith(f"{part}.{name}: ")
    assert record(result)["sha256"] == whole["record"]["sha256"]  # the state of the last step


def test_another_period_of_evaluation_counts_as_if_it_had_always_been(small_config, stripes, quiet, tmp_path):
    config = replace(small_config, stop=replace(small_config.stop, skip=0.5))
    rarer = replace(config, loop=replace(config.loop, eval_every=2))
    whole = fit(rarer, dataset=stripes, workdir=tmp_path / "whole", console=quiet)
    with pytest.raises(flaxcls.errors.Interrupted):
        fit(config, dataset=stripes, workdir=tmp_path / "run", console=quiet, stop_after=5)
    result = fit(rarer, dataset=stripes, workdir=tmp_path / "run", console=quiet, resume=True)
    assert (result.best_step, result.fingerprint) == (whole.best_step, whole.fingerprint) == (11, whole.fingerprint)


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as request:
            os.kill(os.getpid(), signal.SIGINT)
            assert request.signal is None
    finally:
        signal.signal(signal.SIGINT, before)

"""A process that is killed, and the run that goes on; `python -m experiments.soak` kills at many more moments."""

import os
import signal
import subprocess
import sys
import time

from experiments.soak.outcome import differences, outcome

RUN = (
    *("--model.widths", "4", "--model.dense", "8", "--model.norm", "batch", "--data.train-examples", "320"),
    *("--loop.epochs", "7", "--loop.batch-size", "32", "--loop.log-every", "3", "--loop.save-every", "7"),
    *("--augment.crop-padding", "1", "--optim.clip-norm", "1", "--stop.skip", "0"),
)  # 70 steps


def start(workdir, *options):
    """Starts the command without the tests' flags of XLA, so with those that flaxcls itself sets on a CPU."""
    command = [sys.executable, "-m", "flaxcls.train", *RUN, "--workdir", str(workdir), *options]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    printed = process.communicate(timeout=180)[0]
    assert process.returncode == 0, printed
    return printed


def test_a_killed_run_goes_on_to_the_bits_of_one_that_was_not(tmp_path):
    killed = start(tmp_path / "killed")
    metrics = tmp_path / "killed" / "metrics.jsonl"
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 5):
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "result.json").exists()
    assert "continuing after step" in finish(start(tmp_path / "killed", "--resume"))
    finish(start(tmp_path / "whole"))
    assert differences(outcome(tmp_path / "whole"), outcome(tmp_path / "killed")) == []

"""The launch files, with stand-ins for what a cluster has."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.soak.outcome import differing, outcome

SLURM = Path(__file__).parent.parent / "experiments" / "pods" / "slurm" / "train.sh"

# As srun: a task is the command with Slurm's variables, SIGTERM goes to all tasks, the code is the largest.
SRUN = """#!{python}
import os, signal, subprocess, sys
count = int(os.environ["SLURM_NTASKS"])
command = [word for word in sys.argv[1:] if not word.startswith("--kill-on-bad-exit")]
step = {{"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1"}}
tasks = [
    subprocess.Popen(command, env={{**os.environ, **step, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}})
    for i in range(count)
]
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
sys.exit(max(task.wait() % 256 for task in tasks))
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "$REQUEUED"
"""
OPTIONS = (
    *("--data.train-examples", "320", "--loop.epochs", "6", "--loop.batch-size", "32", "--loop.log-every", "1"),
    *("--model.widths", "4", "--model.dense", "8"),
)


@pytest.fixture
def slurm(tmp_path):
    """Returns what starts the script as Slurm does a job of two tasks; that runs in a process group of its own."""
    place = tmp_path / "bin"
    place.mkdir()
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL)):
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{place}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(Path.cwd()),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "REQUEUED": str(tmp_path / "requeued"),
        "SLURM_JOB_ID": str(random.randrange(10**6)),  # which decides the port
        "SLURM_NTASKS": "2",
    }

    def start(workdir):
        return subprocess.Popen(
            ["bash", SLURM, *OPTIONS, "--workdir", workdir],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


def lines(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def test_a_job_of_slurm_that_is_preempted_is_queued_again_and_goes_on(slurm, tmp_path):
    whole = slurm(tmp_path / "whole")
    printed = whole.communicate(timeout=180)[0]
    assert whole.returncode == 0, printed
    assert not (tmp_path / "requeued").exists()

    job = slurm(tmp_path / "run")
    while lines(tmp_path / "run") < 10:
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    tasks = subprocess.run(["pgrep", "-s", str(job.pid), "-f", "srun"], capture_output=True, text=True, check=True)
    os.kill(int(tasks.stdout.split()[0]), signal.SIGTERM)  # --signal without B: goes to the steps alone
    printed = job.communicate(timeout=180)[0]
    assert job.returncode == 143, printed
    assert (tmp_path / "requeued").read_text().startswith("requeue ")
    assert "is queued again" in printed

    again = slurm(tmp_path / "run")
    printed = again.communicate(timeout=180)[0]
    assert again.returncode == 0, printed
    assert "continuing after step" in printed
    assert differing(outcome(tmp_path / "whole"), outcome(tmp_path / "run")) == []
    assert json.loads((tmp_path / "run" / "result.json").read_text())["device"] == "4 x cpu"

"""Several processes of one run, under jax.distributed: a signal to one of them stops all, at one step."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.soak.outcome import differences, outcome
from flaxcls.config import AugmentConfig, Config, DataConfig, LoopConfig, ModelConfig, OptimConfig, StopConfig
from flaxcls.run import fit
from tests.flags import xla_flags

CONFIG = Config(
    data=DataConfig(train_examples=320),
    augment=AugmentConfig(crop_padding=1),
    model=ModelConfig(widths=(4,), dense=(8,), norm="batch", dropout=0.2),
    optim=OptimConfig(warmup_epochs=0.0, ema_decay=0.9),
    loop=LoopConfig(epochs=12, batch_size=32, log_every=10, eval_every=2),  # 120 steps
    stop=StopConfig(),
)
PROGRAM = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
port, index, workdir, resume, on_device = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(index))
from dataclasses import replace
from flaxcls.run import fit
from tests.run.multihost.test_sync import CONFIG
config = replace(CONFIG, data=replace(CONFIG.data, on_device=on_device == "True"))
fit(config, workdir=workdir, resume=resume == "True")
"""


def start(workdir, *, resume=False, on_device=False, program=PROGRAM):
    """Starts both processes, with one device each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": xla_flags(1), "PYTHONPATH": str(Path.cwd())}
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, str(port), str(index), str(workdir), str(resume), str(on_device)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]


def finish(processes):
    outputs = [process.communicate(timeout=180)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def lines(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def disturb(workdir, *, resume, number, which):
    """Starts both, signals one of them when it has trained some steps, and returns how both ended."""
    before = len(lines(workdir)) if resume else 0
    processes = start(workdir, resume=resume)
    while all(process.poll() is None for process in processes):
        if (workdir / "metrics.jsonl").exists() and len(lines(workdir)) > before + 2:
            break
        time.sleep(0.05)
    processes[which].send_signal(number)
    return finish(processes)


@pytest.mark.slow
def test_a_signal_to_one_stops_both_at_one_step_and_they_go_on_to_the_same_bits(tmp_path, quiet):
    codes, outputs = finish(start(tmp_path / "whole", resume=False))
    assert codes == [0, 0], outputs
    assert "run directory" in outputs[0]
    assert "run directory" not in outputs[1]  # one of them speaks for both
    whole = outcome(tmp_path / "whole")

    run = tmp_path / "run"
    # Python ends a script that KeyboardInterrupt leaves as the signal would have; the training command, with 130
    for number, which, expected in ((signal.SIGTERM, 1, [143, 143]), (signal.SIGINT, 0, [-signal.SIGINT, 143])):
        codes, outputs = disturb(run, resume=which == 0, number=number, which=which)
        assert codes == expected, outputs
        assert "--resume goes on from the latest checkpoint" in outputs[0]
        assert not (run / "result.json").exists()
    # each with the whole training split on its device, of which it picks its rows
    codes, outputs = finish(start(run, resume=True, on_device=True))
    assert codes == [0, 0], outputs
    resumed = outcome(run)
    assert resumed["last"]["config"]["data"]["on_device"]
    for checkpoint in ("last", "best"):
        resumed[checkpoint]["config"]["data"]["on_device"] = False
    assert differences(whole, resumed) == []

    one_process = fit(CONFIG, workdir=tmp_path / "one", console=quiet)  # with as many devices
    assert one_process.validation["loss"] == pytest.approx(whole["result"]["validation"]["loss"], rel=1e-2)
    assert lines(tmp_path / "one")[0]["loss"] == pytest.approx(whole["metrics"][0]["loss"], rel=1e-3)

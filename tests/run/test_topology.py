"""A run saved on 8 devices goes on with 1, 2 and 4: the same values, the same data, and nearly the same training."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flags import xla_flags

PROGRAM = """
import hashlib, json, sys
from pathlib import Path
import jax
from dataclasses import replace
from rich.console import Console
from flaxcls.errors import Interrupted
from flaxcls.run import fit
from flaxcls.run.checkpoint import Checkpoints
from flaxcls.run.checkpoint_files import fingerprint
from flaxcls.run.setup import make_setup
from flaxcls.data import load_dataset
from experiments.soak.run import CONFIG

workdir, task = sys.argv[1:]
config = replace(CONFIG, loop=replace(CONFIG.loop, epochs=2, log_every=1))  # 50 steps
config = replace(config, optim=replace(config.optim, accumulate=1))
quiet = Console(quiet=True)
if task == "start":
    try:
        fit(config, workdir=workdir, console=quiet, stop_after=20)
    except Interrupted:
        pass
setup = make_setup(config, load_dataset(config.data), None, None)
with Checkpoints(Path(workdir) / "checkpoints") as checkpoints:
    state = checkpoints.restore_state(20, setup.abstract_state)
batches = setup.loader.load(20, 30)
report = {
    "devices": jax.device_count(),
    "on": len(state.step.sharding.device_set),
    "state": fingerprint(state),
    "data": fingerprint(batches),
}
if task == "finish":
    result = fit(config, workdir=workdir, console=quiet, resume=True)
    report["validation"] = result.validation
print(json.dumps(report))
"""


def run(workdir, task, devices):
    environment = {**os.environ, "XLA_FLAGS": xla_flags(devices)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, workdir, task],
        env={**environment, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def train_losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["split"] == "train"]


def test_saved_on_8_devices_restored_on_1_2_and_4(tmp_path):
    saved = run(tmp_path / "run", "start", 8)
    assert (saved["devices"], saved["on"]) == (8, 8)
    for devices in (8, 4, 2, 1):
        shutil.copytree(tmp_path / "run", tmp_path / str(devices))
    expected = run(tmp_path / "8", "finish", 8)
    losses = train_losses(tmp_path / "8")
    assert len(losses) == 50
    for devices in (4, 2, 1):
        report = run(tmp_path / str(devices), "finish", devices)
        assert (report["devices"], report["on"]) == (devices, devices)
        assert report["state"] == saved["state"]
        assert report["data"] == saved["data"]
        assert train_losses(tmp_path / str(devices))[:20] == losses[:20]
        # the sums over devices round in another order, which 30 steps of training make larger
        assert train_losses(tmp_path / str(devices))[20] == pytest.approx(losses[20], rel=1e-5)
        assert train_losses(tmp_path / str(devices)) == pytest.approx(losses, rel=1e-2)
        assert report["validation"]["loss"] == pytest.approx(expected["validation"]["loss"], rel=1e-2)

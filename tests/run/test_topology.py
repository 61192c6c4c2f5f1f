"""A run saved on 8 devices goes on with 1, 2 and 4: the same values, the same data, and nearly the same training."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flags import xla_flags
from tests.slow import slow

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


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns the folder of a run that 8 devices have begun, and of its copy that they have ended, with the reports."""
    place = tmp_path_factory.mktemp("saved")
    begun = run(place / "begun", "start", 8)
    shutil.copytree(place / "begun", place / "ended")
    return place, begun, run(place / "ended", "finish", 8)


@pytest.mark.parametrize("devices", [slow(2), slow(1), slow(4)])
def test_a_run_saved_on_8_devices_goes_on_with_fewer(saved, tmp_path, devices):
    place, begun, ended = saved
    assert (begun["devices"], begun["on"]) == (8, 8)
    expected = train_losses(place / "ended")
    assert len(expected) == 50
    shutil.copytree(place / "begun", tmp_path / "run")
    report = run(tmp_path / "run", "finish", devices)
    assert (report["devices"], report["on"]) == (devices, devices)
    assert report["state"] == begun["state"]
    assert report["data"] == begun["data"]
    losses = train_losses(tmp_path / "run")
    assert losses[:20] == expected[:20]
    # the sums over devices round in another order, which 30 steps of training make larger
    assert losses[20] == pytest.approx(expected[20], rel=1e-5)
    assert losses == pytest.approx(expected, rel=1e-2)
    assert report["validation"]["loss"] == pytest.approx(ended["validation"]["loss"], rel=1e-2)

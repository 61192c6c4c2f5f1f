"""Fingerprints of five short runs: a change that alters no number leaves all of them as they were.

    default   the default run, seed 0
    cifar10   two epochs of cifar10_cnn.py, seed 0 (with --data-dir)
    killed    the run of the soak, killed by SIGKILL after its second checkpoint and resumed; equal to one that was not
    step      three steps of `train_step` with everything random on
    fsdp      an epoch of the default run on two devices that share its state

Each is the SHA-256 of the parameters (of `step`, of the whole state). They depend on the processor and on the versions
of JAX and flax, so compare two checkouts on one machine: run the command in each.

Command:   python -m experiments.fingerprints --data-dir DATA_DIR
Hardware:  2 cores of an AMD EPYC
Time:      2 min
Accuracy:  not measured: the runs are short
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

KILLED = "experiments/soak/run.py"
STEP = """
import hashlib, jax, numpy as np, optax
from flaxcls import create_state, train_step
from flaxcls.augment import make_transform
from flaxcls.models import CNN

rng = np.random.default_rng(0)
model, tx = CNN(10, widths=(8, 16), norm="batch", dropout=0.1), optax.adamw(1e-2, weight_decay=1e-2)
transform = make_transform(mean=[0.5] * 3, std=[0.3] * 3, random_flips=True, crop_padding=2)
state = create_state(jax.random.key(0), model, tx, image_shape=(16, 16, 3), ema=True)
step = jax.jit(lambda state, batch, key: train_step(
    state, batch, key, model=model, tx=tx, transform=transform, accumulate=2, ema_decay=0.9))
for _ in range(3):
    batch = {"image": rng.integers(0, 256, (16, 16, 16, 3), np.uint8), "label": rng.integers(0, 10, 16, np.int32)}
    state, _ = step(state, batch, jax.random.key(1))
digest = hashlib.sha256()
for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
print(digest.hexdigest())
"""


def train(workdir: Path, *arguments: str, devices: int = 1) -> str:
    """Trains by the command in a process of its own, and returns the fingerprint in result.json."""
    subprocess.run(_command(workdir, *arguments), env=_environment(devices), check=True, stdout=subprocess.DEVNULL)
    return str(json.loads((workdir / "result.json").read_text())["fingerprint"])


def train_killed(workdir: Path, *arguments: str) -> str:
    """Like `train`, but kills the process after its second checkpoint, and resumes the run."""
    process = subprocess.Popen(_command(workdir, *arguments), env=_environment(1), stdout=subprocess.DEVNULL)
    checkpoints = workdir / "checkpoints"
    while process.poll() is None and len([*checkpoints.glob("[0-9]*")]) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise RuntimeError("the run ended before it could be killed")
    return train(workdir, *arguments, "--resume")


def _command(workdir: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "flaxcls.train", *arguments, "--workdir", str(workdir)]


def _environment(devices: int) -> dict[str, str]:
    flags = {} if devices == 1 else {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return {**os.environ, "JAX_PLATFORMS": "cpu", **flags}


def main(data_dir: Path | None = None) -> None:
    """Prints a line for each run.

    Args:
      data_dir: where tensorflow-datasets has prepared cifar10; without it that run is left out.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)

        def show(name: str, value: str) -> None:
            print(f"{name:9} {value}", flush=True)

        show("default", train(place / "default"))
        if data_dir is not None:
            options = ["experiments/cifar10_cnn.py", "--data.dir", str(data_dir), "--loop.epochs", "2"]
            show("cifar10", train(place / "cifar10", *options))
        whole, killed = train(place / "whole", KILLED), train_killed(place / "killed", KILLED)
        show("killed", killed if killed == whole else f"{killed}, but without the kill {whole}")
        step = subprocess.run(
            [sys.executable, "-c", STEP], env=_environment(1), check=True, stdout=subprocess.PIPE, text=True
        )
        show("step", step.stdout.strip())
        options = ["--loop.epochs", "1", "--mesh.fsdp", "2", "--stop.skip", "0", "--optim.warmup-epochs", "0.5"]
        show("fsdp", train(place / "fsdp", *options, devices=2))


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.fingerprints")

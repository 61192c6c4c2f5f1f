"""The same step by jit on one device, jit over a mesh, pmap and shard_map, for 50 steps on 8 devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flags import xla_flags

PROGRAM = """
import json, sys
from functools import partial
import jax, numpy as np, optax
assert jax.device_count() == 8  # before tests.conftest asks for two
from jax.sharding import PartitionSpec
from flaxcls import create_state, train_step
from flaxcls.augment import make_transform, random_mixup
from flaxcls.models import CNN
from flaxcls.sharding import batch_sharding, make_mesh, replicated, state_sharding
from tests.conftest import make_stripes

dropout = float(sys.argv[1])
key, tx = jax.random.key(0), optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.02, momentum=0.9))
images, labels = make_stripes(512)

def step(axis_name=None):
    transform = make_transform(
        mean=[0.3], std=[0.3], random_flips=True, crop_padding=1,
        operations=[partial(random_mixup, num_classes=3)], axis_name=axis_name,
    )
    model = CNN(3, widths=(8,), dense=(32,), norm="batch", dropout=dropout, axis_name=axis_name)
    return partial(
        train_step, model=model, tx=tx, transform=transform, accumulate=2, ema_decay=0.9, axis_name=axis_name
    )

def run(step, place=lambda batch: batch, state_layout=None):
    state = create_state(key, CNN(3, widths=(8,), dense=(32,), norm="batch"), tx, image_shape=(8, 8, 1), ema=True)
    if state_layout is not None:
        state = jax.device_put(state, state_layout(state))
    losses = []
    for i in range(50):
        rows = np.arange(i * 128, (i + 1) * 128) % 512
        batch = {"image": images[rows], "label": labels[rows].astype(np.int32)}
        state, metrics = step(state, place(batch), key)
        losses.append(metrics["loss"])
    return [float(loss) for loss in losses], jax.device_get(state)

mesh, fsdp, whole, axis = make_mesh(), make_mesh(4), PartitionSpec(), "data"
put = lambda mesh: lambda batch: jax.device_put(batch, batch_sharding(mesh))
ways = {
    "one device": lambda: run(jax.jit(step())),
    "mesh": lambda: run(jax.jit(step()), put(mesh), lambda state: replicated(mesh)),
    "fsdp": lambda: run(jax.jit(step()), put(fsdp), lambda state: state_sharding(state, fsdp)),
    "pmap": lambda: run(
        jax.pmap(step(axis), axis_name=axis, in_axes=(None, 0, None), out_axes=None),
        lambda batch: jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), batch),
    ),
    "shard_map": lambda: run(
        jax.jit(
            jax.shard_map(
                step(axis), mesh=mesh, in_specs=(whole, PartitionSpec(axis), whole), out_specs=whole
            )
        )
    ),
}
results = {name: way() for name, way in ways.items()}
expected = results["one device"][1]
report = {}
for name, (losses, state) in results.items():
    far = jax.tree.map(lambda x, y: float(np.abs(np.float64(x) - y).max()), state, expected)
    report[name] = {"losses": losses, "far": max(jax.tree.leaves(far))}
print(json.dumps(report))
"""


def run(dropout):
    environment = {
        **os.environ,
        "XLA_FLAGS": xla_flags(8),
        "PYTHONPATH": str(Path.cwd()),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(dropout)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def without_dropout():
    return run(0.0)


@pytest.fixture(scope="module")
def with_dropout():
    return run(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["mesh", "fsdp", "pmap", "shard_map"])
def test_four_ways_agree(without_dropout, way):
    """Sums over devices round in another order: 1e-7 at first, which 50 steps of training make larger."""
    ours, one = without_dropout[way], without_dropout["one device"]
    assert one["losses"][-1] < one["losses"][0]
    assert ours["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert ours["far"] < 1e-3


@pytest.mark.slow
def test_with_dropout_a_mesh_still_equals_one_device(with_dropout):
    for way in ("mesh", "fsdp"):
        assert with_dropout[way]["losses"] == pytest.approx(with_dropout["one device"]["losses"], rel=1e-4)


@pytest.mark.slow
def test_with_dropout_shards_draw_other_masks_than_jit_and_the_loss_agrees_statistically(with_dropout, without_dropout):
    one = with_dropout["one device"]["losses"]
    assert one != pytest.approx(without_dropout["one device"]["losses"], rel=1e-3)
    for way in ("pmap", "shard_map"):
        losses = with_dropout[way]["losses"]
        assert losses != pytest.approx(one, rel=1e-4)
        assert sum(losses[25:]) == pytest.approx(sum(one[25:]), rel=0.1)

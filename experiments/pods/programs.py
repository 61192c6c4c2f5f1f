"""The contents of `fit`'s training step, compiled for many virtual devices of a CPU; nothing runs.

The command counts bytes, operations and collectives, compares them with the assumptions of `experiments.pods.scaling`,
and writes them to compiled.json beside this file. SCALING.md holds the printed table.

Command:   python -m experiments.pods.programs --devices 8 64 512 --fsdp 1 8
Hardware:  2 cores of an AMD EPYC, jax 0.12.0.1; 26 November 2026
Time:      2 minutes
Result:    SCALING.md
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.pods.scaling import reduced_bytes, table
from flaxcls.config import AugmentConfig, Config, LoopConfig, MeshConfig, ModelConfig, ModelName, OptimConfig
from flaxcls.data.dataset import Split, from_splits
from flaxcls.models.summary import count
from flaxcls.run.hlo import collectives
from flaxcls.run.result import versions
from flaxcls.run.setup import make_setup
from flaxcls.run.utilization import training_flops
from flaxcls.sharding import batches_sharding

FOLDER = Path(__file__).parent


def program(
    fsdp: int = 1, network: ModelName = "resnet50", image_size: int = 224, classes: int = 1000, per_device: int = 1
) -> dict[str, Any]:
    """Compiles the training step of `fit` for all devices of this process, from shapes alone, and counts its contents.

    Args:
      fsdp: number of neighbouring devices that hold the state together.
      network: name of the network.
      image_size: side of the images, in pixels.
      classes: number of classes.
      per_device: images on each device.

    Returns:
      Counts of one device's program, and their predictions; bytes, seconds and FLOPs.
    """
    devices = jax.device_count()
    shape = (devices * per_device, image_size, image_size, 3)
    images = np.broadcast_to(np.zeros((), np.uint8), shape)  # needs no memory
    split = Split(images, np.arange(len(images), dtype=np.int32) % classes)
    setup = make_setup(
        Config(
            augment=AugmentConfig(crop_padding=0),
            model=ModelConfig(name=network, norm="batch" if network == "cnn" else None),
            optim=OptimConfig(name="lamb"),
            loop=LoopConfig(batch_size=len(images)),
            mesh=MeshConfig(fsdp=fsdp),
        ),
        from_splits(split, split, split, class_names=[*map(str, range(classes))], name="shapes"),
        None,
        None,
    )
    state, sharding = setup.abstract_state, batches_sharding(setup.mesh)
    batches = {
        "image": jax.ShapeDtypeStruct((1, *shape), jnp.uint8, sharding=sharding),
        "label": jax.ShapeDtypeStruct((1, len(images)), jnp.int32, sharding=sharding),
    }
    began = time.process_time()
    lowered = setup.train.lower(state, batches, jax.eval_shape(lambda: jax.random.key(0)))
    between, started = time.process_time(), time.perf_counter()
    compiled = lowered.compile()
    ended, stopped = time.process_time(), time.perf_counter()
    text, cost = compiled.as_text() or "", compiled.cost_analysis()
    found = collectives(text, devices)
    sharded = 4 * count([leaf for leaf in jax.tree.leaves(state.params) if not leaf.sharding.is_fully_replicated])
    reduced = sum(reduced_bytes(count(state.params), count(state.model_state) // 2))
    if 1 < fsdp < devices:  # two stages: within the neighbours, then each shard over all groups of neighbours
        reduced += sharded // fsdp
    return {
        "devices": devices,
        "fsdp": fsdp,
        "network": network,
        "image_size": image_size,
        "per_device": per_device,
        "collectives": len(found),
        "all_reduce": sum(one.bytes for one in found if one.kind == "all-reduce"),
        "all_gather": sum(one.bytes for one in found if one.kind == "all-gather"),
        "others": sum(one.bytes for one in found if one.kind not in ("all-reduce", "all-gather")),
        "predicted_all_reduce": reduced,
        "predicted_all_gather": sharded,
        "program_bytes": len(text.encode()),
        "instructions": sum(" = " in line for line in text.splitlines()),
        "lowering_cpu_seconds": between - began,
        "compiling_cpu_seconds": ended - between,
        "compiling_seconds": stopped - started,
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "flops": 0 if cost is None else cost["flops"],
        "model_flops": per_device * training_flops(setup.model, shape[1:]),
    }


def compiled_apart(devices: int, *options: str) -> dict[str, Any]:
    """Returns the counts of `program` in a process of its own with `devices` virtual devices; nothing is cached.

    Raises:
      RuntimeError: if the process fails.
    """
    variables = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    command = [sys.executable, "-m", "experiments.pods.programs", "one", *options]
    ran = subprocess.run(command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True)
    if ran.returncode != 0:
        raise RuntimeError(f"the program of {devices} devices ({' '.join(options)}) was not compiled.")
    counted: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return counted


def compiled_table(counted: Sequence[dict[str, Any]]) -> str:
    """Returns a table of the counts, with the ratios of bytes and operations to their predictions."""
    header = [
        *("devices", "mesh.fsdp", "all-reduce, MB", "to predicted", "all-gather, MB", "to predicted", "collectives"),
        *("GFLOPs a device", "to predicted", "instructions", "program, MB"),
        *("lowering, CPU s", "compiling, CPU s", "memory, GB"),
    ]
    return table(header, [*map(_compiled_line, counted)])


def _compiled_line(one: dict[str, Any]) -> list[str]:
    gathered = one["all_gather"] / one["predicted_all_gather"] if one["predicted_all_gather"] else None
    return [
        str(one["devices"]),
        str(one["fsdp"]),
        f"{one['all_reduce'] / 1e6:.3f}",
        f"{one['all_reduce'] / one['predicted_all_reduce']:.5f}",
        f"{one['all_gather'] / 1e6:.3f}",
        "" if gathered is None else f"{gathered:.5f}",
        str(one["collectives"]),
        f"{one['flops'] / 1e9:.2f}",
        f"{one['flops'] / one['model_flops']:.3f}",
        f"{one['instructions']:,}",
        f"{one['program_bytes'] / 1e6:.2f}",
        f"{one['lowering_cpu_seconds']:.1f}",
        f"{one['compiling_cpu_seconds']:.1f}",
        f"{one['peak_memory'] / 1e9:.2f}",
    ]


def compile_all(
    devices: tuple[int, ...] = (8, 64, 512),
    fsdp: tuple[int, ...] = (1, 8),
    network: ModelName = "resnet50",
    image_size: int = 224,
    per_device: int = 1,
    out: Path = FOLDER / "compiled.json",
) -> None:
    """Compiles the training step for each number of virtual devices, runs nothing, and prints the counts.

    Args:
      devices: numbers of devices, each compiled in a process of its own, one after the other.
      fsdp: numbers of neighbouring devices that hold the state together.
      network: name of the network.
      image_size: side of the images, in pixels; no collective of the program depends on it.
      per_device: images on each device.
      out: JSON file for the counts.
    """
    counted = []
    for neighbours in fsdp:
        for number in devices:
            options = ("--fsdp", str(neighbours), "--network", network, "--image-size", str(image_size))
            counted.append(compiled_apart(number, *options, "--per-device", str(per_device)))
            print(
                f"{number} devices, fsdp {neighbours}: {counted[-1]['compiling_seconds']:.1f} s to compile", flush=True
            )
    print(compiled_table(counted))
    out.write_text(json.dumps({"versions": versions(), "programs": counted}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:  # a process that `compile_all` started
        print(json.dumps(tyro.cli(program, args=sys.argv[2:])))
    else:
        tyro.cli(compile_all, prog="python -m experiments.pods.programs")

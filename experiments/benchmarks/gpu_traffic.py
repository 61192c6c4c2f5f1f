"""The bytes that a step reads and writes as compiled for an H100, and what eight of them reduce. No GPU is needed.

XLA compiles for a GPU that it is told of, so what is counted is the program that `fit` would run there: the training
dispatch of the speed run and that of resnet50, both of `experiments.benchmarks.gpu`. A step is a turn of its loop. Each
operation counts the arrays that it writes and those that it reads, of an array that it only slices or gathers from what
it takes. What stays in a cache between two operations counts as well, so that the time is no bound, but a guide.

XLA tries nothing out without a card: there it may choose another algorithm of cuDNN, and more memory for it. A gradient
of the input that it writes as a convolution, as of 1x1 kernels, counts among the forward ones.

Command:   python -m experiments.benchmarks.gpu_traffic
Hardware:  no GPU; jax 0.11.2 with its CUDA packages, Python 3.12; 26 November 2026
Time:      4 minutes on 2 cores beside other work, of which 2 of the CPU
Result:    a step of the speed run moves 7.25 GB, 6.74 GB from step 76 on, in 1.42 and 1.33 GB of memory; of resnet50
           99.8 GB, in 12.5 GB. On 8 cards, the gradients of 4 parts of a batch are reduced once, in one all-reduce
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import tyro
from jax.experimental import topologies
from rich.console import Console

from experiments.benchmarks.gpu_resnet import Training, noise
from experiments.benchmarks.gpu_speedrun import Speedrun
from experiments.benchmarks.hlo import computations, loop, traffic
from experiments.benchmarks.measure import Row, report
from flaxcls.config import Config, DataConfig, LoopConfig, ModelConfig, OptimConfig
from flaxcls.run.hlo import collectives
from flaxcls.run.loader import Picked
from flaxcls.run.result import versions
from flaxcls.run.setup import Setup, make_setup
from flaxcls.sharding import batches_sharding, replicated

SPEED = 3e12  # bytes/s that are reckoned with, 0.9 of the 3.35e12 that the memory of the card is said to have

# what XLA is told of the card, as its own h100_sxm.txtpb says it
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 12 } runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def h100s(count: int) -> Sequence[jax.Device]:
    """Returns so many H100s to compile for. Raises SystemExit without JAX's CUDA packages."""
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # else they ask for a driver, read when JAX looks for devices
    try:
        found = topologies.get_topology_desc(platform="cuda", target_config=H100, topology=f"1x1x{count}")
    except NotImplementedError as error:
        raise SystemExit("JAX's CUDA packages are not installed, which compile: pip install '.[cuda]'.") from error
    return found.devices


@contextlib.contextmanager
def as_if_on(devices: Sequence[jax.Device]) -> Iterator[None]:
    """Has what is set up and traced within take these GPUs for those of this process."""
    answers: dict[str, Any] = {"devices": devices, "device_count": len(devices), "default_backend": "gpu"}
    with contextlib.ExitStack() as patches:
        for name, answer in answers.items():
            patches.enter_context(mock.patch.object(jax, name, lambda answer=answer: answer))
        yield


def compiled(setup: Setup, start: int) -> jax.stages.Compiled:
    """Compiles the dispatch that goes on after step `start`, from shapes alone; to be called within `as_if_on`."""
    steps = setup.plan.dispatch_end(start) - start
    maker, key = setup.loader.maker, jax.eval_shape(lambda: jax.random.key(0))
    on_device = setup.loader.on_device

    def shaped(arrays: Any, layout: Any, *front: int) -> Any:
        return {k: jax.ShapeDtypeStruct((*front, *v.shape), v.dtype, sharding=layout) for k, v in arrays.items()}

    batches: Any = shaped((maker.chosen if on_device else maker)(start), batches_sharding(setup.mesh), steps)
    if on_device:
        split = {"image": setup.dataset.train.images, "label": setup.dataset.train.labels}
        batches = Picked(split=shaped(split, replicated(setup.mesh)), chosen=batches)
    return setup.train.lower(setup.abstract_state, batches, key, frozen=setup.plan.frozen(start)).compile()


def traffic_rows(system: str, setup: Setup) -> list[Row]:
    """Returns the rows of each program that a run trains with: the bytes of a step by kind of operation, and memory."""
    plan, step, seen, rows = setup.plan, 0, set(), []
    while step < plan.total_steps:
        start, step = step, plan.dispatch_end(step)
        if (which := (step - start, plan.frozen(start))) in seen:
            continue
        seen.add(which)
        program, where = compiled(setup, start), f"{system}, steps {start + 1} to {step}"
        text = program.as_text() or ""
        kinds = sorted(traffic(text, loop(text, step - start)).items(), key=lambda item: -sum(item[1]))
        for name, sizes in (*kinds, ("in all", list(chain.from_iterable(found for _, found in kinds)))):
            note = f"operations: {len(sizes)}; {1e3 * sum(sizes) / SPEED:.2f} ms at {SPEED / 1e12:g} TB/s"
            rows.append(Row(name, f"{where}: read and written by each", "GB", [sum(sizes) / 1e9], note=note))
        if (memory := program.memory_analysis()) is not None:
            held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
            for name, size in (("what goes in and out", held), ("to work in", memory.temp_size_in_bytes)):
                rows.append(Row(name, f"{where}: memory", "GB", [size / 1e9]))
    return rows


def reduced_rows(devices: int, parts: int = 4) -> list[Row]:
    """Returns the rows of what so many devices all-reduce in a step of the CNN, its batch in several parts."""
    config = Config(
        model=ModelConfig(norm="batch"),
        optim=OptimConfig(accumulate=parts),
        loop=LoopConfig(batch_size=64 * devices, deterministic=False),  # which needs the card to choose operations on
    )
    setup = make_setup(config, noise(Training(side=32, classes=10, images=1024)), None, None)
    text = compiled(setup, 0).as_text() or ""
    params = sum(4 * leaf.size for leaf in jax.tree.leaves(setup.abstract_state.params))
    title = f"all-reduced by each of {devices} in a step of the CNN, whose parameters have {params / 1e6:.3f} MB"
    rows, texts = [], computations(text)
    for name, part in ((f"in each of {parts} parts of the batch", loop(text, parts)), ("after them", "ENTRY")):
        sizes = [one.bytes for one in collectives(texts[part], devices) if one.kind == "all-reduce"]
        rows.append(Row(name, title, "MB", [sum(sizes) / 1e6], note=f"operations: {len(sizes)}"))
    return rows


def main(out: Path = Path("build/gpu-traffic.json")) -> None:
    """Prints the bytes of a step by kind of operation, and the time that they take at 3 TB/s.

    Args:
      out: JSON file of the rows.
    """
    jax.config.update("jax_platforms", "cpu")
    training = Training()
    with as_if_on(h100s(1)):
        speedrun = Speedrun().setup(noise(Training(side=32, classes=10, images=50_000)), deterministic=False)
        rows = traffic_rows("the speed run", speedrun)
        data = DataConfig(validation_fraction=0, on_device=True)
        config = training.config(data, training.resident_epochs, training.dispatch, training.dispatch)
        rows += traffic_rows(training.model, make_setup(config, noise(training), None, None))
    with as_if_on(h100s(8)):
        rows += reduced_rows(8)
    report(rows, out, {"compiled for": "NVIDIA H100 80GB HBM3", **versions()}, Console(width=120))


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.gpu_traffic")

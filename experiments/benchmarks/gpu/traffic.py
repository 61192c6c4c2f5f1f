"""The bytes that a training step reads and writes when compiled for an H100, and the bytes that eight of them reduce.

No GPU is needed: XLA compiles for a GPU that is described to it. So the counted programs are those that `fit` would run
there: the training dispatches of the speed run and of resnet50, as in `experiments.benchmarks.gpu`. A step is one turn
of the dispatch's loop. Each operation counts the arrays that it writes and those that it reads. If it only slices or
gathers from an array, just the part that it takes counts. Arrays that stay in a cache between two operations count too,
so the time is a guide, not a bound.

Without a card XLA cannot try algorithms: on a real one it may choose other algorithms of cuDNN, and more memory for
them. Where XLA writes the gradient of an input as a convolution (for 1x1 kernels), it counts as a forward one.

Command:   python -m experiments.benchmarks.gpu_traffic
Hardware:  no GPU; jax 0.11.2 with its CUDA packages, Python 3.12; 26 November 2026
Time:      4 minutes on 2 cores beside other work, 2 of them CPU time
Result:    speed run: 7.25 GB a step, 6.74 GB from step 76 on, in 1.42 and 1.33 GB of memory; resnet50: 99.8 GB a step,
           in 12.5 GB. On 8 cards, the gradients of 4 microbatches are reduced once, in one all-reduce
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import jax
from jax.experimental import topologies
from rich.console import Console

from experiments.benchmarks.gpu.profile import kind_of
from experiments.benchmarks.gpu.resnet import Training, noise
from experiments.benchmarks.gpu.speedrun import Speedrun
from experiments.benchmarks.measure import Row, report
from flaxcls.config import Config, DataConfig, LoopConfig, ModelConfig, OptimConfig
from flaxcls.run.hlo import arrays, collectives
from flaxcls.run.loader import Picked
from flaxcls.run.result import versions
from flaxcls.run.setup import Setup, make_setup
from flaxcls.sharding import batches_sharding, replicated

SPEED = 3e12  # bytes/s assumed for the card's memory, 0.9 of the stated 3.35e12

# the card's description for XLA, as in its own h100_sxm.txtpb
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

_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%(?P<name>[\w.\-]+) = (?P<type>.*?) (?P<kind>[a-z][\w\-]*)\((?P<rest>.*)")
_LOOP = re.compile(r'body=%(?P<body>[\w.\-]+).*"known_trip_count":\{"n":"(?P<turns>\d+)"')
_FREE = {"get-tuple-element", "tuple", "parameter", "constant", "bitcast"}
_NESTED = {"call", "while", "conditional"}
_PARTIAL = {"gather", "dynamic-slice", "slice"}


def h100s(count: int) -> Sequence[jax.Device]:
    """Returns `count` H100s to compile for. Raises SystemExit without JAX's CUDA packages."""
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # otherwise the packages need a driver when JAX lists devices
    try:
        found = topologies.get_topology_desc(platform="cuda", target_config=H100, topology=f"1x1x{count}")
    except NotImplementedError as error:
        raise SystemExit("JAX's CUDA packages are not installed: pip install '.[cuda]'.") from error
    return found.devices


@contextlib.contextmanager
def as_if_on(devices: Sequence[jax.Device]) -> Iterator[None]:
    """Lets JAX name these GPUs as the devices of this process, while a run is set up and traced."""
    answers: dict[str, Any] = {"devices": devices, "device_count": len(devices), "default_backend": "gpu"}
    with contextlib.ExitStack() as patches:
        for name, answer in answers.items():
            patches.enter_context(mock.patch.object(jax, name, lambda answer=answer: answer))
        yield


def compiled(setup: Setup, start: int) -> jax.stages.Compiled:
    """Returns the compiled dispatch that starts after step `start`, from shapes alone; call it within `as_if_on`."""
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
    """Returns the rows of each training program of a run: the bytes of a step by kind of operation, and the memory."""
    plan, step, seen, rows = setup.plan, 0, set(), []
    while step < plan.total_steps:
        start, step = step, plan.dispatch_end(step)
        if (variant := (step - start, plan.frozen(start))) in seen:
            continue
        seen.add(variant)
        program, where = compiled(setup, start), f"{system}, steps {start + 1} to {step}"
        text = program.as_text() or ""
        kinds = sorted(traffic(text, loop(text, step - start)).items(), key=lambda item: -sum(item[1]))
        for name, sizes in (*kinds, ("in all", list(chain.from_iterable(found for _, found in kinds)))):
            note = f"operations: {len(sizes)}; {1e3 * sum(sizes) / SPEED:.2f} ms at {SPEED / 1e12:g} TB/s"
            rows.append(Row(name, f"{where}: read and written by each", "GB", [sum(sizes) / 1e9], note=note))
        if (memory := program.memory_analysis()) is not None:
            held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
            for name, size in (("inputs and outputs", held), ("temporary", memory.temp_size_in_bytes)):
                rows.append(Row(name, f"{where}: memory", "GB", [size / 1e9]))
    return rows


def reduced_rows(devices: int, microbatches: int = 4) -> list[Row]:
    """Returns the rows of the bytes that the devices all-reduce in a step of the CNN, with several microbatches."""
    config = Config(
        model=ModelConfig(norm="batch"),
        optim=OptimConfig(accumulate=microbatches),
        loop=LoopConfig(batch_size=64 * devices, deterministic=False),  # choosing deterministic ones needs the card
    )
    setup = make_setup(config, noise(Training(side=32, classes=10, images=1024)), None, None)
    text = compiled(setup, 0).as_text() or ""
    params = sum(4 * leaf.size for leaf in jax.tree.leaves(setup.abstract_state.params))
    title = f"all-reduced by each of {devices} in a step of the CNN, whose parameters have {params / 1e6:.3f} MB"
    rows, texts = [], computations(text)
    in_loop, after_loop = f"in each of {microbatches} microbatches", "after them"
    for name, computation in ((in_loop, loop(text, microbatches)), (after_loop, "ENTRY")):
        sizes = [one.bytes for one in collectives(texts[computation], devices) if one.kind == "all-reduce"]
        rows.append(Row(name, title, "MB", [sum(sizes) / 1e6], note=f"operations: {len(sizes)}"))
    return rows


def main(out: Path = Path("build/gpu-traffic.json")) -> None:
    """Prints the bytes of a step by kind of operation, and their time at 3 TB/s.

    Args:
      out: JSON file for the rows.
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


@dataclass(frozen=True)
class Operation:
    """One operation of a program: its name and kind in XLA's words, its operands, and the bytes of its result."""

    name: str
    kind: str
    bytes: int
    operands: tuple[str, ...]
    rest: str


def computations(program: str) -> dict[str, str]:
    """Returns the text of each computation of a compiled program by its name; the first to run is "ENTRY"."""
    texts = re.findall(r"^(ENTRY|%[\w.\-]+) (.*?)^\}", program, re.MULTILINE | re.DOTALL)
    return {name.removeprefix("%"): text for name, text in texts}


def loop(program: str, turns: int) -> str:
    """Returns the name of the body of the loop with `turns` turns. Raises ValueError unless there is exactly one."""
    found = [match["body"] for match in _LOOP.finditer(program) if int(match["turns"]) == turns]
    if len(found) != 1:
        raise ValueError(f"the program has {len(found)} loops of {turns} turns, but one is needed.")
    return found[0]


def traffic(program: str, name: str) -> dict[str, list[int]]:
    """Returns the bytes that each operation of a computation reads and writes, by kind as in `profile`.

    A loop counts with all of its turns. Raises ValueError for a loop of unknown length, and for a condition.
    """
    texts = computations(program)
    known: dict[str, Operation] = {}
    bytes_by_kind: dict[str, list[int]] = {}
    for one in _operations(texts[name]):
        known[one.name] = one
        if one.kind in _NESTED:
            inner, turns = _nested(one)
            for kind, moved in traffic(program, inner).items():
                bytes_by_kind.setdefault(kind, []).extend(turns * moved)
            continue
        if one.kind in _FREE or one.kind.endswith("-done"):
            continue
        sizes = [known[operand].bytes for operand in one.operands]
        inside, names = [one], [*one.operands]
        if called := re.search(r"calls=%([\w.\-]+)", one.rest):
            inside = _operations(texts[called[1]])
            names = [_parameter(inside, number) for number in range(len(sizes))]
        read = sum(_bytes_read(inside, operand, size) for operand, size in zip(names, sizes, strict=True))
        # the type of an operation that ends in -start includes its inputs
        written = one.bytes - (sum(sizes) if one.kind.endswith("-start") else 0)
        bytes_by_kind.setdefault(kind_of(one.name), []).append(read + written)
    return bytes_by_kind


def _nested(one: Operation) -> tuple[str, int]:
    """Returns the computation of a call or a loop, and how often it runs."""
    if one.kind == "call" and (applied := re.search(r"to_apply=%([\w.\-]+)", one.rest)):
        return applied[1], 1
    if (match := _LOOP.search(one.rest)) is None:
        raise ValueError(f"it is not known how often the operations of {one.name}, a {one.kind}, run.")
    return match["body"], int(match["turns"])


def _operations(text: str) -> list[Operation]:
    """Returns the operations of a computation in their order, each after its operands."""
    operations = []
    for match in map(_INSTRUCTION.match, text.splitlines()):
        if match:
            operands, size = match["rest"].split(")")[0], sum(size for _, size in arrays(match["type"]))
            names = tuple(re.findall(r"%([\w.\-]+)", operands))
            operations.append(Operation(match["name"], match["kind"], size, names, match["rest"]))
    return operations


def _parameter(operations: Iterable[Operation], number: int) -> str:
    return next(one.name for one in operations if one.kind == "parameter" and one.rest.startswith(f"{number})"))


def _bytes_read(operations: Sequence[Operation], name: str, size: int) -> int:
    """Returns the bytes that the operations read of the array `name`, which has `size` bytes."""
    names = {name}
    for one in operations:
        if one.kind == "bitcast" and names & {*one.operands}:
            names.add(one.name)
    users = [one for one in operations if names & {*one.operands} and one.name not in names]
    only_parts_are_read = all(one.kind in _PARTIAL and one.operands[0] in names for one in users)
    return min(size, sum(one.bytes for one in users)) if users and only_parts_are_read else size

"""The benchmark of a GPU: all that it does, on small sizes, but for what only CUDA has."""

import gzip
import importlib.util
import json
import os
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from experiments.benchmarks.gpu import __main__ as gpu
from experiments.benchmarks.gpu import pack as gpu_pack
from experiments.benchmarks.gpu import parts as gpu_parts
from experiments.benchmarks.gpu import resnet as gpu_resnet
from experiments.benchmarks.gpu import speedrun as gpu_speedrun
from experiments.benchmarks.gpu import traffic as gpu_traffic
from experiments.benchmarks.gpu.pack import MANIFEST, RECORDS, WHEEL_FOLDER, pack_records, unpack_records
from experiments.benchmarks.gpu.profile import kernel_rows, kind_of, read_trace, summarize, time_stages, trace_file
from experiments.benchmarks.gpu.speedrun import Run, Speedrun, repeated, timed_run, watch_compilations, with_determinism
from experiments.benchmarks.gpu.traffic import loop, traffic
from experiments.benchmarks.measure import Row
from experiments.cifar10_speedrun import MUON, parts
from flaxcls.config import DataConfig
from flaxcls.data import from_arrays
from flaxcls.models import MODELS
from flaxcls.models.airbench import Airbench
from flaxcls.models.whitening import whitening_kernel
from flaxcls.muon import renormalized_muon
from flaxcls.run import fit
from flaxcls.run.setup import make_setup
from flaxcls.run.utilization import training_flops
from flaxcls.train import parse
from flaxcls.validation import validate

SPEEDRUN = gpu_parts.TINY.speedrun


@pytest.fixture(scope="module")
def noise():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (90, 32, 32, 3), dtype=np.uint8), np.arange(90) % 10
    return from_arrays(images[:60], labels[:60], test=(images[60:], labels[60:]), validation_fraction=0)


@pytest.fixture(scope="module")
def setup(noise):
    return SPEEDRUN.setup(noise, deterministic=False)


def test_records_come_out_as_they_went_in(tmp_path):
    data = tmp_path / "data" / "cifar10" / "3.0.2"
    data.mkdir(parents=True)
    (data / "cifar10-train.array_record").write_bytes(np.random.default_rng(0).bytes(5000) * 20)
    (data / "features.json").write_text("{}")
    (tmp_path / "data" / "other").mkdir()
    pack_records(tmp_path / "data", tmp_path / "packed")
    assert (tmp_path / "packed" / RECORDS).stat().st_size < 20_000  # what repeats takes no room
    unpack_records(tmp_path / "packed", tmp_path / "again")
    whole = {
        path.relative_to(tmp_path / "again").as_posix() for path in (tmp_path / "again").rglob("*.*") if path.is_file()
    }
    assert whole == {"cifar10/3.0.2/cifar10-train.array_record", "cifar10/3.0.2/features.json"}
    for name in whole:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "data" / name).read_bytes()


def test_records_that_changed_on_the_way_or_are_not_there_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="name the folder that cifar10 was prepared in"):
        pack_records(tmp_path, tmp_path / "packed")
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "record").write_text("a")
    pack_records(tmp_path, tmp_path / "packed")
    manifest = tmp_path / "packed" / MANIFEST
    manifest.write_text(manifest.read_text().replace("cifar10/record", "cifar10/records"))
    with pytest.raises(ValueError, match=r"cifar10/records of .* has the SHA-256 no file, but .*: pack it again"):
        unpack_records(tmp_path / "packed", tmp_path / "again")


def test_what_is_packed_is_counted_and_has_a_limit(tmp_path, monkeypatch, capsys):
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    (tmp_path / "data" / "cifar10" / "record").write_text("a")

    def download(out, python):
        out.mkdir()
        (out / "one.whl").write_bytes(b"0" * 2_000_000)

    monkeypatch.setattr(gpu_pack, "download_wheels", download)
    monkeypatch.setattr(gpu_pack, "code_bytes", lambda: 3_000_000)
    gpu_pack.main(tmp_path / "data", tmp_path / "out")
    assert "2.00 MB packed, 3.00 MB of code" in capsys.readouterr().out
    monkeypatch.setattr(gpu_pack, "LARGEST", 4e6)
    with pytest.raises(SystemExit, match=r"5\.0 MB is too large"):
        gpu_pack.main(tmp_path / "data", tmp_path / "out")


def event(thread, begin, microseconds, name, operation=None, device=1):
    args = {} if operation is None else {"args": {"hlo_op": operation}}
    return {"ph": "X", "pid": device, "tid": thread, "ts": begin, "dur": microseconds, "name": name, **args}


TRACE = {
    "traceEvents": [
        {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "/device:GPU:0"}},
        {"ph": "M", "pid": 2, "name": "process_name", "args": {"name": "/device:GPU:1"}},
        {"ph": "M", "pid": 9, "name": "process_name", "args": {"name": "/host:CPU"}},
        {"ph": "M", "pid": 1, "tid": 1, "name": "thread_name", "args": {"name": "Stream #13(Compute)"}},
        {"ph": "M", "pid": 1, "tid": 2, "name": "thread_name", "args": {"name": "Stream #14(MemcpyD2D)"}},
        {"ph": "M", "pid": 1, "tid": 3, "name": "thread_name", "args": {"name": "XLA Modules"}},
        {"ph": "M", "pid": 2, "tid": 1, "name": "thread_name", "args": {"name": "Stream #13(Compute)"}},
        {"ph": "M", "pid": 9, "tid": 1, "name": "thread_name", "args": {"name": "python"}},
        event(3, 0, 1000, "jit_dispatch"),
        event(1, 100, 40, "sm90_xmma_fprop_implicit_gemm_bf16", "cudnn-conv.1"),
        event(1, 150, 30, "sm90_xmma_wgrad_implicit_gemm", "cudnn-conv-bw-filter.2"),
        event(2, 160, 30, "MemcpyD2D"),
        event(1, 200, 10, "loop_add_fusion", "loop_add_fusion"),
        event(1, 210, 90, "sm90_xmma_fprop_implicit_gemm_bf16", "cudnn-conv.3"),
        event(1, 0, 500, "loop_add_fusion", device=2),
        event(1, 0, 500, "loop_add_fusion", device=9),
        {},
    ]
}


def test_a_trace_is_summed_by_kind_and_its_gaps_are_idle(tmp_path):
    file = tmp_path / "plugins" / "profile" / "then" / "host.trace.json.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(gzip.compress(json.dumps(TRACE).encode()))
    trace = read_trace(trace_file(tmp_path))
    summary = summarize(trace)
    assert summary.span == pytest.approx(200e-6)
    assert summary.idle == pytest.approx(20e-6)  # 140 to 150, 190 to 200
    assert summary.kinds == {
        "convolutions, forward": pytest.approx(130e-6),
        "convolutions, gradient of the kernel": pytest.approx(30e-6),
        "copies": pytest.approx(30e-6),
        "fusions, element by element": pytest.approx(10e-6),
    }
    assert [(kernel.name[:15], kernel.count) for kernel in summary.kernels][:2] == [
        ("sm90_xmma_fprop", 2),
        ("sm90_xmma_wgrad", 1),
    ]
    rows = kernel_rows(trace)
    assert [(row.system, row.unit, row.values) for row in rows][:3] == [
        ("the last dispatch, from its first kernel to its last", "ms", [pytest.approx(0.2)]),
        ("no kernel", "%", [pytest.approx(10)]),
        ("convolutions, forward", "%", [pytest.approx(65)]),
    ]
    assert rows[-1].note == "1: fusions, element by element"


def test_a_trace_without_a_gpu_says_what_it_is_of(tmp_path):
    with pytest.raises(FileNotFoundError, match="was the trace stopped"):
        trace_file(tmp_path)
    with pytest.raises(ValueError, match=r"holds no kernel of a GPU: .* The trace is of /host:CPU\."):
        summarize({"traceEvents": TRACE["traceEvents"][2:3]})


@pytest.mark.parametrize(
    ("name", "operation", "kind"),
    [
        ("cutlass__5x_cudnn::Kernel", "cudnn-conv-bw-input.7", "convolutions, gradient of the input"),
        ("void cudnn::ops::nchwToNhwcKernel", "cudnn-conv.1", "changes of layout"),
        ("nvjet_hsh_128x128", "cublas-gemm.2", "products of matrices"),
        ("gemm_fusion_dot_9", "", "products of matrices"),
        ("input_reduce_fusion_2", "input_reduce_fusion.2", "fusions with a sum, such as batch norm"),
        ("wrapped_gather", "", "fusions, element by element"),
        ("MemcpyH2D", "", "copies"),
        ("RngBitGenerator", "", "other"),
    ],
)
def test_kernels_are_told_by_their_names(name, operation, kind):
    assert kind_of(name, operation) == kind


def test_the_work_of_the_networks_is_the_published_one():
    flops = training_flops(Airbench(10, whiten=True), (32, 32, 3))
    kept = 105.36 / 118.15  # without what the poolings would drop
    assert flops * 2000 * 200 == pytest.approx(kept * 283e12, rel=0.01)
    resnet = training_flops(MODELS["resnet50"](1000), (224, 224, 3))
    assert resnet == pytest.approx(
        2 * (3 * 4.089e9 - 0.118e9), rel=0.002
    )  # the first layer takes no gradient of images


PROGRAM = """HloModule jit_dispatch, is_scheduled=true

%fused_convert (param_0: u8[50,8], param_1: s32[6,4], param_2: s32[]) -> f32[4,8] {
  %param_0 = u8[50,8]{1,0} parameter(0)
  %param_1 = s32[6,4]{1,0} parameter(1)
  %param_2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %dynamic_slice = s32[1,4]{1,0} dynamic-slice(%param_1, %param_2, %zero), dynamic_slice_sizes={1,4}
  %bitcast = s32[4]{0} bitcast(%dynamic_slice)
  %gather = u8[4,8]{1,0} gather(%param_0, %bitcast), offset_dims={1}, slice_sizes={1,8}
  ROOT %convert = f32[4,8]{1,0} convert(%gather)
}

%fused_add (param_0.1: f32[4,8]) -> f32[4,8] {
  %param_0.1 = f32[4,8]{1,0} parameter(0)
  %slice = f32[1,8]{1,0} slice(%param_0.1), slice={[0:1], [0:8]}
  %broadcast = f32[4,8]{1,0} broadcast(%slice), dimensions={0,1}
  ROOT %add = f32[4,8]{1,0} add(%param_0.1, %broadcast)
}

%called (param_0.2: f32[4,8]) -> f32[4,8] {
  %param_0.2 = f32[4,8]{1,0} parameter(0)
  ROOT %loop_add_fusion.1 = f32[4,8]{1,0} fusion(%param_0.2), kind=kLoop, calls=%fused_add
}

%body (state: (s32[], u8[50,8], s32[6,4])) -> (s32[], u8[50,8], s32[6,4]) {
  %state = (s32[], u8[50,8]{1,0}, /*index=2*/s32[6,4]{1,0}) parameter(0)
  %step = s32[] get-tuple-element(%state), index=0
  %split = u8[50,8]{1,0} get-tuple-element(%state), index=1
  %chosen = s32[6,4]{1,0} get-tuple-element(%state), index=2
  %loop_convert_fusion = f32[4,8]{1,0} fusion(%split, %chosen, /*index=2*/%step), kind=kLoop, calls=%fused_convert
  %loop_add_fusion = f32[4,8]{1,0} fusion(%loop_convert_fusion), kind=kLoop, calls=%fused_add
  %cudnn-conv.1 = (bf16[3,8]{1,0}, u8[0]{0}) custom-call(%loop_add_fusion, %loop_convert_fusion), custom_call_target="c"
  %call = f32[4,8]{1,0} call(%loop_add_fusion), to_apply=%called
  %copy-start = ((f32[4,8]{1,0}), f32[4,8]{1,0}, u32[]) copy-start(%loop_add_fusion)
  %copy-done = f32[4,8]{1,0} copy-done(%copy-start)
  ROOT %tuple = (s32[], u8[50,8]{1,0}, s32[6,4]{1,0}) tuple(%step, %split, %chosen)
}

ENTRY %main (state.1: (s32[], u8[50,8], s32[6,4])) -> (s32[], u8[50,8], s32[6,4]) {
  %state.1 = (s32[], u8[50,8]{1,0}, s32[6,4]{1,0}) parameter(0)
  ROOT %while = (s32[], u8[50,8]{1,0}, s32[6,4]{1,0}) while(%state.1), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"6"}}
}
"""


def test_each_operation_counts_what_it_writes_and_what_it_reads_of_others():
    assert loop(PROGRAM, 6) == "body"
    assert traffic(PROGRAM, "body") == {
        # four rows of the split are read, one of the order of its examples
        "fusions, element by element": [4 * 8 * (4 + 1) + 4 * 4 + 4, 2 * 128, 2 * 128],
        "convolutions, forward": [48 + 2 * 128],
        "copies": [128 + 4 + 128],
    }
    with pytest.raises(ValueError, match="0 loops of 5 turns, but one is needed"):
        loop(PROGRAM, 5)
    assert {kind: len(sizes) for kind, sizes in traffic(PROGRAM, "ENTRY").items()} == {
        "fusions, element by element": 6 * 3,
        "convolutions, forward": 6,
        "copies": 6,
    }
    with pytest.raises(ValueError, match="it is not known how often the operations of while, a while, run"):
        traffic(PROGRAM.replace("known_trip_count", "unknown"), "ENTRY")


@pytest.mark.slow
def test_the_programs_of_fit_are_counted_as_for_a_gpu():
    training = replace(gpu_parts.TINY.training, dispatch=3)
    data = DataConfig(validation_fraction=0, on_device=True)
    with gpu_traffic.as_if_on(jax.devices()[:1]):
        setup = make_setup(training.config(data, 2, 3, 3), gpu_resnet.noise(training), None, None)
        assert setup.mesh.size == 1
        rows = gpu_traffic.traffic_rows("cnn", setup)
    *kinds, whole = [row for row in rows if row.quantity == "cnn, steps 1 to 3: read and written by each"]
    assert whole.values == [pytest.approx(sum(row.values[0] for row in kinds))]
    assert len(kinds) > 2
    params = sum(4 * leaf.size for leaf in jax.tree.leaves(setup.abstract_state.params))
    assert 5 * params < 1e9 * whole.values[0] < 100 * params
    assert [row.quantity for row in rows[len(kinds) + 1 :]] == ["cnn, steps 1 to 3: memory"] * 2
    assert len(jax.devices()) == jax.device_count() > 1  # as before


@pytest.mark.slow
def test_what_devices_reduce_is_told_apart_by_the_loop_of_the_parts():
    with gpu_traffic.as_if_on(jax.devices()[:2]):
        inside, after = gpu_traffic.reduced_rows(2)
    assert inside.quantity == after.quantity
    assert "by each of 2 in a step of the CNN, whose parameters have 2.329 MB" in inside.quantity
    # XLA moves the sum out of the loop on GPUs alone
    assert inside.values == [pytest.approx(2.41, abs=0.02)]  # of the parameters and the statistics
    assert after.values == [pytest.approx(0, abs=0.02)]


@pytest.mark.skipif(importlib.util.find_spec("jax_plugins") is not None, reason="JAX has a plugin here")
def test_without_the_packages_of_cuda_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "0")  # which is set, and put back afterwards
    with pytest.raises(SystemExit, match=r"CUDA packages are not installed.*pip install '\.\[cuda\]'"):
        gpu_traffic.main()


@pytest.mark.slow
def test_warm_runs_compile_nothing_and_are_those_of_their_seeds(setup, noise, tmp_path, quiet):
    compilations = watch_compilations()
    cold, *warm = [timed_run(SPEEDRUN.config, setup, seed, compilations) for seed in (0, 1, 2)]
    assert cold.compiled > 0
    assert [run.compiled for run in warm] == [0, 0]
    for run in warm:
        assert 0 < run.training < run.through < run.whole
        assert 0 < run.evaluation < run.through
        assert run.timed == run.training + run.evaluation < run.through
    config = replace(with_determinism(SPEEDRUN.config, False), seed=1)
    plain = fit(config, **parts(config, dataset=noise, **SPEEDRUN.network), workdir=tmp_path / "run", console=quiet)
    assert plain.fingerprint == warm[0].fingerprint != warm[1].fingerprint
    assert plain.test["accuracy"] == warm[0].accuracy
    loaders = [replace(setup.loader, maker=replace(setup.loader.maker, seed=seed)) for seed in (1, 2)]
    chosen = [loader.load(0, 2)["chosen"] for loader in loaders]
    assert not np.array_equal(*(np.asarray(batches["index"]) for batches in chosen))


@pytest.mark.slow
def test_a_run_is_walked_through_part_by_part(setup):
    opened = []

    class Traced:
        def __enter__(self):
            opened.append("open")

        def __exit__(self, *_):
            opened.append("shut")

    took = time_stages(setup, Traced())
    steps = [
        part
        for step in (1, 2, 3, 4)
        for part in (f"order of the batches of steps {step} to {step}", f"steps {step} to {step}")
    ]
    assert [*took] == ["initialisation", *steps, "evaluation"]
    assert opened == ["open", "shut"]


def test_measuring_ends_before_its_time_is_over():
    called = []

    def slow(number):
        called.append(number)
        time.sleep(0.05)

    repeated(slow, 3, time.perf_counter() + 60)
    assert called == [1, 2, 3]
    repeated(slow, 1000, time.perf_counter() + 0.3)
    assert 1 < len(called) - 3 < 7
    repeated(slow, 1000, time.perf_counter() - 1)  # once at least
    assert called[-1] == 1


@pytest.fixture
def task(tmp_path, noise, monkeypatch):
    monkeypatch.setattr(Speedrun, "load", lambda self, data_dir: noise)
    return gpu_parts.Task("part", gpu_parts.TINY, Path("unused"), tmp_path, 2, time.perf_counter() + 600)


def named(rows):
    return {row.system: row for row in rows}


@pytest.mark.slow
def test_the_speed_run_has_its_rows(task, monkeypatch):
    monkeypatch.setattr(gpu_speedrun, "peak_flops", lambda: 1e15)
    rows, where = gpu_parts.PARTS["warm"](task)
    assert {"device", "jax", "flaxcls"} < where.keys()
    found = named(rows)
    both = found["initialisation and training, and evaluation"]
    assert len(both.values) == 2
    assert both.note.startswith("mean ")
    assert both.note.endswith("; 0 programs compiled in it")
    assert both.quantity == "speed run of 4 steps, warm, without deterministic operations"
    assert 0 <= found["test accuracy, with test-time augmentation"].values[0] <= 100
    training = found["initialisation and training"].values[0]
    model = SPEEDRUN.setup(SPEEDRUN.load(Path()), deterministic=False).model
    expected = 100 * training_flops(model, (32, 32, 3)) * 4 * 30 / training / 1e15
    assert found["speed run, in initialisation and training"].values[0] == pytest.approx(expected)


@pytest.mark.slow
def test_deterministic_operations_are_compared_with_others(task, monkeypatch):
    monkeypatch.setattr(gpu_speedrun, "STEPS", 2)
    rows, _ = gpu_parts.PARTS["determinism"](replace(task, runs=1))
    assert [(row.system, len(row.values), len(row.ratios)) for row in rows] == [
        ("with deterministic operations", 1, 0),
        ("without", 1, 1),
    ] * 2
    assert [row.note for row in rows] == ["seed 0 twice: the same bits"] * 2 + [""] * 2


def test_the_recipe_in_pytorch(task):
    pytest.importorskip("torch")
    rows, where = gpu_parts.PARTS["torch"](replace(task, runs=1))
    assert where == {}
    assert [(row.system, row.unit, len(row.values)) for row in rows] == [
        (system, unit, 1) for system in ("PyTorch", "PyTorch, compiled") for unit in ("s", "%")
    ]


def test_the_port_to_pytorch_has_the_same_muon_and_whitening():
    torch = pytest.importorskip("torch")
    from experiments.benchmarks.gpu import pytorch

    rng = np.random.default_rng(0)
    kernel, tx = jnp.asarray(rng.normal(size=(3, 3, 8, 16)), jnp.float32), renormalized_muon(0.1)
    state, there = tx.init(kernel), torch.nn.Parameter(torch.tensor(np.array(kernel)).permute(3, 2, 0, 1).contiguous())
    buffers = [torch.zeros_like(there)]
    for _ in range(2):
        gradient = rng.normal(size=kernel.shape).astype(np.float32)
        update, state = tx.update(jnp.asarray(gradient), state, kernel)
        kernel = optax.apply_updates(kernel, update)
        there.grad = torch.tensor(gradient).permute(3, 2, 0, 1).contiguous()
        pytorch.muon([there], buffers, 0.1, pytorch.orthogonalized)
    np.testing.assert_allclose(kernel, there.detach().permute(2, 3, 1, 0).numpy(), atol=0.01)
    images = rng.normal(size=(20, 8, 8, 3)).astype(np.float32)
    ours = np.asarray(whitening_kernel(jnp.asarray(images), 2)).transpose(3, 2, 0, 1).reshape(24, -1)
    theirs = pytorch.whitening(torch.tensor(images).permute(0, 3, 1, 2)).reshape(24, -1).numpy()
    # eigenvectors have either sign and come in another order, so that their products are compared
    np.testing.assert_allclose(ours.T @ ours, theirs.T @ theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_profile_without_a_gpu_has_its_parts_and_its_trace(task):
    rows, _ = gpu_parts.PARTS["profile"](task)
    assert rows[-1].system == "kernels"
    assert "holds no kernel of a GPU" in rows[-1].note
    assert all(row.unit == "ms" and row.values[0] > 0 for row in rows[:-1])
    assert len(rows) == 11
    assert [path.name for path in task.out.iterdir()] == ["cifar10-last-dispatch.trace.json.gz"]


@pytest.mark.slow
def test_a_network_trains_on_images_of_the_device_and_on_files(task, monkeypatch):
    monkeypatch.setattr(gpu_resnet, "cores", lambda: 1)
    for part, system in (("resident", "cnn, images on the device"), ("streaming", "cnn, JPEGs read by workers")):
        rows, _ = gpu_parts.PARTS[part](task)
        assert [(row.system, row.unit, len(row.values)) for row in rows] == [(system, "images/s", 1), (system, "%", 1)]
        assert min(rows[0].values) > 0
        assert rows[1].note == ""
    assert "1 workers, files of 500x375" in rows[0].note


def test_a_card_whose_peak_is_not_known_has_no_utilisation(monkeypatch):
    monkeypatch.setattr(gpu_speedrun, "peak_flops", lambda: None)
    row = gpu_speedrun.utilization_row("cnn", [1e12])
    assert (row.values, row.note) == ([], "the peak of cpu is not known")


def test_files_are_as_large_as_photographs():
    assert 80_000 < len(gpu_resnet.jpeg(0)) < 130_000
    assert gpu_resnet.jpeg(0) != gpu_resnet.jpeg(1)


@pytest.mark.parametrize("sizes", [gpu_parts.Sizes(), gpu_parts.TINY], ids=["whole", "tiny"])
def test_what_is_measured_is_valid(sizes):
    command = parse([*sizes.command[3:], "--data.dir", "unused"], MUON)
    assert not command.config.loop.deterministic
    data = DataConfig(source="folder", dir="unused", validation_fraction=0)
    for config in (command.config, sizes.speedrun.config, sizes.training.config(data, 2, 1, 1)):
        validate(config)
    if sizes is not gpu_parts.TINY:
        assert replace(MUON, loop=replace(MUON.loop, deterministic=False), data=command.config.data) == command.config
        assert sizes.speedrun.config == MUON


def test_the_steps_of_the_network_are_whole_dispatches():
    training = gpu_parts.Sizes().training
    for epochs in (training.resident_epochs, training.streamed_epochs):
        assert epochs * training.images % (training.batch_size * training.dispatch) == 0


def test_a_process_is_timed_without_compiled_programs_and_with_them(task, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    script = """
import json, os, pathlib, sys
workdir = pathlib.Path(sys.argv[sys.argv.index("--workdir") + 1])
program = pathlib.Path(os.environ["XDG_CACHE_HOME"], "program")
test = {"accuracy": 0.75 if program.exists() else 0.5}
workdir.mkdir()
result = {"test": test, "seconds": 0.01, "device": "1 x card", "versions": {"jax": "1"}}
(workdir / "result.json").write_text(json.dumps(result))
program.write_text(sys.argv[sys.argv.index("--data.dir") + 1])
"""
    sizes = replace(task.sizes, command=(sys.executable, "-S", "-c", script))
    for name, accuracy in (("cold", 50.0), ("cached", 75.0)):
        rows, where = gpu_parts.PARTS[name](replace(task, name=name, sizes=sizes))
        whole, inside, tested = rows
        assert whole.system == f"{name}, from its start to its end"
        assert whole.values[0] > inside.values[0] == 0.01
        assert tested.values == [accuracy]
        assert where == {"device": "1 x card", "jax": "1"}
    assert (tmp_path / "program").read_text() == str(task.data_dir)


def test_a_part_that_fails_or_takes_too_long_leaves_the_others_their_time(tmp_path, monkeypatch, capsys):
    script = """
import json, sys, subprocess, time
part, out = sys.argv[1], sys.argv[sys.argv.index("--out") + 1]
if part == "warm":
    import atexit
    atexit.register(print, "gone", file=sys.stderr)
    raise ValueError("no [kernel] of that name")
if part == "profile":
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    open(out + "/other", "w").write(str(other.pid))
    time.sleep(60)
row = {"system": part, "quantity": "speed", "unit": "s", "values": [float(sys.argv[sys.argv.index("--seconds") + 1])]}
json.dump({"rows": [row], "where": {"device": "1 x card"}}, open(out + "/" + part + ".json", "w"))
"""
    folder = tmp_path / "experiments" / "benchmarks" / "gpu"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "parts.py").write_text(script)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "BUDGETS", {"cold": 30, "warm": 30, "profile": 1.5, "resident": 40, "streaming": 30})
    monkeypatch.setattr(gpu, "LEAST", 1)
    quiet, began = Console(quiet=True), time.monotonic()
    rows, where = gpu.measure(
        ["cold", "warm", "profile", "resident"], [], dict(os.environ), tmp_path, began + 38, quiet
    )
    assert where == {"device": "1 x card"}
    assert (rows[0].system, rows[0].values) == ("cold", [30])
    assert [(row.system, row.quantity, row.note) for row in rows[1:3]] == [
        ("warm", gpu.MISSING, "failed with 1: ValueError: no [kernel] of that name"),
        ("profile", gpu.MISSING, "it did not end within its 2 s"),
    ]
    assert 20 < rows[3].values[0] < 38  # what is left, not what it might have
    assert "Traceback" in capsys.readouterr().err
    other = int((tmp_path / "other").read_text())
    assert subprocess.run(["ps", "-o", "stat=", "-p", str(other)], capture_output=True, text=True).stdout[:1] in (
        "",
        "Z",
    )
    rows, where = gpu.measure(["streaming"], [], dict(os.environ), tmp_path, time.monotonic(), quiet)
    assert (rows, where) == ([Row("streaming", gpu.MISSING, "why", [], note="not started: 0 s were left")], {})


def test_the_command_installs_unpacks_measures_and_reports(tmp_path, monkeypatch, capsys):
    files = tmp_path / "files"
    (files / WHEEL_FOLDER).mkdir(parents=True)
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    (tmp_path / "data" / "cifar10" / "record").write_text("records")
    pack_records(tmp_path / "data", files)
    seen = {}

    def measure(parts, options, env, out, end, console):
        data_dir = Path(options[options.index("--data-dir") + 1])
        seen.update(parts=parts, options=options, path=env["PYTHONPATH"], cache=env["XDG_CACHE_HOME"])
        assert "JAX_COMPILATION_CACHE_DIR" not in env
        (out / "warm.json").write_text("rows")
        seen["record"] = (data_dir / "cifar10" / "record").read_text()
        return [Row("speed run", "time", "s", [2.0, 1.0]), Row("warm", gpu.MISSING, "why", [], note="no card")], {
            "device": "1 x card",
            "jax": "1.2",
        }

    installed = []
    monkeypatch.setattr(gpu, "install", lambda wheels, site: installed.append((wheels, site)))
    monkeypatch.setattr(gpu, "measure", measure)
    gpu.main(
        ["--files", str(files), "--out", str(tmp_path / "out"), "--parts", "warm", "profile", "--runs", "3", "--tiny"]
    )
    assert installed[0][0] == files / WHEEL_FOLDER
    assert seen["path"].startswith(str(installed[0][1]))
    assert (seen["parts"], seen["record"]) == (["warm", "profile"], "records")
    assert seen["options"][2:] == ["--runs", "3", "--tiny"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["gpu.json"]
    written = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert [row["summary"] for row in written] == [{"median": 1.5, "min": 1.0, "max": 2.0}, None]
    assert written[0]["settings"]["device"] == "1 x card"
    shown = capsys.readouterr().out
    for expected in ("device 1 x card, jax 1.2, on ", "tiny the numbers say nothing", "no card", "s in all"):
        assert expected in shown
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--files or --data-dir is needed" in capsys.readouterr().err


def test_the_wheels_are_installed_from_their_folder_alone(tmp_path):
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    wheels.mkdir()
    about = "toy-1.0.dist-info"
    with zipfile.ZipFile(wheels / "toy-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy.py", "")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\nRequires-Dist: not-here\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", f"toy.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")
    gpu.install(wheels, site)
    assert (site / "toy.py").is_file()
    (wheels / "toy-1.0-py3-none-any.whl").rename(wheels / "toy-1.0-cp27-none-any.whl")
    with pytest.raises(
        SystemExit, match=r"pip cannot install the wheels in .*, see above: pack them for this Python with .* 3\.\d+"
    ):
        gpu.install(wheels, site)


def test_the_budgets_fit_into_nine_minutes():
    assert [*gpu.BUDGETS] == [*gpu_parts.PARTS]
    assert gpu.WHOLE < 9 * 60 - 20
    with_spread = gpu_speedrun.with_mean(Row("speed run", "time", "s", [1.0, 2.0, 3.0], note="told"))
    assert with_spread.note == "mean 2, sd 1; told"
    assert Run(1.0, 0.5, 2.0, 3.0, 0.9, 0, "").timed == 1.5

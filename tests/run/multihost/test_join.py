"""The command as several processes with two devices each: the same numbers as one, and the same end for all."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from flaxcls.errors import InputError
from flaxcls.run.checkpoint_files import read_arrays, read_record, read_steps
from flaxcls.run.multihost.join import Distributed, joined, launcher
from tests.flags import xla_flags
from tests.slow import slow

EXPERIMENT = """
from flaxcls.config import *
CONFIG = Config(
    data=DataConfig(train_examples=320),
    augment=AugmentConfig(crop_padding=1),
    model=ModelConfig(widths=(4,), dense=(64,), norm="batch"),
    optim=OptimConfig(warmup_epochs=0.0, ema_decay=0.9, clip_norm=1.0),
    loop=LoopConfig(epochs=6, batch_size=64, log_every=1, eval_batch_size=96),  # 30 steps
    stop=StopConfig(),
)
"""
# These options take longest to compile, and each process but the first compiles again: only slow tests use them.
EVERYTHING = ("--augment.mixup", 0.2, "--optim.accumulate", 2)
HEARTBEAT = 10


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment") / "small.py"
    path.write_text(EXPERIMENT)
    return path


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start(count, *options, devices=2, each=lambda index: (), environment=lambda index: {}):
    """Starts the command as `count` processes."""
    place = f"localhost:{free_port()}"
    common = {
        **os.environ,
        "XLA_FLAGS": xla_flags(devices),
        "PYTHONPATH": str(Path.cwd()),
        "COLUMNS": "200",
    }
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "flaxcls.train", *map(str, options), *map(str, each(index))),
                *("--distributed.coordinator", place, "--distributed.num-processes", str(count)),
                *("--distributed.process-id", str(index), "--distributed.heartbeat", str(HEARTBEAT)),
            ],
            env={**common, **environment(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def finish(processes, timeout=180):
    """Returns the exit codes, and what each printed to stdout and stderr."""
    printed = [process.communicate(timeout=timeout) for process in processes]
    printed = [(re.sub(r"\[Gloo\].*\n", "", out), error) for out, error in printed]
    return [process.returncode for process in processes], printed


def lines(workdir):
    path = workdir / "metrics.jsonl"
    text = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in text if line.endswith("\n")]


def losses(workdir):
    return [line["loss"] for line in lines(workdir) if line["split"] == "train"]


def last_arrays(workdir):
    checkpoints = workdir / "checkpoints"
    step = read_steps(checkpoints)[-1]
    return read_arrays(checkpoints, step, read_record(checkpoints, step))


def result(workdir):
    return json.loads((workdir / "result.json").read_text())


def assert_same_training(workdir, other):
    """The devices' sums round in another order, 1e-7 of them; 2e-7 of the losses and of the arrays came of it."""
    assert losses(workdir) == pytest.approx(losses(other), rel=1e-5)
    ours, theirs = last_arrays(workdir), last_arrays(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)
    for split in ("test", "validation"):  # 359 and 143 examples, which no number of devices here divides
        assert result(workdir)[split]["accuracy"] == pytest.approx(result(other)[split]["accuracy"])
        assert result(workdir)[split]["loss"] == pytest.approx(result(other)[split]["loss"], rel=1e-5)


def wait_for_lines(workdir, count, processes):
    while len(lines(workdir)) < count:
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.05)


def train_as_one(experiment, workdir, *options):
    codes, printed = finish(start(1, experiment, "--workdir", workdir, *options, devices=4))
    assert codes == [0], printed
    return workdir


@pytest.fixture(scope="module")
def one_process(experiment, tmp_path_factory):
    return train_as_one(experiment, tmp_path_factory.mktemp("one") / "run")


@pytest.fixture(scope="module")
def one_process_of_everything(experiment, tmp_path_factory):
    return train_as_one(experiment, tmp_path_factory.mktemp("one") / "run", *EVERYTHING)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "fsdp"), [(2, 4), (2, 1), (4, 1)])
def test_several_processes_train_as_one(one_process_of_everything, experiment, tmp_path, count, fsdp):
    run = tmp_path / "run"
    codes, printed = finish(start(count, experiment, "--workdir", run, *EVERYTHING, "--mesh.fsdp", fsdp))
    assert codes == [0] * count, printed
    assert "run directory" in printed[0][0]
    assert [out for out, _ in printed[1:]] == [""] * (count - 1)
    assert_same_training(run, one_process_of_everything)


DAMAGED = """
import sys
from pathlib import Path
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from flaxcls.run.checkpoint import Checkpoints
from flaxcls.run.multihost.join import Distributed, joined
from flaxcls.run.multihost.sync import is_first, wait_for_all
from flaxcls.sharding import make_mesh, replicated
from flaxcls.state import TrainState

coordinator, index, place = sys.argv[1:]
checkpoints, values = Path(place) / "checkpoints", np.arange(8192.0, dtype=np.float32)

def put(values, sharding):
    return jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])

with joined(Distributed(coordinator, 2, int(index))):
    mesh = make_mesh(fsdp=2)
    params = {"kernel": put(values, NamedSharding(mesh, PartitionSpec("fsdp")))}
    state = TrainState(put(np.int32(0), replicated(mesh)), params, model_state={}, opt_state={}, ema=None)
    with Checkpoints(checkpoints) as saved:
        for step in (10, 20):
            saved.save(step, state, {}, best_step=None)
    wait_for_all("the checkpoints are written")
    if not is_first():
        parts = (checkpoints / "20" / "state" / "ocdbt.process_1").rglob("*")
        part = max(parts, key=lambda path: path.stat().st_size)
        part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    wait_for_all("one part is damaged")
    with Checkpoints(checkpoints) as saved:
        restored = saved.restore_newest(state, lambda record: None)
    (kernel,) = restored.state.params["kernel"].addressable_shards
    print(restored.step, np.array_equal(kernel.data, values[kernel.index]), restored.passed_over[20])
"""


@pytest.mark.slow
def test_what_one_process_alone_cannot_read_is_passed_over_by_all(tmp_path):
    place, environment = f"localhost:{free_port()}", {**os.environ, "XLA_FLAGS": xla_flags(1)}
    command, options = [sys.executable, "-c", DAMAGED, place], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [
        subprocess.Popen([*command, str(index), str(tmp_path)], env=environment, text=True, **options)
        for index in range(2)
    ]
    codes, printed = finish(processes)
    assert codes == [0, 0], printed
    assert printed[0][0].startswith("10 True process 1 could not read its part of step 20: ")
    assert printed[1][0].startswith("10 True ")
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["20"]


@pytest.mark.slow
def test_a_run_goes_on_from_before_what_one_process_alone_cannot_read(stopped, tmp_path):
    whole, run = stopped(0), tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "result.json").unlink()
    *_, before, newest = read_steps(run / "checkpoints")
    parts = (run / "checkpoints" / str(newest) / "state" / "ocdbt.process_1").rglob("*")
    part = max(parts, key=lambda path: path.stat().st_size)
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    codes, printed = finish(start(2, "--workdir", run, "--resume"))
    assert codes == [0, 0], printed
    assert f"the checkpoint of step {newest} is damaged and was set aside" in printed[0][0]
    assert f"process 1 could not read its part of step {newest}: " in printed[0][0]
    assert "process 0 could not" not in printed[0][0]
    assert f"continuing after step {before}" in printed[0][0]
    assert [path.name for path in (run / "damaged").iterdir()] == [str(newest)]
    assert losses(run) == losses(whole)
    assert (result(run)["fingerprint"], result(run)["test"]) == (result(whole)["fingerprint"], result(whole)["test"])


@pytest.fixture(scope="module")
def stopped(experiment, tmp_path_factory):
    """Returns the run of two processes that share the parameters; SIGTERM to one stopped it, and it was resumed."""
    runs = {}

    def stop(signalled):
        if signalled not in runs:
            run = tmp_path_factory.mktemp("stopped") / "run"
            processes = start(2, experiment, "--workdir", run, "--mesh.fsdp", 4)
            wait_for_lines(run, 5, processes)
            processes[signalled].send_signal(signal.SIGTERM)
            codes, printed = finish(processes)
            assert codes == [143, 143], printed
            assert "run directory" in printed[0][0]
            assert "run directory" not in printed[1][0]  # one of them speaks for both
            assert not (run / "result.json").exists()
            codes, printed = finish(start(2, "--workdir", run, "--resume"))
            assert codes == [0, 0], printed
            runs[signalled] = run
        return runs[signalled]

    return stop


@pytest.mark.parametrize("signalled", [0, slow(1)])
def test_sigterm_to_one_stops_all_at_one_step_and_they_train_on_as_one(one_process, stopped, signalled):
    assert_same_training(stopped(signalled), one_process)


@pytest.mark.parametrize(("killed", "fsdp", "then", "devices"), [(0, 4, 1, 4), slow(1, 1, 4, 2)])
def test_when_one_is_killed_the_others_end_and_another_number_goes_on(
    one_process, experiment, tmp_path, killed, fsdp, then, devices
):
    """The parameters are shared by 4 devices and then whole on each, so that both programs are compiled already."""
    run = tmp_path / "run"
    processes = start(2, experiment, "--workdir", run, "--mesh.fsdp", fsdp)
    wait_for_lines(run, 12, processes)
    processes[killed].kill()
    began = time.monotonic()
    codes, printed = finish(processes, timeout=HEARTBEAT + 30)
    assert time.monotonic() - began < HEARTBEAT + 15
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] not in (0, -signal.SIGKILL)
    assert "died" in printed[1 - killed][1]  # as JAX's service says, or we
    codes, printed = finish(start(then, "--workdir", run, "--resume", "--mesh.fsdp", 1, devices=devices))
    assert codes == [0] * then, printed
    assert_same_training(run, one_process)


@pytest.mark.slow
def test_other_options_on_one_host_are_an_error(experiment, tmp_path):
    codes, printed = finish(start(2, experiment, "--workdir", tmp_path / "run", each=lambda index: ("--seed", index)))
    assert codes == [2, 2], printed
    assert all("process 1 was given other options than process 0" in error for _, error in printed)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_error_of_one_ends_all_with_its_message_and_code(tmp_path):
    """The others are in the midst of training, and wait for its gradients."""
    experiment, run = tmp_path / "small.py", tmp_path / "run"
    experiment.write_text(
        """
import os
from flaxcls.config import *
CONFIG = Config(
    data=DataConfig(train_examples=320),
    augment=AugmentConfig(crop_padding=0),
    model=ModelConfig(widths=(4,), dense=()),
    loop=LoopConfig(epochs=6, batch_size=48, log_every=1),
)
from flaxcls.data.batches import BatchMaker
made = BatchMaker.__call__
def breaks(self, step):
    if step == 12 and os.environ["BREAKS"] == "1":
        from flaxcls.errors import StorageError
        raise StorageError("the disk of this host is gone.")
    return made(self, step)
BatchMaker.__call__ = breaks
"""
    )
    began = time.monotonic()
    codes, printed = finish(start(3, experiment, "--workdir", run, environment=lambda i: {"BREAKS": str(i)}))
    assert codes == [4, 4, 4], printed
    assert time.monotonic() - began < 90
    assert "process 1: error: the disk of this host is gone." in printed[0][1]
    assert "process 1: error: the disk of this host is gone." in printed[1][1]
    assert len(losses(run)) <= 12


@pytest.mark.slow
@pytest.mark.parametrize(("count", "came"), [(2, "0"), (3, "0, 1")])
def test_who_has_not_come_in_time_is_named_with_the_command(experiment, tmp_path, count, came):
    processes = start(count, experiment, "--workdir", tmp_path / "run", "--distributed.timeout", 4 * count - 4)
    processes[-1].kill()
    codes, printed = finish(processes)
    assert codes[:-1] == [2] * (count - 1), printed
    expected = rf"{count} processes were expected at localhost:\d+ within {4 * count - 4} s, "
    expected += rf"but some are missing: {count - 1}; connected: {came}\."
    for _, error in printed[:-1]:
        assert re.search(expected, error)
        assert re.search(rf"--distributed.coordinator localhost:\d+ --distributed.num-processes {count}", error)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Distributed(coordinator="host0:1"), "give all three, or none"),
        (Distributed(num_processes=2, process_id=0), "give all three, or none"),
        (Distributed("host0", 2, 0), r"'host0', but must be an address and a port"),
        (Distributed("host0:70000", 2, 0), r"'host0:70000', but must be an address and a port"),
        (Distributed("host0:1", 2, 2), "process_id is 2 of 2 processes, but they are numbered from 0 to 1"),
        (Distributed(timeout=0), r"distributed.timeout is 0, but must be 1 or more"),
        (Distributed(heartbeat=-1), r"distributed.heartbeat is -1, but must be 1 or more"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(InputError, match=message), joined(options):
        pass


SLURM = {"SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "node[1-2]"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({**SLURM, "SLURM_NTASKS": "2"}, "Slurm"),
        ({**SLURM, "SLURM_NTASKS": "1"}, None),
        ({"SLURM_NTASKS": "2"}, None),  # an allocation's shell, outside of srun
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, None),  # the script of a batch job
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, "Slurm"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}, "Slurm"),
        ({**SLURM, "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, None),  # a shell in an allocation
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
    ],
)
def test_what_started_the_processes_is_told_by_the_environment(monkeypatch, variables, expected):
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "JOB_")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launcher() == expected


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"},
            "Slurm has started .* would train alone; not set: SLURM_JOB_ID, SLURM_STEP_NODELIST, SLURM_LOCALID.",
        ),
        (
            {**SLURM, "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"},
            r"not set: SLURM_LOCALID\.[\s\S]*give --distributed.num-processes 1",
        ),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
            r"Open MPI .*: OMPI_COMM_WORLD_LOCAL_RANK\.",
        ),
    ],
)
def test_half_of_a_launchers_variables_is_an_error_rather_than_many_runs_of_one(monkeypatch, variables, message):
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "JOB_")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message), joined(Distributed()):
        pass
    with joined(Distributed(num_processes=1)):
        pass


def test_kubernetes_without_its_client_is_an_error_rather_than_many_runs_of_one(monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    with (
        pytest.raises(InputError, match=r"pip install kubernetes, or give --distributed\.coordinator"),
        joined(Distributed()),
    ):
        pass
    with joined(Distributed(num_processes=1)):
        pass

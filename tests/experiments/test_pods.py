"""The launch files, with stand-ins for what a cluster has."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from experiments.soak.outcome import differences, outcome
from flaxcls.train import parse
from tests.flags import xla_flags

PODS = Path(__file__).parents[2] / "experiments" / "pods"
SLURM = PODS / "slurm" / "train.sh"

# As srun: a task is the command with Slurm's variables, SIGTERM goes to all tasks, the code is the largest.
SRUN = """#!{python}
import os, signal, subprocess, sys
count = int(os.environ["SLURM_NTASKS"])
command = [word for word in sys.argv[1:] if not word.startswith("--kill-on-bad-exit")]
step = {{"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1"}}
tasks = [
    subprocess.Popen(command, env={{**os.environ, **step, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}})
    for i in range(count)
]
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
sys.exit(max(task.wait() % 256 for task in tasks))
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "$REQUEUED"
"""
SQUEUE = """#!/bin/sh
echo "${STATE:-RUNNING}"
"""
OPTIONS = (
    *("--data.train-examples", "320", "--loop.epochs", "6", "--loop.batch-size", "32", "--loop.log-every", "1"),
    *("--model.widths", "4", "--model.dense", "8"),
)


@pytest.fixture
def slurm(tmp_path):
    """Returns what starts the script as Slurm does a job of two tasks; that runs in a process group of its own."""
    place = tmp_path / "bin"
    place.mkdir()
    stand_ins = {"srun": SRUN.format(python=sys.executable), "scontrol": SCONTROL, "squeue": SQUEUE}
    for name, text in stand_ins.items():
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{place}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(Path.cwd()),
        "XLA_FLAGS": xla_flags(2),
        "REQUEUED": str(tmp_path / "requeued"),
        "SLURM_JOB_ID": str(random.randrange(10**6)),  # which decides the port
        "SLURM_NTASKS": "2",
    }

    def start(workdir):
        return subprocess.Popen(
            ["bash", SLURM, *OPTIONS, "--workdir", workdir],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


def lines(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.slow
def test_a_job_of_slurm_that_is_preempted_is_queued_again_and_goes_on(slurm, tmp_path):
    whole = slurm(tmp_path / "whole")
    printed = whole.communicate(timeout=180)[0]
    assert whole.returncode == 0, printed
    assert not (tmp_path / "requeued").exists()

    job = slurm(tmp_path / "run")
    while lines(tmp_path / "run") < 10:
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    tasks = subprocess.run(["pgrep", "-s", str(job.pid), "-f", "srun"], capture_output=True, text=True, check=True)
    os.kill(int(tasks.stdout.split()[0]), signal.SIGTERM)  # --signal without B: goes to the steps alone
    printed = job.communicate(timeout=180)[0]
    assert job.returncode == 143, printed
    assert (tmp_path / "requeued").read_text().startswith("requeue ")
    assert "is queued again" in printed

    again = slurm(tmp_path / "run")
    printed = again.communicate(timeout=180)[0]
    assert again.returncode == 0, printed
    assert "continuing after step" in printed
    assert differences(outcome(tmp_path / "whole"), outcome(tmp_path / "run")) == []
    assert json.loads((tmp_path / "run" / "result.json").read_text())["device"] == "4 x cpu"


@pytest.fixture
def jobset():
    return yaml.safe_load((PODS / "kubernetes" / "jobset.yaml").read_text())


def job_of(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated, {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **replicated["template"]}


def test_the_job_of_the_jobset_is_one_of_kubernetes(jobset):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(jobset["spec"]) == {"failurePolicy", "replicatedJobs"}
    assert set(jobset["spec"]["failurePolicy"]) == {"maxRestarts"}
    replicated, job = job_of(jobset)
    assert set(replicated) == {"name", "replicas", "template"}
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    job["spec"]["template"]["spec"]["containers"][0]["portz"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


def test_the_command_of_the_jobset_is_one_of_flaxcls_and_its_numbers_agree(jobset):
    replicated, job = job_of(jobset)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["env"][0]["name"] == "PROCESS_ID"
    args = [arg.replace("$(PROCESS_ID)", "3") for arg in container["args"]]
    command = parse(args)
    name = jobset["metadata"]["name"]
    found = command.distributed
    assert found.coordinator == f"{name}-{replicated['name']}-0-0.{name}:{container['ports'][0]['containerPort']}"
    assert found.num_processes == job["spec"]["parallelism"] == job["spec"]["completions"]
    assert found.process_id == 3
    assert command.resume == "no"  # auto, and there is no run


def test_the_image_has_all_that_the_package_is_built_of():
    text = (PODS / "kubernetes" / "Containerfile").read_text()
    copied = [word for line in text.splitlines() if line.startswith("COPY") for word in line.split()[1:-1]]
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "flaxcls", "experiments"} == set(copied)
    assert all((PODS.parent.parent / name).exists() for name in copied)


def test_all_hosts_of_a_tpu_get_one_command_with_its_options_as_they_were(tmp_path):
    (tmp_path / "gcloud").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "gcloud").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TPU": "mine", "ZONE": "there"}
    script = [PODS / "tpu" / "train.sh", "my experiment.py", "--optim.freeze", "Conv_*", "3"]
    words = subprocess.run(script, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()
    assert " ".join(words[:-1]) == "compute tpus tpu-vm ssh mine --zone there --worker=all --command"
    remote = words[-1].removeprefix("cd ~/flaxcls && .venv/bin/python -m ")
    echoed = subprocess.run(["bash", "-c", f'printf "%s\\n" {remote}'], check=True, capture_output=True, text=True)
    assert echoed.stdout.splitlines() == ["flaxcls.train", *script[1:], "--resume", "auto"]
    failed = subprocess.run(script, env={**environment, "TPU": ""}, check=False, capture_output=True, text=True)
    assert failed.returncode != 0
    assert "the name of the TPU VM" in failed.stderr

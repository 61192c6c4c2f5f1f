"""Images of several sizes in a run: the same bits whoever makes the batches, and whatever comes in between."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flaxcls.config import AugmentConfig, DataConfig
from flaxcls.data import load_dataset
from flaxcls.data.images import Images
from flaxcls.data.stored import Files
from flaxcls.data.stream import batch_indices
from flaxcls.errors import WorkerError
from flaxcls.run import fit
from flaxcls.run.loader import feed
from flaxcls.run.setup import make_setup
from tests.conftest import make_stripes
from tests.data.test_folder import save_all, stripes_of_sizes
from tests.slow import slow

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("data") / "stripes"
    save_all(place, *stripes_of_sizes(150))
    return place


def config_of(plain_config, folder, **options):
    data = DataConfig(source="folder", dir=str(folder), image_size=16, **options)
    return replace(plain_config, data=data, augment=AugmentConfig())


@pytest.mark.parametrize(("options", "steps"), [({"memory": 0.0, "workers": 2}, 2), slow({"memory": 0.0}, 1), ({}, 3)])
def test_batches_are_those_of_the_setup(plain_config, folder, options, steps):
    config = config_of(plain_config, folder, **options)
    config = replace(config, loop=replace(config.loop, steps_per_dispatch=steps))
    config = replace(config, augment=AugmentConfig(alternating_flip=True))
    setup = make_setup(config, load_dataset(config.data), None, None)
    start = 2 * steps
    with feed(setup.loader, setup.plan, start) as batches:
        while start < setup.plan.total_steps:
            end = setup.plan.dispatch_end(start)
            found, expected = batches(start, end), setup.loader.load(start, end)
            assert found.keys() == expected.keys() == {"image", "label", "mirrored"}
            for name in expected:
                np.testing.assert_array_equal(found[name], expected[name])
                assert found[name].sharding == expected[name].sharding
            start = end


@pytest.mark.slow
@pytest.mark.parametrize("augment", [slow(AugmentConfig()), AugmentConfig(resized_crop=0.5, crop_padding=0)])
def test_images_of_one_size_give_the_same_bits_from_memory_and_from_files(small_config, quiet, tmp_path, augment):
    images, labels = make_stripes(150)
    save_all(tmp_path / "data", images[..., 0], labels)
    found = set()
    for memory in (1.0, 0.0):
        data = DataConfig(source="folder", dir=str(tmp_path / "data"), color="grey", memory=memory, workers=0)
        config = replace(small_config, data=data, augment=augment)
        result = fit(config, workdir=tmp_path / str(memory), console=quiet)
        found.add((result.fingerprint, result.test["loss"]))
    assert len(found) == 1


def test_a_run_that_is_interrupted_while_workers_read_goes_on_to_the_same_bits(plain_config, folder, quiet, tmp_path):
    """SIGINT goes to the whole group of processes, as from a terminal."""
    config = replace(config_of(plain_config, folder), augment=AugmentConfig(crop_padding=0))
    whole = fit(config, workdir=tmp_path / "whole", console=quiet)
    options = ["--data.source", "folder", "--data.dir", folder, "--data.image-size", "16", "--data.memory", "0"]
    options += ["--data.workers", "2", "--loop.epochs", "3", "--loop.batch-size", "32", "--loop.log-every", "2"]
    options += ["--model.widths", "4", "--model.dense", "--optim.learning-rate", "1e-2", "--stop.skip", "0"]
    options += ["--optim.warmup-epochs", "0", "--optim.ema-decay", "None", "--augment.crop-padding", "0"]
    command = [sys.executable, "-m", "flaxcls.train", "--workdir", tmp_path / "run"]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    start = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([*command, *options], **start, start_new_session=True)
    said = ""
    for line in process.stdout:
        said += line
        if "step      2/" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    said += process.communicate(timeout=120)[0]
    assert process.returncode == 130, said
    assert "--resume goes on from the latest checkpoint" in said
    assert "Traceback" not in said
    resumed = subprocess.run([*command, "--resume"], **start, check=False)
    assert resumed.returncode == 0, resumed.stdout
    assert "leaked" not in resumed.stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["fingerprint"] == whole.fingerprint


class Fatal(Files):
    """Files of which one kills the worker that reads it a second time, as the system does if memory runs out."""

    def __init__(self, paths, fatal, reads, main):
        super().__init__(paths)
        self.fatal, self.reads, self.main = fatal, reads, main

    def take(self, indices):
        return Fatal([self._paths[index] for index in indices], self.fatal, self.reads, self.main)

    def __getitem__(self, index):
        if os.getpid() != self.main and self._paths[index] == self.fatal:
            with self.reads.open("a") as file:
                file.write("read\n")
            if len(self.reads.read_text().splitlines()) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_says_so_and_goes_on_to_the_same_bits(plain_config, folder, quiet, tmp_path):
    config = config_of(plain_config, folder, memory=0.0, workers=1, color="grey")
    dataset = load_dataset(config.data)
    whole = fit(config, dataset=dataset, workdir=tmp_path / "whole", console=quiet)
    paths = [folder / name for name in dataset.train.ids]
    # the second epoch reads this one some steps after the checkpoint of the first
    step = 2 * len(paths) // config.loop.batch_size - 1
    late = batch_indices(config.seed, step, count=len(paths), batch_size=config.loop.batch_size)[-1]
    stored = Fatal(paths, paths[late], tmp_path / "reads", os.getpid())
    train = dataset.train._replace(images=Images(stored, dataset.train.images.preparation))
    fatal = {"dataset": replace(dataset, train=train), "workdir": tmp_path / "run", "console": quiet}
    with pytest.raises(
        WorkerError, match=r"killed: most likely, the memory ran out.* --resume goes on from the newest"
    ):
        fit(config, **fatal)
    assert fit(config, **fatal, resume=True).fingerprint == whole.fingerprint


SCRIPT = """
import sys
from flaxcls.config import *
from flaxcls.run import fit

data = DataConfig(source="folder", dir=sys.argv[1], image_size=16, memory=0.0, workers=1)
config = Config(data=data, model=ModelConfig(widths=(4,), dense=()), loop=LoopConfig(epochs=1, batch_size=32))
result = fit(config, workdir=sys.argv[2])
print("steps", result.steps)
"""


def test_a_script_needs_no_guard(folder, tmp_path):
    """Workers do not import the main program, which would start the run again in each of them."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "script.py", folder, tmp_path / "run"]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("steps 4\n") == 1, done.stdout
    assert "resume" not in done.stdout

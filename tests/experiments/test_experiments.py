"""The experiments, where the real CIFAR-10 is there (FLAXCLS_TFDS_DIR), and without it what can be said of them."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from flaxcls.cli import load_experiment
from flaxcls.config import Config
from flaxcls.data import load_dataset
from flaxcls.data.dataset import Split
from flaxcls.data.decode import read_head, read_picture
from flaxcls.data.images import Images
from flaxcls.data.preparation import Preparation
from flaxcls.data.resize import resize
from flaxcls.data.stored import Files
from flaxcls.errors import InputError
from flaxcls.losses import l2
from flaxcls.models import build_model
from flaxcls.models.summary import count
from flaxcls.optim import make_schedule
from flaxcls.run.plan import make_plan
from flaxcls.train import main
from flaxcls.validation import validate

FILES = sorted((Path(__file__).parents[2] / "experiments").glob("*.py"))
EXPERIMENTS = [path for path in FILES if "\nCONFIG = " in path.read_text()]
needs_cifar10 = pytest.mark.skipif("FLAXCLS_TFDS_DIR" not in os.environ, reason="FLAXCLS_TFDS_DIR names no data")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_docstring_gives_command_hardware_time_and_accuracy(path):
    text = path.read_text().split('"""')[1]
    for heading in ("Command:", "Hardware:", "Time:", "Accuracy:"):
        assert heading in text
    assert "to be measured" not in text


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_its_configuration_is_valid_and_its_command_names_it(path):
    assert f"python -m flaxcls.train experiments/{path.name}" in path.read_text()
    validate(load_experiment(path))


@pytest.mark.slow
def test_the_ablation_chooses_on_validation_and_runs_nothing_twice(tmp_path, monkeypatch):
    from experiments import ablation

    small = {"model": {"widths": (4,), "dense": (8,)}, "loop": {"epochs": 1}, "stop": {"skip": 0.0}}
    plain = ablation.change(**small)(Config())
    rows = {
        "none": {"": lambda config: config},
        "more data": {"": ablation.change(loop={"epochs": 2})},
        "rate": {f"{rate:g}": ablation.change(optim={"learning_rate": rate}) for rate in (1e-6, 2e-2)},
    }
    table = ablation.study(plain, rows, tmp_path, seeds=2)
    assert [row["row"] for row in table] == ["none", "more data", "rate", "together"]
    none, more, rate, together = table
    assert rate["candidate"] == "0.02"
    assert rate["candidates"]["0.02"] > rate["candidates"]["1e-06"]
    assert together["candidate"] == "rate"  # more data is not combined
    assert [run["test"] for run in together["runs"]] == [run["test"] for run in rate["runs"]]
    assert (none["runs"][0]["steps"], more["runs"][0]["steps"]) == (21, 41)  # of 64: one epoch, and two
    assert {path.name for path in (tmp_path / "rate-0.02").iterdir()} == {"seed-0", "seed-1"}
    assert {path.name for path in (tmp_path / "rate-1e-06").iterdir()} == {"seed-0"}
    monkeypatch.setattr(ablation, "fit", None)  # all is there
    assert ablation.study(plain, rows, tmp_path, seeds=2) == table
    assert "| rate | 0.02 |" in ablation.line(rate, none)


def test_every_candidate_of_the_ablation_is_valid_and_its_network_the_tutorials():
    from experiments import ablation

    for candidates in ablation.ROWS.values():
        for apply in candidates.values():
            validate(apply(ablation.PLAIN))


@pytest.mark.parametrize("name", ["cifar10_cnn", "cifar10_cnn_regularised"])
def test_the_network_has_the_tutorials_122570_parameters(name):
    config = load_experiment(EXPERIMENTS[0].parent / f"{name}.py")
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    init = lambda x: build_model(config.model, 10).init(jax.random.key(0), x, train=False)  # noqa: E731
    assert count(jax.eval_shape(init, images)["params"]) == 122_570


@pytest.mark.slow
def test_the_stand_in_has_the_form_of_imagenet_and_goes_the_way_of_its_command(tmp_path):
    from experiments.imagenet_standin import CLASSES, write

    folder = write(tmp_path, train=24, validation=8)
    assert folder == tmp_path / "imagenet2012" / "5.1.0"
    builder = tfds.builder_from_directory(folder)
    names, source = builder.info.features["label"].names, builder.as_data_source("train")
    assert len(names) == 1000
    assert {names[example["label"]] for example in source} == set(CLASSES)
    assert all(example["file_name"].decode().startswith(names[example["label"]]) for example in source)
    assert {example["image"].shape[-1] for example in source} == {3}
    assert len({example["image"].shape for example in source}) > 10
    with pytest.raises(InputError, match="is there already"):
        write(tmp_path)

    # with a network that compiles in seconds; all else is as for ImageNet, which is read from the records too
    options = {
        "data.dir": tmp_path, "data.image-size": 32, "data.validation-fraction": 0.25, "data.memory": 0.0,
        "data.workers": 0, "model.name": "cnn", "model.widths": 8, "loop.batch-size": 8, "loop.eval-batch-size": 8,
        "loop.epochs": 1, "optim.warmup-epochs": 0.5, "workdir": tmp_path / "run",
    }  # fmt: skip
    arguments = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    assert main([str(EXPERIMENTS[0].parent / "imagenet_resnet50.py"), *arguments]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 2
    assert 0 < result["test"]["loss"] < 100
    assert result["test"]["accuracy"] * 8 == int(result["test"]["accuracy"] * 8)  # of all eight images


def test_the_imagenet_recipe_has_the_papers_rates_and_its_decay_is_that_of_kernels_alone():
    config = load_experiment(EXPERIMENTS[0].parent / "imagenet_resnet50.py")
    plan = make_plan(config.loop, examples=1_268_167, warmup_epochs=config.optim.warmup_epochs)
    schedule = make_schedule(config.optim, total_steps=plan.total_steps, warmup_steps=plan.warmup_steps)
    epochs = [0, 2.5, 5, 47.5, 90]
    rates = [float(schedule(round(epoch * plan.examples / plan.batch_size))) for epoch in epochs]
    np.testing.assert_allclose(rates, [0, 0.2, 0.4, 0.2, 0], atol=1e-4)
    params = {"Conv_0": {"kernel": jnp.full((3, 3, 2, 4), 2.0)}, "BatchNorm_0": {"scale": jnp.ones(4)}}
    decay = jax.grad(lambda params: config.loss.l2 * l2(params))(params)  # with the gradient, so through the momentum
    np.testing.assert_allclose(decay["Conv_0"]["kernel"], 2e-4, rtol=1e-6)
    np.testing.assert_array_equal(decay["BatchNorm_0"]["scale"], 0)
    assert config.optim.weight_decay == 0


@pytest.mark.slow
@needs_cifar10
def test_real_cifar10_is_read_and_trained_on(tmp_path):
    config = load_experiment(EXPERIMENTS[0].parent / "cifar10_cnn.py")
    data = replace(config.data, dir=os.environ["FLAXCLS_TFDS_DIR"])
    dataset = load_dataset(data)
    assert [len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)] == [45000, 5000, 10000]
    assert dataset.class_names[:3] == ("airplane", "automobile", "bird")

    command = [sys.executable, "-m", "flaxcls.train", EXPERIMENTS[0].parent / "cifar10_cnn.py", "--data.dir", data.dir]
    options = ["--data.train-examples", "6400", "--loop.epochs", "2", "--workdir", tmp_path / "run"]
    subprocess.run([*command, *options], env={**os.environ, "XLA_FLAGS": ""}, check=True, capture_output=True)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (
        result["test"]["accuracy"] > 0.35
    )  # a tenth is chance; two epochs of a seventh of the data come to about 0.45


def test_the_benchmark_of_streaming_tells_its_peer_the_parts_that_are_made_of_its_photographs(tmp_path):
    from experiments.benchmarks import streaming

    for name in ("photos", "again"):
        streaming.save_photos(tmp_path / name, 8)
    paths, again = (sorted((tmp_path / name).rglob("*.jpg")) for name in ("photos", "again"))
    assert [path.parent.name for path in paths] == ["china"] * 4 + ["flower"] * 4
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    assert {read_head(path, "").size for path in paths} == {(375, 500), (500, 375)}
    split = Split(Images(Files(paths), Preparation(streaming.SIZE, 3)), np.arange(8, dtype=np.int32))
    batch = streaming.batch_maker(split, 0.08)(1)
    stream = streaming.draw_stream(split, paths, 0.08, 2 * streaming.BATCH)
    assert stream["labels"][streaming.BATCH :] == batch["label"].tolist()
    for number in (0, 33):
        path, (top, left, height, width) = (stream[name][streaming.BATCH + number] for name in ("paths", "boxes"))
        part = read_picture(Path(path)).pixels[top : top + height, left : left + width]
        np.testing.assert_array_equal(batch["image"][number], resize(part, streaming.SIZE))


def test_the_interval_of_a_mean_is_students(capsys):
    from experiments import digits_seeds

    low, high = digits_seeds.mean_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), rel=1e-5)  # sd 1, t of 2 degrees
    with pytest.raises(SystemExit, match="seeds is 1, but must be 2 or more"):
        digits_seeds.main(1)

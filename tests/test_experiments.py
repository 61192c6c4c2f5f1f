"""The experiments, where the real CIFAR-10 is there (FLAXCLS_TFDS_DIR), and without it what can be said of them."""

import os
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from flaxcls.cli import load_experiment
from flaxcls.data import load_dataset
from flaxcls.models import build_model
from flaxcls.models.summary import count
from flaxcls.run import fit
from flaxcls.validation import validate

EXPERIMENTS = sorted((Path(__file__).parent.parent / "experiments").glob("*.py"))
needs_cifar10 = pytest.mark.skipif("FLAXCLS_TFDS_DIR" not in os.environ, reason="FLAXCLS_TFDS_DIR names no data")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_its_docstring_gives_command_hardware_time_and_accuracy(path):
    text = path.read_text().split('"""')[1]
    for heading in ("Command:", "Hardware:", "Time:", "Accuracy:"):
        assert heading in text
    assert "to be measured" not in text
    assert f"python -m flaxcls.train experiments/{path.name}" in text
    validate(load_experiment(path))


@pytest.mark.parametrize("name", ["cifar10_cnn", "cifar10_cnn_regularised"])
def test_the_network_has_the_tutorials_122570_parameters(name):
    config = load_experiment(EXPERIMENTS[0].parent / f"{name}.py")
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    init = lambda x: build_model(config.model, 10).init(jax.random.key(0), x, train=False)  # noqa: E731
    assert count(jax.eval_shape(init, images)["params"]) == 122_570


@needs_cifar10
def test_real_cifar10_is_read_and_trained_on(tmp_path, quiet):
    config = load_experiment(EXPERIMENTS[0].parent / "cifar10_cnn.py")
    data = replace(config.data, dir=os.environ["FLAXCLS_TFDS_DIR"])
    dataset = load_dataset(data)
    assert [len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)] == [45000, 5000, 10000]
    assert dataset.class_names[:3] == ("airplane", "automobile", "bird")
    part = replace(dataset, train=dataset.train.take(range(6400)), validation=dataset.validation.take(range(1000)))
    config = replace(config, data=data, loop=replace(config.loop, epochs=2))
    result = fit(config, dataset=part, workdir=tmp_path / "run", console=quiet)
    assert result.test["accuracy"] > 0.35  # a tenth is chance; two epochs of a seventh of the data come to about 0.45

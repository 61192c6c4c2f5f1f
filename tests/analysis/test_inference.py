import dataclasses
import shutil

import numpy as np
import pytest

from flaxcls.analysis import load_run
from flaxcls.analysis.evaluation import evaluate_run
from flaxcls.analysis.inference import calibrated
from flaxcls.analysis.own_data import load_validation_split
from flaxcls.config import Config, LoopConfig, ModelConfig, OptimConfig, StopConfig
from flaxcls.data import load_dataset
from flaxcls.errors import InputError
from flaxcls.run import fit
from tests.conftest import make_stripes

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run on the digits, too short to be sure of itself."""
    from rich.console import Console

    config = Config(
        model=ModelConfig(widths=(4,), dense=(8,), norm="batch"),
        optim=OptimConfig(learning_rate=1e-2, warmup_epochs=0.0),
        loop=LoopConfig(epochs=3, batch_size=64),
        stop=StopConfig(),
    )
    return fit(config, workdir=tmp_path_factory.mktemp("digits") / "run", console=Console(quiet=True)).workdir


def log_loss(classifier, split):
    probabilities = classifier.predict(split.images).probabilities
    return -np.log(probabilities[np.arange(len(split.labels)), split.labels]).mean()


def test_the_temperature_is_fitted_on_the_validation_split_and_kept(digits, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(digits, run)
    plain = load_run(run)
    fitted, reason = calibrated(run, plain)
    assert reason is None
    assert load_run(run).temperature == fitted.temperature
    split = load_dataset(plain.config.data).validation
    best = log_loss(fitted, split)
    assert best < log_loss(plain, split)
    for factor in (0.9, 1.1):
        assert best < log_loss(dataclasses.replace(plain, temperature=fitted.temperature * factor), split)


def test_a_temperature_that_is_there_is_not_fitted_again(digits):
    classifier = dataclasses.replace(load_run(digits), temperature=3.0)
    assert calibrated(digits, classifier) == (classifier, None)


def test_a_run_that_cannot_be_written_to_is_fitted_all_the_same(digits, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(digits, run)
    (run / "calibration.json").mkdir()
    assert calibrated(run, load_run(run))[0].temperature is not None


def test_data_that_the_run_did_not_see_calibrates_nothing(small_config, quiet, tmp_path):
    from flaxcls.data import from_arrays

    images, labels = make_stripes(150)
    result = fit(small_config, dataset=from_arrays(images, labels), workdir=tmp_path / "run", console=quiet)
    classifier = load_run(result.workdir)
    with pytest.raises(InputError, match="trained on arrays, which fit was given in Python, so its validation"):
        load_validation_split(result.workdir, classifier)
    same, reason = calibrated(result.workdir, classifier)
    assert same.temperature is None
    assert "evaluate_run(RUN, dataset=...)` in Python once: it fits a temperature" in reason
    evaluate_run(result.workdir, dataset=from_arrays(images, labels))
    assert calibrated(result.workdir, load_run(result.workdir))[1] is None


def test_the_sizes_of_the_splits_must_be_the_runs(digits):
    classifier = load_run(digits)
    other = dataclasses.replace(
        classifier,
        config=dataclasses.replace(
            classifier.config, data=dataclasses.replace(classifier.config.data, validation_fraction=0.2)
        ),
    )
    with pytest.raises(InputError, match="examples"):
        load_validation_split(digits, other)

import dataclasses
import json
import shutil

import numpy as np
import pytest
from flax import linen as nn
from rich.console import Console

from flaxcls.analysis import load_run
from flaxcls.analysis.loading import keep_temperature
from flaxcls.config import AugmentConfig, Config, LoopConfig, ModelConfig
from flaxcls.data import from_arrays
from flaxcls.errors import InputError
from flaxcls.models import CNN
from flaxcls.run import fit
from tests.conftest import make_stripes

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    images, labels = make_stripes(100)
    dataset = from_arrays(images, labels, class_names=("rows", "columns", "none"), name="stripes")
    config = Config(model=ModelConfig(widths=(4,), dense=()), loop=LoopConfig(epochs=1, batch_size=32))
    workdir = tmp_path_factory.mktemp("trained") / "run"
    return fit(config, dataset=dataset, workdir=workdir, console=Console(quiet=True)), dataset


def test_a_temperature_is_kept_for_the_parameters_it_was_fitted_to(trained):
    result, dataset = trained
    classifier = load_run(result.workdir)
    assert classifier.temperature is None
    try:
        kept = keep_temperature(result.workdir, classifier, 2.0)
        again = load_run(result.workdir)
        assert kept.temperature == again.temperature == 2.0
        images = dataset.test.images[:4]
        np.testing.assert_array_equal(again.predict(images).labels, classifier.predict(images).labels)
        assert again.predict(images).probabilities.max() < classifier.predict(images).probabilities.max()
        path = result.workdir / "calibration.json"
        path.write_text(path.read_text().replace('"sha256": "', '"sha256": "x'))
        assert load_run(result.workdir).temperature is None
    finally:
        (result.workdir / "calibration.json").unlink()


def test_a_module_of_ones_own(stripes, small_config, quiet, tmp_path):
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            return nn.Dense(3)(images.reshape(len(images), -1))

    config = dataclasses.replace(small_config, augment=AugmentConfig(crop_padding=0))
    result = fit(config, dataset=stripes, model=Linear(), workdir=tmp_path / "run", console=quiet)
    accuracy = (
        load_run(result.workdir, model=Linear()).predict(stripes.test.images).labels == stripes.test.labels
    ).mean()
    assert accuracy == pytest.approx(result.test["accuracy"])
    with pytest.raises(InputError, match=r"is of another model: .* Give load_run the module"):
        load_run(result.workdir)


# of the event loop that orbax closes at the first array that cannot be read
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_what_cannot_be_loaded(trained, tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_run(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(trained[0].workdir, copy)
    with pytest.raises(InputError, match="step is 1, but the checkpoints in"):
        load_run(copy, step=1)
    with pytest.raises(InputError, match="is of another model"):
        load_run(copy, model=CNN(3, widths=(8,)))
    for path in (copy / "checkpoints").glob("*/state/**/d/*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be used: the arrays of step"):
        load_run(copy)
    for path in (copy / "checkpoints").glob("*/record/metadata"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "format": 99}))
    with pytest.raises(InputError, match=r"the record of step .* is not the one that was saved"):
        load_run(copy)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(InputError, match="has no checkpoint yet"):
        load_run(copy)

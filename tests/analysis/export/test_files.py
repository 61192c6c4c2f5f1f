import dataclasses
import hashlib
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from flaxcls.analysis import load_run
from flaxcls.analysis.export import export_run, to_stablehlo
from flaxcls.config import AugmentConfig, Config, LoopConfig, ModelConfig, OptimConfig, StopConfig
from flaxcls.data import load_dataset
from flaxcls.data.preparation import Preparation
from flaxcls.models import CNN
from flaxcls.run import fit
from tests.conftest import make_stripes

pytestmark = pytest.mark.usefixtures("shared_programs")

# what a user without flaxcls does
ALONE = """
import sys
sys.modules["flaxcls"] = None  # importing it would now fail
import jax, numpy as np
from jax import export
model = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
images = np.load(sys.argv[2])
assert model.platforms == ("cpu", "cuda", "tpu")
found = {}
for size in (1, 7):
    logits, probabilities = jax.jit(model.call)(images[:size])
    found |= {f"logits{size}": logits, f"probabilities{size}": probabilities}
assert not [name for name in sys.modules if name.startswith(("flaxcls.", "flax", "orbax")) and sys.modules[name]]
np.savez(sys.argv[3], **found)
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    from rich.console import Console

    config = Config(
        model=ModelConfig(widths=(4,), dense=(32,), norm="batch"),
        optim=OptimConfig(learning_rate=1e-2, warmup_epochs=0.0),
        loop=LoopConfig(epochs=3, batch_size=64),
        stop=StopConfig(),
    )
    return fit(config, workdir=tmp_path_factory.mktemp("digits") / "run", console=Console(quiet=True)).workdir


def run_alone(program, images, folder):
    """Returns what the program answers in a process that knows jax alone."""
    (folder / "model").write_bytes(program)
    np.save(folder / "images.npy", images)
    command = [sys.executable, "-I", "-c", ALONE, "model", "images.npy", "found.npz"]
    subprocess.run(command, check=True, cwd=folder)
    return np.load(folder / "found.npz")


def agrees(classifier, folder, images):
    found = run_alone(to_stablehlo(classifier), images, folder)
    for size in (1, 7):
        np.testing.assert_allclose(found[f"logits{size}"], classifier.logits(images[:size]), rtol=1e-5, atol=1e-5)
        expected = classifier.predict(images[:size]).probabilities
        np.testing.assert_allclose(found[f"probabilities{size}"], expected, atol=1e-5)
        assert found[f"probabilities{size}"].dtype == np.float32


def test_a_fresh_process_without_flaxcls_predicts_the_same(digits, tmp_path):
    classifier = dataclasses.replace(load_run(digits), temperature=1.7)
    agrees(classifier, tmp_path, load_dataset(classifier.config.data).test.images[:7])


def test_colour_images_seen_from_several_views(digits, tmp_path):
    model = CNN(10, widths=(4, 8), norm="batch")
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    variables = jax.jit(lambda key: model.init(key, np.zeros((1, 32, 32, 3), "f4"), train=False))(jax.random.key(0))
    classifier = dataclasses.replace(
        load_run(digits),
        config=Config(augment=AugmentConfig(eval_flip=True, eval_shift=2, eval_pattern="diagonal")),
        model=model,
        variables=jax.tree.map(np.asarray, variables),
        preparation=Preparation((32, 32), 3),
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.2),
    )
    agrees(classifier, tmp_path, images)


def test_the_description_fits_the_file_and_its_usage_runs(digits, tmp_path):
    classifier = load_run(digits)
    out = tmp_path / "deep" / "export"
    description = export_run(digits, classifier, out, not_calibrated="why")
    assert json.loads((out / "model.json").read_text()) == description
    program = (out / "model.stablehlo").read_bytes()
    assert description["files"]["model.stablehlo"] == {
        "bytes": len(program),
        "sha256": hashlib.sha256(program).hexdigest(),
    }
    assert description["class_names"] == [str(digit) for digit in range(10)]
    assert description["input"]["images"] == "u8[b 8 8 1]"
    assert description["temperature"] is None
    assert description["not_calibrated"] == "why"
    subprocess.run([sys.executable, "-I", "-c", description["usage"]], check=True, cwd=out)
    oldest = "0.10.2" if jax.__version_info__ <= (0, 11, 0) else "0.11.0"
    assert description["requirements"] == [f"jax>={oldest}", "flatbuffers"]
    assert description["usage"].startswith(f"# pip install 'jax>={oldest}' 'flatbuffers'\n")


def test_nothing_but_plain_stablehlo_is_in_it(digits):
    """No kernel of a vendor's library, and the convolutions as such, whatever training was made of."""
    module = jax.export.deserialize(bytearray(to_stablehlo(load_run(digits)))).mlir_module()
    assert "stablehlo.convolution" in module
    customs = {line.split("@")[1].split("(")[0] for line in module.splitlines() if "custom_call" in line}
    assert customs <= {"shape_assertion"}


@pytest.mark.parametrize(("dtype", "share", "tolerance"), [("bfloat16", 0.65, 0.02), ("int8", 0.45, 0.04)])
def test_smaller_weights_make_a_smaller_file_and_their_cost_is_measured(digits, tmp_path, dtype, share, tolerance):
    classifier = load_run(digits)
    description = export_run(digits, classifier, tmp_path, dtype=dtype)
    found = description["compared_with_float32"]
    split = load_dataset(classifier.config.data).validation
    expected = classifier.predict(split.images)
    assert found["bytes"][1] < share * found["bytes"][0]
    assert found["bytes"][1] == (tmp_path / "model.stablehlo").stat().st_size
    assert found["examples"] == len(split.labels)
    assert found["accuracy"][0] == pytest.approx((expected.labels == split.labels).mean())
    assert found["repetitions"] >= 5
    program = jax.export.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    probabilities = np.asarray(jax.jit(program.call)(split.images)[1])
    difference = np.abs(probabilities - expected.probabilities).max()
    assert 0 < difference < tolerance
    assert found["largest_difference"] == pytest.approx(difference, abs=1e-5)
    assert found["accuracy"][1] == pytest.approx((probabilities.argmax(axis=1) == split.labels).mean())


def test_data_that_is_not_there_leaves_the_cost_open(small_config, quiet, tmp_path):
    from flaxcls.data import from_arrays

    images, labels = make_stripes(150)
    result = fit(small_config, dataset=from_arrays(images, labels), workdir=tmp_path / "run", console=quiet)
    description = export_run(result.workdir, load_run(result.workdir), tmp_path / "out", dtype="int8")
    assert description["compared_with_float32"] is None
    assert "which fit was given in Python, so its validation split is not at hand" in description["not_compared"]
    assert (tmp_path / "out/model.stablehlo").exists()

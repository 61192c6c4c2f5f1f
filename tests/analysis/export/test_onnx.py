import dataclasses
import os
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from flaxcls.analysis import load_run
from flaxcls.analysis.export.onnx import to_onnx
from flaxcls.analysis.export.stablehlo import served
from flaxcls.config import AugmentConfig, ModelConfig
from flaxcls.data.preparation import Preparation
from flaxcls.errors import InputError, Interrupted
from flaxcls.run import fit

pytestmark = pytest.mark.usefixtures("shared_programs")

# of an environment with jax2onnx and onnxruntime, as `flaxcls.analysis.export.onnx.ADVICE` makes it
PYTHON = os.environ.get("FLAXCLS_ONNX_PYTHON")
ALONE = """
import sys
for name in ("jax", "flax", "flaxcls"):
    sys.modules[name] = None  # importing it would now fail
import numpy as np, onnxruntime
images = np.load("images.npy")
session = onnxruntime.InferenceSession("model.onnx")
assert session.get_inputs()[0].type == "tensor(uint8)"
found = {}
for size in (1, 7):
    logits, probabilities = session.run(["logits", "probabilities"], {"images": images[:size]})
    found |= {f"logits{size}": logits, f"probabilities{size}": probabilities}
np.savez("found.npz", **found)
"""


@pytest.fixture
def trained(small_config, stripes, quiet, tmp_path):
    config = dataclasses.replace(small_config, augment=AugmentConfig(eval_flip=True, eval_shift=1))
    return load_run(fit(config, dataset=stripes, workdir=tmp_path / "run", console=quiet).workdir)


@pytest.mark.skipif(PYTHON is None, reason="FLAXCLS_ONNX_PYTHON names no Python that has jax2onnx")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_onnxruntime_predicts_the_same_in_a_process_of_its_own(trained, stripes, tmp_path, dtype):
    classifier = dataclasses.replace(trained, temperature=1.7)
    program, record = to_onnx(classifier, Path(PYTHON), dtype)
    assert record["largest_difference"] < 1e-5
    (tmp_path / "model.onnx").write_bytes(program)
    images = stripes.test.images[:7]
    np.save(tmp_path / "images.npy", images)
    subprocess.run([PYTHON, "-I", "-c", ALONE], check=True, cwd=tmp_path)
    found = np.load(tmp_path / "found.npz")
    logits, probabilities = served(classifier, dtype)(images)
    for size in (1, 7):
        np.testing.assert_allclose(found[f"logits{size}"], logits[:size], atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(found[f"probabilities{size}"], probabilities[:size], atol=1e-5)
    if dtype == "float32":
        np.testing.assert_allclose(found["logits7"], classifier.logits(images), atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(PYTHON is None, reason="FLAXCLS_ONNX_PYTHON names no Python that has jax2onnx")
def test_images_of_other_depths_and_channels_are_floats(trained, tmp_path):
    inputs = np.zeros((1, 8, 8, 4), "f4")
    classifier = dataclasses.replace(
        trained,
        variables=trained.model.init(jax.random.key(0), inputs, train=False),
        preparation=Preparation((8, 8), 4, "pad", (0.0, 4095.0)),
        mean=(0.5,) * 4,
        std=(0.2,) * 4,
    )
    program, record = to_onnx(classifier, Path(PYTHON))
    assert record["largest_difference"] < 1e-5
    (tmp_path / "model.onnx").write_bytes(program)
    asked = """
import onnxruntime
(images,) = onnxruntime.InferenceSession("model.onnx").get_inputs()
assert (images.type, images.shape) == ("tensor(float)", ["b", 8, 8, 4])
"""
    subprocess.run([PYTHON, "-I", "-c", asked], check=True, cwd=tmp_path)


LOADED = """
import onnx, onnxruntime
onnx.checker.check_model(onnx.load("model.onnx"), full_check=True)
onnxruntime.InferenceSession("model.onnx")
"""


@pytest.mark.skipif(PYTHON is None, reason="FLAXCLS_ONNX_PYTHON names no Python that has jax2onnx")
def test_a_residual_network_passes_the_full_check_and_loads_without_warnings(stripes, plain_config, quiet, tmp_path):
    config = dataclasses.replace(plain_config, model=ModelConfig(name="resnet20"))
    with pytest.raises(Interrupted):
        fit(config, dataset=stripes, workdir=tmp_path / "run", console=quiet, stop_after=4)
    program, _ = to_onnx(load_run(tmp_path / "run"), Path(PYTHON))
    (tmp_path / "model.onnx").write_bytes(program)
    loaded = subprocess.run([PYTHON, "-I", "-c", LOADED], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert "lenient merge" not in loaded.stderr


def test_a_python_that_is_not_there_or_lacks_the_converter(trained, tmp_path):
    with pytest.raises(InputError, match=r"nowhere cannot be run: make the environment by .*pip install jax2onnx"):
        to_onnx(trained, tmp_path / "nowhere")
    bare = tmp_path / "bare"
    bare.write_text(
        "#!/bin/sh\n"
        "echo \"ModuleNotFoundError: No module named 'jax2onnx'\" >&2\n"
        '[ "$JAX_TRACEBACK_FILTERING" = off ] || echo "For simplicity, JAX has removed its internal frames" >&2\n'
        "exit 1\n"
    )
    bare.chmod(0o755)
    with pytest.raises(InputError, match=r"failed: ModuleNotFoundError: No module named 'jax2onnx'\nIf a package"):
        to_onnx(trained, bare)

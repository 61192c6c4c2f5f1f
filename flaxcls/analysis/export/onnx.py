"""The ONNX form of a classifier, converted in a separate Python environment that has jax2onnx."""

import dataclasses
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import flaxcls
from flaxcls.analysis.classifier import Classifier, unit_floats
from flaxcls.analysis.export.serving import WeightType
from flaxcls.analysis.export.stablehlo import served
from flaxcls.errors import InputError

# the tested versions; the newest jax2onnx does not run on jax 0.12
PACKAGES = "jax2onnx==0.17.1 jax==0.11.2 onnx==1.23.2 onnxruntime==1.32.0"
ADVICE = f"make the environment by `python3.13 -m venv onnx && onnx/bin/pip install {PACKAGES}`"
NEEDED = ("analysis", "augment", "models", "config.py", "config_json.py", "errors.py", "types.py", "validation.py")


def to_onnx(classifier: Classifier, python: Path, dtype: WeightType = "float32") -> tuple[bytes, dict[str, Any]]:
    """Returns the classifier as ONNX, images [b h w c] -> (logits, probabilities), and a record.

    The images have the type that the run was trained on, u8 or f32.

    The record holds the versions of the packages, and the largest difference between onnxruntime and jax in a logit or
    a probability, measured on 1 and on 7 images of noise.

    Args:
      classifier: a classifier whose model the configuration names.
      python: Python of an environment with jax2onnx and onnxruntime.
      dtype: type of the stored kernels, see `store`.

    Raises:
      InputError: if there is no such Python, or if the conversion fails.
    """
    if shutil.which(python) is None:
        raise InputError(f"--onnx-python {python} cannot be run: {ADVICE}, and name onnx/bin/python.")
    images = np.random.default_rng(0).integers(0, 256, (7, *classifier.image_shape), dtype=np.uint8)
    images = images if classifier.image_dtype == "uint8" else unit_floats(images)
    with tempfile.TemporaryDirectory(prefix="flaxcls-onnx-") as temporary:
        folder = Path(temporary)
        _write_inputs(folder, classifier, dtype, images)
        environment = {**os.environ, "PYTHONPATH": str(folder / "path"), "JAX_PLATFORMS": "cpu"}
        environment["JAX_TRACEBACK_FILTERING"] = "off"  # else the last line is advice about it
        script = folder / "path/flaxcls/analysis/export/onnx_converter.py"
        command = [str(python), "-P", str(script), str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"the conversion by {python} failed: {last}\nIf a package is missing, {ADVICE}.")
        record: dict[str, Any] = {"versions": json.loads((folder / "versions.json").read_text())}
        expected = jax.jit(served(classifier, dtype))(images)
        for size in (1, len(images)):
            found = np.load(folder / f"found{size}.npz")
            for array, name in zip(expected, ("logits", "probabilities"), strict=True):
                difference = float(np.abs(array[:size] - found[name]).max())
                record["largest_difference"] = max(record.get("largest_difference", 0.0), difference)
        return (folder / "model.onnx").read_bytes(), record


def _write_inputs(folder: Path, classifier: Classifier, dtype: WeightType, images: np.ndarray) -> None:
    package = folder / "path/flaxcls"
    for name in NEEDED:
        source = Path(flaxcls.__file__).parent / name
        if source.is_dir():
            shutil.copytree(source, package / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, package / name)
    # the real ones import packages that the other environment may lack
    for part in (".", "analysis", "analysis/export"):
        (package / part / "__init__.py").write_text("")
    leaves = jax.tree_util.tree_leaves_with_path(classifier.variables)
    np.savez(folder / "arrays.npz", **{"/".join(key.key for key in path): leaf for path, leaf in leaves})
    np.save(folder / "images.npy", images)
    spec = {
        "config": dataclasses.asdict(classifier.config),
        "classes": len(classifier.class_names),
        "image_shape": classifier.image_shape,
        "image_dtype": classifier.image_dtype,
        "mean": classifier.mean,
        "std": classifier.std,
        "temperature": classifier.temperature,
        "dtype": dtype,
    }
    (folder / "classifier.json").write_text(json.dumps(spec))

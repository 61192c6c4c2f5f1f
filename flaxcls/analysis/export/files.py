"""The files of an export: the program, and model.json, which explains how to use it."""

import dataclasses
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import cv2
import jax
import PIL

from flaxcls import __version__
from flaxcls.analysis.classifier import Classifier
from flaxcls.analysis.export.comparison import compare
from flaxcls.analysis.export.description import describe_input, describe_preparation, describe_program
from flaxcls.analysis.export.onnx import to_onnx
from flaxcls.analysis.export.serving import WeightType
from flaxcls.analysis.export.stablehlo import PLATFORMS, requirements, to_stablehlo
from flaxcls.analysis.own_data import load_validation_split
from flaxcls.errors import InputError

STABLEHLO, ONNX, DESCRIPTION = "model.stablehlo", "model.onnx", "model.json"
USAGE = """\
# pip install {requirements}
from pathlib import Path
import jax, numpy as np
from jax import export

model = export.deserialize(bytearray(Path("model.stablehlo").read_bytes()))
images = np.zeros((7, {shape}), np.{dtype})
logits, probabilities = jax.jit(model.call)(images)
"""


def check_folder(out: Path, *, overwrite: bool) -> None:
    """Raises InputError if `out` is no folder, or if an export would replace a file there without `overwrite`."""
    try:
        held = sorted({STABLEHLO, ONNX, DESCRIPTION} & {path.name for path in out.iterdir()})
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise InputError(f"--out {out} is no folder: name a new one.") from error
    except OSError as error:
        raise _not_written(out, error) from error
    if held and not overwrite:
        raise InputError(
            f"{out} holds {' and '.join(held)}: name another folder by --out, or replace the export by --overwrite."
        )


def export_run(
    workdir: Path,
    classifier: Classifier,
    out: Path,
    *,
    dtype: WeightType = "float32",
    not_calibrated: str | None = None,
) -> dict[str, Any]:
    """Writes model.stablehlo and model.json to the folder `out`, and returns the content of model.json.

    Earlier files of an export are replaced. For another dtype than float32, model.json holds a `Comparison` with
    float32 on the run's validation split; if the split cannot be loaded, null and the reason.

    Args:
      workdir: directory of the run.
      classifier: the run's classifier.
      out: folder; created if it does not exist.
      dtype: type of the stored kernels, see `store`.
      not_calibrated: reason why the classifier has no temperature, if it has none.

    Raises InputError if the folder cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()  # fails before the work starts
    except OSError as error:
        raise _not_written(out, error) from error
    program = to_stablehlo(classifier, dtype)
    columns = classifier.config.data.path_column
    bands = columns if len(columns) > 1 else ()
    description: dict[str, Any] = {
        "input": describe_input(classifier.preparation, bands),
        "output": dict.fromkeys(("logits", "probabilities"), f"f32[b {len(classifier.class_names)}]"),
        "preparation": describe_preparation(classifier.preparation, bands),
        "program": describe_program(classifier),
        "class_names": list(classifier.class_names),
        "temperature": classifier.temperature,
        "not_calibrated": not_calibrated,
        "dtype": dtype,
        "step": classifier.step,
        "platforms": list(PLATFORMS),
        "versions": {
            "flaxcls": __version__,
            "jax": jax.__version__,
            "opencv": cv2.__version__,
            "pillow": PIL.__version__,
        },
        "files": {STABLEHLO: {"bytes": len(program), "sha256": hashlib.sha256(program).hexdigest()}},
        "requirements": requirements(),
        "usage": USAGE.format(
            shape=", ".join(map(str, classifier.image_shape)),
            dtype=classifier.image_dtype,
            requirements=" ".join(f"'{requirement}'" for requirement in requirements()),
        ),
    }
    if dtype != "float32":
        description["compared_with_float32"], description["not_compared"] = None, None
        try:
            split = load_validation_split(workdir, classifier)
            plain = to_stablehlo(classifier)
            description["compared_with_float32"] = dataclasses.asdict(compare(plain, program, split))
        except InputError as error:
            description["not_compared"] = str(error)
    try:
        (out / ONNX).unlink(missing_ok=True)  # from an earlier export
    except OSError as error:
        raise _not_written(out, error) from error
    _write(out, STABLEHLO, program, description)
    return description


def add_onnx(classifier: Classifier, out: Path, description: dict[str, Any], python: Path) -> dict[str, Any]:
    """Adds model.onnx to an export, and its record to model.json.

    Args:
      classifier: the exported classifier.
      out: folder of the export.
      description: content of model.json, from `export_run`; the record is added to it.
      python: Python of an environment with jax2onnx, see `to_onnx`.

    Returns:
      The record: bytes, sha256, and versions and largest_difference from `to_onnx`.
    """
    program, record = to_onnx(classifier, python, description["dtype"])
    record |= {"bytes": len(program), "sha256": hashlib.sha256(program).hexdigest()}
    description["files"][ONNX] = record
    _write(out, ONNX, program, description)
    return record


def _write(out: Path, name: str, program: bytes, description: dict[str, Any]) -> None:
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    try:
        (out / name).write_bytes(program)
        (out / DESCRIPTION).write_text(text, encoding="utf-8")
    except OSError as error:
        raise _not_written(out, error) from error


def _not_written(out: Path, error: OSError) -> InputError:
    return InputError(f"{out} cannot be written: {error.strerror or error}. Name another folder by --out.")

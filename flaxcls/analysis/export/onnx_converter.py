"""The conversion of a run to ONNX, in an environment that has jax2onnx.

jax2onnx and flaxcls need different versions of orbax. So `flaxcls.analysis.export.onnx.to_onnx` runs this file with the
Python of that environment, and copies the few modules of flaxcls that need only jax and flax.
"""

import json
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxcls.analysis.export.serving import serve, store
from flaxcls.augment import with_views
from flaxcls.config_json import from_json
from flaxcls.models import build_model


def main(folder: Path) -> None:
    """Reads classifier.json, arrays.npz and images.npy in `folder`; writes model.onnx, found*.npz and versions.json."""
    import jax2onnx
    import onnx
    import onnxruntime

    spec = json.loads((folder / "classifier.json").read_text())
    config = from_json(json.dumps(spec["config"]))
    variables: dict[str, Any] = {}
    for path, array in np.load(folder / "arrays.npz").items():
        *parents, name = path.split("/")
        tree = variables
        for parent in parents:
            tree = tree.setdefault(parent, {})
        tree[name] = array
    function = partial(
        serve,
        model=with_views(build_model(config.model, spec["classes"]), config.augment),
        stored=store(variables, spec["dtype"]),
        mean=None if spec["mean"] is None else np.array(spec["mean"]),
        std=None if spec["std"] is None else np.array(spec["std"]),
        temperature=spec["temperature"],
    )
    jax2onnx.to_onnx(
        lambda images: function(images),
        [jax.ShapeDtypeStruct(("b", *spec["image_shape"]), np.dtype(spec["image_dtype"]))],
        return_mode="file",
        output_path=folder / "model.onnx",
        export_mode="web",  # a single file, whatever its size
        input_names=["images"],
        output_names=["logits", "probabilities"],
    )
    model = onnx.load(folder / "model.onnx")
    # jax2onnx moves transpositions, but notes the shapes from before (findings/jax2onnx_shapes_in_between.sh).
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    images = np.load(folder / "images.npy")
    for size in (1, len(images)):  # one image and several, to check that the batch size is free
        found = session.run(["logits", "probabilities"], {"images": images[:size]})
        np.savez(folder / f"found{size}.npz", logits=found[0], probabilities=found[1])
    versions = {package: version(package) for package in ("jax", "jax2onnx", "onnx", "onnxruntime")}
    (folder / "versions.json").write_text(json.dumps(versions))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

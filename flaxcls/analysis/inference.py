"""The output of a trained model for whole splits."""

from typing import Any

import jax
import numpy as np

from flaxcls.analysis.classifier import Classifier
from flaxcls.data import Split
from flaxcls.errors import InputError
from flaxcls.run.evaluation import padded
from flaxcls.sharding import batch_sharding, make_mesh, on_devices, replicated


def predict_splits(classifier: Classifier, splits: list[Split]) -> list[np.ndarray]:
    """Returns the logits f32[n k] of each split's examples, computed over all devices.

    Raises InputError where one is not finite.
    """
    mesh = make_mesh()
    most = max(len(split.labels) for split in splits)
    # one size, so that it is compiled once; the devices share it evenly
    size = -(-min(classifier.config.loop.eval_batch_size, max(most, 1)) // mesh.size) * mesh.size
    variables = on_devices(classifier.variables, replicated(mesh))

    def apply(variables: Any, images: jax.Array) -> Any:
        return classifier.evaluated.apply(variables, classifier.normalized(images), train=False)

    compiled = jax.jit(apply, out_shardings=replicated(mesh))
    made = []
    for split in splits:
        rows = np.zeros((len(split.labels), len(classifier.class_names)), np.float32)
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            batch = padded(np.asarray(split.images[part]), split.labels[part], size)
            images = on_devices(batch["image"], batch_sharding(mesh))
            rows[part] = np.asarray(compiled(variables, images))[batch["mask"]]
        wrong = int((~np.isfinite(rows)).any(axis=1).sum())
        if wrong:
            raise InputError(
                f"the model's output is NaN or infinite for {wrong} of {len(rows)} examples: the parameters of step "
                f"{classifier.step} are of no use; choose another step (--step)."
            )
        made.append(rows)
    return made

"""The StableHLO form of a classifier, from the bytes of images to calibrated probabilities."""

from functools import partial
from typing import Any

import jax
import numpy as np
from jax import export

from flaxcls.analysis.classifier import Classifier
from flaxcls.analysis.export.serving import WeightType, serve, store

PLATFORMS = ("cpu", "cuda", "tpu")


def served(classifier: Classifier, dtype: WeightType = "float32") -> Any:
    """Returns the function to export: images u8[b h w c] -> (logits, probabilities), with kernels stored in `dtype`."""
    return partial(
        serve,
        model=classifier.evaluated,
        stored=store(classifier.variables, dtype),
        mean=classifier.mean,
        std=classifier.std,
        temperature=classifier.temperature,
    )


def to_stablehlo(classifier: Classifier, dtype: WeightType = "float32") -> bytes:
    """Returns the classifier as `jax.export` writes it: u8[b h w c] -> (logits f32[b k], probabilities f32[b k]).

    b may be any number, and the program runs on CPUs, CUDA GPUs and TPUs. It is traced as the modules are written, with
    no lowering that was chosen for the speed of training, and jax.export takes care that it holds nothing that a later
    version might not read.

    dtype: that the kernels are stored in, as by `store`.
    """
    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *classifier.image_shape), np.uint8)
    exported = export.export(jax.jit(served(classifier, dtype)), platforms=PLATFORMS)(images)
    return bytes(exported.serialize())

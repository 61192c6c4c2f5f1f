"""The StableHLO form of a classifier: images in, calibrated probabilities out."""

from functools import partial
from typing import Any

import jax
import numpy as np
from jax import export

from flaxcls.analysis.classifier import Classifier
from flaxcls.analysis.export.serving import WeightType, serve, store

PLATFORMS = ("cpu", "cuda", "tpu")


def requirements() -> list[str]:
    """Returns the packages, as pip names them, that run a file of this process.

    A newer JAX is promised to read an older file for six months; an older JAX a newer file for some weeks. Files of jax
    0.11.2 and later deserialise on 0.10.2, and then fail when called (findings/jax_export_by_an_older_jax.sh). A plain
    installation of JAX lacks flatbuffers, which deserialising needs.
    """
    oldest = "0.11.0" if jax.__version_info__ > (0, 11, 0) else "0.10.2"
    return [f"jax>={oldest}", "flatbuffers"]


def served(classifier: Classifier, dtype: WeightType = "float32") -> Any:
    """Returns the function to export, images [b h w c] -> (logits, probabilities), with kernels stored as `dtype`."""
    return partial(
        serve,
        model=classifier.evaluated,
        stored=store(classifier.variables, dtype),
        mean=classifier.mean,
        std=classifier.std,
        temperature=classifier.temperature,
    )


def to_stablehlo(classifier: Classifier, dtype: WeightType = "float32") -> bytes:
    """Returns the serialized program of `jax.export`: [b h w c] -> (logits f32[b k], probabilities f32[b k]).

    The images have the type that the run was trained on, u8 or f32. b may be any number. The program runs on CPUs, CUDA
    GPUs and TPUs. It is traced without the lowerings that make training fast, and jax.export keeps out anything that a
    later version might not read.

    dtype: type of the stored kernels, see `store`.
    """
    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *classifier.image_shape), np.dtype(classifier.image_dtype))
    exported = export.export(jax.jit(served(classifier, dtype)), platforms=PLATFORMS)(images)
    return bytes(exported.serialize())

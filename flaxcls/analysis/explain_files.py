"""Explains image files by a trained model: pictures to look at and arrays to go on with."""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from flaxcls.analysis.activations import choose_layer, feature_maps, first_layer_filters, grad_cam, map_layers
from flaxcls.analysis.classifier import Classifier
from flaxcls.analysis.explanation import TOLERANCE, completeness_gap, integrated_gradients, occlusion, smooth_grad
from flaxcls.analysis.pictures import (
    beside,
    filters_picture,
    maps_picture,
    strength,
    write_png,
)
from flaxcls.analysis.prediction import FilePredictions
from flaxcls.data.images import read_image
from flaxcls.errors import InputError, unknown

METHODS = ("grad-cam", "integrated-gradients", "smooth-grad", "occlusion")
# More of them are too small to be seen in one picture; the arrays hold all.
SHOWN_MAPS = 64
# that integrated gradients start from
BLACK = 0.0


@dataclass(frozen=True)
class Plan:
    """How images are explained by a model.

    methods: of `METHODS`. label: of the class whose logit is explained; None: the most probable one of each image.
    layer: as it was asked for. layer_path: of the layer that the feature maps are of; None where the model has no map.
    filters: f32[h w c n] of the first convolution; None where there is none.
    left_out: a sentence for what the model has not got.
    """

    methods: tuple[str, ...]
    label: int | None
    layer: str | None
    layer_path: str | None
    filters: np.ndarray | None
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Explained:
    """An image that was explained.

    source: its file. predicted, probability: the most probable class. explained: the class that was asked for.
    gap: how far the sum of the integrated gradients is off the difference of the logits, as a part of it; 0 where they
    were not asked for.
    files: what was written.
    """

    source: Path
    predicted: str
    probability: float
    explained: str
    gap: float
    files: list[Path]

    @property
    def is_complete(self) -> bool:
        """Whether the integrated gradients sum to what they should, within the tolerance of the method."""
        return self.gap <= TOLERANCE


def make_plan(
    classifier: Classifier,
    *,
    methods: Sequence[str] | None = None,
    class_name: str | None = None,
    layer: str | None = None,
) -> Plan:
    """Returns how images are explained.

    Args:
      classifier: whose answer is explained.
      methods: to explain them by, of `METHODS`; None: by all that the model can be explained by.
      class_name: whose logit is explained; None: that of the most probable class of each image.
      layer: for Grad-CAM and the feature maps, see `grad_cam`.

    Raises InputError for a method, class or layer that is not known, and where Grad-CAM or a layer is asked for and the
    model has no map.
    """
    for method in methods or ():
        if method not in METHODS:
            raise InputError(unknown("method", method, METHODS))
    if class_name is not None and class_name not in classifier.class_names:
        raise InputError(unknown("class", class_name, classifier.class_names))
    shape = jax.ShapeDtypeStruct((1, *classifier.image_shape), jnp.float32)
    layers = map_layers(classifier.model, classifier.variables, shape)
    chosen, path, filters, left_out = METHODS if methods is None else tuple(methods), None, None, []
    if layers or layer is not None or "grad-cam" in (methods or ()):
        path, _ = layers[choose_layer(layers, layer)]
    else:
        chosen = tuple(method for method in chosen if method != "grad-cam")
        what = "Grad-CAM and feature maps are" if methods is None else "Feature maps are"
        left_out.append(f"{what} left out: the model has no layer with an output [b h w c], which they are made of.")
    try:
        filters = first_layer_filters(classifier.model, classifier.variables, shape)
    except InputError as error:
        left_out.append(f"filters.png is left out: {error}")
    label = None if class_name is None else classifier.class_names.index(class_name)
    return Plan(chosen, label, layer, path, filters, tuple(left_out))


def logits_function(classifier: Classifier, variables: Any) -> Partial:
    """Returns what maps images f32[b h w c] of 0..1, before they are normalised, to the logits that `predict` uses."""

    def logits(variables: Any, images: jax.Array) -> jax.Array:
        return jnp.asarray(classifier.evaluated.apply(variables, classifier.normalized(images), train=False))

    return Partial(logits, variables)


def explain_image(
    classifier: Classifier,
    logits_fn: Partial,
    image: np.ndarray,
    label: int,
    *,
    methods: Sequence[str],
    layer: str | None = None,
) -> dict[str, np.ndarray]:
    """Returns what each method says of the logit of a class for an image u8[h w c], as `prepared` makes it.

    f32[h w c] in logits per unit of 0..1 (smooth-grad) or logits (integrated-gradients, from a black image), f32[h w]
    in logits (occlusion, by squares of the mean colour, an eighth of the image wide) or of 0..1 (grad-cam, of the
    module itself, without the views that the run's evaluation may average over).
    """
    images = image[np.newaxis].astype(np.float32) / 255
    classes = np.array([label])
    size = max(2, min(image.shape[:2]) // 8)
    fill = 0.5 if classifier.mean is None else np.asarray(classifier.mean, np.float32)
    made = {
        "grad-cam": lambda: grad_cam(
            classifier.model, logits_fn.args[0], classifier.normalized(jnp.asarray(images)), classes, layer=layer
        ),
        "integrated-gradients": lambda: integrated_gradients(logits_fn, images, classes, baseline=BLACK),
        "smooth-grad": lambda: smooth_grad(logits_fn, images, classes, key=jax.random.key(0)),
        "occlusion": lambda: occlusion(logits_fn, images, classes, size=size, stride=size // 2, fill=fill),
    }
    return {method: made[method]()[0] for method in methods}


def explain_files(classifier: Classifier, plan: Plan, found: FilePredictions, out: Path) -> Iterator[Explained]:
    """Writes below `out` what explains each image, and yields it as it goes on.

    Of NAME.jpg there will be NAME.npz and a picture NAME-METHOD.png for each method, and NAME-feature-maps.png;
    filters.png is of the model. A file of the same name from another folder becomes NAME-2. The arrays are `image`
    u8[h w c] as the model sees it, `probabilities` f32[k], `class_names`, `predicted` and `explained` (class names),
    `source` (path), `feature_maps` f32[h' w' n] of `layer` (path), where the model has any, and, under its name, what
    each method returns, without the axis of the batch.

    Args:
      classifier: whose answer is explained.
      plan: of `make_plan` for it.
      found: what `predict_files` has answered.
      out: directory, made if need be, unless there is no image.

    Raises InputError where nothing can be written.
    """
    names = np.array(classifier.class_names)
    variables = jax.device_put(classifier.variables)
    logits_fn = logits_function(classifier, variables)
    taken: set[str] = set()
    try:
        if found.paths:
            out.mkdir(parents=True, exist_ok=True)
            if plan.filters is not None:
                write_png(out / "filters.png", filters_picture(plan.filters))
        for file, row in zip(map(Path, found.paths), found.predictions.probabilities, strict=True):
            image = classifier.prepared(read_image(file))
            label = int(row.argmax())
            explained = label if plan.label is None else plan.label
            arrays = explain_image(classifier, logits_fn, image, explained, methods=plan.methods, layer=plan.layer)
            pictures = {method: beside(image, strength(values)) for method, values in arrays.items()}
            gap = 0.0
            if "integrated-gradients" in arrays:
                gap = _gap(arrays["integrated-gradients"], logits_fn, image, explained)
            if plan.layer_path is not None:
                seen = classifier.normalized(jnp.asarray(image[None]))
                maps = feature_maps(classifier.model, variables, seen, plan.layer)[0]
                arrays |= {"layer": np.array(plan.layer_path), "feature_maps": maps}
                pictures["feature-maps"] = maps_picture(maps[..., :SHOWN_MAPS])
            name = _free_name(file, out, taken)
            np.savez_compressed(
                out / f"{name}.npz",
                image=image,
                probabilities=row,
                class_names=names,
                predicted=names[label],
                explained=names[explained],
                source=str(file.resolve()),
                **arrays,  # type: ignore[arg-type]
            )
            for kind in (*METHODS, "feature-maps"):
                (out / f"{name}-{kind}.png").unlink(missing_ok=True)  # of an explanation before this one
            for kind, picture in pictures.items():
                write_png(out / f"{name}-{kind}.png", picture)
            files = [out / f"{name}.npz", *(out / f"{name}-{kind}.png" for kind in pictures)]
            yield Explained(file, str(names[label]), float(row[label]), str(names[explained]), gap, files)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror or error}. Name another with --out.") from error


def _gap(found: np.ndarray, logits_fn: Partial, image: np.ndarray, label: int) -> float:
    images = image[np.newaxis].astype(np.float32) / 255
    return float(completeness_gap(found[np.newaxis], logits_fn, images, np.array([label]), baseline=BLACK)[0])


def _free_name(file: Path, out: Path, taken: set[str]) -> str:
    """Returns the file's name, with a number where another file's explanation has it, and adds it to `taken`."""
    name, number = file.stem, 1
    while name in taken or _source(out / f"{name}.npz") not in (None, str(file.resolve())):
        number += 1
        name = f"{file.stem}-{number}"
    taken.add(name)
    return name


def _source(path: Path) -> str | None:
    """Returns what file the arrays in `path` explain; None where they cannot be read."""
    try:
        with np.load(path) as arrays:
            return str(arrays["source"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None

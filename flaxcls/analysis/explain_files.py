"""Explanations of image files: pictures to look at, and arrays to compute with."""

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
from flaxcls.analysis.classifier import Classifier, unit_floats
from flaxcls.analysis.explanation import TOLERANCE, completeness_gap, integrated_gradients, occlusion, smooth_grad
from flaxcls.analysis.pictures import (
    beside,
    filters_picture,
    maps_picture,
    strength,
    write_png,
)
from flaxcls.analysis.prediction import FilePredictions
from flaxcls.errors import InputError, unknown

METHODS = ("grad-cam", "integrated-gradients", "smooth-grad", "occlusion")
# Feature maps in one picture; more would be too small to see. The arrays hold all of them.
SHOWN_MAPS = 64
# Integrated gradients start from this value.
BLACK = 0.0


@dataclass(frozen=True)
class ExplainOptions:
    """The way to explain images, checked against a model.

    methods: names from `METHODS`.
    label: index of the class whose logit is explained; None: the most probable class of each image.
    layer: name of the layer, as the user gave it.
    layer_path: path of the layer for feature maps; None if the model has no feature maps.
    filters: f32[h w c n], kernel of the first convolution; None if the model has no convolution.
    left_out: sentences, one for each output that this model cannot have.
    """

    methods: tuple[str, ...]
    label: int | None
    layer: str | None
    layer_path: str | None
    filters: np.ndarray | None
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Explained:
    """The explanation of one image.

    source: name of the image, as in `ImageSource`.
    predicted: name of the most probable class.
    probability: probability of that class.
    explained: name of the class whose logit is explained.
    gap: relative error of the sum of the integrated gradients, see `completeness_gap`; 0 if they were not asked for.
    files: paths of the written files.
    """

    source: str
    predicted: str
    probability: float
    explained: str
    gap: float
    files: list[Path]

    @property
    def is_complete(self) -> bool:
        """True if the sum of the integrated gradients is exact within `TOLERANCE`."""
        return self.gap <= TOLERANCE


def make_options(
    classifier: Classifier,
    *,
    methods: Sequence[str] | None = None,
    class_name: str | None = None,
    layer: str | None = None,
) -> ExplainOptions:
    """Returns the options for `explain_files`, checked against the model.

    Args:
      classifier: the model to explain.
      methods: names from `METHODS`; None: all methods that work for this model.
      class_name: class whose logit is explained; None: the most probable class of each image.
      layer: layer for Grad-CAM and the feature maps, see `grad_cam`.

    Raises InputError for an unknown method, class or layer. Also raises it if Grad-CAM or a layer is asked for, but the
    model has no feature maps.
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
        outputs = "Grad-CAM and feature maps are" if methods is None else "Feature maps are"
        left_out.append(f"{outputs} left out: the model has no layer with an output [b h w c], which they need.")
    try:
        filters = first_layer_filters(classifier.model, classifier.variables, shape)
    except InputError as error:
        left_out.append(f"filters.png is left out: {error}")
    label = None if class_name is None else classifier.class_names.index(class_name)
    return ExplainOptions(chosen, label, layer, path, filters, tuple(left_out))


def logits_function(classifier: Classifier, variables: Any) -> Partial:
    """Returns a function from images f32[b h w c] in 0..1, not normalised, to the logits that `predict` uses."""

    def logits(variables: Any, images: jax.Array) -> jax.Array:
        return classifier.forward(variables, images)

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
    """Returns the result of each method for the logit of a class and an image, as `Classifier.prepared` returns it.

    smooth-grad: f32[h w c] in logits per unit of 0..1.
    integrated-gradients: f32[h w c] in logits, from a black image.
    occlusion: f32[h w] in logits, by squares of the mean colour whose side is an eighth of the image.
    grad-cam: f32[h w] in 0..1, of the module itself, without the views that the run's evaluation may average over.
    """
    images = unit_floats(image[np.newaxis])
    classes = np.array([label])
    size = max(2, min(image.shape[:2]) // 8)
    fill = 0.5 if classifier.mean is None else np.asarray(classifier.mean, np.float32)
    explain = {
        "grad-cam": lambda: grad_cam(
            classifier.model, logits_fn.args[0], classifier.normalized(jnp.asarray(images)), classes, layer=layer
        ),
        "integrated-gradients": lambda: integrated_gradients(logits_fn, images, classes, baseline=BLACK),
        "smooth-grad": lambda: smooth_grad(logits_fn, images, classes, key=jax.random.key(0)),
        "occlusion": lambda: occlusion(logits_fn, images, classes, size=size, stride=size // 2, fill=fill),
    }
    return {method: explain[method]()[0] for method in methods}


def explain_files(
    classifier: Classifier,
    options: ExplainOptions,
    found: FilePredictions,
    out: Path,
    *,
    most_pixels: int | None = None,
) -> Iterator[Explained]:
    """Writes the explanation of each image to `out`, and yields it once it is written.

    The files for NAME.jpg are NAME.npz, a picture NAME-METHOD.png for each method, and NAME-feature-maps.png.
    filters.png shows the model's filters. A file of the same name from another folder becomes NAME-2.

    NAME.npz holds these arrays:
      image: u8[h w c], as the model sees it.
      probabilities: f32[k].
      class_names, predicted, explained: names of classes.
      source: path of the image file, or of that of the first channel.
      layer, feature_maps: path of a layer and its output f32[h' w' n], if the model has feature maps.
      a method's name: the result of the method, see `explain_image`.

    Args:
      classifier: the model to explain.
      options: options from `make_options` for this model.
      found: predictions from `predict_files`.
      out: directory; created if there is an image.
      most_pixels: as for `predict_files`.

    Raises InputError if a file cannot be written.
    """
    names = np.array(classifier.class_names)
    variables = jax.device_put(classifier.variables)
    logits_fn = logits_function(classifier, variables)
    taken: set[str] = set()
    try:
        if found.images:
            out.mkdir(parents=True, exist_ok=True)
            if options.filters is not None:
                write_png(out / "filters.png", filters_picture(options.filters))
        for source, row in zip(found.images, found.predictions.probabilities, strict=True):
            file = source.paths[0]
            image = classifier.prepared(source.read(most_pixels), name=source.name)
            label = int(row.argmax())
            explained = label if options.label is None else options.label
            arrays = explain_image(
                classifier, logits_fn, image, explained, methods=options.methods, layer=options.layer
            )
            pictures = {method: beside(image, strength(values)) for method, values in arrays.items()}
            gap = 0.0
            if "integrated-gradients" in arrays:
                gap = _gap(arrays["integrated-gradients"], logits_fn, image, explained)
            if options.layer_path is not None:
                seen = classifier.normalized(jnp.asarray(image[None]))
                maps = feature_maps(classifier.model, variables, seen, options.layer)[0]
                arrays |= {"layer": np.array(options.layer_path), "feature_maps": maps}
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
                (out / f"{name}-{kind}.png").unlink(missing_ok=True)  # from an earlier explanation
            for kind, picture in pictures.items():
                write_png(out / f"{name}-{kind}.png", picture)
            files = [out / f"{name}.npz", *(out / f"{name}-{kind}.png" for kind in pictures)]
            yield Explained(source.name, str(names[label]), float(row[label]), str(names[explained]), gap, files)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror or error}. Name another by --out.") from error


def _gap(found: np.ndarray, logits_fn: Partial, image: np.ndarray, label: int) -> float:
    images = unit_floats(image[np.newaxis])
    return float(completeness_gap(found[np.newaxis], logits_fn, images, np.array([label]), baseline=BLACK)[0])


def _free_name(file: Path, out: Path, taken: set[str]) -> str:
    """Returns the file's name, with a number if another file's explanation has that name, and adds it to `taken`."""
    name, number = file.stem, 1
    while name in taken or _source(out / f"{name}.npz") not in (None, str(file.resolve())):
        number += 1
        name = f"{file.stem}-{number}"
    taken.add(name)
    return name


def _source(path: Path) -> str | None:
    """Returns the image file that the arrays in `path` explain, or None if they cannot be read."""
    try:
        with np.load(path) as arrays:
            return str(arrays["source"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None

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
from flaxcls.analysis.explanation import integrated_gradients, occlusion, smooth_grad
from flaxcls.analysis.pictures import (
    beside,
    filters_picture,
    maps_picture,
    strength,
    write_png,
)
from flaxcls.data.images import SUFFIXES, read_image
from flaxcls.errors import InputError, unknown

METHODS = ("grad-cam", "integrated-gradients", "smooth-grad", "occlusion")
# More of them are too small to be seen in one picture; the arrays hold all.
SHOWN_MAPS = 64


@dataclass(frozen=True)
class Explained:
    """An image that was explained.

    source: its file. predicted, probability: the most probable class. explained: the class that was asked for.
    files: what was written.
    """

    source: Path
    predicted: str
    probability: float
    explained: str
    files: list[Path]


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Returns files, and the image files in and below folders, each once.

    Raises InputError where there is nothing, or no image in a folder.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not files:
                raise InputError(f"the folder {path} has no image in it: name one with {', '.join(SUFFIXES)} files.")
        elif not path.is_file():
            raise InputError(f"{path} does not exist: name an image file, or a folder of them.")
        for file in files:
            found.setdefault(file.resolve(), file)
    if not found:
        raise InputError("no image was given: name image files, or folders of them.")
    return list(found.values())


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
        "integrated-gradients": lambda: integrated_gradients(logits_fn, images, classes, baseline=0.0),
        "smooth-grad": lambda: smooth_grad(logits_fn, images, classes, key=jax.random.key(0)),
        "occlusion": lambda: occlusion(logits_fn, images, classes, size=size, stride=size // 2, fill=fill),
    }
    return {method: made[method]()[0] for method in methods}


def explain_files(
    classifier: Classifier,
    files: Sequence[Path],
    *,
    methods: Sequence[str],
    class_name: str | None,
    layer: str | None,
    out: Path,
) -> Iterator[Explained]:
    """Writes below `out` what explains each image, and yields it as it goes on.

    Of NAME.jpg there will be NAME.npz and a picture NAME-METHOD.png for each method, and NAME-feature-maps.png;
    filters.png is of the model. A file of the same name from another folder becomes NAME-2. The arrays are `image`
    u8[h w c] as the model sees it, `probabilities` f32[k], `class_names`, `predicted` and `explained` (class names),
    `source` (path), `feature_maps` f32[h' w' n] of `layer` (path), and, under its name, what each method returns,
    without the axis of the batch.

    Args:
      classifier: whose answer is explained.
      files: of the images; all are read before the first is explained.
      methods: to explain them by, of `METHODS`.
      class_name: whose logit is explained; None: that of the most probable class of each image.
      layer: for Grad-CAM and the feature maps, see `grad_cam`.
      out: directory, made if need be.

    Raises InputError for a file that is no image, a method, class or layer that is not known, and where nothing can be
    written.
    """
    for method in methods:
        if method not in METHODS:
            raise InputError(unknown("method", method, METHODS))
    if class_name is not None and class_name not in classifier.class_names:
        raise InputError(unknown("class", class_name, classifier.class_names))
    images = np.stack([classifier.prepared(read_image(file)) for file in files])
    rows = classifier.predict(images).probabilities
    names = np.array(classifier.class_names)
    variables = jax.device_put(classifier.variables)
    logits_fn = logits_function(classifier, variables)

    def maps_of(image: np.ndarray) -> np.ndarray:
        return feature_maps(classifier.model, variables, classifier.normalized(jnp.asarray(image[None])), layer)[0]

    shape = jax.ShapeDtypeStruct((1, *classifier.image_shape), jnp.float32)
    layers = map_layers(classifier.model, variables, shape)
    path, _ = layers[choose_layer(layers, layer)]
    filters = first_layer_filters(classifier.model, variables, shape)
    taken: set[str] = set()
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_png(out / "filters.png", filters_picture(filters))
        for file, image, row in zip(files, images, rows, strict=True):
            label = int(row.argmax())
            explained = label if class_name is None else classifier.class_names.index(class_name)
            arrays = explain_image(classifier, logits_fn, image, explained, methods=methods, layer=layer)
            maps = maps_of(image)
            name = _free_name(file, out, taken)
            np.savez_compressed(
                out / f"{name}.npz",
                image=image,
                probabilities=row,
                class_names=names,
                predicted=names[label],
                explained=names[explained],
                source=str(file.resolve()),
                layer=path,
                feature_maps=maps,
                **arrays,  # type: ignore[arg-type]
            )
            pictures = {method: beside(image, strength(values)) for method, values in arrays.items()}
            pictures["feature-maps"] = maps_picture(maps[..., :SHOWN_MAPS])
            for method in METHODS:
                (out / f"{name}-{method}.png").unlink(missing_ok=True)  # of an explanation before this one
            for method, picture in pictures.items():
                write_png(out / f"{name}-{method}.png", picture)
            files_written = [out / f"{name}.npz", *(out / f"{name}-{method}.png" for method in pictures)]
            yield Explained(file, str(names[label]), float(row[label]), str(names[explained]), files_written)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror or error}. Name another with --out.") from error


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

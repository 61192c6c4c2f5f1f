"""A trained model that is ready to use. `load_run` reads it from a run directory."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from flaxcls.augment import make_transform, with_views
from flaxcls.config import Config
from flaxcls.config_json import from_json
from flaxcls.contract import init_variables
from flaxcls.data.batches import pad_rows
from flaxcls.data.picture import Picture
from flaxcls.data.preparation import Preparation
from flaxcls.data.resize import with_channels
from flaxcls.errors import InputError, StorageError
from flaxcls.models import build_model
from flaxcls.run.checkpoint_files import FORMAT, read_arrays, read_record, read_steps
from flaxcls.run.resume import as_found
from flaxcls.run.workdir import CHECKPOINTS, CONFIG
from flaxcls.storage import as_path, write_whole

CALIBRATION = "calibration.json"


class Predictions(NamedTuple):
    """The predictions for n images.

    probabilities: f32[n k]; each row sums to 1.
    class_names: names of the k classes.
    """

    probabilities: np.ndarray
    class_names: tuple[str, ...]

    @property
    def labels(self) -> np.ndarray:
        """i64[n], the most probable class of each image."""
        return self.probabilities.argmax(axis=1)

    @property
    def names(self) -> list[str]:
        """The name of the most probable class of each image."""
        return [self.class_names[label] for label in self.labels]


@dataclass(frozen=True)
class Classifier:
    """A trained model.

    config: configuration of the run.
    model: linen module.
    variables: variables of the module for evaluation; with the average of the parameters, if the run keeps one.
    class_names: names of the k classes.
    preparation: how a picture becomes an image that the model sees.
    mean, std: f64[c], mean and standard deviation that normalise images in 0..1, or None.
    step: training step of the parameters.
    sha256: hash of the arrays in the checkpoint.
    data: name of the data set.
    examples: numbers of examples in its train, validation and test splits.
    fingerprint: of the data set, see `Dataset`; "" if it is not known.
    temperature: divisor of the logits before the softmax, fitted on the validation split; None if not fitted.
    """

    config: Config
    model: nn.Module
    variables: dict[str, Any]
    class_names: tuple[str, ...]
    preparation: Preparation
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    step: int
    sha256: str = ""
    data: str = ""
    examples: tuple[int, ...] = ()
    fingerprint: str = ""
    temperature: float | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the images that the model sees."""
        return self.preparation.shape

    @property
    def image_dtype(self) -> str:
        """The type of the images that it was trained on: uint8 in 0..255, or float32 in 0..1."""
        return self.preparation.dtype.name

    def predict(self, images: np.ndarray | Sequence[np.ndarray], *, batch_size: int = 256) -> Predictions:
        """Returns the probability of each class.

        Args:
          images: u8[n h w c] of any size, or a sequence of u8[h w c] of different sizes; grey images may lack the last
            axis. Floats in 0..1 may take the place of bytes, whichever of the two the run was trained on. They are
            brought to the model's size as those of the run were (data.resize). Grey is converted to colour, or colour
            to grey, as the model needs it. For a run on files of another range of values (data.value_range): images
            with the values of such files, of any type.
          batch_size: number of images computed at once.

        Raises:
          InputError: if an item is not an image of unsigned bytes, or of floats in 0..1.
        """
        logits = self.logits(images, batch_size=batch_size)
        return self.predictions(logits)

    def logits(self, images: np.ndarray | Sequence[np.ndarray], *, batch_size: int = 256) -> np.ndarray:
        """Returns the logits f32[n k] for images as `predict` takes them."""
        found = [np.zeros((0, len(self.class_names)), np.float32)]
        for start in range(0, len(images), batch_size):
            prepared = [self.prepared(image) for image in images[start : start + batch_size]]
            alike = len({image.dtype for image in prepared}) == 1
            batch = np.stack(prepared if alike else [unit_floats(image) for image in prepared])
            found.append(self.logits_of_prepared(batch, size=min(batch_size, len(images))))
        return np.concatenate(found)

    def logits_of_prepared(self, batch: np.ndarray, *, size: int) -> np.ndarray:
        """Returns the logits f32[n k] for n images [n h w c] as `prepared` returns them.

        size: number of images, at least n, for which it is compiled.
        """
        return np.asarray(self._compiled(self.variables, pad_rows(batch, size)))[: len(batch)]

    def predictions(self, logits: np.ndarray) -> Predictions:
        """Returns the calibrated probabilities for logits f32[n k]."""
        return Predictions(np.asarray(jax.nn.softmax(logits / (self.temperature or 1.0))), self.class_names)

    def prepared(self, image: np.ndarray | Picture, name: str = "an image") -> np.ndarray:
        """Returns an image [h w c] or [h w], as `predict` takes it, or a picture, in the shape that the model sees.

        name: of the image, for the message.

        Raises InputError for one that cannot be converted.
        """
        preparation = self.preparation
        if not isinstance(image, Picture) and preparation.value_range not in (None, (0.0, 1.0)):
            image = np.asarray(image)
            image = Picture(image if image.ndim == 3 else image[..., np.newaxis])
        if not isinstance(image, Picture):
            return preparation.fit(with_channels(checked_pixels(image), preparation.channels))
        try:
            preparation.check_depth(image)
            return preparation(image)
        except ValueError as error:
            raise InputError(f"{name}: {error}") from error

    def normalized(self, images: jax.Array) -> jax.Array:
        """Returns images u8[b h w c] of the model's shape, or floats in 0..1, as input for the module."""
        transform = make_transform(mean=self.mean, std=self.std)
        batch = transform(None, {"image": images, "label": jnp.zeros(len(images), jnp.int32)})
        return batch["image"]

    @cached_property
    def evaluated(self) -> nn.Module:
        """The module for evaluation: `model`, or its mean over the views that the configuration asks for."""
        return with_views(self.model, self.config.augment)

    def forward(self, variables: Any, images: jax.Array) -> jax.Array:
        """Returns the logits f32[b k] of images as `normalized` takes them. JAX can trace this."""
        return jnp.asarray(self.evaluated.apply(variables, self.normalized(images), train=False))

    @cached_property
    def _compiled(self) -> Any:
        return jax.jit(lambda variables, images: self.forward(variables, images))


def checked_pixels(image: np.ndarray) -> np.ndarray:
    """Returns an image as u8 in 0..255 or f32 in 0..1, the two scales that a classifier knows; no value is scaled.

    Args:
      image: unsigned bytes, or floats in 0..1 of any precision, [h w c] or [h w].

    Raises InputError for others.
    """
    image = np.asarray(image)
    is_float = np.issubdtype(image.dtype, np.floating)
    if not (is_float or image.dtype == np.uint8) or image.ndim not in (2, 3) or 0 in image.shape:
        raise InputError(
            f"an image of {image.dtype}{list(image.shape)} was given, but uint8 in 0..255 or floats in 0..1, of the "
            "shape [h w c] or [h w], is needed."
        )
    if not is_float:
        return image
    if not 0 <= image.min() <= image.max() <= 1:
        low, high = np.fmin.reduce(image, axis=None), np.fmax.reduce(image, axis=None)  # they pass over NaN
        raise InputError(
            f"an image has floats in {low:.8g}..{high:.8g}, and {np.isnan(image).sum():,} NaN, but they must be in "
            "0..1: scale them, or give uint8."
        )
    return image.astype(np.float32)


def unit_floats(images: np.ndarray) -> np.ndarray:
    """Returns images u8 in 0..255, or f32 in 0..1, as f32 in 0..1."""
    return images.astype(np.float32) / 255 if images.dtype == np.uint8 else images


def load_run(workdir: str | Path, *, model: nn.Module | None = None, step: int | None = None) -> Classifier:
    """Returns the trained model of a run, with the parameters that are the best so far on the validation split.

    Without a validation split, the parameters are the latest.

    Args:
      workdir: directory of a run that has ended, was stopped or is still training.
      model: the caller's own module, if the run was trained with one.
      step: step of another checkpoint, instead of the best one.

    Raises:
      InputError: if there is no run, no readable checkpoint, or the checkpoint is of another model.
    """
    workdir = as_path(workdir)
    config_path(workdir)
    directory = workdir / CHECKPOINTS
    steps = read_steps(directory)
    if not steps:
        raise InputError(f"the run in {workdir} has no checkpoint yet: train it for longer.")
    if step is not None and step not in steps:
        raise InputError(f"step is {step}, but the checkpoints in {directory} are of the steps {_listed(steps)}.")
    try:
        newest = read_record(directory, max(steps))
        best = newest["early_stopping"]["best_step"]
        chosen = step if step is not None else best if best in steps else max(steps)
        record = read_record(directory, chosen)
        if record["format"] > FORMAT:
            raise InputError(
                f"the checkpoint in {workdir} has the format {record['format']}, and this version of flaxcls reads up "
                f"to {FORMAT}: install the version that wrote it, or a later one."
            )
        arrays = read_arrays(directory, chosen, record)
    except (StorageError, KeyError, TypeError) as error:
        raise InputError(
            f"the checkpoint in {workdir} cannot be used: {error} There are checkpoints of the steps {_listed(steps)}: "
            "choose another step."
        ) from error
    config = from_json(json.dumps(record["config"]))
    config = dataclasses.replace(config, data=as_found(config.data, record))
    normalized = config.augment.normalize
    loaded = Classifier(
        config=config,
        model=model or build_model(config.model, len(record["class_names"])),
        variables=_variables(arrays),
        class_names=tuple(record["class_names"]),
        preparation=Preparation.of_record(record),
        mean=tuple(record["mean"]) if normalized else None,
        std=tuple(record["std"]) if normalized else None,
        step=chosen,
        sha256=record["sha256"],
        data=record["data"],
        examples=tuple(record["examples"]),
        fingerprint=record.get("fingerprint", ""),
        temperature=_temperature(workdir, record),
    )
    return dataclasses.replace(loaded, variables=_fitting(loaded, workdir))


def config_path(workdir: Path) -> Path:
    """Returns the path of a run's configuration. Raises InputError if `workdir` is no run directory."""
    path = workdir / CONFIG
    if not path.is_file():
        raise InputError(f"{workdir} has no {CONFIG}, so it is no run directory: name one that flaxcls.train has made.")
    return path


def keep_temperature(workdir: Path, classifier: Classifier, temperature: float) -> Classifier:
    """Writes a temperature, fitted on the validation split, to the run directory; returns the classifier with it."""
    text = json.dumps({"temperature": temperature, "step": classifier.step, "sha256": classifier.sha256})
    write_whole(workdir / CALIBRATION, text + "\n")
    return dataclasses.replace(classifier, temperature=temperature)


def _temperature(workdir: Path, record: dict[str, Any]) -> float | None:
    try:
        kept = json.loads((workdir / CALIBRATION).read_text())
        return float(kept["temperature"]) if kept["sha256"] == record["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _variables(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the module's variables, like `TrainState.eval_variables`."""
    average = any(path.startswith(".ema[") for path in arrays)
    trees: dict[str, Any] = {}
    for path, array in arrays.items():
        field, *keys = (part.rstrip("'] .") for part in path.lstrip(".").split("['"))
        if field == ("ema" if average else "params"):
            keys = ["params", *keys]
        elif field != "model_state":
            continue
        tree = trees
        for key in keys[:-1]:
            tree = tree.setdefault(key, {})
        tree[keys[-1]] = array
    return trees


def _fitting(classifier: Classifier, workdir: Path) -> dict[str, Any]:
    """Returns the variables for the module, with random keys typed again, which checkpoints hold as numbers.

    Raises InputError if the module needs other variables than the checkpoint holds.
    """
    image = jax.ShapeDtypeStruct((1, *classifier.image_shape), jnp.float32)
    expected = jax.eval_shape(partial(init_variables, classifier.model), jax.random.key(0), image)
    expected = {name: values for name, values in expected.items() if values}

    def is_key(leaf: Any) -> bool:
        return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))

    def described(leaf: Any) -> str:
        leaf = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
        # an average has at least 32 bits, whatever the parameters have
        kind = jnp.promote_types(leaf.dtype, jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf.dtype
        return f"{kind}{list(leaf.shape)}"

    def shapes(tree: Any) -> dict[str, str]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): described(leaf) for path, leaf in leaves}

    def typed(needed: Any, stored: Any) -> Any:
        return jax.random.wrap_key_data(stored, impl=_find_impl(needed.dtype)) if is_key(needed) else stored

    needed, stored = shapes(expected), shapes(classifier.variables)
    if needed != stored:
        name = next(name for name in {**stored, **needed} if stored.get(name) != needed.get(name))
        raise InputError(
            f"the checkpoint in {workdir} is of another model: {name} is {stored.get(name, 'not in it')}, but the "
            f"model has {needed.get(name, 'no such array')}. Give load_run the module that the run was trained with."
        )
    return dict(jax.tree.map(typed, expected, classifier.variables))


def _find_impl(dtype: Any) -> str:
    """Returns the name of the random number generator that keys of this type are for."""
    names = ("threefry2x32", "rbg", "unsafe_rbg")
    return next(name for name in names if jax.eval_shape(partial(jax.random.key, 0, impl=name)).dtype == dtype)


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps))

"""A trained model that is ready to use."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from flaxcls.augment import make_transform, with_views
from flaxcls.config import Config
from flaxcls.data.batches import pad_rows
from flaxcls.data.picture import Picture, check_values
from flaxcls.data.preparation import Preparation
from flaxcls.data.resize import with_channels
from flaxcls.errors import InputError


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
            preparation.check_depth(image.dtypes)
            return preparation(check_values(image))
        except ValueError as error:
            columns, channels = self.config.data.path_column, image.pixels.shape[2]
            of_files = len(columns) > 1 and channels != preparation.channels
            table = f" The run has a file for each channel: name a table with the columns {', '.join(columns)}."
            raise InputError(f"{name}: {error}{table * of_files}") from error

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

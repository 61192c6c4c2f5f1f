"""Cutout, mixup and CutMix: images with missing parts, or mixed with another image, and the labels for them.

The partner of an image is the next image in a fixed group of neighbours; the partner of the last is the first. The
training stream is shuffled, so the neighbour is a random image, and no further draw is needed. If the group divides
each device's share of the batch, no group lies on two devices: then nothing is sent between devices, and the pairs do
not depend on the topology.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flaxcls.augment.draws import drawn
from flaxcls.augment.scaling import per_image, restored, unscaled
from flaxcls.types import Batch


def soft_labels(labels: jax.Array, num_classes: int) -> jax.Array:
    """Returns f32[b k], with 1 at the class of each label i32[b]; labels f32[b k] are returned unchanged.

    Raises:
      ValueError: if soft labels do not have num_classes classes.
    """
    if labels.ndim == 1:
        return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    if labels.shape[-1] != num_classes:
        raise ValueError(f"labels {labels.shape} are of {labels.shape[-1]} classes, but num_classes is {num_classes}.")
    return labels


def mixup(images: jax.Array, labels: jax.Array, ratios: jax.Array, *, group: int = 8) -> tuple[jax.Array, jax.Array]:
    """Averages each image with its partner, and their labels (Zhang et al. 2018, "mixup").

    Args:
      images: [b h w c], bytes or floats.
      labels: f32[b k].
      ratios: f32[b], the share of the image itself, in 0..1.
      group: number of neighbours in a group; 2 or more, and a divisor of b (and of each device's share of it).

    Returns:
      Images of the same type (bytes are rounded), and labels f32[b k].

    Raises:
      ValueError: if group does not divide the batch.
    """
    values = unscaled(images)
    own = per_image(ratios, values)
    mixed = own * values + (1 - own) * unscaled(_partners(images, group))
    return restored(mixed, images), _mix_labels(labels, ratios, group)


def cutmix(images: jax.Array, labels: jax.Array, boxes: jax.Array, *, group: int = 8) -> tuple[jax.Array, jax.Array]:
    """Replaces a box of each image with the same box of its partner, and mixes the labels in the same proportion.

    Source: Yun et al. 2019, "CutMix".

    Args:
      images: [b h w c], bytes or floats.
      labels: f32[b k].
      boxes: i32[b 4], row and column of the corner, height and width, inside the image.
      group: as in `mixup`.

    Returns:
      Images of the same type, and labels f32[b k].

    Raises:
      ValueError: if group does not divide the batch.
    """
    height, width = images.shape[1:3]
    share = (boxes[:, 2] * boxes[:, 3]).astype(jnp.float32) / (height * width)
    mixed = jnp.where(_inside(boxes, height, width), _partners(images, group), images)
    return mixed, _mix_labels(labels, 1 - share, group)


def cutout(images: jax.Array, centers: jax.Array, *, size: int, fill: ArrayLike = 0.0) -> jax.Array:
    """Blanks a square of each image (DeVries & Taylor 2017, "Improved Regularization of CNNs with Cutout").

    Args:
      images: [b h w c].
      centers: i32[b 2], row and column of the square's middle, in the image; parts beyond the border are cut off.
      size: the side of the square, at most the shorter side of the image.
      fill: the value of the square, f32[] or f32[c], in the units of the images; the paper uses the mean colour.

    Returns:
      [b h w c], of the same type.

    Raises:
      ValueError: if the square is larger than the image.
    """
    height, width = images.shape[1:3]
    if not 0 < size <= min(height, width):
        raise ValueError(f"size is {size}, but must be 1 or more and at most the shorter side of {height}x{width}.")
    sides = jnp.full_like(centers, size)
    boxes = jnp.concatenate([centers - size // 2, sides], axis=1)
    return jnp.where(_inside(boxes, height, width), jnp.asarray(fill, images.dtype), images)


def random_mixup(key: jax.Array, batch: Batch, *, num_classes: int, alpha: float = 0.2, group: int = 8) -> Batch:
    """Returns the batch after `mixup`, with the share of each image drawn from Beta(alpha, alpha).

    The batch must contain no padding (training has none), because any example may be a partner.
    """
    labels = soft_labels(batch["label"], num_classes)
    images, labels = mixup(batch["image"], labels, _beta(key, alpha, labels.shape[0]), group=group)
    return {**batch, "image": images, "label": labels}


def random_cutmix(key: jax.Array, batch: Batch, *, num_classes: int, alpha: float = 1.0, group: int = 8) -> Batch:
    """Returns the batch after `cutmix` with `random_cutmix_boxes`. The batch must contain no padding."""
    count, height, width = batch["image"].shape[:3]
    boxes = random_cutmix_boxes(key, count, (height, width), alpha=alpha)
    images, labels = cutmix(batch["image"], soft_labels(batch["label"], num_classes), boxes, group=group)
    return {**batch, "image": images, "label": labels}


def random_mix(
    key: jax.Array, batch: Batch, *, num_classes: int, mixup_alpha: float, cutmix_alpha: float, group: int = 8
) -> Batch:
    """Returns the batch after `random_mixup` or `random_cutmix`, with probability 1/2 each for the whole batch."""
    coin_key, mix_key = jax.random.split(key)
    return jax.lax.cond(
        jax.random.bernoulli(coin_key),
        lambda: random_mixup(mix_key, batch, num_classes=num_classes, alpha=mixup_alpha, group=group),
        lambda: random_cutmix(mix_key, batch, num_classes=num_classes, alpha=cutmix_alpha, group=group),
    )


def random_cutmix_boxes(key: jax.Array, count: int, image_size: tuple[int, int], *, alpha: float = 1.0) -> jax.Array:
    """Draws boxes i32[count 4] (row, column, height, width) with the proportions of the image.

    The share of the image outside the box is drawn from Beta(alpha, alpha); the middle of the box is uniform in the
    image. Parts beyond the border are cut off, so a box may be smaller than the drawn one.
    """
    ratio_key, place_key = jax.random.split(key)
    size = jnp.array([image_size], jnp.float32)
    sides = jnp.sqrt(1 - _beta(ratio_key, alpha, count))[:, None] * size
    sides = sides.astype(jnp.int32)  # truncated, as in the code of the paper
    middles = (drawn(jax.random.uniform, place_key, (count, 2)) * size).astype(jnp.int32)
    low = jnp.maximum(middles - sides // 2, 0)
    high = jnp.minimum(middles - sides // 2 + sides, jnp.array([image_size], jnp.int32))
    return jnp.concatenate([low, high - low], axis=1)


def random_cutout(key: jax.Array, images: jax.Array, *, size: int, fill: ArrayLike = 0.0) -> jax.Array:
    """Blanks a square of each of images [b h w c] by `cutout`; the middle is any pixel, at random."""
    limits = jnp.array([images.shape[1:3]], jnp.int32)
    centers = drawn(partial(jax.random.randint, minval=0, maxval=limits), key, (images.shape[0], 2))
    return cutout(images, centers, size=size, fill=fill)


def _beta(key: jax.Array, alpha: float, count: int) -> jax.Array:
    if alpha <= 0:
        raise ValueError(f"alpha is {alpha}, but must be more than 0.")
    if alpha == 1:  # the uniform distribution, without the loops of a draw from Beta
        return drawn(jax.random.uniform, key, (count,))
    return drawn(lambda key, shape: jax.random.beta(key, alpha, alpha, shape, jnp.float32), key, (count,))


def _partners(values: jax.Array, group: int) -> jax.Array:
    """Returns [b ...], with each example replaced by the next example of its group."""
    if group < 2 or values.shape[0] % group:
        raise ValueError(
            f"group is {group}, but must be 2 or more and divide the batch of {values.shape[0]} (on each device)."
        )
    groups = values.reshape(-1, group, *values.shape[1:])
    return jnp.roll(groups, -1, axis=1).reshape(values.shape)


def _mix_labels(labels: jax.Array, own: jax.Array, group: int) -> jax.Array:
    own = own[:, None].astype(labels.dtype)
    return own * labels + (1 - own) * _partners(labels, group)


def _inside(boxes: jax.Array, height: int, width: int) -> jax.Array:
    """Returns bool[b h w 1], True for pixels inside boxes i32[b 4] (row, column, height, width)."""
    top, left, tall, wide = (boxes[:, i, None] for i in range(4))
    rows, columns = (jnp.arange(n, dtype=jnp.int32)[None, :] for n in (height, width))
    in_rows, in_columns = (rows >= top) & (rows < top + tall), (columns >= left) & (columns < left + wide)
    return (in_rows[:, :, None] & in_columns[:, None, :])[..., None]

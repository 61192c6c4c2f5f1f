"""Checks that configuration, data, devices and model fit together; `validation` checks the configuration alone."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from flaxcls.config import AugmentConfig, Config, MeshConfig, OptimConfig
from flaxcls.contract import check_logits
from flaxcls.data import Dataset
from flaxcls.data.images import Images, none_readable
from flaxcls.errors import InputError
from flaxcls.parameters import matching
from flaxcls.state import TrainState

# The least area of a random crop of images of several sizes, where data.resize is crop and augment.resized_crop None.
LEAST_AREA = 0.35


def check_devices(config: MeshConfig, devices: int) -> None:
    """Raises InputError if this number of devices cannot form the mesh."""
    if devices % config.fsdp:
        possible = ", ".join(str(count) for count in range(1, devices + 1) if devices % count == 0)
        raise InputError(
            f"mesh.fsdp is {config.fsdp}, but must divide the number of devices, which is {devices}: it can be "
            f"{possible}."
        )


def check_data(config: Config, dataset: Dataset, devices: int) -> None:
    """Raises InputError with a line for each of batch, devices, early stopping and so on that does not fit the data."""
    if problems := list(_data_problems(config, dataset, devices)):
        raise InputError("\n".join(problems))


def _data_problems(config: Config, dataset: Dataset, devices: int) -> Iterator[str]:
    batch, examples = config.loop.batch_size, len(dataset.train.labels)
    if batch > examples:
        yield (
            f"loop.batch_size is {batch}, but the train split of {dataset.name!r} has {examples} examples: "
            "choose a batch no larger than that."
        )
    yield from _label_problems(dataset)
    for split in (dataset.validation, dataset.test):
        if split is not None and isinstance(split.images, Images) and (reasons := split.images.why_none_readable()):
            yield none_readable(reasons)  # now, not after an epoch
    if dataset.validation is None and config.stop.patience is not None:
        yield (
            f"stop.patience is {config.stop.patience}, but {dataset.name} has no validation split, which early "
            "stopping needs: leave stop.patience out, or set data.validation_fraction, for example to 0.1."
        )
    if config.model.init_images > examples:
        yield (
            f"model.init_images is {config.model.init_images}, but the train split of {dataset.name!r} has {examples} "
            "examples: choose a number no larger than that."
        )
    parts = devices * config.optim.accumulate
    if batch % parts:
        yield (
            f"loop.batch_size is {batch}, but must be a multiple of {parts}: {devices} devices times optim.accumulate "
            f"{config.optim.accumulate}. The nearest is {max(round(batch / parts), 1) * parts}."
        )
    if config.data.on_device:
        yield from _resident_problems(dataset.train.images, dataset.name, config.augment)
    yield from _augmentation_problems(config.augment, dataset)


def _label_problems(dataset: Dataset) -> Iterator[str]:
    classes = len(dataset.class_names)
    for name, split in dataset.splits.items():
        if len(split.labels) and not 0 <= split.labels.min() <= split.labels.max() < classes:
            yield (
                f"the labels of the {name} split of {dataset.name!r} are {split.labels.min()} to {split.labels.max()}, "
                f"but there are {classes} classes, so they must be 0 to {classes - 1}."
            )


def least_area(config: AugmentConfig, images: np.ndarray | Images) -> float | None:
    """Returns the least share of an image in a random crop that is made before it is resized; None: no such crop."""
    if not isinstance(images, Images) or images.whole:
        return None
    usual = LEAST_AREA if images.preparation.resize == "crop" else None
    return usual if config.resized_crop is None else config.resized_crop


def _resident_problems(images: np.ndarray | Images, name: str, config: AugmentConfig) -> Iterator[str]:
    crops = least_area(config, images) is not None
    if not isinstance(images, Images) or (images.in_memory and not crops):
        return
    problem, way_out = "are not all in memory", "raise data.memory if the machine has room"
    if crops:
        problem, way_out = "are of several sizes, and each batch takes other crops of them", "bring them to one size"
    yield (
        f"data.on_device is True, but the training images of {name} {problem}, so they cannot be kept on a device: "
        f"{way_out}, or leave data.on_device out."
    )


def trace(f: Callable[..., Any], *args: Any) -> Any:
    """Returns `f(*args)`, which traces a part that the caller gave. Raises InputError for a ValueError in it."""
    try:
        return f(*args)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error


def check_schedule(config: OptimConfig, *, total_steps: int, warmup_steps: int) -> None:
    """Raises InputError if the schedule has more parts than there are steps."""
    left = total_steps - warmup_steps
    if config.schedule == "cosine_restarts" and config.cycles > left:
        raise InputError(
            f"optim.cycles is {config.cycles}, but there are {left} steps after the warm-up: choose fewer cycles, or a "
            "longer run."
        )


def _augmentation_problems(augment: AugmentConfig, dataset: Dataset) -> Iterator[str]:
    height, width, channels = dataset.image_shape
    side = min(height, width)
    for name in ("crop_padding", "eval_shift"):
        pixels = getattr(augment, name)
        if pixels >= side:
            yield (
                f"augment.{name} is {pixels}, but the images of {dataset.name} have {height}x{width} pixels, and a "
                f"shift by that much moves them out of the picture: choose less than {side}."
            )
    if augment.cutout > side:
        yield (
            f"augment.cutout is {augment.cutout}, but the images of {dataset.name} have {height}x{width} pixels: "
            f"choose at most {side}."
        )
    colours = [name for name in ("saturation", "hue") if getattr(augment, name)]
    if colours and channels == 1:
        yield (
            f"augment.{colours[0]} is {getattr(augment, colours[0])}, but the images of {dataset.name} are grey: "
            "leave it out."
        )
    colours += [name for name in ("brightness", "contrast") if getattr(augment, name)]
    colours += ["policy"] if augment.policy != "none" else []
    if colours and channels not in (1, 3):
        yield (
            f"augment.{colours[0]} is {getattr(augment, colours[0])!r}, but the images of {dataset.name} have "
            f"{channels} channels, and colours need 3, or 1 for grey: leave it out."
        )


def check_model(config: OptimConfig, model: nn.Module, state: TrainState, dataset: Dataset, *, batch_size: int) -> None:
    """Raises InputError if the model does not fit data, batch or freezing; `state` may hold shapes alone."""
    matching(tuple(config.freeze), state.params, "optim.freeze")
    _check_storable(state)
    if batch_size == config.accumulate and "batch_stats" in state.model_state:
        raise InputError(
            f"loop.batch_size is {batch_size} and optim.accumulate is {config.accumulate}, so each microbatch has one "
            "example, from which batch normalisation learns nothing useful: make the microbatches larger, or choose "
            "model.norm group, layer or none."
        )
    image = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32)
    logits = trace(
        jax.eval_shape,
        lambda variables, image: check_logits(model.apply(variables, image, train=False), model),
        state.eval_variables,
        image,
    )
    classes = len(dataset.class_names)
    if getattr(logits, "shape", None) != (1, classes):
        raise InputError(
            f"the model returns {logits} for one image, but {dataset.name} has {classes} classes: "
            f"it must return logits f32[b {classes}]."
        )


def _check_storable(state: TrainState) -> None:
    """Raises InputError for what a checkpoint cannot hold."""
    leaves = jax.tree_util.tree_leaves_with_path((state.params, state.model_state), is_leaf=lambda leaf: leaf is None)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        if 0 in leaf.shape:
            name, shape = jax.tree_util.keystr(path), list(leaf.shape)
            raise InputError(
                f"the optimizer keeps an array of the shape {shape} in {name}, which a checkpoint cannot hold."
            )
    for path, leaf in leaves:
        if leaf is None or 0 in leaf.shape:
            what = "None" if leaf is None else f"an array of the shape {list(leaf.shape)}"
            name = jax.tree_util.keystr(path[1:], simple=True, separator="/")
            raise InputError(f"the model keeps {what} in {name}, which a checkpoint cannot hold: leave it out.")

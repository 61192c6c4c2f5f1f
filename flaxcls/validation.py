"""What a configuration must fulfil, in one place; what depends on the data, `fit` checks."""

import dataclasses
import math
import types
import typing
from typing import Any, Literal

from flaxcls.config import Config, DataConfig
from flaxcls.errors import InputError, unknown


def validate(config: Config) -> None:
    """Raises InputError that lists everything wrong with `config`."""
    problems = type_problems(config) or _value_problems(config)
    if problems:
        raise InputError("\n".join(problems))


def type_problems(config: Any, prefix: str = "") -> list[str]:
    """Returns a line for each field of a dataclass whose value is not of the field's type."""
    problems = []
    for name, hint in typing.get_type_hints(type(config)).items():
        value, path = getattr(config, name), prefix + name
        if dataclasses.is_dataclass(hint) and isinstance(value, typing.cast(type, hint)):
            problems += type_problems(value, path + ".")
        elif (names := choices(hint)) and value not in names:
            problems.append(unknown(path, value, map(str, names)))
        elif not _is_a(value, hint):
            problems.append(
                f"{path} is {value!r}, but must be of type {hint.__name__ if isinstance(hint, type) else hint}."
            )
    return problems


def choices(hint: Any) -> tuple[str | None, ...]:
    """Returns the names that a type `Literal[...]` or `Literal[...] | None` admits; none for another type."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if not any(typing.get_origin(part) is Literal for part in parts):
        return ()
    return tuple(name for part in parts for name in typing.get_args(part) or (None,))


def _is_a(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(value, arg) for arg in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_a(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is_a(k, args[0]) and _is_a(v, args[1]) for k, v in value.items())
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _value_problems(config: Config) -> list[str]:
    data, augment, model, loss, optim, loop, stop = (
        config.data, config.augment, config.model, config.loss, config.optim, config.loop, config.stop,
    )  # fmt: skip
    problems = []

    def check(holds: bool, path: str, rule: str) -> None:
        if not holds:
            value: Any = config
            for name in path.split("."):
                value = getattr(value, name)
            problems.append(f"{path} is {value!r}, but {rule}.")

    check(0 <= config.seed < 2**32, "seed", "must be in 0..2^32-1")
    check(0 <= data.split_seed < 2**32, "data.split_seed", "must be in 0..2^32-1")
    check(0 <= data.validation_fraction < 1, "data.validation_fraction", "must be 0 or more and below 1")
    check(0 < data.test_fraction < 1, "data.test_fraction", "must be above 0 and below 1")
    check(data.train_examples is None or data.train_examples > 0, "data.train_examples", "must be 1 or more, or None")
    check(data.image_size is None or data.image_size > 0, "data.image_size", "must be 1 or more, or None")
    check(data.workers is None or data.workers >= 0, "data.workers", "must be 0 or more, or None")
    check(0 <= data.memory < math.inf, "data.memory", "must be 0 or more GiB, and finite")
    readers = {
        "name": ("tfds",), "dir": ("tfds", "folder"), "image_size": ("tfds", "folder"), "color": ("folder",),
        "unreadable": ("folder",), "memory": ("tfds", "folder"),
        "workers": ("tfds", "folder"),
    }  # fmt: skip
    for name, sources in readers.items():
        unused = getattr(data, name) == DataConfig.__dataclass_fields__[name].default
        check(
            unused or data.source in sources,
            f"data.{name}",
            f"data.source {data.source!r} does not read it; leave it out, or choose data.source {' or '.join(sources)}",
        )
    check(
        data.source != "tfds" or bool(data.name),
        "data.name",
        "data.source 'tfds' needs the name of a data set, such as cifar10",
    )
    check(
        data.source != "folder" or bool(data.dir),
        "data.dir",
        "data.source 'folder' needs the folder of the images, or a .csv or .parquet of their paths and labels",
    )
    check(
        not (augment.alternating_flip and augment.flip),
        "augment.alternating_flip",
        "augment.flip mirrors at random on top of it: choose one of the two",
    )
    check(augment.crop_padding >= 0, "augment.crop_padding", "must be 0 or more")
    check(
        augment.resized_crop is None or 0 < augment.resized_crop <= 1,
        "augment.resized_crop",
        "must be above 0 and at most 1, or None",
    )
    check(
        augment.resized_crop is None or augment.crop_padding == 0,
        "augment.resized_crop",
        f"images are cropped already; set augment.crop_padding, {augment.crop_padding}, to 0",
    )
    check(0 <= augment.rotate <= 180, "augment.rotate", "must be in 0..180 degrees")
    check(0 <= augment.translate < 1, "augment.translate", "must be in [0, 1), a share of the side")
    for name in ("brightness", "contrast", "saturation"):
        check(0 <= getattr(augment, name) < math.inf, f"augment.{name}", "must be 0 or more, and finite")
    check(0 <= augment.hue <= 0.5, "augment.hue", "must be in 0..0.5, half of the whole turn to either side")
    for name in ("magnitude", "layers"):
        check(
            getattr(augment, name) is None or augment.policy == "rand_augment",
            f"augment.{name}",
            f"augment.policy {augment.policy!r} does not read it; leave it out, or choose rand_augment",
        )
    check(augment.magnitude is None or 0 <= augment.magnitude <= 30, "augment.magnitude", "must be in 0..30")
    check(augment.layers is None or augment.layers > 0, "augment.layers", "must be 1 or more")
    check(augment.cutout >= 0, "augment.cutout", "must be 0 or more")
    check(augment.eval_shift >= 0, "augment.eval_shift", "must be 0 or more")
    check(
        augment.eval_pattern == "cross" or augment.eval_shift > 0,
        "augment.eval_pattern",
        f"augment.eval_shift is {augment.eval_shift}, so no image is moved: set that, or leave the pattern out",
    )
    for name in ("mixup", "cutmix"):
        alpha = getattr(augment, name)
        check(0 <= alpha < math.inf, f"augment.{name}", "must be 0 or more, and finite")
        check(
            not alpha or loss.name != "focal",
            f"augment.{name}",
            "it gives soft labels, and loss.name 'focal' is made for one true class: its least loss is not where the "
            "prediction is the label; choose another loss",
        )
        check(
            not alpha or loop.batch_size % 8 == 0,
            f"augment.{name}",
            f"it mixes within groups of 8 images, so loop.batch_size must be a multiple of 8; it is {loop.batch_size}",
        )
    check(all(width > 0 for width in model.widths or ()), "model.widths", "each must be 1 or more")
    check(model.widths != (), "model.widths", "at least one convolution is needed")
    check(all(units > 0 for units in model.dense or ()), "model.dense", "each must be 1 or more")
    check(model.kernel_size is None or model.kernel_size > 0, "model.kernel_size", "must be 1 or more")
    check(model.dropout is None or 0 <= model.dropout < 1, "model.dropout", "must be in [0, 1)")
    check(
        model.stochastic_depth is None or 0 <= model.stochastic_depth < 1, "model.stochastic_depth", "must be in [0, 1)"
    )
    check(model.init_images >= 0, "model.init_images", "must be 0 or more")
    check(
        model.dense != () or not model.dropout,
        "model.dropout",
        "it acts on hidden dense layers and model.dense names none; add one, or leave model.dropout out",
    )
    check(
        loss.focal_gamma is None or loss.name == "focal",
        "loss.focal_gamma",
        f"loss.name {loss.name!r} does not read it; leave it out, or choose loss.name 'focal'",
    )
    check(loss.focal_gamma is None or loss.focal_gamma >= 0, "loss.focal_gamma", "must be 0 or more, or None")
    check(0 <= loss.label_smoothing < 1, "loss.label_smoothing", "must be in [0, 1)")
    check(loss.l1 >= 0, "loss.l1", "must be 0 or more")
    check(loss.l2 >= 0, "loss.l2", "must be 0 or more")
    check(0 < optim.learning_rate < float("inf"), "optim.learning_rate", "must be above 0 and finite")
    check(optim.warmup_epochs >= 0, "optim.warmup_epochs", "must be 0 or more")
    check(
        optim.warmup_epochs <= max(loop.epochs, 1),
        "optim.warmup_epochs",
        f"must be no more than loop.epochs, {loop.epochs}",
    )
    check(optim.weight_decay >= 0, "optim.weight_decay", "must be 0 or more")
    check(
        optim.name not in ("adam", "rmsprop") or optim.weight_decay == 0,
        "optim.weight_decay",
        f"{optim.name} has no decoupled decay; choose optim.name adamw, set it to 0, or use loss.l2",
    )
    for name in ("rate_factors", "decay_factors"):
        finite = all(0 <= factor < float("inf") for factor in getattr(optim, name).values())
        check(finite, f"optim.{name}", "each factor must be 0 or more and finite")
    check(
        all(0 <= epochs < max(loop.epochs, 1) for epochs in optim.freeze.values()),
        "optim.freeze",
        f"each number of epochs must be 0 or more and less than loop.epochs, {loop.epochs}",
    )
    check(
        optim.name not in ("adam", "rmsprop") or not optim.decay_factors,
        "optim.decay_factors",
        f"{optim.name} has no decoupled decay; choose optim.name adamw, or leave it out",
    )
    check(optim.decay_rate > 0, "optim.decay_rate", "must be above 0")
    check(
        all(0 < at < 1 for at in optim.boundaries) and list(optim.boundaries) == sorted(set(optim.boundaries)),
        "optim.boundaries",
        "each must be above 0 and below 1, in rising order",
    )
    check(optim.cycles > 0, "optim.cycles", "must be 1 or more")
    check(optim.plateau_patience is None or optim.plateau_patience > 0, "optim.plateau_patience", "must be 1 or more")
    check(0 < optim.plateau_factor < 1, "optim.plateau_factor", "must be above 0 and below 1")
    check(0 <= optim.momentum < 1, "optim.momentum", "must be in [0, 1)")
    check(
        optim.schedule != "one_cycle" or optim.warmup_epochs == 0,
        "optim.schedule",
        "one_cycle warms up by itself; set optim.warmup_epochs to 0",
    )
    check(optim.clip_norm is None or optim.clip_norm > 0, "optim.clip_norm", "must be above 0, or None")
    check(optim.sam_rho is None or 0 < optim.sam_rho < float("inf"), "optim.sam_rho", "must be above 0, or None")
    check(optim.ema_decay is None or 0 < optim.ema_decay < 1, "optim.ema_decay", "must be above 0 and below 1, or None")
    check(optim.accumulate > 0, "optim.accumulate", "must be 1 or more")
    check(
        optim.accumulate < 1 or loop.batch_size % optim.accumulate == 0,
        "optim.accumulate",
        f"must divide loop.batch_size, {loop.batch_size}",
    )
    check(loop.epochs > 0, "loop.epochs", "must be 1 or more")
    check(config.mesh.fsdp > 0, "mesh.fsdp", "must be 1 or more")
    check(loop.batch_size > 0, "loop.batch_size", "must be 1 or more")
    check(loop.eval_batch_size > 0, "loop.eval_batch_size", "must be 1 or more")
    check(loop.eval_every > 0, "loop.eval_every", "must be 1 or more")
    check(loop.save_every is None or loop.save_every > 0, "loop.save_every", "must be 1 or more, or None")
    check(loop.log_every > 0, "loop.log_every", "must be 1 or more")
    check(loop.steps_per_dispatch > 0, "loop.steps_per_dispatch", "must be 1 or more")
    check(loop.nan_limit > 0, "loop.nan_limit", "must be 1 or more")
    check(stop.patience is None or stop.patience > 0, "stop.patience", "must be 1 or more, or None")
    check(stop.min_delta >= 0, "stop.min_delta", "must be 0 or more")
    check(0 <= stop.skip < 1, "stop.skip", "must be in [0, 1)")
    return problems

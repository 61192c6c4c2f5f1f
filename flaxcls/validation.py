"""The rules for the values of a configuration. `fit` checks the rules that depend on the data."""

import dataclasses
import math
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

from flaxcls.config import (
    AugmentConfig,
    Config,
    DataConfig,
    LoopConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    StopConfig,
)
from flaxcls.errors import InputError, unknown

# (field, True if its value keeps the rule, rule)
_Rule: TypeAlias = tuple[str, bool, str]


def validate(config: Config) -> None:
    """Raises InputError with a line for each broken rule of `config`."""
    problems = type_problems(config) or _value_problems(config)
    if problems:
        raise InputError("\n".join(problems))


def type_problems(config: Any, prefix: str = "") -> list[str]:
    """Returns a line for each field of the dataclass `config` whose value has another type than the field.

    prefix: written before the names of the fields, such as "data.".
    """
    problems = []
    for name, hint in typing.get_type_hints(type(config)).items():
        value, path = getattr(config, name), prefix + name
        if dataclasses.is_dataclass(hint) and isinstance(value, typing.cast(type, hint)):
            problems += type_problems(value, path + ".")
        elif (names := choices(hint)) and value not in names:
            problems.append(unknown(path, value, map(str, names)))
        elif not _fits(value, hint):
            problems.append(
                f"{path} is {value!r}, but must be of type {hint.__name__ if isinstance(hint, type) else hint}."
            )
    return problems


def choices(hint: Any) -> tuple[str | None, ...]:
    """Returns the values of a type `Literal[...]` or `Literal[...] | None`; an empty tuple for other types."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if not any(typing.get_origin(part) is Literal for part in parts):
        return ()
    return tuple(name for part in parts for name in typing.get_args(part) or (None,))


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, args[0]) and _fits(v, args[1]) for k, v in value.items())
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _value_problems(config: Config) -> list[str]:
    return [
        *_broken_rules("", config, [("seed", 0 <= config.seed < 2**32, "must be in 0..2^32-1")]),
        *_data_problems(config.data),
        *_augment_problems(config.augment, config.loss, config.loop),
        *_model_problems(config.model),
        *_loss_problems(config.loss),
        *_optim_problems(config.optim, config.loop),
        *_loop_problems(config.loop),
        *_mesh_problems(config.mesh),
        *_stop_problems(config.stop),
    ]


def _broken_rules(prefix: str, config: Any, rules: Iterable[_Rule]) -> list[str]:
    return [f"{prefix}{name} is {getattr(config, name)!r}, but {rule}." for name, holds, rule in rules if not holds]


def _data_problems(data: DataConfig) -> list[str]:
    sources_by_field = {
        "name": ("tfds",),
        "dir": ("tfds", "folder"),
        **dict.fromkeys(
            ("path_column", "label_column", "split_column", "group_column", "image_dir", "suffix"), ("folder",)
        ),
        "image_size": ("tfds", "folder"),
        "resize": ("tfds", "folder"),
        "include": ("folder",),
        "exclude": ("folder",),
        "color": ("folder",),
        "value_range": ("tfds", "folder"),
        "max_pixels": ("tfds", "folder"),
        "unreadable": ("folder",),
        "memory": ("tfds", "folder"),
        "workers": ("tfds", "folder"),
        "test_from": ("tfds", "folder"),
    }
    defaults = {field.name: field.default for field in dataclasses.fields(DataConfig)}
    rules: list[_Rule] = [
        ("split_seed", 0 <= data.split_seed < 2**32, "must be in 0..2^32-1"),
        ("validation_fraction", 0 <= data.validation_fraction < 1, "must be 0 or more and below 1"),
        ("test_fraction", 0 < data.test_fraction < 1, "must be above 0 and below 1"),
        ("train_examples", data.train_examples is None or data.train_examples > 0, "must be 1 or more, or None"),
        ("image_size", _is_size(data.image_size), "must be a number of pixels, or height and width, each 1 or more"),
        (
            "value_range",
            data.value_range is None
            or (len(data.value_range) == 2 and -math.inf < data.value_range[0] < data.value_range[1] < math.inf),
            "must be two finite numbers, the lower one first",
        ),
        ("max_pixels", data.max_pixels is None or data.max_pixels > 0, "must be 1 or more, or None"),
        ("workers", data.workers is None or data.workers >= 0, "must be 0 or more, or None"),
        ("memory", 0 <= data.memory < math.inf, "must be 0 or more GiB, and finite"),
        *(
            (name, len(set(getattr(data, name))) == len(getattr(data, name)), "must name each column once")
            for name in ("path_column", "label_column")
        ),
        ("suffix", data.suffix is None or "." in data.suffix, "must have a dot, such as .png"),
        (
            "color",
            data.color == "rgb" or len(data.path_column) < 2,
            "each of the columns of data.path_column is a channel; leave it out",
        ),
        *(
            (
                name,
                getattr(data, name) == defaults[name] or data.source in sources,
                f"data.source {data.source!r} does not read it; leave it out, or choose data.source "
                f"{' or '.join(sources)}",
            )
            for name, sources in sources_by_field.items()
        ),
        (
            "name",
            data.source != "tfds" or bool(data.name),
            "data.source 'tfds' needs the name of a data set, such as cifar10",
        ),
        (
            "dir",
            data.source != "folder" or bool(data.dir),
            "data.source 'folder' needs the folder of the images, or a .csv, .tsv or .parquet of paths and labels",
        ),
    ]
    return _broken_rules("data.", data, rules)


def _is_size(size: int | tuple[int, ...] | None) -> bool:
    sides = () if size is None else (size, size) if isinstance(size, int) else size
    return len(sides) in (0, 2) and all(side > 0 for side in sides) and size != ()


def _augment_problems(augment: AugmentConfig, loss: LossConfig, loop: LoopConfig) -> list[str]:
    rules: list[_Rule] = [
        (
            "alternating_flip",
            not (augment.alternating_flip and augment.flip),
            "augment.flip mirrors at random on top of it: choose one of the two",
        ),
        ("crop_padding", augment.crop_padding >= 0, "must be 0 or more"),
        (
            "resized_crop",
            augment.resized_crop is None or 0 < augment.resized_crop <= 1,
            "must be above 0 and at most 1, or None",
        ),
        (
            "resized_crop",
            augment.resized_crop is None or augment.crop_padding == 0,
            f"images are cropped already; set augment.crop_padding, {augment.crop_padding}, to 0",
        ),
        ("rotate", 0 <= augment.rotate <= 180, "must be in 0..180 degrees"),
        ("translate", 0 <= augment.translate < 1, "must be in [0, 1), a share of the side"),
        *(
            (name, 0 <= getattr(augment, name) < math.inf, "must be 0 or more, and finite")
            for name in ("brightness", "contrast", "saturation")
        ),
        ("hue", 0 <= augment.hue <= 0.5, "must be in 0..0.5, half of the whole turn to either side"),
        *(
            (
                name,
                getattr(augment, name) is None or augment.policy == "rand_augment",
                f"augment.policy {augment.policy!r} does not read it; leave it out, or choose rand_augment",
            )
            for name in ("magnitude", "layers")
        ),
        ("magnitude", augment.magnitude is None or 0 <= augment.magnitude <= 30, "must be in 0..30"),
        ("layers", augment.layers is None or augment.layers > 0, "must be 1 or more"),
        ("cutout", augment.cutout >= 0, "must be 0 or more"),
        ("eval_shift", augment.eval_shift >= 0, "must be 0 or more"),
        (
            "eval_pattern",
            augment.eval_pattern == "cross" or augment.eval_shift > 0,
            f"augment.eval_shift is {augment.eval_shift}, so no image is moved: set that, or leave the pattern out",
        ),
        *_mixing_rules("mixup", augment.mixup, loss, loop),
        *_mixing_rules("cutmix", augment.cutmix, loss, loop),
    ]
    return _broken_rules("augment.", augment, rules)


def _mixing_rules(name: str, alpha: float, loss: LossConfig, loop: LoopConfig) -> list[_Rule]:
    return [
        (name, 0 <= alpha < math.inf, "must be 0 or more, and finite"),
        (
            name,
            not alpha or loss.name != "focal",
            "it gives soft labels, and loss.name 'focal' is made for one true class: with soft labels, its minimum is "
            "not where the prediction equals the label; choose another loss",
        ),
        (
            name,
            not alpha or loop.batch_size % 8 == 0,
            f"it mixes within groups of 8 images, so loop.batch_size must be a multiple of 8; it is {loop.batch_size}",
        ),
    ]


def _model_problems(model: ModelConfig) -> list[str]:
    rules: list[_Rule] = [
        ("widths", all(width > 0 for width in model.widths or ()), "each must be 1 or more"),
        ("widths", model.widths != (), "at least one convolution is needed"),
        ("dense", all(units > 0 for units in model.dense or ()), "each must be 1 or more"),
        ("kernel_size", model.kernel_size is None or model.kernel_size > 0, "must be 1 or more"),
        ("dropout", model.dropout is None or 0 <= model.dropout < 1, "must be in [0, 1)"),
        ("stochastic_depth", model.stochastic_depth is None or 0 <= model.stochastic_depth < 1, "must be in [0, 1)"),
        ("init_images", model.init_images >= 0, "must be 0 or more"),
        (
            "dropout",
            model.dense != () or not model.dropout,
            "it acts on hidden dense layers and model.dense names none; add one, or leave model.dropout out",
        ),
    ]
    return _broken_rules("model.", model, rules)


def _loss_problems(loss: LossConfig) -> list[str]:
    rules: list[_Rule] = [
        (
            "focal_gamma",
            loss.focal_gamma is None or loss.name == "focal",
            f"loss.name {loss.name!r} does not read it; leave it out, or choose loss.name 'focal'",
        ),
        ("focal_gamma", loss.focal_gamma is None or loss.focal_gamma >= 0, "must be 0 or more, or None"),
        ("label_smoothing", 0 <= loss.label_smoothing < 1, "must be in [0, 1)"),
        ("l1", loss.l1 >= 0, "must be 0 or more"),
        ("l2", loss.l2 >= 0, "must be 0 or more"),
    ]
    return _broken_rules("loss.", loss, rules)


def _optim_problems(optim: OptimConfig, loop: LoopConfig) -> list[str]:
    decays = optim.name not in ("adam", "rmsprop")
    rules: list[_Rule] = [
        ("learning_rate", 0 < optim.learning_rate < math.inf, "must be above 0 and finite"),
        ("warmup_epochs", optim.warmup_epochs >= 0, "must be 0 or more"),
        (
            "warmup_epochs",
            optim.warmup_epochs <= max(loop.epochs, 1),
            f"must be no more than loop.epochs, {loop.epochs}",
        ),
        ("weight_decay", optim.weight_decay >= 0, "must be 0 or more"),
        (
            "weight_decay",
            decays or optim.weight_decay == 0,
            f"{optim.name} has no decoupled decay; choose optim.name adamw, set it to 0, or use loss.l2",
        ),
        *(
            (
                name,
                all(0 <= factor < math.inf for factor in getattr(optim, name).values()),
                "each factor must be 0 or more and finite",
            )
            for name in ("rate_factors", "decay_factors")
        ),
        (
            "freeze",
            all(0 <= epochs < max(loop.epochs, 1) for epochs in optim.freeze.values()),
            f"each number of epochs must be 0 or more and less than loop.epochs, {loop.epochs}",
        ),
        (
            "decay_factors",
            decays or not optim.decay_factors,
            f"{optim.name} has no decoupled decay; choose optim.name adamw, or leave it out",
        ),
        ("decay_rate", optim.decay_rate > 0, "must be above 0"),
        (
            "boundaries",
            all(0 < at < 1 for at in optim.boundaries) and list(optim.boundaries) == sorted(set(optim.boundaries)),
            "each must be above 0 and below 1, in rising order",
        ),
        ("cycles", optim.cycles > 0, "must be 1 or more"),
        ("plateau_patience", optim.plateau_patience is None or optim.plateau_patience > 0, "must be 1 or more"),
        ("plateau_factor", 0 < optim.plateau_factor < 1, "must be above 0 and below 1"),
        ("momentum", 0 <= optim.momentum < 1, "must be in [0, 1)"),
        (
            "schedule",
            optim.schedule != "one_cycle" or optim.warmup_epochs == 0,
            "one_cycle warms up by itself; set optim.warmup_epochs to 0",
        ),
        ("clip_norm", optim.clip_norm is None or optim.clip_norm > 0, "must be above 0, or None"),
        ("sam_rho", optim.sam_rho is None or 0 < optim.sam_rho < math.inf, "must be above 0, or None"),
        ("ema_decay", optim.ema_decay is None or 0 < optim.ema_decay < 1, "must be above 0 and below 1, or None"),
        ("accumulate", optim.accumulate > 0, "must be 1 or more"),
        (
            "accumulate",
            optim.accumulate < 1 or loop.batch_size % optim.accumulate == 0,
            f"must divide loop.batch_size, {loop.batch_size}",
        ),
    ]
    return _broken_rules("optim.", optim, rules)


def _loop_problems(loop: LoopConfig) -> list[str]:
    rules: list[_Rule] = [
        ("epochs", loop.epochs > 0, "must be 1 or more"),
        ("batch_size", loop.batch_size > 0, "must be 1 or more"),
        ("eval_batch_size", loop.eval_batch_size > 0, "must be 1 or more"),
        ("eval_every", loop.eval_every > 0, "must be 1 or more"),
        ("save_every", loop.save_every is None or loop.save_every > 0, "must be 1 or more, or None"),
        ("log_every", loop.log_every > 0, "must be 1 or more"),
        ("steps_per_dispatch", loop.steps_per_dispatch > 0, "must be 1 or more"),
        ("nan_limit", loop.nan_limit > 0, "must be 1 or more"),
    ]
    return _broken_rules("loop.", loop, rules)


def _mesh_problems(mesh: MeshConfig) -> list[str]:
    return _broken_rules("mesh.", mesh, [("fsdp", mesh.fsdp > 0, "must be 1 or more")])


def _stop_problems(stop: StopConfig) -> list[str]:
    rules: list[_Rule] = [
        ("patience", stop.patience is None or stop.patience > 0, "must be 1 or more, or None"),
        ("min_delta", stop.min_delta >= 0, "must be 0 or more"),
        ("skip", 0 <= stop.skip < 1, "must be in [0, 1)"),
    ]
    return _broken_rules("stop.", stop, rules)

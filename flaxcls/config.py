"""The configuration of a run: frozen dataclasses, the one source of the command line and of config.json.

The string under a field is its help text. Names are `Literal` types, so that a type checker, the command line and
`validate` know the same ones.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from flaxcls.errors import InputError, unknown

SourceName = Literal["digits", "tfds"]
ModelName = Literal["cnn"]
ActivationName = Literal["relu", "gelu", "silu", "tanh", "sigmoid"]
LossName = Literal["cross_entropy", "squared_error", "binary_cross_entropy", "focal"]
NormName = Literal["none", "batch"]
OptimizerName = Literal["sgd", "rmsprop", "adam", "adamw", "lamb", "lion", "muon"]
ScheduleName = Literal["constant", "linear", "cosine", "cosine_restarts", "exponential", "piecewise", "one_cycle"]


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how they are split."""

    source: SourceName = "digits"
    """digits: scikit-learn's embedded 8x8 digits; tfds: a directory prepared by tensorflow-datasets."""
    name: str | None = None
    """With tfds, the data set to read: cifar10, or name/config:version to be exact."""
    dir: str | None = None
    """With tfds, the prepared data directory; without it TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    validation_fraction: float = 0.1
    """Share of the training examples that is held out for early stopping and model selection."""
    test_fraction: float = 0.2
    """Share of all examples that is held out for the final test, where the source has no test split of its own."""
    split_seed: int = 0
    """Seed of the stratified splits; apart from the run's seed, so that runs of all seeds see the same splits."""


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to the images, on the device."""

    normalize: bool = True
    """Subtract the mean and divide by the deviation of each channel, both computed from the training split."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2."""
    crop_padding: int = 1
    """Pixels added around each training image before a random crop of the old size; 0: no crop."""
    crop_fill: Literal["zero", "reflect"] = "zero"
    """What the added pixels hold: zero, or the image mirrored at its border."""


@dataclass(frozen=True)
class ModelConfig:
    """The network. None: the model's own default; what a model does not take is an error."""

    name: ModelName = "cnn"
    """cnn: blocks of convolution, normalisation, activation and pooling, then dense layers."""
    widths: tuple[int, ...] | None = None
    """cnn: channels of each convolution; between two of them a 2x2 pooling halves the image."""
    dense: tuple[int, ...] | None = None
    """cnn: units of each hidden dense layer."""
    kernel_size: int | None = None
    """cnn: height and width of the convolutions, in pixels."""
    padding: Literal["same", "valid"] | None = None
    """cnn: same keeps the image's size in a convolution; valid uses no pixel outside of the image."""
    pooling: Literal["max", "average"] | None = None
    """cnn: what a pooling window keeps."""
    activation: ActivationName | None = None
    """Nonlinearity."""
    norm: NormName | None = None
    """Normalisation after each convolution."""
    dropout: float | None = None
    """Probability that a unit is dropped in training, where the model has dropout."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters, batch statistics and loss are float32 always."""


@dataclass(frozen=True)
class LossConfig:
    """What is minimised: the loss and penalties."""

    name: LossName = "cross_entropy"
    """Loss of an example; squared_error is on the softmax, binary_cross_entropy each class against all others."""
    focal_gamma: float | None = None
    """With focal, how much less an easy example counts; None: 2."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: an example counts by how rare its class is in the training split, 1 on average."""
    label_smoothing: float = 0.0
    """Probability taken from the true class and spread evenly over all classes, in training."""
    l1: float = 0.0
    """Factor of the sum of the weights' absolute values, added to the loss."""
    l2: float = 0.0
    """Factor of the sum of the weights' squares, added to the loss; with l1 it is an elastic net."""


@dataclass(frozen=True)
class OptimConfig:
    """How it is minimised."""

    name: OptimizerName = "adamw"
    """sgd with Nesterov momentum, rmsprop, adam, or, with decoupled weight decay, adamw, lamb, lion, muon."""
    learning_rate: float = 4e-3
    """Learning rate; with a schedule, its peak."""
    schedule: ScheduleName = "cosine"
    """What the learning rate does after the warm-up; linear, cosine and its restarts go down to 0."""
    decay_rate: float = 0.1
    """With exponential, the factor from the first step to the last; with piecewise, the factor at each boundary."""
    boundaries: tuple[float, ...] = (0.5, 0.75)
    """With piecewise, where the rate drops, as shares of the steps after the warm-up."""
    cycles: int = 4
    """With cosine_restarts, how often the cosine is run through."""
    plateau_patience: int | None = None
    """Epochs in a row without a lower training loss after which the learning rate is reduced; None: it is not."""
    plateau_factor: float = 0.5
    """What a plateau multiplies the learning rate by."""
    momentum: float = 0.9
    """Momentum of sgd, rmsprop and muon; the others have their papers' own."""
    warmup_epochs: float = 1.0
    """Epochs over which the learning rate rises linearly from 0."""
    weight_decay: float = 1e-2
    """Decoupled decay, times the learning rate at each step; biases and normalisation are spared."""
    clip_norm: float | None = None
    """Largest norm of the gradient over all parameters; a longer one is scaled down."""
    ema_decay: float | None = 0.99
    """Decay of the moving average of the parameters, which evaluation then uses."""
    accumulate: int = 1
    """Parts that a batch is split into to save memory; the gradient is of the whole batch all the same."""


@dataclass(frozen=True)
class LoopConfig:
    """How long, and how often."""

    epochs: int = 60
    """Passes over the training split."""
    batch_size: int = 64
    """Examples a step, over all devices."""
    eval_batch_size: int = 512
    """Examples an evaluation step, over all devices."""
    eval_every: int = 1
    """Epochs from one evaluation on the validation split to the next."""
    save_every: int | None = None
    """Steps from one checkpoint to the next; there is one after each evaluation in any case."""
    log_every: int = 50
    """Steps from one line of metrics to the next."""


@dataclass(frozen=True)
class StopConfig:
    """Early stopping, and which parameters are the best."""

    metric: Literal["loss", "accuracy"] = "loss"
    """Quantity on the validation split that decides: the lowest loss or the highest accuracy."""
    patience: int | None = None
    """Evaluations in a row without improvement after which training stops; None: it never stops early."""
    min_delta: float = 0.0
    """Smallest change that counts as an improvement."""
    skip: float = 0.0
    """Share of the run's evaluations, at its start, that do not count, neither for patience nor as the best."""


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers. The default trains a small CNN on scikit-learn's digits."""

    seed: int = 0
    """Seed of initialisation, data order, augmentation and dropout."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    # 143 digits are too few to tell good parameters from lucky ones while the learning rate is high
    stop: StopConfig = field(default_factory=lambda: StopConfig(skip=2 / 3))


def validate(config: Config) -> None:
    """Raises InputError that lists everything wrong with `config`; what depends on the data, `fit` checks."""
    problems = _type_problems(config) or _value_problems(config)
    if problems:
        raise InputError("\n".join(problems))


def _type_problems(config: Any, prefix: str = "") -> list[str]:
    problems = []
    for name, hint in typing.get_type_hints(type(config)).items():
        value, path = getattr(config, name), prefix + name
        if dataclasses.is_dataclass(hint) and isinstance(value, typing.cast(type, hint)):
            problems += _type_problems(value, path + ".")
        elif (names := choices(hint)) and value not in names:
            problems.append(unknown(path, value, map(str, names)))
        elif not _is_a(value, hint):
            problems.append(f"{path} is {value!r}, but must be of type {getattr(hint, '__name__', hint)}.")
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
    check(0 < data.validation_fraction < 1, "data.validation_fraction", "must be above 0 and below 1")
    check(0 < data.test_fraction < 1, "data.test_fraction", "must be above 0 and below 1")
    if data.source == "tfds":
        check(bool(data.name), "data.name", "data.source 'tfds' needs the name of a data set, such as cifar10")
    else:
        only_tfds = f"data.source {data.source!r} does not read it; leave it out, or choose data.source 'tfds'"
        check(data.name is None, "data.name", only_tfds)
        check(data.dir is None, "data.dir", only_tfds)
    check(augment.crop_padding >= 0, "augment.crop_padding", "must be 0 or more")
    check(all(width > 0 for width in model.widths or ()), "model.widths", "each must be 1 or more")
    check(model.widths != (), "model.widths", "at least one convolution is needed")
    check(all(units > 0 for units in model.dense or ()), "model.dense", "each must be 1 or more")
    check(model.kernel_size is None or model.kernel_size > 0, "model.kernel_size", "must be 1 or more")
    check(model.dropout is None or 0 <= model.dropout < 1, "model.dropout", "must be in [0, 1)")
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
    check(optim.ema_decay is None or 0 < optim.ema_decay < 1, "optim.ema_decay", "must be above 0 and below 1, or None")
    check(optim.accumulate > 0, "optim.accumulate", "must be 1 or more")
    check(
        optim.accumulate < 1 or loop.batch_size % optim.accumulate == 0,
        "optim.accumulate",
        f"must divide loop.batch_size, {loop.batch_size}",
    )
    check(loop.epochs > 0, "loop.epochs", "must be 1 or more")
    check(loop.batch_size > 0, "loop.batch_size", "must be 1 or more")
    check(loop.eval_batch_size > 0, "loop.eval_batch_size", "must be 1 or more")
    check(loop.eval_every > 0, "loop.eval_every", "must be 1 or more")
    check(loop.save_every is None or loop.save_every > 0, "loop.save_every", "must be 1 or more, or None")
    check(loop.log_every > 0, "loop.log_every", "must be 1 or more")
    check(stop.patience is None or stop.patience > 0, "stop.patience", "must be 1 or more, or None")
    check(stop.min_delta >= 0, "stop.min_delta", "must be 0 or more")
    check(0 <= stop.skip < 1, "stop.skip", "must be in [0, 1)")
    return problems


def to_json(config: Config) -> str:
    """Returns `config` as indented JSON, which `from_json` reads back equal."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Reads what `to_json` wrote. Raises InputError for broken JSON and for an unknown or missing field."""
    try:
        config: Config = _build(Config, json.loads(text), "")
    except json.JSONDecodeError as error:
        raise InputError(f"the configuration is not JSON: {error}.") from error
    return config


def _build(cls: Any, values: Any, prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    if not isinstance(values, dict):
        raise InputError(f"the configuration{prefix and ' at ' + prefix[:-1]} is {values!r}, but must be an object.")
    for name in values:
        if name not in hints:
            raise InputError(unknown("field", prefix + name, [prefix + known for known in hints]))
    arguments = {}
    for name, hint in hints.items():
        if name not in values:
            raise InputError(f"the configuration has no {prefix + name}: it is of another version or was cut short.")
        value = values[name]
        if dataclasses.is_dataclass(hint):
            arguments[name] = _build(hint, value, f"{prefix}{name}.")
        else:
            arguments[name] = tuple(value) if isinstance(value, list) else value
    return cls(**arguments)


def differences(one: Config, other: Config) -> list[str]:
    """Returns a line `path: one's value -> other's value` for each field in which the two differ."""

    def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
        if not dataclasses.is_dataclass(value):
            return {prefix: value}
        parts = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {k: v for name, part in parts for k, v in flatten(part, f"{prefix}.{name}".lstrip(".")).items()}

    ours, theirs = flatten(one), flatten(other)
    return [f"{path}: {ours[path]!r} -> {theirs[path]!r}" for path in ours if ours[path] != theirs[path]]

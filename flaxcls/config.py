"""The configuration of a run: frozen dataclasses, the one source of the command line and of config.json.

The string under a field is its help text. Names are `Literal` types, so that a type checker, the command line and
`validation` know the same ones.
"""

from dataclasses import dataclass, field
from typing import Literal

SourceName = Literal["digits", "tfds", "folder"]
ModelName = Literal[
    "cnn",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet20",
    "resnet56",
    "wide_resnet_16_4",
    "wide_resnet_28_10",
    "vgg11",
    "mobilenet_v2",
    "convnext_tiny",
]
ActivationName = Literal["relu", "relu6", "leaky_relu", "gelu", "silu", "tanh", "sigmoid"]
LossName = Literal["cross_entropy", "squared_error", "binary_cross_entropy", "focal"]
PolicyName = Literal["none", "rand_augment", "trivial_augment"]
NormName = Literal["none", "batch", "group", "layer"]
OptimizerName = Literal["sgd", "rmsprop", "adam", "adamw", "lamb", "lion", "muon"]
ScheduleName = Literal["constant", "linear", "cosine", "cosine_restarts", "exponential", "piecewise", "one_cycle"]


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how they are split."""

    source: SourceName = "digits"
    """digits: scikit-learn's embedded 8x8 digits; tfds: prepared by tensorflow-datasets; folder: your own images."""
    name: str | None = None
    """With tfds, the data set to read: cifar10, or name/config:version to be exact."""
    dir: str | None = None
    """With tfds, the prepared data directory, which may be gs://BUCKET/PATH; without it TFDS_DATA_DIR, or
    ~/tensorflow_datasets. With folder, one that holds a folder of images for each class, or train, val and test that
    do, or a .csv or .parquet of path, label and maybe split."""
    image_size: int | None = None
    """With tfds of any size and folder, the side that images get; None: their own if all are alike, or 224 pixels."""
    color: Literal["rgb", "grey"] = "rgb"
    """With folder, what images become: three channels, or one."""
    unreadable: Literal["stop", "skip"] = "stop"
    """With folder, what happens where files are no images."""
    memory: float = 2.0
    """With tfds and folder, GiB of decoded images that are kept; a larger set is read all along."""
    workers: int | None = None
    """With tfds and folder, processes that make batches; None: one a core, none for what is in memory."""
    on_device: bool = False
    """Keep the training split on each device, as it is stored, and pick batches there: the same numbers, faster on a
    GPU or TPU that has room for it, with many loop.steps_per_dispatch."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """shuffled: an epoch holds each training image once; balanced: it holds as many of each class, rare ones often."""
    validation_fraction: float = 0.1
    """Share of the training examples that is held out for early stopping and model selection; 0: none, so that a run
    trains on all and keeps its last parameters."""
    test_fraction: float = 0.2
    """Share of all examples that is held out for the final test, where the source has no test split of its own."""
    train_examples: int | None = None
    """Training examples that are used, evenly of all classes, to see what more data brings; None: all."""
    split_seed: int = 0
    """Seed of the stratified splits; apart from the run's seed, so that runs of all seeds see the same splits."""


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to the images, on the device."""

    normalize: bool = True
    """Subtract the mean and divide by the deviation of each channel, both computed from the training split."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2."""
    alternating_flip: bool = False
    """Mirror one half of the training images in even epochs, the other in odd ones; better than flip in a short run."""
    crop_padding: int = 1
    """Pixels added around each training image before a random crop of the old size; 0: no crop."""
    crop_fill: Literal["zero", "reflect"] = "zero"
    """What the pixels added by crop_padding and eval_shift hold: zero, or the image mirrored at its border."""
    resized_crop: float | None = None
    """Least share of the area that a random crop, resized to the old size, keeps; the usual is 0.08. None: no crop, but
    0.35 where images are of several sizes."""
    rotate: float = 0.0
    """Largest random rotation to either side, in degrees; what comes in is black."""
    translate: float = 0.0
    """Largest random shift along each axis, as a share of the side; what comes in is black."""
    brightness: float = 0.0
    """Largest random change: the image is multiplied by a number in 1 - x..1 + x."""
    contrast: float = 0.0
    """Largest random change of the distance from the mean grey, as for brightness."""
    saturation: float = 0.0
    """Largest random change of the distance from grey, as for brightness."""
    hue: float = 0.0
    """Largest random turn of the hue to either side, as a share of the whole turn."""
    policy: PolicyName = "none"
    """trivial_augment: one random operation of random strength an image; rand_augment: several of one strength."""
    magnitude: float | None = None
    """With rand_augment, the strength of its operations, 0..30; None: 9."""
    layers: int | None = None
    """With rand_augment, operations an image; None: 2."""
    cutout: int = 0
    """Side of a square at a random place that is blanked, in pixels; 0: none."""
    mixup: float = 0.0
    """Alpha of mixup, which averages images and labels in pairs; the usual is 0.2. 0: none. See cutmix."""
    cutmix: float = 0.0
    """Alpha of CutMix, which pastes boxes of other images; the usual is 1. 0: none. With mixup, batches get either."""
    eval_flip: bool = False
    """Evaluate the mean of the logits over each image and its mirror image."""
    eval_shift: int = 0
    """Evaluate the mean of the logits over each image and its shifts as eval_pattern says, in pixels; 0: none."""
    eval_pattern: Literal["cross", "diagonal"] = "cross"
    """Where eval_shift moves images: up, down, left and right, all weighing the same; or both ways along a diagonal,
    the image itself then weighing one half."""


@dataclass(frozen=True)
class ModelConfig:
    """The network. None: the model's own default; what a model does not take is an error."""

    name: ModelName = "cnn"
    """cnn: convolutions, pooling, dense layers; resnet20, resnet56 and the wide ones are made for small images."""
    widths: tuple[int, ...] | None = None
    """cnn: channels of each convolution; between two of them a 2x2 pooling halves the image."""
    dense: tuple[int, ...] | None = None
    """cnn, vgg11: units of each hidden dense layer."""
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
    stochastic_depth: float | None = None
    """Residual networks and convnext_tiny: probability that the last block is skipped in training."""
    squeeze_excitation: bool | None = None
    """Residual networks: whether each block scales its channels by what the whole image holds."""
    dropout: float | None = None
    """Probability that a unit is dropped in training, where the model has dropout."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters, batch statistics and loss are float32 always."""
    init_images: int = 0
    """Training images, as evaluation sees them, that a model of your own is given to be initialised on; 0: zeros."""


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
    rate_factors: dict[str, float] = field(default_factory=dict)
    """Factor of the learning rate by the parameter's path: 'Dense_*' 0.1 Conv_0/kernel 2; the first match counts."""
    decay_factors: dict[str, float] = field(default_factory=dict)
    """Factor of the decay by the parameter's path, biases and normalisation included; the first match counts."""
    freeze: dict[str, int] = field(default_factory=dict)
    """Epochs after which parameters stay as they are, by their paths: 'Conv_*' 3; with 0 they are never trained."""
    clip_norm: float | None = None
    """Largest norm of the gradient over all parameters; a longer one is scaled down."""
    sam_rho: float | None = None
    """Radius of sharpness-aware minimisation, such as 0.05: a step then takes two gradients; None: it is off."""
    ema_decay: float | None = 0.99
    """Decay of the moving average of the parameters, which evaluation then uses."""
    accumulate: int = 1
    """Parts that a batch is split into to save memory; the gradient is of the whole batch all the same.

    With 1, `fit` may still take large batches of its own models in parts on a CPU, where that is faster.
    """


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
    steps_per_dispatch: int = 1
    """Steps that are compiled into one program; logging, evaluation and saving wait for the end of it."""
    on_nan: Literal["stop", "skip", "rollback"] = "stop"
    """Where loss, gradient or parameters are not finite: end the run, drop the update, or go back to a checkpoint."""
    nan_limit: int = 3
    """With skip, the most updates in a row that are dropped; with rollback, the most returns of a run."""
    deterministic: bool = True
    """On a GPU, keep to operations that give the same bits each time, which exact resuming needs; slower ones."""
    profile: bool = False
    """Write a trace of a few steps into the run directory's profile/, for TensorBoard and Perfetto."""


@dataclass(frozen=True)
class MeshConfig:
    """How the devices share the state; the batch they share all in any case."""

    fsdp: int = 1
    """Neighbouring devices that hold parameters, optimizer state and averages together, a part each; 1: each all."""


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
    mesh: MeshConfig = field(default_factory=MeshConfig)
    # 143 digits are too few to tell good parameters from lucky ones while the learning rate is high
    stop: StopConfig = field(default_factory=lambda: StopConfig(skip=2 / 3))

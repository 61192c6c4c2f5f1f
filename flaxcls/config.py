"""The configuration of a run: frozen dataclasses that define the command line and config.json.

The string under a field is its help text. Names are `Literal` types, so that a type checker, the command line and
`validation` accept the same values.
"""

from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "ActivationName",
    "AugmentConfig",
    "ColorName",
    "Config",
    "DataConfig",
    "LoopConfig",
    "LossConfig",
    "LossName",
    "MeshConfig",
    "ModelConfig",
    "ModelName",
    "NormName",
    "OptimConfig",
    "OptimizerName",
    "PolicyName",
    "ResizeName",
    "ScheduleName",
    "SourceName",
    "StopConfig",
]

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
ColorName = Literal["rgb", "grey", "stored"]
ResizeName = Literal["crop", "squash", "pad"]
NormName = Literal["none", "batch", "group", "layer"]
OptimizerName = Literal["sgd", "rmsprop", "adam", "adamw", "lamb", "lion", "muon"]
ScheduleName = Literal["constant", "linear", "cosine", "cosine_restarts", "exponential", "piecewise", "one_cycle"]


@dataclass(frozen=True)
class DataConfig:
    """The source of the images, and their splits."""

    source: SourceName = "digits"
    """digits: the 8x8 digits that scikit-learn contains; tfds: a data set that tensorflow-datasets has prepared;
    folder: your own images."""
    name: str | None = None
    """With tfds, the data set to read, such as cifar10, or exactly: name/config:version."""
    dir: str | None = None
    """With tfds, the directory of prepared data, which may be gs://BUCKET/PATH; None: TFDS_DATA_DIR, or
    ~/tensorflow_datasets. With folder, a directory with a folder of images for each class, or with folders
    train, val and test (or Training, val_images and the like) that contain such folders; or a table: a .csv, .tsv or
    .parquet file with a column of paths, a column of labels and optionally the columns split and group."""
    include: tuple[str, ...] = ()
    """With folder, glob patterns of the files to use, such as '*.png' scans; empty: all. A pattern is compared with the
    path from data.dir on, or as the table has it, and with the name of the file and of each folder; * matches / too."""
    exclude: tuple[str, ...] = ()
    """With folder, glob patterns of the files to leave out, such as '*_mask.*' masks, compared as those of include."""
    path_column: tuple[str, ...] = ()
    """With a table, the column of the images' paths, if it has no usual name such as path, filename or id. Several
    columns: each names the file of one channel of the image, in this order."""
    label_column: tuple[str, ...] = ()
    """With a table, the column of the labels, if it has no usual name such as label, class or target. Several columns:
    each is a class and holds 0 or 1 (or false or true), with one 1 per row."""
    split_column: str | None = None
    """With a table, the column of the splits (train, val, test); None: split, or a similar name, if it is there;
    split: no similar name; '': none, splits are held out at random."""
    group_column: str | None = None
    """With a table, a column such as the patient: images with equal values stay together when validation and test
    are held out. None: group, if it is there; '': none."""
    image_dir: str | None = None
    """With a table, the folder that its paths are relative to, itself relative to the folder of the table; None: the
    folder of the table, or the one folder in it that has all files."""
    suffix: str | None = None
    """With a table, the text that is added to each path, such as .png; None: nothing, or the one usual suffix with
    which all files are there."""
    image_size: int | tuple[int, int] | None = None
    """With folder and tfds, the size to which images are resized: one number for a square, or height and width. None:
    the size of more than half of them, smaller if that is more than 256x256; 224 if there is none."""
    resize: ResizeName = "squash"
    """With folder and tfds, how images of another size are brought to it. squash: scaled in each direction; pad: scaled
    in their proportions, with black beside them; crop: scaled and cut to their centre, and training sees random parts
    (augment.resized_crop)."""
    color: ColorName = "rgb"
    """With folder, the channels that the model sees: rgb has three, grey has one; stored: those of the files, which
    all have as many."""
    value_range: tuple[float, float] | None = None
    """With folder and tfds, the values in the files that become black and white, 0 and 1. None: found, from the depth
    that files of 16 bits use; files of floating-point numbers beyond 0..1 need it."""
    max_pixels: int | None = None
    """With folder and tfds, pixels of the largest image that is read, so that no file fills the memory; None:
    178,956,970."""
    unreadable: Literal["stop", "skip", "replace"] = "stop"
    """With folder, what to do with files that are not readable images or not there. stop: an error; skip: all files
    are read at the start, and those are left out; replace: if it is found later, the next image of the class takes its
    place in training, and evaluation leaves it out. unread.jsonl keeps which; a run can be resumed with it."""
    memory: float = 2.0
    """With tfds and folder, GiB of decoded images to keep in memory, if so much is there; a larger data set is read
    again in each epoch."""
    workers: int | None = None
    """With tfds and folder, processes that make batches; None: one per core, or 0 if the images are in memory.
    A container with a CPU quota counts as that many cores."""
    on_device: bool = False
    """Keep the stored training split on each device and pick batches there. The results are the same. It is faster
    on a GPU or TPU that has enough memory, with many loop.steps_per_dispatch."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """shuffled: an epoch has each training image once; balanced: an epoch has equally many images of each class,
    so images of rare classes repeat."""
    validation_fraction: float = 0.1
    """Share of the training examples that is held out for early stopping and model selection; 0: none, so the run
    trains on all examples and keeps its last parameters."""
    test_fraction: float = 0.2
    """Share of all examples that is held out for the final test if the source has no test split."""
    test_from: Literal["validation", "train"] = "validation"
    """With tfds and folder, what the final test uses if the source has a validation split but no test split: that
    split, and another one for validation is held out of train; or examples held out of train."""
    train_examples: int | None = None
    """Number of training examples to use, in the proportions of the classes, to see how much more data helps;
    None: all."""
    split_seed: int = 0
    """Seed of the stratified splits; separate from the run's seed, so that runs with any seed have the same splits."""


# Fields of DataConfig that say where the images are, and how they are read and held. They decide neither which examples
# there are nor what the model sees, so they may change when a run goes on.
FREE_DATA = ("dir", "image_dir", "max_pixels", "memory", "workers", "on_device", "unreadable")


@dataclass(frozen=True)
class AugmentConfig:
    """The preprocessing and augmentation of the images, on the device."""

    normalize: bool = True
    """Subtract the mean of each channel and divide by its standard deviation, both from the training split."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2."""
    alternating_flip: bool = False
    """Mirror one half of the training images in even epochs, the other in odd ones; better than flip in short runs."""
    crop_padding: int = 1
    """Pixels added around each training image before a random crop back to its size; 0: no crop."""
    crop_fill: Literal["zero", "reflect"] = "zero"
    """Values of the pixels that crop_padding and eval_shift add: zero, or the image mirrored at its border."""
    resized_crop: float | None = None
    """Smallest share of the area that a random crop keeps before it is resized; 0.08 is usual. None: no crop, but
    0.35 if data.resize is crop and images are of another size."""
    rotate: float = 0.0
    """Largest random rotation to either side, in degrees; uncovered pixels are black."""
    translate: float = 0.0
    """Largest random shift along each axis, as a share of the side; uncovered pixels are black."""
    brightness: float = 0.0
    """Largest random change x: the image is multiplied by a factor in 1 - x..1 + x."""
    contrast: float = 0.0
    """Like brightness, for the distance of each pixel from the mean grey of the image."""
    saturation: float = 0.0
    """Like brightness, for the distance of each pixel from its own grey."""
    hue: float = 0.0
    """Largest random rotation of the hue to either side, as a share of the colour circle."""
    policy: PolicyName = "none"
    """trivial_augment: one random operation of random strength per image; rand_augment: several random operations,
    all of the same strength."""
    magnitude: float | None = None
    """With rand_augment, the strength of its operations, 0..30; None: 9."""
    layers: int | None = None
    """With rand_augment, operations per image; None: 2."""
    cutout: int = 0
    """Side, in pixels, of a square at a random place that is blanked; 0: none."""
    mixup: float = 0.0
    """Alpha of mixup, which averages pairs of images and their labels; 0.2 is usual. 0: off. See cutmix."""
    cutmix: float = 0.0
    """Alpha of CutMix, which pastes a box from another image; 1 is usual. 0: off. With mixup, a batch gets either."""
    eval_flip: bool = False
    """Evaluate with the mean of the logits over each image and its mirror image."""
    eval_shift: int = 0
    """Evaluate with the mean of the logits over each image and its shifts by so many pixels, in the directions of
    eval_pattern; 0: no shifts."""
    eval_pattern: Literal["cross", "diagonal"] = "cross"
    """Directions of eval_shift. cross: up, down, left and right, all with the same weight as the image; diagonal:
    both ways along a diagonal, where the image itself has weight one half."""


@dataclass(frozen=True)
class ModelConfig:
    """The network. None means the model's own default. An option that the model does not take is an error."""

    name: ModelName = "cnn"
    """cnn: convolutions, pooling, dense layers; resnet20, resnet56 and the wide_resnets are for small images."""
    widths: tuple[int, ...] | None = None
    """cnn: channels of each convolution; between two convolutions a 2x2 pooling halves the image."""
    dense: tuple[int, ...] | None = None
    """cnn, vgg11: units of each hidden dense layer."""
    kernel_size: int | None = None
    """cnn: height and width of the convolutions, in pixels."""
    padding: Literal["same", "valid"] | None = None
    """cnn: with same, a convolution keeps the size of the image; with valid, it uses no pixel outside the image."""
    pooling: Literal["max", "average"] | None = None
    """cnn: the value that pooling takes from a window, the largest or the mean."""
    activation: ActivationName | None = None
    """Activation function."""
    norm: NormName | None = None
    """Normalisation after each convolution."""
    stochastic_depth: float | None = None
    """Residual networks and convnext_tiny: probability that the last block is skipped in training."""
    squeeze_excitation: bool | None = None
    """Residual networks: add squeeze-and-excitation, which scales the channels of each block by factors that
    depend on their means over the image."""
    dropout: float | None = None
    """Probability that a unit is dropped in training, in models with dropout."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters, batch statistics and loss are always float32."""
    init_images: int = 0
    """Number of training images, without augmentation, on which a model of your own is initialised; 0: an image of
    zeros."""


@dataclass(frozen=True)
class LossConfig:
    """The objective: the loss and the penalties."""

    name: LossName = "cross_entropy"
    """Loss of an example; squared_error is on the softmax, binary_cross_entropy takes each class against the others."""
    focal_gamma: float | None = None
    """With focal, the exponent that reduces the weight of easy examples; larger reduces it more. None: 2."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: an example has a weight inverse to the size of its class in the training split, 1 on average."""
    label_smoothing: float = 0.0
    """Probability that is taken from the true class and spread evenly over all classes, in training."""
    l1: float = 0.0
    """Factor of the sum of the absolute values of the weights, which is added to the loss."""
    l2: float = 0.0
    """Factor of the sum of the squares of the weights, which is added to the loss; with l1: elastic net."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, its learning rate and its schedule."""

    name: OptimizerName = "adamw"
    """sgd has Nesterov momentum; sgd, adamw, lamb, lion and muon have decoupled weight decay, rmsprop and adam none."""
    learning_rate: float = 4e-3
    """Learning rate; with a schedule, its peak."""
    schedule: ScheduleName = "cosine"
    """Course of the learning rate after the warm-up; linear, cosine and cosine_restarts fall to 0."""
    decay_rate: float = 0.1
    """With exponential, the factor between the first and the last step; with piecewise, the factor at each boundary."""
    boundaries: tuple[float, ...] = (0.5, 0.75)
    """With piecewise, when the learning rate drops, as shares of the steps after the warm-up."""
    cycles: int = 4
    """With cosine_restarts, the number of cosine cycles."""
    plateau_patience: int | None = None
    """Epochs in a row without a lower training loss after which the learning rate is reduced; None: never."""
    plateau_factor: float = 0.5
    """Factor by which each plateau multiplies the learning rate."""
    momentum: float = 0.9
    """Momentum of sgd, rmsprop and muon; the others use the values of their papers."""
    warmup_epochs: float = 1.0
    """Epochs over which the learning rate rises linearly from 0."""
    weight_decay: float = 1e-2
    """Decoupled weight decay, multiplied by the learning rate at each step; biases and normalisation do not decay."""
    rate_factors: dict[str, float] = field(default_factory=dict)
    """Factors of the learning rate for parameters by path, such as 'Dense_*' 0.1 Conv_0/kernel 2; the first match
    counts."""
    decay_factors: dict[str, float] = field(default_factory=dict)
    """Factors of the weight decay for parameters by path, which may be biases and normalisation too; the first
    match counts."""
    freeze: dict[str, int] = field(default_factory=dict)
    """Epochs after which parameters are frozen, by path, such as 'Conv_*' 3; with 0 they are never trained."""
    clip_norm: float | None = None
    """Largest norm of the gradient over all parameters; a larger gradient is scaled down to it. None: no clipping."""
    sam_rho: float | None = None
    """Radius of sharpness-aware minimisation, such as 0.05, which computes two gradients per step; None: off."""
    ema_decay: float | None = 0.99
    """Decay of the moving average of the parameters, which evaluation uses; None: no average."""
    accumulate: int = 1
    """Microbatches into which a batch is split to save memory; the gradient is still that of the whole batch. With
    1, `fit` may still split large batches of its own models on a CPU, where that is faster."""


@dataclass(frozen=True)
class LoopConfig:
    """The length of training, and how often it is logged, evaluated and saved."""

    epochs: int = 60
    """Passes over the training split."""
    batch_size: int = 64
    """Examples per step, over all devices."""
    eval_batch_size: int = 512
    """Examples per evaluation step, over all devices."""
    eval_every: int = 1
    """Epochs between evaluations on the validation split."""
    save_every: int | None = None
    """Steps between checkpoints; each evaluation is also followed by a checkpoint. None: only those."""
    log_every: int = 50
    """Steps between lines of metrics."""
    steps_per_dispatch: int = 1
    """Steps that are compiled into one program; logging, evaluation and saving wait for its end."""
    on_nan: Literal["stop", "skip", "rollback"] = "stop"
    """What to do if loss, gradient or parameters are not finite: stop the run, skip the update, or roll back to a
    checkpoint."""
    nan_limit: int = 3
    """With skip, the largest number of updates in a row that may be dropped; with rollback, the largest number of
    rollbacks in a run."""
    deterministic: bool = True
    """On a GPU, use only operations whose results are the same bit for bit each time. Exact resuming needs this;
    such operations are slower."""
    profile: bool = False
    """Write a trace of a few steps into the run directory's profile/, for TensorBoard and Perfetto."""


@dataclass(frozen=True)
class MeshConfig:
    """The layout of the state over the devices. The batch is always split over all devices."""

    fsdp: int = 1
    """Number of neighbouring devices that share parameters, optimizer state and averages, each with a part of
    them; 1: every device has all of them."""


@dataclass(frozen=True)
class StopConfig:
    """Early stopping, and the choice of the best parameters."""

    metric: Literal["loss", "accuracy"] = "loss"
    """Quantity on the validation split that decides: lowest loss or highest accuracy is best."""
    patience: int | None = None
    """Evaluations in a row without improvement after which training stops; None: it never stops early."""
    min_delta: float = 0.0
    """Smallest change that counts as an improvement."""
    skip: float = 0.0
    """Share of the evaluations, at the start of the run, that count neither for patience nor as the best."""


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers. The default trains a small CNN on scikit-learn's digits.

    By default stop.skip is 2/3: 143 validation digits are too few to tell good parameters from lucky ones while the
    learning rate is high.
    """

    seed: int = 0
    """Seed of initialisation, data order, augmentation and dropout."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    stop: StopConfig = field(default_factory=lambda: StopConfig(skip=2 / 3))

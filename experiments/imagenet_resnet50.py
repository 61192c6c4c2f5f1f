r"""ResNet-50 on ImageNet by the usual recipe of 90 epochs.

The recipe is that of He et al. 2016, scaled to large batches as in Goyal et al. 2017 ("Accurate, Large Minibatch SGD"),
with the cosine schedule and label smoothing of He et al. 2019 ("Bag of Tricks").

Command:   python -m flaxcls.train experiments/imagenet_resnet50.py --data.dir DATA_DIR --workdir runs/imagenet
Hardware:  meant for one host of 8 devices. It has not been run on ImageNet
Time:      not measured. 90 epochs are 114 million images: 5.7 hours at 5,584 images/s, the speed of this network on one
           H100 from JPEGs that 16 worker processes read (n = 8, bfloat16; python -m experiments.benchmarks.gpu)
Accuracy:  not measured. Published top-1 on the 50,000 validation images: 76.37 % after 100 epochs in batches of 1,024
           (flax's examples/imagenet, on a TPU v3-8, with this schedule and decay, without label smoothing), 76.39 %
           (tensorpack's examples/ResNet, which follows Goyal et al.)

You must download the data by hand: register at image-net.org for ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar.
Put both into ARCHIVES, have twice their 144 GiB free, and run in a checkout:

    python3 -m venv .prepare && .prepare/bin/pip install '.[prepare]'
    .prepare/bin/tfds build imagenet2012 --manual_dir ARCHIVES --data_dir DATA_DIR --file_format array_record

Without the data you can try the whole command on synthetic images in the same form. This shows only that it works:

    python -m experiments.imagenet_standin --out DIR
    python -m flaxcls.train experiments/imagenet_resnet50.py --data.dir DIR --data.image-size 64 --data.memory 0 \
      --loop.batch-size 16 --loop.eval-batch-size 16 --loop.epochs 1 --optim.warmup-epochs 0.5 \
      --optim.learning-rate 0.006

It took 108 s on 2 cores of an AMD EPYC beside other work (n = 1; jax 0.12.0.1, Python 3.13).

ImageNet's test split has no labels, so the validation split is used as the test split, once, at the end. 1 % of train,
13 images of each class, is held out to choose the best epoch and to calibrate; no run is stopped early. With
--data.validation-fraction 0 training sees all images and the last parameters are tested, as in the published numbers.
Before the first step each host reads every record once, 144 GiB, for its label and size.

Differences to the papers:
- A test image is the largest square at its centre, scaled to 224 pixels. In the papers it is scaled to 256 on the
  shorter side and cut to the central 224: 7/8 of that square's side, so objects look 1.14 times as large.
- Batch norm sees all 1,024 images, over all devices; in Goyal et al. it sees the 32 images of a GPU.

Scale the learning rate with the batch: --loop.batch-size 256 --optim.learning-rate 0.1. If 1,024 images do not fit into
memory, --optim.accumulate 4 takes them in four microbatches; --dry-run shows the memory that they need.
"""

from flaxcls.config import (
    AugmentConfig,
    Config,
    DataConfig,
    LoopConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    StopConfig,
)

# 128 for each of eight devices, and a quarter of the steps of 256; Goyal et al. see no loss of accuracy up to 8,192
BATCH_SIZE = 1024

CONFIG = Config(
    data=DataConfig(source="tfds", name="imagenet2012", image_size=224, resize="crop", validation_fraction=0.01),
    # crops of 0.08 to 1 of the area, with proportions of 3/4 to 4/3
    augment=AugmentConfig(flip=True, crop_padding=0, resized_crop=0.08),
    # the last norm of each block starts with scale zero
    model=ModelConfig(name="resnet50", dtype="bfloat16"),
    # The papers' decay of 1e-4 goes through the momentum. So does the gradient of a penalty of 1e-4 / 2 times the
    # squared weights, which also spares norms and biases. The decoupled decay of optim.weight_decay does not; it would
    # have to be about 1e-4 / (1 - momentum) = 1e-3.
    loss=LossConfig(label_smoothing=0.1, l2=0.5e-4),
    optim=OptimConfig(
        name="sgd",
        learning_rate=0.1 * BATCH_SIZE / 256,
        momentum=0.9,
        schedule="cosine",
        warmup_epochs=5.0,
        weight_decay=0.0,
        ema_decay=None,
    ),
    loop=LoopConfig(epochs=90, batch_size=BATCH_SIZE, eval_batch_size=BATCH_SIZE),
    stop=StopConfig(metric="accuracy"),
)

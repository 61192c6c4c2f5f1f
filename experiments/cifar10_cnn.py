"""The tutorial's network on CIFAR-10, trained as plainly as the tutorial does: it begins to over-fit.

Command:   python -m flaxcls.train experiments/cifar10_cnn.py --data.dir DATA_DIR
Hardware:  to be measured
Time:      to be measured
Accuracy:  to be measured
"""

from flaxcls.config import AugmentConfig, Config, DataConfig, LoopConfig, ModelConfig, OptimConfig, StopConfig

CONFIG = Config(
    data=DataConfig(source="tfds", name="cifar10"),
    augment=AugmentConfig(normalize=False, crop_padding=0),
    model=ModelConfig(widths=(32, 64, 64), dense=(64,), padding="valid", norm="none", dropout=0.0),
    optim=OptimConfig(
        name="adam", learning_rate=1e-3, schedule="constant", warmup_epochs=0.0, weight_decay=0.0, ema_decay=None
    ),
    loop=LoopConfig(epochs=10, batch_size=64),
    stop=StopConfig(metric="accuracy"),
)

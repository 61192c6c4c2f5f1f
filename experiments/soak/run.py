"""The run that the soak test kills: the digits, with every option on that a resume could forget.

CONFIG plans 400 steps. Early stopping ends the run after 350; with 4 steps a dispatch, after 252.
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

CONFIG = Config(
    data=DataConfig(train_examples=800),
    augment=AugmentConfig(crop_padding=1, mixup=0.2),
    model=ModelConfig(widths=(8,), dense=(16,), norm="batch", dropout=0.2),
    loss=LossConfig(label_smoothing=0.1, l2=1e-5),
    optim=OptimConfig(
        learning_rate=2e-2, schedule="constant", plateau_patience=1, plateau_factor=0.3, accumulate=2, ema_decay=0.9
    ),
    loop=LoopConfig(epochs=16, batch_size=32, save_every=16, log_every=7),
    stop=StopConfig(patience=2, min_delta=0.05, skip=0.0),
)

"""The tutorial's network on CIFAR-10, trained as plainly as the tutorial does.

Command:   python -m flaxcls.train experiments/cifar10_cnn.py --data.dir DATA_DIR
Hardware:  2 cores of an AMD EPYC, jax 0.12.0.1, Python 3.13
Time:      253 s for seed 2 on an idle machine (1,936 images/s), before the speed-ups in benchmarks/NOTES.md; beside
           other work up to 11 min
Accuracy:  test 69.83 %, n = 3 (--seed 0, 1, 2: 70.60, 69.64, 69.25 %), sd 0.70, on a JPEG copy of CIFAR-10, at the
           epoch of the best validation accuracy, which was the last one
"""

from flaxcls.config import AugmentConfig, Config, DataConfig, LoopConfig, ModelConfig, OptimConfig, StopConfig

CONFIG = Config(
    data=DataConfig(source="tfds", name="cifar10"),
    augment=AugmentConfig(normalize=False, crop_padding=0),
    model=ModelConfig(widths=(32, 64, 64), dense=(64,), padding="valid", norm="none", dropout=0.0),
    optim=OptimConfig(
        name="adam", learning_rate=1e-3, schedule="constant", warmup_epochs=0.0, weight_decay=0.0, ema_decay=None
    ),
    loop=LoopConfig(epochs=10, batch_size=64, steps_per_dispatch=4),
    stop=StopConfig(metric="accuracy"),
)

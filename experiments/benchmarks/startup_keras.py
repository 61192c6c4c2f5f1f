"""Keras's side of `experiments.benchmarks.startup`, which starts it with a Python that has Keras and TensorFlow.

It does with the digits what `python -m flaxcls.train` does by default, as a user of Keras would write it, and writes
when its first training step had ended and how accurate it became as JSON.
"""

import argparse
import json
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
from keras import layers

BATCH = 64


def network() -> keras.Model:
    """Returns flaxcls's default network, for images of 8x8 that are moved by up to a pixel in training."""
    blocks: list[layers.Layer] = []
    for index, width in enumerate((32, 64, 64)):
        blocks += [layers.MaxPooling2D()] if index else []
        blocks += [
            layers.Conv2D(width, 3, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
        ]
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.RandomTranslation(1 / 8, 1 / 8, fill_mode="constant", interpolation="nearest"),
            *blocks,
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(10),
        ]
    )


def main() -> None:
    """Trains, and writes JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int)
    args = parser.parse_args()

    with np.load(args.data) as data:
        arrays = {name: data[name] for name in data.files}
    mean, std = arrays["train_images"].mean(), arrays["train_images"].std()

    def split(name: str) -> tuple[np.ndarray, np.ndarray]:
        return ((arrays[f"{name}_images"] - mean) / std).astype(np.float32), arrays[f"{name}_labels"]

    images, labels = split("train")
    steps = -(-len(labels) // BATCH)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, (args.epochs - 1) * steps, warmup_target=4e-3, warmup_steps=steps
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=1e-2, use_ema=True, ema_momentum=0.99)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model = network()
    model.compile(
        optimizer=optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        best = f"{place}/best.weights.h5"
        model.fit(
            images,
            labels,
            batch_size=BATCH,
            epochs=args.epochs,
            validation_data=split("validation"),
            callbacks=[
                keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **logs: ends.append(time.time())),
                keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
                keras.callbacks.ModelCheckpoint(best, save_best_only=True, save_weights_only=True),
            ],
        )
        model.load_weights(best)
    accuracy = {name: model.evaluate(*split(name))[1] for name in ("test", "validation")}
    result = {
        "first_step": ends[0],
        "accuracy": accuracy["test"],
        "parameters": int(sum(np.prod(weight.shape) for weight in model.trainable_weights)),
        "versions": {
            "keras": keras.__version__,
            "tensorflow": version("tensorflow-cpu"),
            "python": platform.python_version(),
        },
    }
    args.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()

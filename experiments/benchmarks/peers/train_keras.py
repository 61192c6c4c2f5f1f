"""Keras's side of `throughput` and `memory` (task cifar10) and of `startup` (task digits).

Those commands start it with a Python that has Keras. It trains as a user of Keras would write it, and writes times in
seconds since 1970 and the accuracy as JSON:

- cifar10: the tutorial's network by `fit` as in the tutorial, with validation and a checkpoint after each epoch; the
  start and the end of each epoch and its validation;
- digits: the default run of `python -m flaxcls.train`; the end of the first training step.
"""

import argparse
import json
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

LIBRARIES = {"tensorflow": "tensorflow-cpu", "jax": "jax"}  # backend -> its package


def tutorial_network(as_bytes: bool) -> keras.Model:
    """Returns the tutorial's network, for images in 0..1, or for bytes in 0..255."""
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            *([layers.Rescaling(1 / 255)] if as_bytes else []),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )


def train_cifar10(arrays: dict[str, np.ndarray], options: argparse.Namespace) -> dict[str, Any]:
    """Trains the tutorial's network; returns the times and the accuracy."""
    if not options.bytes:
        for name in ("train_images", "validation_images"):
            arrays[name] = np.divide(arrays[name], 255, dtype=np.float32)
    model = tutorial_network(options.bytes)
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=options.steps_per_execution,
    )
    times: dict[str, list[float]] = {"on_epoch_begin": [], "on_test_begin": [], "on_epoch_end": []}
    clock = {name: lambda *_, at=at: at.append(time.time()) for name, at in times.items()}
    with tempfile.TemporaryDirectory() as place:
        history = model.fit(
            arrays["train_images"],
            arrays["train_labels"],
            batch_size=options.batch_size,
            epochs=options.epochs,
            validation_data=(arrays["validation_images"], arrays["validation_labels"]),
            callbacks=[
                keras.callbacks.ModelCheckpoint(f"{place}/latest.keras"),
                keras.callbacks.LambdaCallback(**clock),
            ],
        )
    return {
        "images": len(arrays["train_labels"]),
        "training": list(zip(times["on_epoch_begin"], times["on_test_begin"], strict=True)),
        "epochs_ended": times["on_epoch_end"],
        "validation_accuracy": history.history["val_accuracy"][-1],
        "parameters": model.count_params(),
    }


def default_network() -> keras.Model:
    """Returns flaxcls's default network, for images of 8x8 that training shifts by up to a pixel."""
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


def train_digits(arrays: dict[str, np.ndarray], options: argparse.Namespace) -> dict[str, Any]:
    """Trains the default network, and tests the best checkpoint; returns the end of the first step and the accuracy."""
    mean, std = arrays["train_images"].mean(), arrays["train_images"].std()

    def split(name: str) -> tuple[np.ndarray, np.ndarray]:
        return ((arrays[f"{name}_images"] - mean) / std).astype(np.float32), arrays[f"{name}_labels"]

    images, labels = split("train")
    steps = -(-len(labels) // options.batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, (options.epochs - 1) * steps, warmup_target=4e-3, warmup_steps=steps
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=1e-2, use_ema=True, ema_momentum=0.99)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model = default_network()
    model.compile(
        optimizer=optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        best = f"{place}/best.weights.h5"
        model.fit(
            images,
            labels,
            batch_size=options.batch_size,
            epochs=options.epochs,
            validation_data=split("validation"),
            callbacks=[
                keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **logs: ends.append(time.time())),
                keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
                keras.callbacks.ModelCheckpoint(best, save_best_only=True, save_weights_only=True),
            ],
        )
        model.load_weights(best)
    accuracy = {name: model.evaluate(*split(name))[1] for name in ("test", "validation")}
    return {
        "first_step": ends[0],
        "accuracy": accuracy["test"],
        "parameters": int(sum(np.prod(weight.shape) for weight in model.trainable_weights)),
    }


TASKS = {"cifar10": train_cifar10, "digits": train_digits}


def main() -> None:
    """Trains, and writes JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("task", choices=[*TASKS])
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--bytes", action="store_true")
    parser.add_argument("--steps-per-execution", type=int, default=1)
    options = parser.parse_args()

    with np.load(options.data) as data:
        arrays = {name: data[name] for name in data.files}
    result = TASKS[options.task](arrays, options)
    backend = keras.backend.backend()
    versions = {
        "keras": keras.__version__,
        backend: version(LIBRARIES[backend]),
        "python": platform.python_version(),
    }
    options.out.write_text(json.dumps({**result, "versions": versions}))


if __name__ == "__main__":
    main()

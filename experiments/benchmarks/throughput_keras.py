"""Keras's side of `experiments.benchmarks.throughput` and `.memory`, which start it with a Python that has Keras.

It trains the tutorial's network by `fit` as the tutorial does, with validation and a checkpoint after each epoch, and
writes when each epoch and its validation began and ended as JSON, in seconds since 1970.
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


def network(as_bytes: bool) -> keras.Model:
    """Returns the tutorial's network, for images of 0..1, or of 0..255 in bytes."""
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


def main() -> None:
    """Trains, and writes JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--bytes", action="store_true")
    parser.add_argument("--steps-per-execution", type=int, default=1)
    args = parser.parse_args()

    with np.load(args.data) as data:
        arrays = {name: data[name] for name in data.files}
    if not args.bytes:
        for name in ("train_images", "validation_images"):
            arrays[name] = np.divide(arrays[name], 255, dtype=np.float32)
    model = network(args.bytes)
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=args.steps_per_execution,
    )
    times: dict[str, list[float]] = {"on_epoch_begin": [], "on_test_begin": [], "on_epoch_end": []}
    clock = {name: lambda *_, at=at: at.append(time.time()) for name, at in times.items()}
    with tempfile.TemporaryDirectory() as place:
        history = model.fit(
            arrays["train_images"],
            arrays["train_labels"],
            batch_size=args.batch_size,
            epochs=args.epochs,
            validation_data=(arrays["validation_images"], arrays["validation_labels"]),
            callbacks=[
                keras.callbacks.ModelCheckpoint(f"{place}/latest.keras"),
                keras.callbacks.LambdaCallback(**clock),
            ],
        )
    libraries = {"tensorflow": "tensorflow-cpu", "jax": "jax"}
    backend = keras.backend.backend()
    result = {
        "images": len(arrays["train_labels"]),
        "training": list(zip(times["on_epoch_begin"], times["on_test_begin"], strict=True)),
        "epochs_ended": times["on_epoch_end"],
        "validation_accuracy": history.history["val_accuracy"][-1],
        "parameters": model.count_params(),
        "versions": {
            "keras": keras.__version__,
            backend: version(libraries[backend]),
            "python": platform.python_version(),
        },
    }
    args.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()

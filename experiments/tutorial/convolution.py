"""The effect of a convolution and a pooling layer on a picture: with handmade filters, then with learned filters.

Command:   python -m experiments.tutorial.convolution
"""

from dataclasses import replace

import cv2
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from flax import linen as nn
from matplotlib.axes import Axes
from sklearn.datasets import load_sample_image

from experiments.tutorial.shared import Options, print_table, save, start, train
from flaxcls.augment import to_float
from flaxcls.config import AugmentConfig, Config, LoopConfig, ModelConfig, OptimConfig, StopConfig
from flaxcls.data import load_dataset
from flaxcls.models import build_model
from flaxcls.models.layers import max_pool

FILTERS = {
    "blur": np.full((3, 3), 1 / 9),
    "vertical edges": np.array([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]),
    "horizontal edges": np.array([[-1.0, -2, -1], [0, 0, 0], [1, 2, 1]]),
}
CONFIG = Config(
    augment=AugmentConfig(normalize=False, crop_padding=0),
    model=ModelConfig(widths=(8, 16), dense=(64,), norm="none", dropout=0.0),
    optim=OptimConfig(ema_decay=None),
    loop=LoopConfig(epochs=20, eval_every=5),
    stop=StopConfig(),
)


def draw_handmade(options: Options) -> None:
    """Draws the handmade filters, and a photograph after each of them."""
    picture = cv2.cvtColor(load_sample_image("china.jpg"), cv2.COLOR_RGB2GRAY)
    picture = cv2.resize(picture[0:426, 0:640], (120, 80), interpolation=cv2.INTER_AREA)
    images = to_float(jnp.asarray(picture)[None, :, :, None])
    kernel = jnp.stack([jnp.asarray(values) for values in FILTERS.values()], axis=-1)[:, :, None, :]
    convolution = nn.Conv(features=len(FILTERS), kernel_size=(3, 3), padding="VALID", use_bias=False)
    maps = convolution.apply({"params": {"kernel": kernel}}, images)
    assert isinstance(maps, jnp.ndarray)
    active = nn.relu(maps)
    pooled = max_pool(active, 4)
    steps = (("picture", images), ("convolution", maps), ("ReLU", active), ("4x4 max pooling", pooled))
    print_table(("after", "height", "width", "channels"), [(name, *map(str, x.shape[1:])) for name, x in steps])

    figure, axes = plt.subplots(4, 4, figsize=(8.2, 6.6))
    for axis in axes[1:, 0]:
        axis.axis("off")
    axes[0, 0].imshow(images[0, :, :, 0], cmap="gray")
    axes[0, 0].set_title("the picture")
    for column, (name, values) in enumerate(FILTERS.items()):
        show_numbers(axes[0, column + 1], values)
        axes[0, column + 1].set_title(name)
        if name == "blur":
            axes[1, column + 1].imshow(maps[0, :, :, column], cmap="gray", vmin=0)
        else:
            show_map(axes[1, column + 1], maps[0, :, :, column])
        axes[2, column + 1].imshow(active[0, :, :, column], cmap="gray", vmin=0)
        axes[3, column + 1].imshow(pooled[0, :, :, column], cmap="gray", vmin=0)
    label_rows(axes[:, 1:], ["filter", "convolution", "ReLU", "4x4 max pooling"])
    no_ticks(axes)
    save(figure, options, "filters_by_hand.png")


def draw_learned(options: Options) -> None:
    """Draws the filters that a small network learned, and a digit after each of them."""
    config = replace(CONFIG, loop=replace(CONFIG.loop, epochs=1)) if options.shortened else CONFIG
    dataset = load_dataset(config.data)
    result = train(config, dataset).result
    print(f"test accuracy of the network whose filters are shown: {result.test['accuracy']:.2%}")

    digit = dataset.test.take(np.flatnonzero(dataset.test.labels == 3)[:1]).images
    model = build_model(config.model, 10)
    _, seen = model.apply(
        result.state.eval_variables,
        to_float(jnp.asarray(digit)),
        train=False,
        capture_intermediates=True,
        mutable=["intermediates"],
    )
    active = nn.relu(seen["intermediates"]["Conv_0"]["__call__"][0])
    pooled = max_pool(active, 2)
    kernel = result.state.params["Conv_0"]["kernel"]

    figure, axes = plt.subplots(3, 9, figsize=(11, 4.4))
    for row, title in ((0, "the digit"), (1, ""), (2, "")):
        axes[row, 0].axis("off") if row else axes[row, 0].imshow(digit[0, :, :, 0], cmap="gray")
        axes[row, 0].set_title(title)
    for column in range(8):
        show_map(axes[0, column + 1], kernel[:, :, 0, column])
        axes[1, column + 1].imshow(active[0, :, :, column], cmap="gray", vmin=0, vmax=active.max())
        axes[2, column + 1].imshow(pooled[0, :, :, column], cmap="gray", vmin=0, vmax=active.max())
    label_rows(axes[:, 1:], ["filter", "convolution\nand ReLU", "2x2 max\npooling"])
    no_ticks(axes)
    save(figure, options, "filters_learned.png")


def show_map(axis: Axes, values: jnp.ndarray | np.ndarray) -> None:
    """Draws numbers of both signs: blue is negative, white is 0, red is positive."""
    largest = float(np.abs(values).max())
    axis.imshow(values, cmap="RdBu_r", vmin=-largest, vmax=largest)


def show_numbers(axis: Axes, values: np.ndarray) -> None:
    """Draws a filter, with its numbers."""
    show_map(axis, values)
    for (row, column), value in np.ndenumerate(values):
        text = "1/9" if value == 1 / 9 else f"{value:g}"
        colour = "white" if abs(value) == np.abs(values).max() else "black"
        axis.text(column, row, text, ha="center", va="center", color=colour)


def label_rows(axes: np.ndarray, names: list[str]) -> None:
    """Writes a name to the left of each row."""
    for row, name in zip(axes, names, strict=True):
        row[0].set_ylabel(name)


def no_ticks(axes: np.ndarray) -> None:
    """Removes the axis ticks, and draws a frame around each picture."""
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(True)


def main(options: Options) -> None:
    """Draws both figures."""
    start(options)
    draw_handmade(options)
    draw_learned(options)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

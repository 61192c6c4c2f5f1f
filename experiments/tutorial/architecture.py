"""A comparison of kernel sizes and depths: parameters, arithmetic, time and validation accuracy.

Command:   python -m experiments.tutorial.architecture
           python -m experiments.tutorial.architecture --data-dir DATA_DIR --seeds 2     (CIFAR-10, not digits)
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
import tyro
from matplotlib.axes import Axes

from experiments.tutorial.shared import COLOURS, Options, print_table, save, spread, start, train
from flaxcls.config import AugmentConfig, Config, DataConfig, LoopConfig, ModelConfig, OptimConfig, StopConfig
from flaxcls.data import load_dataset
from flaxcls.models import build_model
from flaxcls.models.summary import layers

DIGITS = Config(
    data=DataConfig(train_examples=300, validation_fraction=0.35, test_fraction=0.4),
    augment=AugmentConfig(normalize=False, crop_padding=0),
    model=ModelConfig(dense=(64,), norm="none", dropout=0.0),
    optim=OptimConfig(
        name="adam", learning_rate=1e-3, schedule="constant", warmup_epochs=0.0, weight_decay=0.0, ema_decay=None
    ),
    loop=LoopConfig(epochs=40, batch_size=20, eval_every=10),
    stop=StopConfig(skip=0.99),
)
CIFAR10 = replace(
    DIGITS,
    data=DataConfig(source="tfds", name="cifar10", train_examples=10_000),
    loop=LoopConfig(epochs=5, eval_every=5),
)
# kernel size, channels of the convolutions
NETWORKS = [(1, (8, 16, 16)), (3, (8, 16, 16)), (5, (8, 16, 16)), (7, (8, 16, 16)), (3, (8, 16)), (3, (8,))]


@dataclass(frozen=True)
class Command(Options):
    """Options of this script."""

    data_dir: Path | None = None
    """Folder that tensorflow-datasets prepared cifar10 in; default: the digits instead."""
    seeds: int = 3
    """Runs of each network."""


def main(command: Command) -> None:
    """Trains each network, prints the table and draws the figure."""
    start(command)
    config, networks, seeds = DIGITS, NETWORKS, command.seeds
    if command.data_dir is not None:
        config = replace(CIFAR10, data=replace(CIFAR10.data, dir=str(command.data_dir)))
    if command.shortened:
        data = replace(config.data, train_examples=200)
        config, networks, seeds = replace(config, data=data, loop=replace(config.loop, epochs=1)), NETWORKS[1:2], 1
    dataset = load_dataset(config.data)
    rows, accuracies = [], []
    for kernel_size, widths in networks:
        network = replace(config, model=replace(config.model, kernel_size=kernel_size, widths=widths))
        began = time.process_time()
        runs = [train(replace(network, seed=seed), dataset).result for seed in range(seeds)]
        seconds = (time.process_time() - began) / seeds
        accuracies.append([100 * run.validation["accuracy"] for run in runs])
        flops = sum(layer.flops for layer in layers(build_model(network.model, 10), dataset.image_shape))
        rows.append(
            (
                f"{kernel_size}x{kernel_size}",
                str(len(widths)),
                f"{runs[0].parameters:,}",
                f"{flops / 1e6:.2f}",
                f"{seconds:.0f} s",
                f"{spread(accuracies[-1], '.1f')} %",
            )
        )
    headers = ("kernel", "convolutions", "parameters", "MFLOPs an image", "CPU time of a run", "validation accuracy")
    print_table(headers, rows)

    figure, (by_kernel, by_depth) = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    by_kernel.set(title="kernel size, with 3 convolutions", xlabel="height and width of the kernel in pixels")
    by_depth.set(title="depth, with 3x3 kernels", xlabel="convolutions")
    by_kernel.set_ylabel("validation accuracy in %")
    deep = [i for i, (_, widths) in enumerate(networks) if len(widths) == 3]
    draw(by_kernel, [networks[i][0] for i in deep], [accuracies[i] for i in deep])
    threes = [i for i, (kernel_size, _) in enumerate(networks) if kernel_size == 3]
    draw(by_depth, [len(networks[i][1]) for i in threes], [accuracies[i] for i in threes])
    save(figure, command, "architecture.png" if command.data_dir is None else "architecture_cifar10.png")


def draw(axis: Axes, positions: list[int], values: list[list[float]]) -> None:
    """Draws a point for each run, and a line through the means."""
    for position, group in zip(positions, values, strict=True):
        axis.plot([position] * len(group), group, "o", color=COLOURS[0], alpha=0.5)
    points = sorted(zip(positions, map(mean, values), strict=True))
    axis.plot(*zip(*points, strict=True), color=COLOURS[0])
    axis.set_xticks(sorted(positions))


if __name__ == "__main__":
    main(tyro.cli(Command, description=__doc__))

"""A network learns 200 digits by heart, wrong labels included. Each remedy is tried alone, then together.

Command:   python -m experiments.tutorial.overfitting
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.axes import Axes

from experiments.tutorial.shared import COLOURS, Options, Run, print_table, save, spread, start, train
from flaxcls import eval_step
from flaxcls.config import AugmentConfig, Config, DataConfig, LoopConfig, ModelConfig, OptimConfig, StopConfig
from flaxcls.data import Dataset, load_dataset
from flaxcls.models import build_model
from flaxcls.types import Batch

PLAIN = Config(
    data=DataConfig(train_examples=200, validation_fraction=0.35, test_fraction=0.4),
    augment=AugmentConfig(normalize=False, crop_padding=0),
    model=ModelConfig(widths=(16, 32), dense=(128,), norm="none", dropout=0.0),
    optim=OptimConfig(
        name="adamw", learning_rate=2e-3, schedule="constant", warmup_epochs=0.0, weight_decay=0.0, ema_decay=None
    ),
    loop=LoopConfig(epochs=40, batch_size=20, eval_every=2, log_every=20),
    stop=StopConfig(skip=0.99),  # only the last evaluation counts: the last parameters are tested
)
WRONG = 0.2  # share of the training labels


def more_data(config: Config, examples: int) -> Config:
    """Takes more training examples, for the same number of steps."""
    epochs = round(config.loop.epochs * 200 / examples)
    data, loop = replace(config.data, train_examples=examples), replace(config.loop, epochs=epochs, eval_every=1)
    return replace(config, data=data, loop=loop)


def smaller_model(config: Config, widths: tuple[int, int]) -> Config:
    """Takes fewer channels, and fewer units in proportion."""
    return replace(config, model=replace(config.model, widths=widths, dense=(4 * widths[1],)))


def l1(config: Config, factor: float) -> Config:
    """Adds the absolute values of the weights to the loss."""
    return replace(config, loss=replace(config.loss, l1=factor))


def l2(config: Config, factor: float) -> Config:
    """Adds the squares of the weights to the loss."""
    return replace(config, loss=replace(config.loss, l2=factor))


def weight_decay(config: Config, decay: float) -> Config:
    """Shrinks the weights a little at each step, apart from the gradient."""
    return replace(config, optim=replace(config.optim, weight_decay=decay))


def dropout(config: Config, probability: float) -> Config:
    """Drops units of the hidden dense layer."""
    return replace(config, model=replace(config.model, dropout=probability))


def augmentation(config: Config, pixels: int) -> Config:
    """Shifts each picture by up to so many pixels, at random."""
    return replace(config, augment=replace(config.augment, crop_padding=pixels))


def early_stopping(config: Config, patience: int) -> Config:
    """Stops after so many evaluations without a lower validation loss, and goes back to the best of them."""
    return replace(config, stop=StopConfig(patience=patience))


# name -> its change of a configuration, and the strengths to try, weakest first
Remedy = Callable[[Config, Any], Config]
REMEDIES: dict[str, tuple[Remedy, tuple[Any, ...]]] = {
    "more data": (more_data, (701,)),
    "smaller model": (smaller_model, ((8, 16), (4, 8))),
    "L1": (l1, (3e-4, 1e-3, 2e-3)),
    "L2": (l2, (3e-3, 1e-2, 3e-2)),
    "weight decay": (weight_decay, (0.3, 1.0, 3.0)),
    "dropout": (dropout, (0.5, 0.7, 0.9)),
    "augmentation": (augmentation, (1, 2)),
    "early stopping": (early_stopping, (3,)),
}
LAST_THREE = ("dropout", "augmentation", "early stopping")
TOGETHER = {
    "the last three": LAST_THREE,
    "the last three, more data": ("more data", *LAST_THREE),
    "all eight": tuple(REMEDIES),
}


@dataclass(frozen=True)
class Outcome:
    """The runs with the best of the strengths, one for each seed."""

    name: str
    strength: Any
    config: Config
    runs: list[Run]

    def each(self, split: str, metric: str) -> list[float]:
        """Returns a metric of the tested parameters of each run."""
        return [getattr(run.result, split)[metric] for run in self.runs]


def load(config: Config) -> Dataset:
    """Returns the digits with a fifth of the training labels wrong. Validation and test labels stay right."""
    dataset = load_dataset(config.data)
    rng = np.random.default_rng(0)
    labels = dataset.train.labels.copy()
    wrong = rng.random(len(labels)) < WRONG
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, wrong.sum())) % 10
    return replace(dataset, train=dataset.train._replace(labels=labels))


def try_strengths(name: str, configs: dict[Any, Config], seeds: int) -> Outcome:
    """Trains with each strength, and returns the one with the lowest mean validation loss.

    `fit` computes the test accuracy of every run, but only that of the chosen runs is used.
    """
    outcomes = []
    for strength, config in configs.items():
        dataset = load(config)
        runs = [train(replace(config, seed=seed), dataset) for seed in range(seeds)]
        outcome = Outcome(name, strength, config, runs)
        outcomes.append(outcome)
        print(f"{name} {strength}: validation loss {spread(outcome.each('validation', 'loss'), '.3f')}", flush=True)
    return min(outcomes, key=lambda outcome: mean(outcome.each("validation", "loss")))


def train_loss(outcome: Outcome) -> list[float]:
    """Returns the loss on the training examples themselves, without penalties, dropout and shifts."""
    examples = load(outcome.config).train
    batch: Batch = {"image": jnp.asarray(examples.images), "label": jnp.asarray(examples.labels)}
    model = build_model(outcome.config.model, 10)
    return [eval_step(run.result.state, batch, model=model).compute()["loss"] for run in outcome.runs]


def main(options: Options) -> None:
    """Tries everything, prints the table and draws the figure."""
    start(options)
    plain, remedies, together, seeds = PLAIN, REMEDIES, TOGETHER, 3
    if options.shortened:
        plain = replace(PLAIN, loop=replace(PLAIN.loop, epochs=4))
        remedies, together, seeds = {"dropout": (dropout, (0.5,))}, {}, 1

    outcomes = [try_strengths("nothing", {"-": plain}, seeds)]
    for name, (remedy, strengths) in remedies.items():
        outcomes.append(try_strengths(name, {strength: remedy(plain, strength) for strength in strengths}, seeds))
    chosen = {outcome.name: outcome.strength for outcome in outcomes}
    for name, parts in together.items():
        weakest, as_chosen = plain, plain
        for part in parts:
            remedy, strengths = remedies[part]
            weakest, as_chosen = remedy(weakest, strengths[0]), remedy(as_chosen, chosen[part])
        outcomes.append(try_strengths(name, {"as alone": as_chosen, "weakest": weakest}, seeds))

    print()
    headers = ("remedy", "strength", "train loss", "validation loss", "validation accuracy", "test accuracy")
    print_table(
        headers,
        (
            (
                outcome.name,
                str(outcome.strength),
                f"{mean(train_loss(outcome)):.3f}",
                spread(outcome.each("validation", "loss"), ".3f"),
                f"{100 * mean(outcome.each('validation', 'accuracy')):.1f} %",
                f"{spread([100 * value for value in outcome.each('test', 'accuracy')], '.1f')} %",
            )
            for outcome in outcomes
        ),
    )

    figure, (curves, points) = plt.subplots(1, 2, figsize=(11, 4.4), width_ratios=(1, 1.2))
    draw_curves(curves, outcomes[0].runs)
    draw_accuracies(points, outcomes)
    save(figure, options, "overfitting.png")


def draw_curves(axis: Axes, runs: list[Run]) -> None:
    """Draws the losses of the network without a remedy: thin lines for the runs, a thick one for their mean."""
    for colour, split in zip(COLOURS, ("train", "validation"), strict=False):
        lines = [getattr(run, split) for run in runs]
        losses = np.array([[line["loss"] for line in run] for run in lines])
        epochs = [line["epoch"] for line in lines[0]]
        axis.plot(epochs, losses.T, color=colour, alpha=0.3, linewidth=1)
        axis.plot(epochs, losses.mean(axis=0), color=colour, linewidth=2.5, label=split)
    axis.set(title="without a remedy", xlabel="epoch", ylabel="loss", ylim=(0, None))
    axis.legend()


def draw_accuracies(axis: Axes, outcomes: list[Outcome]) -> None:
    """Draws the test accuracy of each run, in a row for each remedy."""
    for row, outcome in enumerate(outcomes):
        values = [100 * value for value in outcome.each("test", "accuracy")]
        colour = COLOURS[6] if row == 0 else COLOURS[2] if outcome.name in TOGETHER else COLOURS[0]
        axis.plot(values, [row] * len(values), "o", color=colour, alpha=0.5)
        axis.plot(mean(values), row, "|", color=colour, markersize=16, markeredgewidth=2.5)
    axis.set_yticks(range(len(outcomes)), [outcome.name for outcome in outcomes])
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    axis.set(title="each remedy: three runs and their mean", xlabel="test accuracy in %")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

"""Test accuracy of the default run on the digits over many seeds, with the interval of its mean.

The splits stay the same; the seed decides initialisation, data order, augmentation and dropout.

Command:   python -m experiments.digits_seeds
Hardware:  2 cores of an AMD EPYC, jax 0.12.0.1, Python 3.13
Time:      8 min for 20 seeds, beside other work
Accuracy:  test 98.90 %, 95 % interval of the mean 98.71 to 99.09 %, n = 20, sd 0.41 points (97.77 to 99.44 %)
"""

import dataclasses
import statistics
import tempfile
from pathlib import Path

import tyro
from rich.console import Console
from scipy.stats import t

from flaxcls.config import Config
from flaxcls.data import load_dataset
from flaxcls.run import fit


def mean_interval(values: list[float], confidence: float = 0.95) -> tuple[float, float]:
    """Returns the t-interval of the mean of two or more values."""
    half = t.ppf((1 + confidence) / 2, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values) - half, statistics.mean(values) + half


def main(seeds: int = 20) -> None:
    """Prints a line for each seed, and the mean of all.

    Args:
      seeds: number of runs, with the seeds 0, 1, 2, ...
    """
    if seeds < 2:
        raise SystemExit(f"seeds is {seeds}, but must be 2 or more: an interval needs two runs.")
    console, dataset, accuracies = Console(), load_dataset(Config().data), []
    for seed in range(seeds):
        config = dataclasses.replace(Config(), seed=seed)
        with tempfile.TemporaryDirectory() as place:
            result = fit(config, dataset=dataset, workdir=Path(place) / "run", console=Console(quiet=True))
        accuracies.append(result.test["accuracy"])
        console.print(f"seed {seed:2d}: {accuracies[-1]:.2%} in {result.seconds:.0f} s", highlight=False)
    low, high = mean_interval(accuracies)
    mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
    console.print(f"mean {mean:.2%}, 95 % interval of the mean {low:.2%} to {high:.2%} (n = {seeds})", highlight=False)
    console.print(f"sd {100 * deviation:.2f} points, {min(accuracies):.2%} to {max(accuracies):.2%}", highlight=False)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.digits_seeds")

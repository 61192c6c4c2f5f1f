"""Shared code of the tutorial's scripts: their options, quiet runs, tables and the look of the figures."""

import io
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import jax
import matplotlib as mpl
import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from tyro.conf import FlagCreatePairsOff

from flaxcls.config import Config
from flaxcls.data import Dataset
from flaxcls.run import FitResult, fit

# Okabe and Ito's colours, which colour-blind readers can tell apart: blue, orange, green, pink, light blue, red, black.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")

_CACHE = tempfile.TemporaryDirectory(prefix="flaxcls-tutorial-")


@dataclass(frozen=True)
class Options:
    """Options of every script."""

    output: Path = Path(__file__).parent / "figures"
    """Folder for the figures."""
    shortened: FlagCreatePairsOff[bool] = False
    """Take only a few steps, to test that it runs; the numbers then mean nothing."""


@dataclass(frozen=True)
class Run:
    """A finished run, and its lines of metrics.jsonl for each split."""

    result: FitResult
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]


def start(options: Options) -> None:
    """Makes the folder for the figures, and sets their common style."""
    options.output.mkdir(parents=True, exist_ok=True)
    mpl.use("agg")
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "axes.prop_cycle": cycler(color=COLOURS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
        }
    )
    # runs that differ only in their seed are the same program, which is compiled once
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", _CACHE.name)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def train(config: Config, dataset: Dataset | None = None) -> Run:
    """Trains without output, in a temporary run directory."""
    with tempfile.TemporaryDirectory() as folder:
        result = fit(config, dataset=dataset, workdir=Path(folder) / "run", console=Console(quiet=True))
        lines = [json.loads(line) for line in (result.workdir / "metrics.jsonl").read_text().splitlines()]
    return Run(result, *([line for line in lines if line["split"] == split] for split in ("train", "validation")))


def save(figure: Figure, options: Options, name: str) -> None:
    """Writes the figure in 256 colours, which keeps its file small, and prints its name."""
    buffer = io.BytesIO()
    figure.savefig(buffer)
    plt.close(figure)
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(options.output / name, optimize=True)
    print(f"wrote {name}")


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table in Markdown."""
    for row in (headers, ["---"] * len(headers), *rows):
        print(f"| {' | '.join(row)} |")


def spread(values: Sequence[float], form: str) -> str:
    """Returns the mean and the standard deviation of the values, in the given format."""
    deviation = f" ± {stdev(values):{form}}" if len(values) > 1 else ""
    return f"{mean(values):{form}}{deviation}"

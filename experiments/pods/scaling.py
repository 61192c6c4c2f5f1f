"""A prediction of how ResNet-50 on ImageNet scales from 8 to 4,096 chips.

It computes step times, efficiencies and the batch at which scaling breaks, from the work of a step and published speeds
of chips and links. It writes scaling.json and scaling.svg beside this file. SCALING.md explains them, and holds the
printed tables. `experiments.pods.programs` checks the assumptions about the program.

Command:   python -m experiments.pods.scaling
Time:      4 s
Result:    SCALING.md
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import altair as alt
import jax
import jax.numpy as jnp
import tyro
import vl_convert

from flaxcls.config import ModelConfig
from flaxcls.models import build_model
from flaxcls.models.summary import count
from flaxcls.run.utilization import PEAKS, training_flops

FOLDER = Path(__file__).parent
CHIPS = (8, 64, 256, 512, 1024, 4096)
CHIP_BATCH, GLOBAL_BATCH = 256, 32_768
# the largest batches of published ResNet-50 runs without a loss of accuracy; SCALING.md has the sources
LIMITS = (8192, 32_768, 65_536)
# measured: images/s of resnet50 on one H100, bfloat16, 224x224, batch 256 (SCALING.md); n = 3
MEASURED = 5630
# assumed: seconds from a chip to the next, and from a slice to another
HOP, NETWORK_HOP = 1e-6, 10e-6


@dataclass(frozen=True)
class Chip:
    """A chip and its links, by the published figures in SCALING.md.

    peak: FLOP/s of dense bfloat16 products.
    link: bytes/s that it sends over all its links within a slice, one way.
    slice: the most chips that such links connect; for a GPU, the chips at one NVLink switch.
    ring: the smallest slice, in chips, whose links close to rings; in a smaller one half of the links is idle.
    dimensions: dimensions of the torus; a switch counts as a ring.
    network: bytes/s that it sends to other slices, as its share of the host's network.
    """

    name: str
    peak: float
    link: float
    slice: int
    ring: int
    dimensions: int
    network: float


KINDS = (
    Chip("TPU v4", PEAKS["TPU v4"], link=6 * 50e9, slice=4096, ring=64, dimensions=3, network=6.25e9),
    Chip("TPU v5e", PEAKS["TPU v5e"], link=200e9, slice=256, ring=256, dimensions=2, network=3.125e9),
    Chip("TPU v5p", PEAKS["TPU v5"], link=600e9, slice=6144, ring=64, dimensions=3, network=6.25e9),
    Chip("TPU v6e", PEAKS["TPU v6"], link=400e9, slice=256, ring=256, dimensions=2, network=12.5e9),
    Chip("H100", PEAKS["NVIDIA H100"], link=450e9, slice=8, ring=1, dimensions=1, network=50e9),
)


@dataclass(frozen=True)
class Work:
    """The work of a chip in a data-parallel step.

    image_flops: floating-point operations an image.
    gradient: bytes of the gradients, which are reduced once a step.
    statistics: bytes that batch norm reduces, forward and backward.
    rounds: number of reductions for these bytes; each waits for the one before.
    """

    image_flops: int
    gradient: int
    statistics: int
    rounds: int


def reduced_bytes(parameters: int, channels: int) -> tuple[int, int]:
    """Returns the bytes in float32 that all devices reduce in a step: of gradients and metrics, and of batch norm.

    The metrics are loss and accuracy. Batch norm reduces two sums a channel forward, of x and of its square, and one
    backward, beside the gradients of its scale and bias.

    Args:
      parameters: number of trained parameters.
      channels: number of channels that batch norm normalises, over all layers.
    """
    return 4 * (parameters + 2), 4 * 3 * channels


@cache
def resnet50_work() -> Work:
    """Returns the work of resnet50 for images of 224x224 in 1,000 classes.

    Its longest path has 49 layers of batch norm, one in the stem and three in each block; each has one round forward
    and one backward. The four layers in the shortcuts share rounds with others.
    """
    model, shape = build_model(ModelConfig(name="resnet50"), 1000), (224, 224, 3)
    initialised = partial(model.init, train=False)
    variables = jax.eval_shape(initialised, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    gradient, statistics = reduced_bytes(count(variables["params"]), count(variables["batch_stats"]) // 2)
    return Work(training_flops(model, shape), gradient, statistics, rounds=2 * 49)


def compute_seconds(chip: Chip, images: float, work: Work) -> float:
    """Returns the time of a chip's own computation, at the share of the peak that was measured on one H100."""
    achieved = MEASURED * work.image_flops / PEAKS["NVIDIA H100"]
    return images * work.image_flops / (chip.peak * achieved)


def all_reduce_seconds(chip: Chip, chips: int, size: float, rounds: int = 1) -> float:
    """Returns the time of summing `size` bytes over all chips, in `rounds` rounds, one after the other.

    Within a slice of m chips, each chip sends 2 (m - 1) / m of the bytes, over rings along each side of the torus.
    Across s slices it sends 2 (s - 1) / s of an m-th of them, by a tree.
    """
    within, slices = min(chips, chip.slice), -(-chips // chip.slice)
    link = chip.link if within >= chip.ring else chip.link / 2
    seconds = 2 * (within - 1) / within * size / link
    seconds += 2 * (slices - 1) / slices * (size / within) / chip.network
    hops = 2 * chip.dimensions * (within ** (1 / chip.dimensions) - 1)
    return seconds + rounds * (hops * HOP + 2 * math.ceil(math.log2(slices)) * NETWORK_HOP)


def communication_seconds(chip: Chip, chips: int, work: Work) -> tuple[float, float]:
    """Returns the times of reducing the gradients and of reducing batch norm's statistics, which nothing can hide."""
    return all_reduce_seconds(chip, chips, work.gradient), all_reduce_seconds(chip, chips, work.statistics, work.rounds)


def step_seconds(chip: Chip, chips: int, images: float, work: Work) -> tuple[float, float]:
    """Returns the times of a step with `images` a chip: gradients reduced after the computation, and beside it."""
    computing = compute_seconds(chip, images, work)
    gradients, statistics = communication_seconds(chip, chips, work)
    return computing + gradients + statistics, max(computing, gradients) + statistics


def efficiencies(chip: Chip, chips: int, images: float, work: Work) -> tuple[float, float]:
    """Returns the time of a chip alone over the time of the step, for both times of `step_seconds`."""
    slow, fast = step_seconds(chip, chips, images, work)
    computing = compute_seconds(chip, images, work)
    return computing / slow, computing / fast


def own_statistics(work: Work) -> Work:
    """Returns the work if batch norm sees only each chip's own images, which `fit` does not do."""
    return replace(work, statistics=0, rounds=0)


def least_batch(chip: Chip, chips: int, work: Work, efficiency: float) -> int:
    """Returns the fewest images a chip for at least that efficiency, without overlap."""
    communication = sum(communication_seconds(chip, chips, work))
    return math.ceil(communication * efficiency / (1 - efficiency) / compute_seconds(chip, 1, work))


def most_chips(chip: Chip, batch: int, work: Work, efficiency: float) -> int:
    """Returns the most chips, a power of two up to 4,096, that share a batch with at least that efficiency."""
    counts = [2**power for power in range(13)]
    return max(n for n in counts if n == 1 or batch / n >= least_batch(chip, n, work, efficiency))


def rows() -> list[dict[str, Any]]:
    """Returns the predictions for each kind and number of chips, at a fixed batch a chip and a fixed batch in all."""
    predictions, work = [], resnet50_work()
    for held, batch in (("a chip", CHIP_BATCH), ("in all", GLOBAL_BATCH)):
        for chips in CHIPS:
            for chip in KINDS:
                images = batch if held == "a chip" else batch / chips
                slow, fast = step_seconds(chip, chips, images, work)
                least, most = efficiencies(chip, chips, images, work)
                own, _ = efficiencies(chip, chips, images, own_statistics(work))
                predictions.append(
                    {
                        "chip": chip.name,
                        "chips": chips,
                        "batch": f"{batch:,} images {held}",
                        "images_a_chip": images,
                        "seconds": {"overlap_none": slow, "overlap_full": fast},
                        "efficiency": {"overlap_none": least, "overlap_full": most, "own_statistics": own},
                    }
                )
    return predictions


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines))


def step_tables(predictions: Sequence[dict[str, Any]]) -> list[str]:
    """Returns, for each batch, step times in ms without overlap, and efficiencies in % without and with it."""
    tables = []
    for batch in dict.fromkeys(row["batch"] for row in predictions):
        lines = []
        for chips in CHIPS:
            of_chips = [row for row in predictions if (row["batch"], row["chips"]) == (batch, chips)]
            lines.append([f"{chips:,}", *map(_step_cell, of_chips)])
        tables.append(table([f"chips, {batch}", *(chip.name for chip in KINDS)], lines))
    return tables


def _step_cell(row: dict[str, Any]) -> str:
    least, most = (f"{100 * row['efficiency'][name]:.0f}" for name in ("overlap_none", "overlap_full"))
    return f"{_format(1e3 * row['seconds']['overlap_none'])} ({least if least == most else f'{least} to {most}'})"


def _format(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def parts_table() -> str:
    """Returns a table of the parts of a step on the most chips, at the fixed batch a chip, and of the latency."""
    work, lines = resnet50_work(), []
    for chip in KINDS:
        computing = compute_seconds(chip, CHIP_BATCH, work)
        gradients, statistics = communication_seconds(chip, CHIPS[-1], work)
        latency = all_reduce_seconds(chip, CHIPS[-1], 0, work.rounds)
        whole = computing + gradients + statistics
        shares = (computing / whole, computing / (whole - latency / 2), computing / (computing + gradients))
        parts = [_format(1e3 * part) for part in (computing, gradients, statistics, latency)]
        lines.append([chip.name, *parts, *(f"{100 * share:.0f}" for share in shares)])
    header = [
        *(f"{CHIPS[-1]:,} chips, ms", f"{CHIP_BATCH} images", "gradients", "batch norm", "of which latency"),
        *("efficiency, %", "at half the latency", "without batch norm's rounds"),
    ]
    return table(header, lines)


def break_tables() -> list[str]:
    """Returns tables of the least images a chip and the most chips a batch, for efficiencies of 50 and 90 %."""
    work, names = resnet50_work(), [chip.name for chip in KINDS]

    def lines(counts: Sequence[int], count_at: Callable[[Chip, int, float], int]) -> list[list[str]]:
        shares = (0.5, 0.9)
        return [
            [f"{n:,}", *(" / ".join(f"{count_at(chip, n, share):,}" for share in shares) for chip in KINDS)]
            for n in counts
        ]

    least = lines(CHIPS, lambda chip, n, share: least_batch(chip, n, work, share))
    most = lines(LIMITS, lambda chip, n, share: most_chips(chip, n, work, share))
    return [table(["chips", *names], least), table(["images in all", *names], most)]


def chart(predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the plot for Vega-Lite: efficiency without overlap by number of chips, with a panel for each batch."""
    norms = {"overlap_none": "all", "own_statistics": "own"}
    values = [
        {
            **{name: row[name] for name in ("chip", "chips", "batch")},
            "norm": norm,
            "efficiency": 100 * row["efficiency"][key],
        }
        for row in predictions
        for key, norm in norms.items()
    ]
    title = alt.Title(
        "Predicted efficiency of ResNet-50, nothing overlapped",
        subtitle="solid: batch norm over all images, as in fit; dashed: over each chip's own",
        subtitleFontSize=12,
        offset=12,
    )
    legend = alt.Legend(orient="bottom", symbolType="stroke", symbolSize=400, symbolStrokeWidth=2)
    plot: dict[str, Any] = (
        alt.Chart(alt.Data(values=values))
        .mark_line(point=alt.OverlayMarkDef(size=30))
        .encode(
            x=alt.X(
                "chips:Q",
                title="chips",
                scale=alt.Scale(type="log", base=2),
                axis=alt.Axis(values=[*CHIPS], format=","),
            ),
            y=alt.Y("efficiency:Q", title="efficiency, %", scale=alt.Scale(domain=[0, 100])),
            color=alt.Color("chip:N", title=None, sort=[chip.name for chip in KINDS], legend=legend),
            strokeDash=alt.StrokeDash("norm:N", sort=[*norms.values()], legend=None),
            column=alt.Column("batch:N", title=None, sort=[values[0]["batch"]]),
        )
        .properties(width=340, height=270, title=title)
        .configure(background="white")
        .configure_legend(labelFontSize=12, titleFontSize=12, titleFontWeight="normal")
        .configure_axis(labelFontSize=12, titleFontSize=12, titleFontWeight="normal")
        .configure_header(labelFontSize=13)
        .to_dict()
    )
    return plot


def _rounded(value: Any) -> Any:
    """Returns the value with each fraction rounded to six digits, which are the same on every machine."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [*map(_rounded, value)]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def predict(out: Path = FOLDER) -> None:
    """Prints the tables of the prediction.

    Args:
      out: folder for scaling.json and scaling.svg.
    """
    predictions = rows()
    print("\n\n".join([*step_tables(predictions), parts_table(), *break_tables()]))
    record = {"work": asdict(resnet50_work()), "chips": [*map(asdict, KINDS)], "predictions": predictions}
    (out / "scaling.json").write_text(json.dumps(_rounded(record), indent=1) + "\n")
    (out / "scaling.svg").write_text(vl_convert.vegalite_to_svg(chart(predictions)))


if __name__ == "__main__":
    tyro.cli(predict, prog="python -m experiments.pods.scaling")

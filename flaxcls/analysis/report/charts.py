"""The charts of a report, as Vega-Lite specifications.

Lines and letters take the colour of the surrounding text ("currentColor"), so one chart works on light and dark screens
and on paper.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import altair as alt
import numpy as np

from flaxcls.analysis.calibration import reliability, softmax
from flaxcls.analysis.evaluation import Evaluation
from flaxcls.analysis.report.content import RunContent
from flaxcls.analysis.scores import roc_curves as roc_rates

# visible on white and on black; CELL is dark enough for white letters
BLUE, ORANGE, CELL = "#4c78a8", "#d9700a", "#2f5d8c"
UNSCALED, SCALED = "before temperature scaling", "after temperature scaling"
# most points of one line in a learning curve, and of all ROC curves together
MOST_POINTS, MOST_CURVE_POINTS = 500, 6000
# most classes in a matrix with names on its axes, and in one with numbers in its cells
MOST_NAMED, MOST_NUMBERED = 60, 20
# thresholds of the slider: 0, 0.005, ..., 1
THRESHOLDS = np.linspace(0, 1, 201)

Spec = dict[str, Any]


def learning_curve(runs: Sequence[RunContent], field: str, title: str, *, log: bool = False) -> Spec | None:
    """Returns the chart of a field of metrics.jsonl over the steps, with each run's best step.

    Returns None if no run has logged the field. With `log`, the axis is logarithmic if all values are above 0.
    """
    rows = [row for run in runs for split in ("train", "validation") for row in _points(run, split, field)]
    if not rows:
        return None
    several, log = len(runs) > 1, log and all(row["value"] > 0 for row in rows)
    splits = sorted({row["split"] for row in rows})
    dash = alt.StrokeDash("split:N", title="split", sort=splits, legend=None if len(splits) == 1 else alt.Legend())
    named = {"color": alt.Color("run:N", title="run"), "strokeDash": dash}
    colour = alt.Color("split:N", title=None, scale=alt.Scale(domain=["train", "validation"], range=[BLUE, ORANGE]))
    lines = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=len(rows) < 30, clip=True)
        .encode(
            x=alt.X("step:Q", title="step"),
            y=alt.Y("value:Q", title=title, scale=alt.Scale(type="log", nice=False) if log else alt.Scale(zero=False)),
            tooltip=[
                *(["run:N"] if several else []),
                "split:N",
                "step:Q",
                "epoch:Q",
                alt.Tooltip("value:Q", title=title),
            ],
            **(named if several else {"color": colour} if len(splits) > 1 else {}),
        )
    )
    validated = [run for run in runs if any(line["split"] == "validation" for line in run.lines)]
    marks = [{"run": run.name, "step": run.step, "what": "best by validation"} for run in validated]
    marks += [
        {"run": run.name, "step": run.lines[-1]["step"], "what": "stopped early"} for run in runs if run.stopped_early
    ]
    rules = (
        alt.Chart(alt.Data(values=marks))
        .mark_rule(strokeDash=[3, 3], opacity=0.7)
        .encode(
            x="step:Q",
            tooltip=["run:N", "what:N", "step:Q"],
            color=alt.Color("run:N") if several else alt.value("currentColor"),
        )
    )
    texts = [
        alt.Chart(alt.Data(values=[mark]))
        .mark_text(align="right", baseline="top", dx=-4, color="currentColor")
        .encode(x="step:Q", y=alt.value(14 * place), text="what:N")
        for place, mark in enumerate([] if several else marks)
    ]
    description = f"{title} over the training steps"
    return _styled(alt.layer(lines, rules, *texts), description, height=220)


def confusion(evaluation: Evaluation) -> Spec:
    """Returns the chart of the confusion matrix; its signal `shown` is "counts" or "rates"."""
    names, matrix = evaluation.class_names, np.array(evaluation.metrics["confusion_matrix"])
    totals = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    rates = matrix / totals
    rows = [
        {"t": names[true], "p": names[predicted], "n": int(count), "r": round(float(rates[true, predicted]), 5)}
        for true, line in enumerate(matrix)
        for predicted, count in enumerate(line)
        if count or len(names) <= MOST_NUMBERED
    ]
    labels = len(names) <= MOST_NAMED
    axis = partial(alt.Axis, labels=labels, ticks=labels, labelLimit=120, grid=False)
    # not sort=, which builds an expression from the names and fails for a name such as "constructor"
    order = alt.Scale(domain=list(names))
    base = (
        alt.Chart(alt.Data(values=rows))
        .transform_calculate(
            strength=f"shown == 'rates' ? datum.r : datum.n / {max(int(matrix.max()), 1)}",
            text="shown == 'rates' ? format(datum.r, '.1%') : format(datum.n, ',')",
        )
        .encode(
            x=alt.X("p:N", scale=order, title="predicted", axis=axis(labelAngle=-45)),
            y=alt.Y("t:N", scale=order, title="true", axis=axis()),
            tooltip=[
                alt.Tooltip("t:N", title="true"),
                alt.Tooltip("p:N", title="predicted"),
                alt.Tooltip("n:Q", title="examples"),
                alt.Tooltip("r:Q", title="share of the true class", format=".2%"),
            ],
        )
    )
    cells = base.mark_rect(color=CELL).encode(
        opacity=alt.Opacity("strength:Q", scale=alt.Scale(domain=[0, 1], range=[0, 1]), legend=None)
    )
    shown = alt.param(name="shown", value="counts")
    layers = [cells]
    if len(names) <= MOST_NUMBERED:
        colour = alt.condition("datum.strength > 0.8", alt.value("white"), alt.value("currentColor"))
        layers.append(base.mark_text(fontSize=11).encode(text="text:N", color=colour))
    description = f"Confusion matrix of {len(names)} classes: true classes in rows, predicted classes in columns"
    height = min(640, max(180, 32 * len(names)))
    return _styled(alt.layer(*layers).add_params(shown), description, height=height)


def roc_curves(evaluation: Evaluation, names: Sequence[str]) -> tuple[Spec, Spec]:
    """Returns the charts of the ROC and precision-recall curves of some classes, each against the rest.

    Both charts have the signals `shown`, the class, and `x` and `y`, the point of the threshold. The point is hidden if
    y is below 0.
    """
    rows = _curve_points(evaluation, names)

    def curve(x: str, y: str, x_title: str, y_title: str, description: str) -> Spec:
        shown = alt.param(name="shown", value=names[0])
        point_at = [alt.param(name=name, value=-1) for name in ("x", "y")]
        share = alt.Scale(domain=[0, 1])
        line = (
            alt.Chart(alt.Data(values=rows))
            .transform_filter("datum.c == shown")
            .mark_line(color=BLUE)
            .encode(
                x=alt.X(f"{x}:Q", title=x_title, scale=share),
                y=alt.Y(f"{y}:Q", title=y_title, scale=share),
                order="o:Q",
                tooltip=[alt.Tooltip(f"{name}:Q", format=".4f") for name in (x, y)],
            )
        )
        point = (
            alt.Chart(alt.Data(values=[{}]))
            .mark_point(size=120, filled=True, color=ORANGE, opacity=alt.ExprRef("y < 0 ? 0 : 1"))
            .encode(  # a point outside would extend the axes
                x=alt.datum(alt.ExprRef("max(x, 0)"), type="quantitative"),
                y=alt.datum(alt.ExprRef("max(y, 0)"), type="quantitative"),
            )
        )
        return _styled(alt.layer(line, point).add_params(shown, *point_at), description, height=260)

    return (
        curve("fpr", "tpr", "false positive rate", "true positive rate", "ROC curve of the chosen class"),
        curve("tpr", "precision", "recall", "precision", "Precision-recall curve of the chosen class"),
    )


def threshold_counts(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the counts from which the page computes the metrics at each threshold.

    A class is included if some examples, but not all, are of this class. "tp" counts its examples, and "fp" all other
    examples, whose probability of the class is at least each of `THRESHOLDS`.
    """
    counts_by_class: dict[str, Any] = {}
    for index, name in enumerate(evaluation.class_names):
        positive = evaluation.labels == index
        if positive.all() or not positive.any():
            continue
        values = evaluation.probabilities[:, index]
        counts = [_count_at_least(values[chosen]).tolist() for chosen in (positive, ~positive)]
        counts_by_class[name] = {
            "positives": int(positive.sum()),
            "negatives": int((~positive).sum()),
            "tp": counts[0],
            "fp": counts[1],
        }
    return counts_by_class


def reliability_diagram(evaluation: Evaluation) -> Spec:
    """Returns the chart of accuracy by confidence, before and after temperature scaling."""
    rows = []
    for what, values in (
        (UNSCALED, softmax(evaluation.logits)),
        (SCALED, evaluation.probabilities),
    ):
        found = reliability(values, evaluation.labels)
        rows += [
            {"what": what, "confidence": float(confidence), "accuracy": float(accuracy), "examples": int(count)}
            for count, confidence, accuracy in zip(*found, strict=True)
            if count
        ]
    share = alt.Scale(domain=[0, 1])
    ideal = (
        alt.Chart(alt.Data(values=[{"v": 0}, {"v": 1}]))
        .mark_line(strokeDash=[4, 4], color="currentColor", opacity=0.5)
        .encode(x="v:Q", y="v:Q")
    )
    points = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=alt.OverlayMarkDef(size=50))
        .encode(
            x=alt.X("confidence:Q", title="mean confidence", scale=share),
            y=alt.Y("accuracy:Q", title="accuracy", scale=share),
            color=alt.Color("what:N", title=None, scale=alt.Scale(domain=[UNSCALED, SCALED], range=[ORANGE, BLUE])),
            tooltip=[
                "what:N",
                "examples:Q",
                *(alt.Tooltip(f"{n}:Q", format=".3f") for n in ("confidence", "accuracy")),
            ],
        )
    )
    return _styled(alt.layer(ideal, points), "Reliability diagram: accuracy by confidence", height=260)


def evenly_spaced(count: int, most: int) -> list[int]:
    """Returns the positions 0 .. count - 1, or `most` of them from the first to the last in even steps."""
    positions: list[int] = np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()
    return positions


def _styled(chart: alt.LayerChart | alt.FacetChart, description: str, *, height: int) -> Spec:
    spec: Spec = (
        chart.properties(width="container", height=height, description=description)
        .configure(background="transparent")
        .configure_view(stroke=None)
        .configure_axis(
            labelColor="currentColor",
            titleColor="currentColor",
            domainColor="currentColor",
            tickColor="currentColor",
            gridColor="currentColor",
            gridOpacity=0.15,
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
        )
        .configure_legend(
            labelColor="currentColor", titleColor="currentColor", labelFontSize=12, orient="bottom", labelLimit=240
        )
        .to_dict()
    )
    return spec


def _points(run: RunContent, split: str, field: str) -> list[dict[str, Any]]:
    lines = [line for line in run.lines if line["split"] == split and line.get(field) is not None]
    return [
        {
            "run": run.name,
            "split": split,
            "value": lines[at][field],
            "step": lines[at]["step"],
            "epoch": lines[at]["epoch"],
        }
        for at in evenly_spaced(len(lines), MOST_POINTS)
    ]


def _count_at_least(values: np.ndarray) -> np.ndarray:
    """Returns the number of values that are at least each of `THRESHOLDS`."""
    return len(values) - np.searchsorted(np.sort(values), THRESHOLDS.astype(np.float32), side="left")


def _curve_points(evaluation: Evaluation, names: Sequence[str]) -> list[dict[str, Any]]:
    most = max(20, MOST_CURVE_POINTS // len(names))
    curves = roc_rates(evaluation.probabilities, evaluation.labels, evaluation.class_names)["classes"]
    rows = []
    for name in names:
        fpr, tpr = (np.array(curves[name][f"{kind}_positive_rate"]) for kind in ("false", "true"))
        positives = int((evaluation.labels == evaluation.class_names.index(name)).sum())
        right, wrong = tpr * positives, fpr * (len(evaluation.labels) - positives)
        precision = np.divide(right, right + wrong, out=np.ones_like(right), where=right + wrong > 0)
        rows += [
            {"c": name, "o": order, **_rounded(fpr=fpr[at], tpr=tpr[at], precision=precision[at])}
            for order, at in enumerate(evenly_spaced(len(fpr), most))
        ]
    return rows


def _rounded(**values: float) -> dict[str, float]:
    return {name: round(float(value), 5) for name, value in values.items()}

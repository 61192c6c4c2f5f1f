"""The page of a report: one self-contained HTML file."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import vl_convert
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from flaxcls.analysis.duplicates import ALIKE
from flaxcls.analysis.evaluation import Evaluation
from flaxcls.analysis.report import charts
from flaxcls.analysis.report.content import RunContent
from flaxcls.analysis.scores import McNemar, holm, mcnemar
from flaxcls.analysis.tables import list_notes, number, percent
from flaxcls.run.result import versions

# learning curves: field of metrics.jsonl, title, and True for a logarithmic axis
CURVES = (
    ("loss", "loss", True),
    ("accuracy", "accuracy", False),
    ("learning_rate", "learning rate", False),
    ("images_per_second", "images per second", False),
)
# metrics in the comparison of runs: path in metrics.json, title, and max or min, whichever is better
COMPARED = (
    ("accuracy", "accuracy", max),
    ("balanced_accuracy", "balanced accuracy", max),
    ("f1/macro", "F1, macro", max),
    ("roc_auc/macro", "ROC AUC, macro", max),
    ("average_precision/macro", "average precision, macro", max),
    ("log_loss", "log loss", min),
    ("brier_score", "Brier score", min),
    ("calibration/ece_after", "calibration error", min),
)


def render(runs: Sequence[RunContent]) -> str:
    """Returns the HTML of a report on one run, or on several side by side.

    The page loads nothing. It contains the charts, the pictures and the program that draws them (Vega), and its content
    security policy forbids every request.
    """
    specs: dict[str, charts.Spec] = {}
    curves = [
        (name, title, spec)
        for name, title, log in CURVES
        if (spec := charts.learning_curve(runs, name, title, log=log)) is not None
    ]
    specs |= {f"curve-{name}": spec for name, _, spec in curves}
    thresholds: dict[str, Any] = {}
    for place, run in enumerate(runs):
        evaluation = run.evaluation
        specs[f"confusion-{place}"] = charts.confusion(evaluation)
        specs[f"reliability-{place}"] = charts.reliability_diagram(evaluation)
        thresholds[str(place)] = charts.threshold_counts(evaluation)
        if names := list(thresholds[str(place)]):
            specs[f"roc-{place}"], specs[f"precision-recall-{place}"] = charts.roc_curves(evaluation, names)
    same = all(_same_examples(runs[0].evaluation, run.evaluation) for run in runs[1:])
    return render_template(
        "report.html",
        title=", ".join(run.name for run in runs),
        runs=runs,
        curves=[(name, title) for name, title, _ in curves],
        compared=_compared(runs, same=same),
        same=same,
        alike=ALIKE,
        differing=_differing(runs),
        tests=_test_pairs(runs),
        data={"specs": specs, "thresholds": thresholds, "grid": charts.THRESHOLDS.round(3).tolist()},
        script=Markup(_source("script.js")),
        vega=Markup(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")),
    )


def render_template(name: str, **values: Any) -> str:
    """Returns the HTML of a template with these values, in the look of the report."""
    return ENVIRONMENT.get_template(name).render(
        made=f"{datetime.now():%-d %B %Y, %H:%M}",
        version=versions()["flaxcls"],
        style=Markup(_source("style.css")),
        **values,
    )


def _source(name: str) -> str:
    return ENVIRONMENT.loader.get_source(ENVIRONMENT, name)[0]  # type: ignore[union-attr]


def _compared(runs: Sequence[RunContent], *, same: bool) -> list[dict[str, Any]]:
    """Returns the rows of the comparison of runs; "best" is True for the best values of a row.

    same: True if the runs were evaluated on the same examples; otherwise no value is the best.
    """
    rows = []
    for path, title, better in COMPARED:
        values = [_at(run.evaluation.metrics, path) for run in runs]
        known = [value for value in values if value is not None]
        best = better(known) if same and len(set(known)) > 1 else None
        rows.append(
            {"title": title, "values": values, "best": [value is not None and value == best for value in values]}
        )
    return rows


def _differing(runs: Sequence[RunContent]) -> list[tuple[str, list[str]]]:
    """Returns the options that differ between runs, each with its value in each run."""
    names = {name: None for run in runs for name in run.config}
    rows = [(name, [_shown(run.config.get(name)) for run in runs]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _test_pairs(runs: Sequence[RunContent]) -> list[dict[str, Any]]:
    """Returns McNemar's test for each pair of runs; "found" is None if they were evaluated on different examples."""
    pairs = [(first, second) for place, first in enumerate(runs) for second in runs[place + 1 :]]
    found = [_compare_pair(first.evaluation, second.evaluation) for first, second in pairs]
    adjusted = iter(holm([test.p_value for test in found if test]))
    return [
        {"first": first.name, "second": second.name, "found": test, "adjusted": next(adjusted) if test else None}
        for (first, second), test in zip(pairs, found, strict=True)
    ]


def _compare_pair(first: Evaluation, second: Evaluation) -> McNemar | None:
    if not _same_examples(first, second):
        return None
    return mcnemar(first.predicted == first.labels, second.predicted == second.labels)


def _same_examples(first: Evaluation, second: Evaluation) -> bool:
    """Returns True if two runs were evaluated on the same examples; compares names, labels and 100 images."""
    if first.ids != second.ids or not np.array_equal(first.labels, second.labels):
        return False
    chosen = charts.evenly_spaced(len(first.ids), 100)
    # images of different sizes may come from the same files
    return first.images.shape != second.images.shape or all(
        np.array_equal(first.images[index], second.images[index]) for index in chosen
    )


def _at(metrics: dict[str, Any], path: str) -> float | None:
    found: Any = metrics
    for key in path.split("/"):
        found = found[key]
    return None if found is None else float(found)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


ENVIRONMENT = Environment(
    loader=PackageLoader("flaxcls.analysis.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
ENVIRONMENT.filters.update(percent=percent, number=number, shown=_shown, notes=list_notes)

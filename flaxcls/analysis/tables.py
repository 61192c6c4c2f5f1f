"""Tables of an evaluation, to print."""

import re

from rich.markup import escape
from rich.table import Table

from flaxcls.analysis.evaluation import Evaluation

MOST_CLASSES = 20


def summary(evaluation: Evaluation) -> Table:
    """Returns a table of the main metrics."""
    values = evaluation.metrics
    low, high = values["accuracy_interval"]
    calibration = values["calibration"]
    table = Table(
        title=escape(f"{values['dataset']}, {values['split']} split, step {values['step']:,}"),
        title_justify="left",
        show_header=False,
    )
    table.add_row("examples", f"{values['examples']:,}")
    table.add_row("accuracy", f"{values['accuracy']:.2%}, 95 % interval {low:.2%} to {high:.2%}")
    if values["top_5"] is not None:
        table.add_row("top-5 accuracy", percent(values["top_5"]))
    table.add_row("balanced accuracy", percent(values["balanced_accuracy"]))
    for name, label in (("precision", "precision"), ("recall", "recall"), ("f1", "F1")):
        row = values[name]
        table.add_row(label, f"{percent(row['macro'])} macro, {percent(row['weighted'])} weighted")
    table.add_row("ROC AUC", f"{number(values['roc_auc']['macro'])} macro")
    table.add_row("average precision", f"{number(values['average_precision']['macro'])} macro")
    table.add_row("log loss", f"{values['log_loss']:.4f}, without temperature {calibration['log_loss_before']:.4f}")
    table.add_row("Brier score", f"{values['brier_score']:.4f}")
    table.add_row(
        "calibration error", f"{calibration['ece_after']:.4f}, without temperature {calibration['ece_before']:.4f}"
    )
    table.add_row("temperature", f"{evaluation.temperature:.3f}, fitted on {calibration['temperature_fitted_on']}")
    table.add_row("Cohen's kappa", number(values["cohen_kappa"]))
    return table


def per_class(evaluation: Evaluation) -> Table | None:
    """Returns a table of the metrics of each class, or None if there are too many classes to print."""
    rows = evaluation.metrics["per_class"]
    if len(rows) > MOST_CLASSES:
        return None
    table = Table()
    table.add_column("class")
    for name in ("examples", "precision", "recall", "F1", "ROC AUC", "avg. precision"):
        table.add_column(name, justify="right")
    for row in rows:
        shares = (percent(row[name]) for name in ("precision", "recall", "f1"))
        areas = (number(row[name]) for name in ("roc_auc", "average_precision"))
        table.add_row(escape(row["name"]), f"{row['support']:,}", *shares, *areas)
    return table


def list_notes(evaluation: Evaluation) -> list[str]:
    """Returns the notes of an evaluation, each with what it is on; one may have further lines, which are indented."""
    return [
        f"{path}: {line}" for path, note in evaluation.metrics["notes"].items() for line in re.split(r"\n(?! )", note)
    ]


def percent(value: float | None, digits: int = 2) -> str:
    """Returns a share as a percentage, or "undefined" for None."""
    return "undefined" if value is None else f"{value:.{digits}%}"


def number(value: float | None, digits: int = 4) -> str:
    """Returns a number with a fixed count of decimals, or "undefined" for None."""
    return "undefined" if value is None else f"{value:.{digits}f}"

import numpy as np
import pytest

from flaxcls.analysis.report.charts import (
    MOST_NUMBERED,
    SCALED,
    UNSCALED,
    confusion,
    learning_curve,
    reliability_diagram,
    roc_curves,
    threshold_counts,
)
from tests.analysis.report.test_page import content, evaluation


def rows(spec, layer=0):
    """Returns the rows that a layer of a chart is drawn from."""
    return spec["layer"][layer].get("data", spec.get("data"))["values"]


LOGITS = np.log([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.3, 0.6, 0.1], [0.2, 0.2, 0.6]], dtype=np.float32)


def test_threshold_counts_worked_by_hand():
    found = threshold_counts(evaluation(LOGITS, [0, 0, 1, 1], ["cat", "dog", "cow"]))
    assert list(found) == ["cat", "dog"]  # no example is a cow
    cat = found["cat"]
    assert (cat["positives"], cat["negatives"]) == (2, 2)
    # thresholds are 0, 0.005, ..., 1: those of 0.1, 0.25, 0.35, 0.55 and 0.9
    assert [cat["tp"][at] for at in (20, 50, 70, 110, 180)] == [2, 2, 2, 1, 0]
    assert [cat["fp"][at] for at in (20, 50, 70, 110, 180)] == [2, 1, 0, 0, 0]
    assert threshold_counts(evaluation(LOGITS, [1, 1, 1, 1], ["cat", "dog", "cow"])) == {}


def test_roc_and_precision_recall_worked_by_hand():
    roc, precision_recall = roc_curves(evaluation(LOGITS, [0, 0, 1, 1], ["cat", "dog", "cow"]), ["cat", "dog"])
    points = [(row["fpr"], row["tpr"], row["precision"]) for row in rows(roc) if row["c"] == "dog"]
    # dogs have 0.6 and 0.2, the others 0.5 and 0.2
    assert points == [(0, 0, 1), (0, 0.5, 1), (0.5, 0.5, 0.5), (1, 1, 0.5)]
    assert rows(roc) == rows(precision_recall)


def test_the_reliability_diagram_worked_by_hand():
    found = evaluation(LOGITS, [0, 0, 1, 1], ["cat", "dog", "cow"], temperature=0.5)
    spec = reliability_diagram(found)
    assert [spec["layer"][1]["encoding"][axis]["field"] for axis in "xy"] == ["confidence", "accuracy"]
    points = {what: [] for what in (UNSCALED, SCALED)}
    for row in rows(spec, 1):
        points[row["what"]].append((round(row["confidence"], 4), row["accuracy"], row["examples"]))
    # of 15 bins, 0.6 and 0.6 share one
    assert points[UNSCALED] == [(0.5, 0.0, 1), (0.6, 0.5, 2), (0.7, 1.0, 1)]
    # squared and normalised: 0.25 / 0.42, 0.36 / 0.44, 0.36 / 0.46, 0.49 / 0.54
    assert points[SCALED] == [(0.5952, 0.0, 1), (0.7826, 1.0, 1), (0.8182, 0.0, 1), (0.9074, 1.0, 1)]


def test_the_confusion_matrix_has_counts_and_rates():
    spec = confusion(evaluation(LOGITS, [0, 0, 1, 1], ["cat", "dog", "cow"]))
    cells = {(row["t"], row["p"]): (row["n"], row["r"]) for row in rows(spec)}
    assert len(cells) == 9
    assert cells["cat", "cat"] == (1, 0.5)
    assert cells["dog", "cow"] == (1, 0.5)
    assert cells["cow", "cow"] == (0, 0)
    assert [layer["mark"]["type"] for layer in spec["layer"]] == ["rect", "text"]


def test_a_matrix_of_many_classes_has_no_numbers_and_only_cells_with_examples():
    count = MOST_NUMBERED + 1
    spec = confusion(evaluation(np.eye(count, dtype=np.float32), np.arange(count), [f"c{n}" for n in range(count)]))
    assert len(rows(spec)) == count
    assert [layer["mark"]["type"] for layer in spec["layer"]] == ["rect"]


def test_learning_curves_are_thinned_but_keep_their_ends():
    lines = [{"step": n, "epoch": n // 10, "split": "train", "loss": 1 / n} for n in range(1, 2001)]
    validation = {"step": 1900, "epoch": 190, "split": "validation", "accuracy": 0.5}
    run = content(lines=[*lines[:1900], validation, *lines[1900:]], step=1900, stopped_early=True)
    spec = learning_curve([run], "loss", "loss", log=True)
    steps = [row["step"] for row in rows(spec)]
    assert (steps[0], steps[-1], len(steps)) == (1, 2000, 500)
    marks = [(row["what"], row["step"]) for row in rows(spec, 1)]
    assert marks == [("best by validation", 1900), ("stopped early", 2000)]
    assert learning_curve([content(lines=lines)], "accuracy", "accuracy") is None
    assert not rows(learning_curve([content(lines=lines, step=1900)], "loss", "loss"), 1)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_loss_that_a_logarithm_cannot_show_gets_a_plain_axis(value):
    lines = [{"step": 1, "epoch": 1, "split": "train", "loss": value}]
    spec = learning_curve([content(lines=lines)], "loss", "loss", log=True)
    assert spec["layer"][0]["encoding"]["y"]["scale"].get("type", "linear") == "linear"

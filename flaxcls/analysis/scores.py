"""Metrics of predictions. An undefined metric is None, and its reason is stored beside it."""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest
from sklearn import metrics

PER_CLASS = ("precision", "recall", "f1", "roc_auc", "average_precision")


def scores(
    probabilities: np.ndarray, predicted: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """Returns all metrics as plain Python values that JSON can hold.

    An undefined metric is None; "undefined" then maps its path, such as "per_class/3/precision", to the reason. A mean
    over classes uses the classes where the metric is defined; "notes" lists the means that leave out a class.

    Args:
      probabilities: f32[n k], n >= 1; each row sums to 1.
      predicted: i64[n], predicted classes.
      labels: i64[n], true classes.
      class_names: names of the k classes.
    """
    count, classes = probabilities.shape
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    correct = int((predicted == labels).sum())
    undefined: dict[str, str] = {}
    notes: dict[str, str] = {}
    per_class = _per_class(probabilities, predicted, labels, class_names, undefined)
    averages = {name: _averages(name, per_class, undefined, notes) for name in PER_CLASS}
    for name in ("precision", "recall", "f1"):  # with one label for each example, all three equal the accuracy
        averages[name]["micro"] = correct / count
    balanced = averages["recall"]["macro"]
    if "recall/macro" in notes:
        notes["balanced_accuracy"] = notes["recall/macro"]
    if classes <= 5:
        undefined["top_5"] = "with five classes or fewer, the true one is always among the first five"
    kappa = _kappa(predicted, labels, classes)
    if kappa is None:
        undefined["cohen_kappa"] = "every example is of one class and predicted as it, so chance agrees as well"
    return {
        "examples": count,
        "class_names": list(class_names),
        "accuracy": correct / count,
        "accuracy_interval": list(wilson_interval(correct, count)),
        "top_5": _top_5(probabilities, labels) if classes > 5 else None,
        "balanced_accuracy": balanced,
        "cohen_kappa": kappa,
        "log_loss": log_loss(probabilities, labels),
        "brier_score": float(np.square(exact - np.eye(classes)[labels]).sum(axis=1).mean()),
        **averages,
        "per_class": per_class,
        "confusion_matrix": _confusion(predicted, labels, classes).tolist(),
        "undefined": undefined,
        "notes": notes,
    }


def wilson_interval(correct: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Returns the confidence interval of the share `correct` / `count` (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, scale = correct / count, 1 + z**2 / count
    middle = (share + z**2 / (2 * count)) / scale
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / scale
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean of -log p of the true class, in nats; smaller probabilities count as 2.2e-16.

    Args:
      probabilities: f[n k].
      labels: i[n].
    """
    exact = probabilities.astype(np.float64)
    classes = exact.shape[1]
    if classes == 1:  # scikit-learn needs two classes
        return 0.0
    return float(metrics.log_loss(labels, exact / exact.sum(axis=1, keepdims=True), labels=np.arange(classes)))


def roc_curves(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the ROC curve of each class against the rest, and their mean.

    "classes" maps each name to the false and true positive rates from (0, 0) to (1, 1), with the thresholds: an example
    counts as positive if its probability is at least the threshold. The first threshold is None, as no example counts
    there. Points on a line between others are left out. A class has None if all examples or none are of this class.
    "macro" is the mean true positive rate at 101 false positive rates.

    Args:
      probabilities: f[n k].
      labels: i[n].
      class_names: names of the k classes.
    """
    grid = np.linspace(0, 1, 101)
    curves: dict[str, Any] = {}
    means = []
    for index, name in enumerate(class_names):
        true = labels == index
        curves[name] = None
        if true.any() and not true.all():
            false_rate, true_rate, thresholds = metrics.roc_curve(true, probabilities[:, index])
            curves[name] = {
                "false_positive_rate": false_rate.tolist(),
                "true_positive_rate": true_rate.tolist(),
                "threshold": [None, *thresholds[1:].tolist()],
            }
            means.append(np.interp(grid, false_rate, true_rate))
    macro = None
    if means:
        rates = [0.0, *np.mean(means, axis=0).tolist()]
        macro = {"false_positive_rate": [0.0, *grid.tolist()], "true_positive_rate": rates}
    return {"classes": curves, "macro": macro}


def _per_class(
    probabilities: np.ndarray,
    predicted: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    undefined: dict[str, str],
) -> list[dict[str, Any]]:
    count, classes = probabilities.shape
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=np.arange(classes), zero_division=np.nan
    )
    rows = []
    for index, name in enumerate(class_names):
        here, found = int(support[index]), int((predicted == index).sum())
        true, chance = labels == index, probabilities[:, index]
        why = _undefined(name, here, found, count)
        values = {"precision": precision[index], "recall": recall[index], "f1": f1[index]}
        if "roc_auc" not in why:
            values["roc_auc"] = metrics.roc_auc_score(true, chance)
        if "average_precision" not in why:
            values["average_precision"] = metrics.average_precision_score(true, chance)
        kept = {metric: None if metric in why else float(values[metric]) for metric in PER_CLASS}
        rows.append({"name": name, "support": here, "predicted": found, **kept})
        undefined.update({f"per_class/{index}/{metric}": reason for metric, reason in why.items()})
    return rows


def _undefined(name: str, support: int, predicted: int, count: int) -> dict[str, str]:
    """Returns the undefined metrics of a class, each with its reason."""
    absent, never = f"no example of {name!r} is in the split", f"no example is predicted as {name!r}"
    why = {}
    if predicted == 0:
        why["precision"] = never
    if support == 0:
        why |= {"recall": absent, "roc_auc": absent, "average_precision": absent}
    if support == predicted == 0:
        why["f1"] = f"{absent}, and {never}"
    if support == count:
        why["roc_auc"] = f"every example of the split is of {name!r}, so there is no other class to tell it from"
    return why


def _averages(
    metric: str, per_class: list[dict[str, Any]], undefined: dict[str, str], notes: dict[str, str]
) -> dict[str, float | None]:
    """Returns the plain mean over the classes, and the mean weighted by their support."""
    defined = [row for row in per_class if row[metric] is not None]
    missing = [row["name"] for row in per_class if row[metric] is None]
    values = [row[metric] for row in defined]
    supports = [row["support"] for row in defined]
    means: dict[str, float | None] = {"macro": None, "weighted": None}
    if values:
        means["macro"] = float(np.mean(values))
    else:
        undefined[f"{metric}/macro"] = f"{metric} is undefined for every class"
    if sum(supports):
        means["weighted"] = float(np.average(values, weights=supports))
    else:
        undefined[f"{metric}/weighted"] = f"{metric} is undefined for every class that has examples"
    for average, value in means.items():
        if missing and value is not None:
            listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            notes[f"{metric}/{average}"] = (
                f"over {len(defined)} of {len(per_class)} classes, as {metric} is undefined for {listed}"
            )
    return means


def _confusion(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns i64[true predicted]; scikit-learn's function warns if all examples are of one class."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def _top_5(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=np.arange(probabilities.shape[1])))


def _kappa(predicted: np.ndarray, labels: np.ndarray, classes: int) -> float | None:
    if (predicted == predicted[0]).all() and (labels == predicted[0]).all():
        return None
    return float(metrics.cohen_kappa_score(labels, predicted, labels=np.arange(classes)))


class McNemar(NamedTuple):
    """The result of McNemar's test.

    only_first: number of examples that only the first model predicts right.
    only_second: number of examples that only the second model predicts right.
    p_value: two-sided p-value, see `mcnemar`.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """Returns the exact two-sided test (McNemar 1947) of the hypothesis that two models are right equally often.

    Args:
      first, second: bool[n], True if the model predicts the example right; both on the same examples.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    different = only_first + only_second
    return McNemar(only_first, only_second, float(binomtest(only_first, different).pvalue) if different else 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the p-values of several tests, adjusted for their number (Holm 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted

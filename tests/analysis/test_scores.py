import warnings

import numpy as np
import pytest
from sklearn import metrics as reference

from flaxcls.analysis.scores import holm, log_loss, mcnemar, roc_curves, scores, wilson_interval

NAMES = ("ant", "bee", "cow")


def made(probabilities, labels, names=NAMES):
    probabilities = np.asarray(probabilities, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return scores(probabilities, probabilities.argmax(axis=1), np.asarray(labels), names)


def test_a_case_worked_by_hand():
    found = made(
        [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.5, 0.25], [0.125, 0.125, 0.75]],
        [0, 0, 1, 2],
    )
    assert found["examples"] == 4
    assert found["confusion_matrix"] == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert found["accuracy"] == 3 / 4
    ant, bee, cow = found["per_class"]
    assert (ant["support"], ant["predicted"], bee["support"], bee["predicted"]) == (2, 1, 1, 2)
    assert (ant["precision"], ant["recall"]) == (1, 1 / 2)
    assert ant["f1"] == pytest.approx(2 / 3)  # 2 * 1 / (2 * 1 + 0 wrongly so + 1 missed)
    assert (bee["precision"], bee["recall"]) == (1 / 2, 1)
    assert (cow["precision"], cow["recall"], cow["f1"]) == (1, 1, 1)
    assert found["precision"]["macro"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert found["precision"]["weighted"] == pytest.approx((2 * 1 + 1 * 1 / 2 + 1 * 1) / 4)
    assert found["recall"]["macro"] == found["balanced_accuracy"] == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert found["f1"]["macro"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert [found[name]["micro"] for name in ("precision", "recall", "f1")] == [3 / 4] * 3
    # ants have .5 and .25, the others .25 and .125: of four pairs, three are in order and one is even
    assert ant["roc_auc"] == pytest.approx(3.5 / 4)
    # recall 1/2 at precision 1; the rest at .25, with one other: precision 2/3
    assert ant["average_precision"] == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert bee["roc_auc"] == pytest.approx(2.5 / 3)
    assert found["roc_auc"]["macro"] == pytest.approx((3.5 / 4 + 2.5 / 3 + 1) / 3)
    # -log of .5, .25, .5, .75
    assert found["log_loss"] == pytest.approx(-np.log([0.5, 0.25, 0.5, 0.75]).mean())
    # .25 + .0625 + .0625; .5625 + .25 + .0625; as the first; .0625 + 2 * .015625
    assert found["brier_score"] == pytest.approx((0.375 + 0.875 + 0.375 + 0.09375) / 4)
    # by chance (2 * 1 + 1 * 2 + 1 * 1) / 16 = 5/16 would agree
    assert found["cohen_kappa"] == pytest.approx((3 / 4 - 5 / 16) / (1 - 5 / 16))
    assert found["top_5"] is None
    assert found["undefined"] == {"top_5": "with five classes or fewer, the true one is always among the first five"}
    assert found["notes"] == {}


def test_intervals():
    # 8 of 10, z = 1.96: (.8 + .19207) / 1.38415 -+ 1.96 / 1.38415 * sqrt(.016 + .0096036)
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(10, 10)[1] == 1
    assert wilson_interval(10, 10)[0] == pytest.approx(0.7225, abs=1e-4)  # 1 / (1 + z^2 / 10)
    assert wilson_interval(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)


def test_the_averages_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 300)
    probabilities = rng.dirichlet(np.ones(7), 300).astype(np.float32)
    probabilities[np.arange(300), labels] += rng.random(300).astype(np.float32)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    predicted = probabilities.argmax(axis=1)
    found = made(probabilities, labels, [str(n) for n in range(7)])
    for average in ("macro", "weighted", "micro"):
        expected = reference.precision_recall_fscore_support(labels, predicted, average=average)
        assert [found[name][average] for name in ("precision", "recall", "f1")] == pytest.approx(expected[:3])
    one_hot = np.eye(7)[labels]
    assert found["confusion_matrix"] == reference.confusion_matrix(labels, predicted).tolist()
    assert found["brier_score"] == pytest.approx(np.square(probabilities - one_hot).sum(axis=1).mean())
    for average in ("macro", "weighted"):
        assert found["roc_auc"][average] == pytest.approx(
            reference.roc_auc_score(one_hot, probabilities, average=average)
        )
        expected = reference.average_precision_score(one_hot, probabilities, average=average)
        assert found["average_precision"][average] == pytest.approx(expected)
    best = np.argsort(-probabilities, axis=1)[:, :5]
    assert found["top_5"] == (best == labels[:, None]).any(axis=1).mean()
    assert found["undefined"] == found["notes"] == {}


def test_a_class_that_is_not_in_the_split_and_one_that_is_never_predicted():
    # a bee is taken for an ant; there is no cow, but one ant is taken for it
    found = made([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], [0, 1, 0])
    ant, bee, cow = found["per_class"]
    why = found["undefined"]
    assert bee["precision"] is None
    assert why["per_class/1/precision"] == "no example is predicted as 'bee'"
    assert (bee["recall"], bee["f1"]) == (0, 0)
    assert (cow["precision"], cow["f1"]) == (0, 0)  # one prediction, a wrong one
    for metric in ("recall", "roc_auc", "average_precision"):
        assert cow[metric] is None
        assert why[f"per_class/2/{metric}"] == "no example of 'cow' is in the split"
    assert found["precision"]["macro"] == pytest.approx((1 / 2 + 0) / 2)
    assert found["notes"]["precision/macro"] == "over 2 of 3 classes, as precision is undefined for bee"
    assert found["recall"]["macro"] == found["balanced_accuracy"] == pytest.approx((1 / 2 + 0) / 2)
    assert found["notes"]["balanced_accuracy"] == "over 2 of 3 classes, as recall is undefined for cow"
    assert found["roc_auc"]["macro"] == pytest.approx((ant["roc_auc"] + bee["roc_auc"]) / 2)
    assert set(why) == {
        "top_5",
        "per_class/1/precision",
        *(f"per_class/2/{m}" for m in ("recall", "roc_auc", "average_precision")),
    }


def test_a_split_of_one_class():
    found = made([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1]], [0, 0])
    why = found["undefined"]
    assert found["cohen_kappa"] is None
    assert "chance agrees as well" in why["cohen_kappa"]
    assert [row["roc_auc"] for row in found["per_class"]] == [None] * 3
    assert why["per_class/0/roc_auc"].startswith("every example of the split is of 'ant'")
    assert found["roc_auc"] == {"macro": None, "weighted": None}
    assert why["roc_auc/macro"] == "roc_auc is undefined for every class"
    assert found["per_class"][0]["average_precision"] == 1
    assert found["per_class"][1]["f1"] is None
    assert "and no example is predicted" in why["per_class/1/f1"]
    assert found["recall"]["macro"] == 1


def test_precision_where_no_class_that_is_there_is_predicted():
    found = made([[0.2, 0.7, 0.1]], [0])
    assert found["precision"]["macro"] == 0
    assert found["precision"]["weighted"] is None
    assert found["undefined"]["precision/weighted"] == "precision is undefined for every class that has examples"


def test_whatever_is_none_has_its_reason():
    found = made([[0.2, 0.7, 0.1], [0.2, 0.7, 0.1]], [0, 0])

    def missing(value, path=""):
        if value is None:
            return {path}
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return {lost for key, item in items for lost in missing(item, f"{path}/{key}".lstrip("/"))}

    assert missing(found) == set(found["undefined"])


def test_a_loss_is_finite():
    assert log_loss(np.array([[0, 1]], np.float32), np.array([0])) == pytest.approx(-np.log(np.finfo(float).eps))
    assert log_loss(np.ones((2, 1), np.float32), np.zeros(2, int)) == 0
    assert made([[1], [1]], [0, 0], ["ant"])["log_loss"] == 0


def test_roc_curves_worked_by_hand():
    probabilities = np.array([[0.7, 0.3, 0], [0.4, 0.6, 0], [0.3, 0.7, 0], [0.2, 0.8, 0]], np.float32)
    found = roc_curves(probabilities, np.array([0, 1, 0, 1]), ["cat", "dog", "cow"])
    # cats have 0.7 and 0.3, the others 0.4 and 0.2
    assert found["classes"]["cat"]["false_positive_rate"] == [0, 0, 0.5, 0.5, 1]
    assert found["classes"]["cat"]["true_positive_rate"] == [0, 0.5, 0.5, 1, 1]
    assert found["classes"]["cat"]["threshold"] == [None, *probabilities[:, 0].tolist()]
    assert found["classes"]["cow"] is None
    mean = dict(zip(found["macro"]["false_positive_rate"], found["macro"]["true_positive_rate"], strict=True))
    assert (mean[0.25], mean[0.75], mean[1]) == (0.5, 1, 1)
    assert roc_curves(probabilities, np.zeros(4, int), ["cat", "dog", "cow"])["macro"] is None


def test_mcnemar_by_hand():
    first = np.array([1, 1, 1, 1, 1, 1, 0, 0, 1, 0], bool)
    second = np.array([1, 0, 0, 0, 0, 0, 1, 0, 1, 0], bool)
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (5, 1)
    assert found.p_value == pytest.approx(2 * (1 + 6) / 2**6)  # 5 or 6 heads of 6 coins, or 5 or 6 tails
    assert mcnemar(second, first)[:2] == (1, 5)
    assert mcnemar(first, first) == (0, 0, 1.0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []

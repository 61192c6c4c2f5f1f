from types import SimpleNamespace

import numpy as np
import pytest

from flaxcls.analysis.duplicates import Duplicate
from flaxcls.analysis.evaluation import worst
from flaxcls.analysis.pictures import data_url
from flaxcls.analysis.report import content
from flaxcls.analysis.report.content import Pair, confused_pairs, flat, read_lines
from flaxcls.data import Dataset, Split
from flaxcls.errors import InputError
from tests.analysis.report.test_page import evaluation


def test_confused_pairs_by_hand():
    matrix = np.array([[5, 3, 0], [1, 8, 1], [3, 0, 1]])
    assert confused_pairs(matrix, ["cat", "dog", "cow"], most=3) == [
        Pair("cat", "dog", 3, 3 / 8),
        Pair("cow", "cat", 3, 3 / 4),
        Pair("dog", "cat", 1, 1 / 10),
    ]
    assert confused_pairs(np.eye(3, dtype=int), ["cat", "dog", "cow"]) == []


def test_the_worst_mistakes_come_first():
    logits = np.log([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]], dtype=np.float32)
    found = evaluation(logits, [1, 1, 1, 0], ["cat", "dog"])
    assert worst(found, 10) == [0, 3, 1]
    assert worst(found, 2) == [0, 3]


def test_options_are_flattened():
    assert flat({"seed": 0, "loop": {"epochs": 3, "at": {}}}) == {"seed": 0, "loop.epochs": 3, "loop.at": {}}


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_lines(path) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_lines(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\nnoise\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl is damaged"):
        read_lines(path)


def test_mistakes_are_explained_by_the_class_that_was_predicted(monkeypatch):
    asked = []

    def grad_cam(model, variables, images, classes):
        asked.extend(np.asarray(classes).tolist())
        return np.zeros(images.shape[:3], np.float32)

    monkeypatch.setattr(content, "grad_cam", grad_cam)
    classifier = SimpleNamespace(model=None, variables=None, normalized=lambda images: images)
    logits = np.log([[0.1, 0.2, 0.7], [0.1, 0.6, 0.3]], dtype=np.float32)
    mistakes, _ = content._mistakes(classifier, evaluation(logits, [0, 2], ["cat", "dog", "cow"]))
    assert asked == [2, 1]
    assert [(mistake.true, mistake.predicted) for mistake in mistakes] == [("cat", "cow"), ("cow", "dog")]


def test_the_pictures_of_near_duplicates_are_those_of_their_splits():
    def split(start):
        images = np.arange(start, start + 2, dtype=np.uint8).reshape(2, 1, 1, 1) * np.ones((1, 128, 128, 3), np.uint8)
        return Split(images, np.array([0, 1], np.int32), [f"{start}", f"{start + 1}"])

    test, train = split(10), split(20)
    copy = content._copy(Duplicate(0, 1, 0.99), test, Dataset("x", ("cat", "dog"), train, train, test))
    assert (copy.first, copy.label, copy.picture) == ("10", "cat", data_url(test.images[0]))
    assert (copy.second, copy.train_label, copy.train_picture) == ("21", "dog", data_url(train.images[1]))

import numpy as np
import pytest

from flaxcls.analysis.evaluation import worst
from flaxcls.analysis.report.content import Pair, confused_pairs, flat, read_lines
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

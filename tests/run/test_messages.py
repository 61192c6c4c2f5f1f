import io

import numpy as np
from rich.console import Console

from flaxcls.data import from_arrays
from flaxcls.run.messages import class_table


def printed(labels, names):
    dataset = from_arrays(np.zeros((len(labels), 2, 2, 1), np.uint8), labels, class_names=names, validation_fraction=0)
    text = io.StringIO()
    Console(file=text, width=100).print(class_table(dataset))
    return [line.split() for line in text.getvalue().splitlines()]


def test_each_class_is_counted_in_each_split():
    labels = np.repeat([0, 1, 2], [10, 20, 30])
    assert printed(labels, ("cat", "[dog]", "cow")) == [
        ["class", "train", "test"],
        ["cat", "8", "2"],
        ["[dog]", "16", "4"],
        ["cow", "24", "6"],
    ]


def test_of_many_classes_the_largest_and_the_smallest_are_shown():
    lines = printed(np.repeat(np.arange(200), np.arange(200) + 5), [f"c{number}" for number in range(200)])
    assert len(lines) == 1 + 21
    assert lines[1][0] == "c199"
    assert lines[11] == ["...", "180", "classes", "between", "these", "in", "size"]
    assert lines[-1][:1] == ["c0"]

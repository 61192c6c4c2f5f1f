import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from flaxcls.config import DataConfig, LossConfig
from flaxcls.data import Dataset, Split, from_arrays
from flaxcls.data.inspection import inspect_dataset
from flaxcls.run import fit, messages
from flaxcls.run.messages import class_table, imbalance
from tests.conftest import make_stripes

ABSENT = "classes without a training image, which cannot be learned: none (1 of 3)"


def dataset(counts):
    labels = np.repeat([0, 1, 2], counts).astype(np.int32)
    split = Split(np.zeros((len(labels), 8, 8, 1), np.uint8), labels)
    return Dataset("stripes", ("rows", "columns", "none"), split, split, split)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((10, 10, 10), []),
        ((10, 10, 0), [ABSENT]),
        (
            (10, 30, 0),
            [
                ABSENT,
                "classes are uneven: 10 of rows to 30 of columns; --loss.class-weights balanced or --data.sampling "
                "balanced makes up for it",
            ],
        ),
    ],
)
def test_nothing_makes_up_for_a_class_without_images(counts, expected):
    assert imbalance(dataset(counts), balanced=False) == expected
    assert imbalance(dataset(counts), balanced=True) == [line.split(";")[0] for line in expected]


def test_a_balanced_run_says_once_what_is_missing_and_learns_the_rest(plain_config, tmp_path, capsys):
    images, labels = make_stripes(200)
    kept = labels != 2
    data = from_arrays(images[kept], labels[kept], class_names=("rows", "columns", "none"))
    config = replace(plain_config, data=DataConfig(sampling="balanced"), loss=LossConfig(class_weights="balanced"))
    result = fit(config, dataset=data, workdir=tmp_path / "run", console=Console(width=200))
    assert capsys.readouterr().out.count(ABSENT) == 1
    assert result.test["accuracy"] > 0.9


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


def test_a_run_says_first_what_it_is_trained_on(plain_config, tmp_path, capsys, monkeypatch):
    images, labels = make_stripes(200)
    images[190:] = images[:10]
    data = from_arrays(images, labels, test=(images[:5], labels[:5]))
    monkeypatch.setattr(messages, "available_memory", lambda: 1000)
    fit(plain_config, dataset=data, workdir=tmp_path / "run", console=Console(width=200))
    lines = capsys.readouterr().out.splitlines()
    start = lines.index(data.described)
    assert lines[start + 1] == "from arrays; validation: 10 % of train, held out by split seed 0; test: given"
    assert lines[start + 6] == "images: all 8x8; 1 channel of 8 bits; the model sees 8x8, 1 channel; none is resized"
    copies, *pairs, more, memory, warning = lines[start + 7 : start + 14]
    assert copies.startswith("exact copies: ")
    assert " of test are also in train" in copies
    assert len(pairs) == 3
    assert all(line.startswith("  two labels: ") for line in pairs)
    assert more.startswith("  ... and ")
    assert memory.startswith("memory: the decoded images take 12.8 KiB and are kept in memory, a batch 2.0 KiB, the ")
    assert warning.startswith("warning: about ")


def test_the_images_that_are_in_memory_already_count_as_memory_that_is_there():
    images, labels = make_stripes(200)
    found = inspect_dataset(from_arrays(images, labels), memory_limit=2, available=10)
    assert found.memory.needed == images.nbytes
    assert not found.memory.is_short

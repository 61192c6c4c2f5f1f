import io

import numpy as np
import pytest
from PIL import Image

from experiments.soak.outcome import read_events
from flaxcls.analysis.tensorboard import write_events
from flaxcls.errors import InputError
from tests.analysis.report.test_page import RIGHT, WRONG, evaluation


def pictures(path):
    """Returns the pictures of an event file: tag -> u8[h w 3], and the steps that they are of."""
    values = [(value, event.step) for event in read_events(path) for value in event.summary.value]
    found = {value.tag: Image.open(io.BytesIO(value.image.encoded_image_string)) for value, _ in values}
    return {tag: np.asarray(image.convert("RGB")) for tag, image in found.items()}, {step for _, step in values}


def test_the_matrix_and_samples_are_there_and_replace_earlier_ones(tmp_path):
    (tmp_path / "events.csv").write_text("somebody's own")
    write_events(evaluation(RIGHT, [0, 1, 0, 1], ["constructor", "dog"]), tmp_path)
    path = write_events(evaluation(WRONG, [0, 1, 0, 1], ["cat", "dog"]), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "events.csv"}
    assert path.name.startswith("events.out.tfevents.")  # the name that TensorBoard looks for
    found, steps = pictures(path)
    assert steps == {1}
    assert set(found) == {"confusion_matrix", "samples", "mistakes"}
    # the filled cells, a blue, are those off the diagonal
    blue = (found["confusion_matrix"].astype(int) @ [-1, 0, 1]) > 60
    rows, columns = np.nonzero(blue)
    upper = columns[rows < rows.mean()].mean()
    lower = columns[rows > rows.mean()].mean()
    assert upper > lower
    red = (found["samples"].astype(int) @ [1, -1, 0]) > 60
    assert red.any()  # the texts of what is wrong


def test_where_nothing_is_wrong_there_are_no_mistakes(tmp_path):
    found, _ = pictures(write_events(evaluation(RIGHT, [0, 1, 0, 1], ["cat", "dog"]), tmp_path))
    assert set(found) == {"confusion_matrix", "samples"}
    assert not ((found["samples"].astype(int) @ [1, -1, 0]) > 60).any()


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="events cannot be written to"):
        write_events(evaluation(RIGHT, [0, 1, 0, 1], ["cat", "dog"]), tmp_path / "none")

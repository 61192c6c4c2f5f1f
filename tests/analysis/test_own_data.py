"""Which images are evaluated: a set of images is known by its content, not by its name."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from flaxcls.analysis import load_run, loading
from flaxcls.analysis.evaluation import evaluate_run
from flaxcls.analysis.own_data import load_validation_split
from flaxcls.config import AugmentConfig, Config, DataConfig, LoopConfig, ModelConfig
from flaxcls.errors import InputError
from flaxcls.run import fit
from tests.conftest import make_stripes

NAMES = ("rows", "columns", "none")


def save(place, count, seed):
    images, labels = make_stripes(count, seed)
    for number, (image, label) in enumerate(zip(images[..., 0], labels, strict=True)):
        (place / NAMES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / NAMES[label] / f"{number:03d}.png")


def source(place):
    return DataConfig(source="folder", dir=str(place), color="grey")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the images one/data, on which the run was trained, and others in two/data."""
    place = tmp_path_factory.mktemp("sets")
    save(place / "one" / "data", 80, 0)
    save(place / "two" / "data", 80, 1)
    odd = min((place / "one" / "data" / "none").iterdir())
    Image.open(odd).resize((9, 8)).save(odd)
    config = Config(
        data=source(place / "one" / "data"),
        augment=AugmentConfig(crop_padding=0),
        model=ModelConfig(widths=(4,), dense=()),
        loop=LoopConfig(epochs=1, batch_size=16),
    )
    fit(config, workdir=place / "run", console=Console(quiet=True))
    return place


def test_other_images_in_a_folder_of_the_same_name_are_evaluated_whole(place):
    found = evaluate_run(place / "run", data=source(place / "two" / "data"))
    assert len(found.labels) == 80
    assert "not the run's own data" in found.metrics["notes"]["dataset"]


def test_the_runs_own_images_are_its_own_in_any_place_and_under_any_name(place, tmp_path):
    own = evaluate_run(place / "run")
    shutil.copytree(place / "one" / "data", tmp_path / "moved")
    moved = evaluate_run(place / "run", data=source(tmp_path / "moved"))
    assert moved.ids == own.ids
    assert len(own.ids) == 16
    np.testing.assert_array_equal(moved.logits, own.logits)
    assert "dataset" not in moved.metrics["notes"]
    assert moved.metrics["notes"]["data"] == "the run's own, in another place, so its test split is evaluated"
    assert "data" not in own.metrics["notes"]


def test_what_the_run_has_said_of_its_data_is_not_said_of_a_split_of_it(place):
    data = source(place / "one" / "data")
    assert "data" not in evaluate_run(place / "run").metrics["notes"]
    notes = evaluate_run(place / "run", data=replace(data, split_seed=1)).metrics["notes"]
    assert notes["data"].startswith("of all splits: 1 of 80 images is not 8x8, but 8x9: squashed to that")


def test_one_image_that_is_another_makes_another_set(place, tmp_path):
    shutil.copytree(place / "one" / "data", tmp_path / "data")
    changed = next((tmp_path / "data" / "rows").iterdir())
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    assert len(evaluate_run(place / "run", data=source(tmp_path / "data")).ids) == 80


@pytest.mark.parametrize("kind", ["table", "copied folder", "patterns"])
def test_most_of_the_runs_images_are_another_set_which_is_evaluated_whole(place, tmp_path, kind):
    names = sorted(str(path.relative_to(place / "one" / "data")) for path in (place / "one" / "data").glob("*/*"))
    if kind == "table":
        data = source(place / "one" / "data" / "most.csv")
        lines = [f"{name},{name.partition('/')[0]}" for name in names[:60]]
        (place / "one" / "data" / "most.csv").write_text("\n".join(["path,label", *lines]))
    else:
        shutil.copytree(place / "one" / "data", tmp_path / "data")
        data = source(tmp_path / "data")
        for name in names[60:] if kind == "copied folder" else ():
            (tmp_path / "data" / name).unlink()
        data = replace(data, include=tuple(names[:60]) if kind == "patterns" else ())
    found = evaluate_run(place / "run", data=data)
    (place / "one" / "data" / "most.csv").unlink(missing_ok=True)
    assert found.ids == names[:60]
    assert "not the run's own data" in found.metrics["notes"]["dataset"]


def test_images_that_took_the_place_of_the_runs_are_not_its_validation_split(place):
    classifier = load_run(place / "run")
    config = replace(classifier.config, data=source(place / "two" / "data"))
    with pytest.raises(InputError, match=r"of the 80 images of the run, 59 are not in .* 21 are others"):
        load_validation_split(place / "run", replace(classifier, config=config))


def test_a_run_of_before_that_kept_no_content_is_known_by_name_and_number(place, tmp_path, monkeypatch):
    read = loading.read_record

    def former(directory, step):
        return {
            name: value for name, value in read(directory, step).items() if name not in ("fingerprint", "preparation")
        }

    monkeypatch.setattr(loading, "read_record", former)
    shutil.copytree(place / "one" / "data", tmp_path / "data")
    assert len(evaluate_run(place / "run", data=source(tmp_path / "data")).ids) == 16
    save(tmp_path / "data", 5, 2)  # of another number
    shutil.rmtree(tmp_path / "data" / "rows")
    save(tmp_path / "data", 3, 3)
    found = evaluate_run(place / "run", data=source(tmp_path / "data"))
    assert len(found.ids) > 16

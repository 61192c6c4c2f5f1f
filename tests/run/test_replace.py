"""A picture that can no longer be read in the middle of a run, and files that come and go."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet
from rich.console import Console

from flaxcls.analysis.evaluation import evaluate_run
from flaxcls.config import AugmentConfig, Config, DataConfig, LoopConfig, ModelConfig, OptimConfig
from flaxcls.data import Split, load_dataset
from flaxcls.errors import InputError, Interrupted
from flaxcls.run import fit
from flaxcls.run.loader import Loader
from flaxcls.run.result import FitResult
from tests.conftest import make_stripes

NAMES = ("rows", "columns", "none")
STOP = 3  # steps of the first session
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of JPEG files in several sizes, 60 of three classes."""
    place = tmp_path_factory.mktemp("pictures") / "data"
    images, labels = make_stripes(60)
    for number, (image, label) in enumerate(zip(images[..., 0], labels, strict=True)):
        (place / NAMES[label]).mkdir(parents=True, exist_ok=True)
        scaled = np.kron(image, np.ones((3, 3 + number % 2), np.uint8))
        Image.fromarray(scaled).convert("RGB").save(place / NAMES[label] / f"{number:03d}.jpg", quality=95)
    return place


def config(place, **data) -> Config:
    return Config(
        data=DataConfig(source="folder", dir=str(place), image_size=12, **data),
        augment=AugmentConfig(crop_padding=0),
        model=ModelConfig(widths=(4,), dense=()),
        optim=OptimConfig(learning_rate=1e-2, warmup_epochs=0.0),
        loop=LoopConfig(epochs=3, batch_size=8, log_every=2),
    )


@pytest.fixture
def batches(monkeypatch):
    """The images of each batch that the steps of a run get, in their order."""
    return record_batches(monkeypatch)


def record_batches(monkeypatch):
    seen = []
    place = Loader.place

    def record(self, made):
        seen.extend(batch["image"].copy() for batch in made)
        return place(self, made)

    monkeypatch.setattr(Loader, "place", record)
    return seen


@dataclass(frozen=True)
class Undisturbed:
    """A run to its end, the images of its batches, and the same run stopped after `STOP` steps."""

    place: Path
    result: FitResult
    batches: list[np.ndarray]
    train: Split
    test: Split


@pytest.fixture(scope="module")
def undisturbed(pictures):
    place, ours = pictures.parent, config(pictures)
    with pytest.MonkeyPatch.context() as patch:
        batches = record_batches(patch)
        result = fit(ours, workdir=place / "whole", console=QUIET)
        seen = [*batches]
        with pytest.raises(Interrupted):
            fit(ours, workdir=place / "stopped", console=QUIET, stop_after=STOP)
    dataset = load_dataset(ours.data)
    return Undisturbed(place, result, seen[STOP:], dataset.train, dataset.test)


@pytest.fixture
def place(undisturbed, tmp_path):
    """A copy of the data, and of both runs."""
    for name in ("data", "whole", "stopped"):
        shutil.copytree(undisturbed.place / name, tmp_path / name)
    return tmp_path


def truncate(path):
    path.write_bytes(path.read_bytes()[:-60])


def remove(path):
    path.unlink()


IN_MEMORY, THREADS, WORKER = {}, {"memory": 0.0, "workers": 0}, {"memory": 0.0, "workers": 1}


@pytest.mark.parametrize(
    ("way", "damage"),
    [(IN_MEMORY, truncate), (IN_MEMORY, remove), (THREADS, truncate), (THREADS, remove), (WORKER, truncate)],
    ids=["in memory, truncated", "in memory, removed", "truncated", "removed", "truncated, a worker process"],
)
def test_a_picture_that_cannot_be_read_is_replaced_and_the_rest_of_the_order_stays(
    undisturbed, place, batches, capsys, way, damage
):
    run, train, bad = place / "stopped", undisturbed.train, 10
    damage(place / "data" / train.names[bad])
    with pytest.raises(InputError, match=r"--resume --data.unreadable replace"):
        fit(config(place / "data", **way), workdir=run, console=QUIET, resume=True)
    del batches[:]
    ours = config(place / "data", unreadable="replace", **way)
    result = fit(ours, workdir=run, console=Console(width=400), resume=True)

    alike = np.flatnonzero(train.labels == train.labels[bad])
    instead = int(alike[alike > bad][0])
    replaced = 0
    assert len(batches) == len(undisturbed.batches)
    for one, other in zip(np.concatenate(batches), np.concatenate(undisturbed.batches), strict=True):
        is_bad = np.array_equal(other, train.images[bad])
        np.testing.assert_array_equal(one, train.images[instead] if is_bad else other)
        replaced += is_bad
    assert replaced >= 2  # once in each epoch that was left

    (line,) = unread(run)
    assert (line["split"], line["name"]) == ("train", train.names[bad])
    assert (line["done"], line["replaced_by"]) == ("replaced", train.names[instead])
    assert str(place / "data" / train.names[bad]) in line["reason"]
    said = capsys.readouterr().out
    assert said.count(f"{train.names[bad]} of train is replaced by {train.names[instead]}: ") == 1
    assert result.unread == json.loads((run / "result.json").read_text())["unread"] == {"train": 1}
    assert ["examples not read", "1 of train, see unread.jsonl"] in rows(result)


def unread(run):
    return [json.loads(text) for text in (run / "unread.jsonl").read_text().splitlines()]


def rows(result):
    return [list(row) for row in zip(*(column.cells for column in result.table().columns), strict=True)]


def test_a_line_that_a_crash_has_cut_short_is_passed_over_and_the_run_goes_on(undisturbed, place, capsys):
    """As often as it is resumed: nothing is written onto the cut line, and what it named is kept again."""
    run, bad, missing = place / "stopped", undisturbed.train.names[10], undisturbed.test.names[0]
    truncate(place / "data" / bad)
    ours = config(place / "data", unreadable="replace")
    with pytest.raises(Interrupted):  # the epoch ends with step 6
        fit(ours, workdir=run, console=QUIET, resume=True, stop_after=6)
    (line,) = (run / "unread.jsonl").read_text().splitlines(keepends=True)
    (run / "unread.jsonl").write_text(line[:50])
    with pytest.raises(Interrupted):
        fit(ours, workdir=run, console=QUIET, resume=True, stop_after=12)
    assert (run / "unread.jsonl").read_text() == f"{line[:50]}\n{line}"
    remove(place / "data" / missing)
    result = fit(ours, workdir=run, console=Console(width=400), resume=True)
    said = capsys.readouterr().out
    assert "unread.jsonl: lines that a crash has cut short are passed over (1)\n" in said
    assert f"{bad} of train" not in said  # it has been said
    assert result.unread == {"train": 1, "test": 1}


@pytest.mark.parametrize("way", [IN_MEMORY, THREADS], ids=["in memory", "read"])
def test_files_that_have_come_since_are_not_used_and_said(undisturbed, place, capsys, way):
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(place / "data" / "rows" / "000-new.jpg")
    resumed = fit(config(place / "data", **way), workdir=place / "stopped", console=Console(width=400), resume=True)
    assert resumed.fingerprint == undisturbed.result.fingerprint
    assert resumed.test == undisturbed.result.test
    assert "images that have come since the run began are not used (1): rows/000-new.jpg" in capsys.readouterr().out


@pytest.mark.parametrize("way", [IN_MEMORY, THREADS], ids=["in memory", "read"])
@pytest.mark.parametrize("damage", [truncate, remove])
def test_in_evaluation_it_is_left_out_and_said(undisturbed, place, capsys, way, damage):
    name = undisturbed.test.names[0]
    damage(place / "data" / name)
    ours = config(place / "data", unreadable="replace", **way)
    after = fit(ours, workdir=place / "stopped", console=Console(width=400), resume=True)
    assert f"{name} of test is left out: " in capsys.readouterr().out
    (line,) = unread(place / "stopped")
    assert (line["split"], line["name"], line["done"], line["replaced_by"]) == ("test", name, "left out", None)
    assert after.unread == {"test": 1}
    assert after.fingerprint == undisturbed.result.fingerprint
    found = evaluate_run(place / "stopped")
    assert found.ids == undisturbed.test.names[1:]
    assert after.test["accuracy"] == np.mean(found.predicted == found.labels)
    assert after.test["loss"] == pytest.approx(found.metrics["calibration"]["log_loss_before"], rel=1e-3)
    assert f"cannot be read and are left out: {name} (" in found.metrics["notes"]["examples"]


def test_a_run_whose_image_was_removed_or_repaired_is_evaluated_on_its_own_split(undisturbed, place, capsys):
    data = place / "data"
    fit(config(data), workdir=place / "stopped", console=QUIET, resume=True)  # from here on, its data is in `data`
    validation = load_dataset(config(data).data).validation
    before = evaluate_run(place / "stopped", split="test")
    remove(data / validation.names[0])
    shutil.copy(data / undisturbed.train.names[0], data / undisturbed.train.names[3])
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(data / "rows" / "000-new.jpg")
    after = evaluate_run(place / "stopped", split="test")
    assert after.ids == before.ids
    np.testing.assert_array_equal(after.logits, before.logits)
    assert "dataset" not in after.metrics["notes"]
    assert evaluate_run(place / "stopped", split="validation").ids == validation.names[1:]
    for what in ("have come since", "are not there", "have changed"):
        assert what in after.metrics["notes"]["data"]


def test_where_no_image_of_the_class_is_left_it_is_an_error(undisturbed, place):
    label = undisturbed.train.labels[0]
    for name in np.array(undisturbed.train.names)[undisturbed.train.labels == label]:
        truncate(place / "data" / name)
    with pytest.raises(InputError, match="none can take its place"):
        fit(
            config(place / "data", unreadable="replace", **THREADS),
            workdir=place / "stopped",
            console=QUIET,
            resume=True,
        )


@pytest.mark.parametrize("way", [IN_MEMORY, THREADS], ids=["in memory", "read"])
@pytest.mark.parametrize("damage", [truncate, remove])
def test_where_no_image_of_a_split_is_left_it_says_what_to_do_before_it_trains(undisturbed, place, way, damage):
    ours = config(place / "data", unreadable="replace", **way)
    validation = load_dataset(config(undisturbed.place / "data").data).validation
    for name in validation.names:
        damage(place / "data" / name)
    with pytest.raises(InputError) as refused:
        fit(ours, workdir=place / "stopped", console=QUIET, resume=True)
    text = str(refused.value)
    what = "are not there" if damage is remove else "cannot be used"
    assert f"{len(validation.names)} of {len(validation.names)} files {what}:" in text
    assert all(str(place / "data" / name) in text for name in validation.names)
    assert text.endswith("Put them back or repair them: without any, nothing can be evaluated.")


@pytest.mark.parametrize("way", [IN_MEMORY, THREADS], ids=["in memory", "read"])
def test_a_picture_that_has_become_one_of_another_depth_can_be_replaced(undisturbed, place, way):
    name = undisturbed.train.names[10]
    cv2.imwrite(str(place / "deep.png"), np.full((24, 24, 3), 3000, np.uint16))
    shutil.move(place / "deep.png", place / "data" / name)
    with pytest.raises(InputError, match=rf"{name}: its values are uint16.*8 bits(?s:.*)--data.unreadable replace"):
        fit(config(place / "data", **way), workdir=place / "stopped", console=QUIET, resume=True)
    ours = config(place / "data", unreadable="replace", **way)
    assert fit(ours, workdir=place / "stopped", console=QUIET, resume=True).unread == {"train": 1}


def test_other_data_under_the_same_names_is_refused(undisturbed, place):
    for path in (place / "data").rglob("*.jpg"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    with pytest.raises(InputError, match=r"of the 60 images of the run, 0 are not in .*, and 60 are others there"):
        fit(config(place / "data"), workdir=place / "stopped", console=QUIET, resume=True)


def test_other_options_find_the_examples_anew(undisturbed, place):
    ours = config(place / "data", exclude=(undisturbed.train.names[0],))
    with pytest.raises(InputError, match="started with examples"):
        fit(ours, workdir=place / "stopped", console=QUIET, resume=True, allow_changes=True)


def test_a_table_whose_row_and_file_were_removed_goes_on(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "images")
    paths = sorted(path.relative_to(tmp_path / "images") for path in (tmp_path / "images").rglob("*.jpg"))
    rows = [f"{path},{path.parent}" for path in paths]  # in a folder that the table does not name
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *rows]))
    ours = config(tmp_path / "table.csv")
    with pytest.raises(Interrupted):
        fit(ours, workdir=tmp_path / "run", console=QUIET, stop_after=STOP)
    remove(tmp_path / "images" / paths[0])
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *rows[1:]]))
    result = fit(
        config(tmp_path / "table.csv", unreadable="replace"), workdir=tmp_path / "run", console=QUIET, resume=True
    )
    assert sum(result.unread.values()) == 1


@pytest.mark.parametrize("image_dir", [None, "images"], ids=["guessed", "named"])
def test_a_tables_folder_of_images_that_has_moved_and_lost_a_file_goes_on(pictures, tmp_path, image_dir):
    shutil.copytree(pictures, tmp_path / "images")
    paths = sorted(path.relative_to(tmp_path / "images") for path in (tmp_path / "images").rglob("*.jpg"))
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,label", *(f"{path},{path.parent}" for path in paths)]))
    with pytest.raises(Interrupted):
        fit(config(table, image_dir=image_dir), workdir=tmp_path / "run", console=QUIET, stop_after=STOP)
    (tmp_path / "far").mkdir()
    (tmp_path / "images").rename(tmp_path / "far" / "photos")
    remove(tmp_path / "far" / "photos" / paths[0])
    moved = config(table, image_dir=str(tmp_path / "far" / "photos"), unreadable="replace")
    result = fit(moved, workdir=tmp_path / "run", console=QUIET, resume=True)
    assert sum(result.unread.values()) == 1
    (tmp_path / "far").rename(tmp_path / "farther")
    again = replace(moved.data, image_dir=str(tmp_path / "farther" / "photos"), max_pixels=10**6)
    notes = evaluate_run(tmp_path / "run", data=again).metrics["notes"]
    assert "dataset" not in notes  # it is the run's own


def test_a_list_of_examples_that_lacks_a_new_option_is_the_runs(undisturbed, place):
    """As if it had been made by an earlier version."""
    path = place / "stopped" / "examples.parquet"
    table = parquet.read_table(path)
    values = json.loads(table.schema.metadata[b"flaxcls"])
    options = json.loads(values["options"])
    assert options.pop("exclude") == []
    values["options"] = json.dumps(options)
    parquet.write_table(table.replace_schema_metadata({"flaxcls": json.dumps(values)}), path)
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(place / "data" / "rows" / "000-new.jpg")
    with pytest.raises(Interrupted):  # with the examples found anew, it would be refused
        fit(config(place / "data"), workdir=place / "stopped", console=QUIET, resume=True, stop_after=STOP + 1)


def test_a_label_that_the_table_changes_is_said_and_the_run_goes_on_with_its_own(pictures, tmp_path, capsys):
    rows = [f"{path},{path.parent.name}" for path in sorted(pictures.rglob("*.jpg"))]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *rows]))
    ours = config(tmp_path / "table.csv")
    whole = fit(ours, workdir=tmp_path / "whole", console=QUIET)
    with pytest.raises(Interrupted):
        fit(ours, workdir=tmp_path / "run", console=QUIET, stop_after=STOP)
    path, label = rows[0].split(",")
    (tmp_path / "table.csv").write_text("\n".join(["path,label", f"{path},rows", *rows[1:]]))
    resumed = fit(ours, workdir=tmp_path / "run", console=Console(width=400), resume=True)
    assert f"used by a new run, not here (1): {path} ({label} -> rows)" in capsys.readouterr().out
    assert resumed.test == whole.test


def test_a_picture_that_was_moved_to_another_class_is_named_with_its_new_place(undisturbed, place, capsys):
    name = next(name for name in undisturbed.train.names if name.startswith("columns"))
    moved = name.replace("columns", "rows")
    (place / "data" / name).rename(place / "data" / moved)
    with pytest.raises(InputError, match=f"1 of the 60 images .*: {name}. Others have come .1: {moved}.: .*move them"):
        fit(config(place / "data"), workdir=place / "stopped", console=QUIET, resume=True)
    ours = config(place / "data", unreadable="replace")
    assert fit(ours, workdir=place / "stopped", console=Console(width=400), resume=True).unread == {"train": 1}
    said = capsys.readouterr().out
    assert f"images that have come since the run began are not used (1): {moved}" in said
    assert f"images of the run are not there (1): {name}" in said


def test_a_list_of_examples_that_is_damaged_is_named(place):
    (place / "stopped" / "examples.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"examples\.parquet"):
        fit(config(place / "data"), workdir=place / "stopped", console=QUIET, resume=True)

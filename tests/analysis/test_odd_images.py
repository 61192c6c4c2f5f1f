"""New images that differ from those of a run: what is odd is said, in `evaluate` as in `predict`."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import tifffile
from rich.console import Console

from flaxcls.analysis import load_run
from flaxcls.analysis.evaluation import evaluate_run
from flaxcls.analysis.prediction import predict_files
from flaxcls.config import AugmentConfig, Config, DataConfig, LoopConfig, ModelConfig
from flaxcls.data import load_dataset
from flaxcls.errors import InputError
from flaxcls.run import fit
from tests.conftest import make_stripes

NAMES = ("rows", "columns", "none")
BYTES, LABELS = make_stripes(40)
BYTES = BYTES[..., 0]
DEEP = BYTES.astype(np.uint16) * 16
HOUNSFIELD = BYTES.astype(np.float32) * 3 - 100
pytestmark = pytest.mark.usefixtures("shared_programs")


def save(place, images):
    """Writes an image for each label, and returns the paths."""
    paths = []
    for number, (image, label) in enumerate(zip(images, LABELS, strict=False)):
        paths.append(place / NAMES[label] / f"{number:03d}{'.tif' if image.dtype.kind == 'f' else '.png'}")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        if image.dtype.kind == "f":
            tifffile.imwrite(paths[-1], image)
        else:
            cv2.imwrite(str(paths[-1]), image)
    return paths


def config(place, **data):
    return Config(
        data=DataConfig(source="folder", dir=str(place), color="grey", **data),
        augment=AugmentConfig(crop_padding=0),
        model=ModelConfig(widths=(4,), dense=()),
        loop=LoopConfig(epochs=1, batch_size=8),
    )


def train(place, images, **data):
    """Trains on the images, and returns the run directory."""
    save(place / "data", images)
    fit(config(place / "data", **data), workdir=place / "run", console=Console(quiet=True))
    return place / "run"


@pytest.fixture(scope="module")
def shallow(tmp_path_factory):
    """A run on images of 8 bits."""
    return train(tmp_path_factory.mktemp("shallow"), BYTES)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A run on images of 12 bits."""
    return train(tmp_path_factory.mktemp("deep"), DEEP)


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """A run on floating-point images with a range of values."""
    return train(tmp_path_factory.mktemp("floats"), HOUNSFIELD, value_range=(-100.0, 665.0))


def evaluate(run, place, **data):
    """Returns the evaluation of the run on the images in a folder."""
    return evaluate_run(run, data=config(place, **data).data)


def said(evaluation):
    return evaluation.metrics["notes"]["dataset"]


def test_images_of_8_bits_are_refused_where_the_run_is_on_deeper_ones(deep, tmp_path):
    reason = r"it has 8 bits, but the run was trained on files whose values 0\.\.4095 become 0\.\.1"
    paths = save(tmp_path / "data", [*BYTES[:3], *DEEP[3:9]])
    assert len(predict_files(load_run(deep), list(map(str, paths))).unreadable) == 3
    with pytest.raises(InputError, match=rf"3 of 9 files cannot be used:\n.*{reason}") as refused:
        evaluate(deep, tmp_path / "data")
    assert all(str(path) in str(refused.value) for path in paths[:3])
    found = evaluate(deep, tmp_path / "data", unreadable="skip")
    assert len(found.ids) == 6
    assert "3 of 9 files cannot be used and are left out:" in said(found)
    bytes_alone = config(tmp_path / "bytes", value_range=(0.0, 4095.0)).data
    save(tmp_path / "bytes", BYTES)
    with pytest.raises(InputError, match=reason):
        evaluate_run(deep, dataset=load_dataset(bytes_alone))


def test_deeper_images_are_refused_where_the_run_is_on_8_bits(shallow, tmp_path):
    save(tmp_path / "new", DEEP[:9])
    with pytest.raises(InputError, match=r"9 of 9 files cannot be used:\n.* uint16, but .* trained on files of 8 bits"):
        evaluate(shallow, tmp_path / "new")


@pytest.mark.parametrize("memory", [2.0, 0.0])
def test_a_run_on_several_depths_takes_each_of_them(tmp_path, memory):
    run = train(tmp_path, [*BYTES[:20], *DEEP[20:]], value_range=(0.0, 4095.0), memory=memory, workers=0)
    assert "data" not in evaluate_run(run).metrics["notes"]
    paths = save(tmp_path / "new", [*BYTES[:3], *DEEP[3:6]])
    assert len(evaluate(run, tmp_path / "new").ids) == 6
    assert not predict_files(load_run(run), list(map(str, paths))).unreadable


def test_values_that_are_odd_for_the_run_are_said_in_evaluate_as_in_predict(floats, tmp_path):
    odd = HOUNSFIELD[:4].copy()
    odd[0, 0, 0] = np.nan
    odd[1] = np.random.default_rng(0).random((8, 8))
    odd[2] = 1e6
    paths = save(tmp_path / "data", odd)
    notes = predict_files(load_run(floats), list(map(str, paths))).notes
    assert notes == [
        "values of -100..1e+06 in the files: -100 becomes black and 665 white",
        "1 of 4 images has values outside of that, which become its ends",
        "2 of 4 images use less than 1% of that, so that a model sees hardly any differences",
        "1 of 4 images has 1 NaN or no-data values, which become -100",
    ]
    assert said(evaluate(floats, tmp_path / "data")).splitlines()[-4:] == notes


def test_nothing_is_said_of_values_where_the_run_is_on_8_bits(shallow, tmp_path):
    paths = save(tmp_path / "new", BYTES[:5])
    assert predict_files(load_run(shallow), list(map(str, paths))).notes == []
    assert "values" not in said(evaluate(shallow, tmp_path / "new"))


def test_an_image_without_any_value_is_unreadable(floats, tmp_path):
    empty = HOUNSFIELD[:6].copy()
    empty[2] = np.nan
    empty[3] = np.inf
    paths = save(tmp_path / "data", empty)
    found = predict_files(load_run(floats), list(map(str, paths)))
    assert [name for name, _ in found.unreadable] == [str(paths[2]), str(paths[3])]
    assert "all of its values are NaN, infinite or no data" in found.complaint
    with pytest.raises(InputError, match=r"2 of 6 files cannot be used:.*\n.* all of its values are NaN"):
        evaluate(floats, tmp_path / "data")
    with pytest.raises(InputError, match="all of its values are NaN"):
        load_run(floats).predict(empty[2:3])


def test_damaged_files_are_all_named_with_the_way_out(deep, tmp_path):
    paths = save(tmp_path / "data", DEEP[:9])
    for path in paths[2:5]:
        path.write_bytes(path.read_bytes()[:-30])
    paths[5].write_bytes(b"")
    with pytest.raises(InputError, match="1 of 9 files cannot be used"):  # known by its header, so before the others
        evaluate(deep, tmp_path / "data")
    paths[5].unlink()
    with pytest.raises(InputError) as refused:
        evaluate(deep, tmp_path / "data")
    assert "3 of 8 files cannot be used:" in str(refused.value)
    assert all(str(path) in str(refused.value) for path in paths[2:5])
    assert "--data.unreadable skip" in str(refused.value)
    for unreadable in ("skip", "replace"):
        found = evaluate(deep, tmp_path / "data", unreadable=unreadable)
        assert len(found.ids) == 5
        assert "3 of 8 files cannot be used and are left out:" in said(found)


def test_where_no_file_can_be_read_that_is_the_message(deep, tmp_path):
    for path in save(tmp_path / "data", DEEP[:4]):
        path.write_bytes(path.read_bytes()[:-30])
    for unreadable in ("stop", "skip"):
        with pytest.raises(InputError, match=r"4 of 4 files cannot be used:(?s:.*)Put them back or repair them"):
            evaluate(deep, tmp_path / "data", unreadable=unreadable)


def test_a_channel_that_is_a_file_of_its_own_is_looked_at_alone(tmp_path):
    names = [f"{path.parent.name}/{path.name}" for path in save(tmp_path / "red", DEEP)]
    save(tmp_path / "nir", DEEP)
    save(tmp_path / "bytes", BYTES)
    for name in names[:4]:
        (tmp_path / "empty" / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(tmp_path / "empty" / name, np.full((8, 8), np.nan, np.float32))

    def table(nir, count):
        """Returns the configuration of a table of pictures, the second channel of which is in the folder `nir`."""
        rows = [f"red/{name},{nir}/{name},{name.split('/')[0]}" for name in names[:count]]
        (tmp_path / f"{nir}.csv").write_text("\n".join(["red,nir,label", *rows]))
        ours = config(tmp_path / f"{nir}.csv", value_range=(0.0, 4095.0))
        return replace(ours, data=replace(ours.data, color="rgb", path_column=("red", "nir")))

    fit(table("nir", 40), workdir=tmp_path / "run", console=Console(quiet=True))
    with pytest.raises(InputError, match=r"4 of 4 files cannot be used:\n.*one of its channels has 8 bits"):
        evaluate_run(tmp_path / "run", data=table("bytes", 4).data)
    found = evaluate_run(tmp_path / "run", data=table("empty", 4).data)  # the other channel has values
    assert "4 of 4 images have 256 NaN or no-data values" in said(found)

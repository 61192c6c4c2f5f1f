"""The command, as a user types it."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from flaxcls.analysis import load_run
from flaxcls.analysis.classifier import Classifier
from flaxcls.analysis.evaluation import evaluate_run
from flaxcls.config import Config, DataConfig, LoopConfig, ModelConfig, OptimConfig, StopConfig
from flaxcls.data import load_dataset
from flaxcls.explain import main as explain
from flaxcls.predict import main
from flaxcls.run import fit
from tests.slow import slow

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = Config(
        model=ModelConfig(widths=(4,), dense=(8,), norm="batch"),
        optim=OptimConfig(learning_rate=1e-2, warmup_epochs=0.0),
        loop=LoopConfig(epochs=3, batch_size=64),
        stop=StopConfig(),
    )
    return fit(config, workdir=tmp_path_factory.mktemp("digits") / "run", console=Console(quiet=True)).workdir


@pytest.fixture
def images(run, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(load_dataset(load_run(run).config.data).test.images[:5]):
        Image.fromarray(image[..., 0]).save(folder / f"{number}.png")
    return folder


def call(capfd, *args):
    """Returns exit code, output and error output of the command."""
    code = main([str(arg) for arg in args])
    return code, *capfd.readouterr()


def test_a_pipe_gets_clean_csv_of_calibrated_probabilities(run, images, capfd):
    code, out, err = call(capfd, run, images, "--top", 10, "--batch-size", 2)
    rows = list(csv.DictReader(out.splitlines()))
    assert (code, err) == (0, "")
    assert [row["path"] for row in rows] == [str(images / f"{n}.png") for n in range(5)]
    classifier = load_run(run)
    assert classifier.temperature is not None  # it was fitted and kept
    expected = classifier.predict(load_dataset(classifier.config.data).test.images[:5])
    assert [row["class"] for row in rows] == expected.names
    for row, probabilities in zip(rows, expected.probabilities, strict=True):
        found = [float(row["probability" + end]) for end in ["", *(f"_{n}" for n in range(2, 11))]]
        np.testing.assert_allclose(found, np.sort(probabilities)[::-1], atol=1e-5)


@pytest.mark.parametrize("end", ["", "*.png"])
def test_unreadable_files_are_listed_and_the_rest_goes_on(run, images, capfd, end):
    (images / "2.png").write_bytes(b"no image")
    code, out, err = call(capfd, run, images / end, "--format", "jsonl")
    assert code == 1
    assert [json.loads(line)["path"][-5:] for line in out.splitlines()] == ["0.png", "1.png", "3.png", "4.png"]
    assert err.startswith("1 of 5 files could not be read:")
    assert str(images / "2.png") in err


def test_a_file_is_written_as_its_name_says_and_never_replaced(run, images, capfd, tmp_path):
    out = tmp_path / "found.jsonl"
    assert call(capfd, run, images, "--out", out) == (0, "", "")
    assert len([json.loads(line) for line in out.read_text().splitlines()]) == 5
    code, _, err = call(capfd, run, images, "--out", out)
    assert code == 2
    assert "is there already" in err


def test_images_are_known_by_their_content_and_the_others_are_counted(run, images, capfd):
    picture = Image.open(images / "0.png").convert("RGB")
    for name, form in {"a.ppm": "PPM", "b.jfif": "JPEG", "c.jp2": "JPEG2000", "d.jpg": "JPEG", "e": "PNG"}.items():
        picture.save(images / name, form)
    (images / "README.txt").write_text("no image")
    (images / "labels.csv").write_text("path,label")
    code, out, err = call(capfd, run, images)
    assert code == 0
    assert len(out.splitlines()) == 1 + 10
    passed_over = f"{images / 'README.txt'}, {images / 'labels.csv'}"
    assert err.splitlines() == [
        f"passed over, as they are no images (2): {passed_over}",
        "5 of 10 images are in colours, which become grey",
    ]


def test_an_interrupt_leaves_no_file(run, images, capfd, monkeypatch):
    monkeypatch.setattr(Classifier, "logits_of_prepared", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    code, _, err = call(capfd, run, images, "--out", images.parent / "found.csv")
    assert code == 130
    assert "Traceback" not in err
    assert [path.name for path in images.parent.iterdir()] == ["images"]


@pytest.mark.parametrize("form", [slow("table"), "csv"])
def test_it_runs_as_a_module_and_its_reader_may_leave(run, images, form):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "flaxcls.predict", str(run), str(images / "*.png"), "--format", form]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")  # as after SIGPIPE


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere", "images"], "nowhere has no config.json"),
        (["RUN"], "no image was named"),
        (["RUN", "missing.png"], "missing.png is no file"),
        (["RUN", "empty"], "empty has no image"),
        (["RUN", "images", "--top", "11"], "top is 11, but the model has 10 classes"),
        (["RUN", "images", "--top", "0"], "top is 0"),
        (["RUN", "images", "--batch-size", "0"], "batch_size is 0"),
        (["RUN", "images", "--format", "parquet"], "name a file by --out"),
        (["RUN", "images", "--out", "no/where.csv"], "is in a folder that is not there"),
        # the file is tried before anything is loaded
        (["nowhere", "images", "--out", "x" * 300], "cannot be written: File name too long"),
        (["RUN", "x" * 300], "is no file"),
    ],
)
def test_bad_input(run, images, capfd, monkeypatch, args, words):
    monkeypatch.chdir(images.parent)
    (images.parent / "empty").mkdir()
    code, out, err = call(capfd, *(run if arg == "RUN" else arg for arg in args))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert words in err


def test_images_whose_channels_are_files_of_their_own(tmp_path, capfd):
    random = np.random.default_rng(0)
    rows = []
    for number in range(24):
        label = "ab"[number % 2]
        for band, size in (("red", 8), ("nir", 4)):
            pixels = random.integers(0, 100, (size, size), np.uint8) + 100 * (number % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number}-{band}.png")
        rows.append(f"{number}-red.png,{number}-nir.png,{label}\n")
    (tmp_path / "train.csv").write_text("red,nir,label\n" + "".join(rows))
    data = DataConfig(source="folder", dir=str(tmp_path / "train.csv"), path_column=("red", "nir"))
    config = Config(
        model=ModelConfig(widths=(4,), dense=(8,)),
        data=data,
        loop=LoopConfig(epochs=1, batch_size=4),
        stop=StopConfig(),
    )
    run = fit(config, workdir=tmp_path / "run", console=Console(quiet=True)).workdir
    new = replace(data, dir=str(tmp_path / "new.csv"))
    (tmp_path / "new.csv").write_text("red,nir,label\n" + "".join(rows[:3]))
    expected = evaluate_run(run, data=new)
    (tmp_path / "new.csv").write_text("nir,red\n0-nir.png,0-red.png\n1-nir.png,1-red.png\n2-nir.png,2-red.png\n")
    (tmp_path / "2-nir.png").unlink()
    code, out, err = call(capfd, run, tmp_path / "new.csv")  # without labels, by the columns of the run
    found = list(csv.DictReader(out.splitlines()))
    assert [row["path"] for row in found] == ["0-red.png", "1-red.png"]
    probabilities = expected.probabilities[:2]
    np.testing.assert_allclose([float(row["probability"]) for row in found], probabilities.max(axis=1), atol=1e-5)
    assert code == 1
    assert "1 of 3 files could not be read:" in err
    assert "2-nir.png is not there" in err
    assert explain([str(run), str(tmp_path / "new.csv"), "--methods", "grad-cam", "--out", str(tmp_path / "maps")]) == 1
    assert {path.name for path in (tmp_path / "maps").glob("*.npz")} == {"0-red.npz", "1-red.npz"}
    code, _, err = call(capfd, run, tmp_path / "new.csv", "--data.path-column", "red")
    assert "an image of 1 channel cannot be converted to 2" in err
    assert "The run has a file for each channel: name a table with the columns red, nir." in err

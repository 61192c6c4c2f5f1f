"""The command, as a user types it."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits

from flaxcls.analysis import load_run
from flaxcls.analysis.inference import calibrated
from flaxcls.config import Config, DataConfig, LoopConfig, ModelConfig
from flaxcls.data.decode import read_picture
from flaxcls.evaluate import main
from flaxcls.run import fit

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    config = Config(
        data=DataConfig(test_fraction=0.1, train_examples=500),
        model=ModelConfig(widths=(4,), dense=(8,)),
        loop=LoopConfig(epochs=8),
    )
    return fit(config, workdir=tmp_path_factory.mktemp("runs") / "run", console=Console(quiet=True))


def call(capfd, *args):
    """Returns exit code, output and error output of the command."""
    try:
        code = main([str(arg) for arg in args])
    except SystemExit as stop:  # as the parser ends
        code = stop.code
    texts = (" ".join(text.replace("│", " ").replace("┃", " ").split()) for text in capfd.readouterr())
    return code, *texts


def test_it_evaluates_the_runs_own_test_split(trained, capfd):
    code, out, _ = call(capfd, trained.workdir)
    assert code == 0
    directory = trained.workdir / "evaluation" / "test"
    found = json.loads((directory / "metrics.json").read_text())
    written = json.loads((trained.workdir / "result.json").read_text())
    assert found["accuracy"] == written["test"]["accuracy"]
    assert found["calibration"]["log_loss_before"] == pytest.approx(written["test"]["loss"], rel=1e-4)
    assert pq.read_table(directory / "predictions.parquet").num_rows == found["examples"] == 179
    low, high = found["accuracy_interval"]
    for words in (
        f"accuracy {found['accuracy']:.2%}, 95 % interval {low:.2%} to {high:.2%}",
        "class examples precision recall F1",
        f"9 {found['per_class'][9]['support']}",
        f"written: {directory}/metrics.json",
    ):
        assert words in out


def test_options(trained, capfd, tmp_path):
    code, out, _ = call(capfd, trained.workdir, "--split", "train", "--out", tmp_path / "out")
    assert code == 0
    assert "digits, train split" in out
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["examples"] == 500  # --data.train-examples is the run's
    last = trained.steps
    args = (trained.workdir, "--data.split-seed", "1", "--step", last, "--out", tmp_path / "other")
    code, out, _ = call(capfd, *args)
    assert code == 0
    assert f"step {last}" in out
    assert "data.split_seed: 0 -> 1" in out
    assert json.loads((tmp_path / "other" / "metrics.json").read_text())["step"] == last


@pytest.mark.parametrize("splits", [False, True])
def test_new_images_of_any_size_in_folders(trained, capfd, tmp_path, splits):
    images, labels = load_digits().images[:30].astype(np.uint8) * 15, load_digits().target[:30]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        if label != 4:  # not all classes need be there
            folder = tmp_path / "new" / ("test" if splits else "") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            grown = image.repeat(2 + number % 2, axis=0).repeat(3, axis=1)
            Image.fromarray(grown).save(folder / f"{number}.png")
    args = ("--data.source", "folder", "--data.dir", tmp_path / "new", "--out", tmp_path / "out")
    code, out, err = call(capfd, trained.workdir, *args)
    assert code == 0, err
    assert "new, test split" in out
    table = pq.read_table(tmp_path / "out" / "predictions.parquet")
    files = [tmp_path / "new" / name for name in table["id"].to_pylist()]
    assert len(files) == (labels != 4).sum()
    assert table["label"].to_pylist() == [int(file.parent.name) for file in files]
    expected = calibrated(trained.workdir, load_run(trained.workdir))[0].predict(
        [read_picture(file).pixels for file in files]
    )
    np.testing.assert_allclose(np.array(table["p_8"]), expected.probabilities[:, 8], atol=1e-6)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["per_class"][4]["recall"] is None
    note = "not the run's own data, so the run may have been trained on some of these examples"
    assert metrics["notes"]["dataset"].splitlines()[0] == note
    assert "dataset: 27 of 27 images are not 8x8 (most of them 24x24): squashed to that" in out
    assert "27 of 27 images are not 8x8 (most of them 24x24): squashed to that" in metrics["notes"]["dataset"]
    code, _, err = call(capfd, trained.workdir, *args, "--split", "validation")
    assert code == (2 if splits else 0)
    assert not splits or "has the splits test, but not validation" in err
    (tmp_path / "new" / ("test" if splits else "") / "ten").mkdir()
    (files[0]).rename(files[0].parents[1] / "ten" / "x.png")
    assert "unknown class 'ten'" in call(capfd, trained.workdir, *args)[2]


def test_help_shows_the_defaults_of_the_run_if_one_is_named(trained, capfd):
    code, out, _ = call(capfd, "--help")
    assert code == 0
    assert "(default: 0.2)" in out  # --data.test-fraction
    code, out, _ = call(capfd, trained.workdir, "--help")
    assert code == 0
    assert "(default: 0.2)" not in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--split", "tset"], ["'tset'", "Did you mean 'test'?"]),
        (["--step", "1"], ["step is 1, but the checkpoints in"]),
        (["--data.source", "digit"], ["'digit'", "Did you mean 'digits'?"]),
        (["--data.name", "cifar10"], ["data.name is 'cifar10'"]),
        (["--data.test-fraction", "2"], ["data.test_fraction is 2.0, but must be above 0"]),
        (["--out", "/proc/flaxcls"], ["cannot be written to /proc/flaxcls", "--out"]),
        (["--splt", "test"], ["--splt", "--split"]),
    ],
)
def test_bad_input_is_answered_with_the_way_out(trained, capfd, args, words):
    code, _, err = call(capfd, trained.workdir, *args)
    assert code == 2
    for word in words:
        assert word in err


def test_what_is_no_run(trained, capfd, tmp_path):
    assert call(capfd, tmp_path / "none")[0::2] == (
        2,
        f"error: {tmp_path}/none has no config.json, so it is no run directory: name one that flaxcls.train has made.",
    )
    (tmp_path / "config.json").write_bytes(b"\xff\x00")
    assert "the configuration is not JSON" in call(capfd, tmp_path)[2]
    (tmp_path / "config.json").write_bytes((trained.workdir / "config.json").read_bytes())
    assert "has no checkpoint yet" in call(capfd, tmp_path)[2]
    assert call(capfd)[0] == 2


def test_help_needs_no_run(capfd):
    code, out, _ = call(capfd, "--help")
    assert code == 0
    assert "--data.split-seed" in out

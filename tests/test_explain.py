"""The command, as a user types it."""

import dataclasses
import shutil
import signal

import jax
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image
from rich.console import Console

from flaxcls.analysis import load_run
from flaxcls.analysis.explain_files import METHODS, explain_image, logits_function
from flaxcls.config import AugmentConfig, Config, LoopConfig, ModelConfig, OptimConfig, StopConfig
from flaxcls.data import from_arrays
from flaxcls.data.decode import read_picture
from flaxcls.explain import main
from flaxcls.run import fit
from tests.conftest import make_stripes

pytestmark = pytest.mark.usefixtures("shared_programs")

NAMES = ("rows", "columns", "none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with a finished run, and images in folders, two of which have the same name."""
    folder = tmp_path_factory.mktemp("explain")
    config = Config(
        augment=AugmentConfig(eval_flip=True),
        model=ModelConfig(widths=(4, 4), dense=(8,), norm="batch"),
        optim=OptimConfig(learning_rate=1e-2, warmup_epochs=0.0),
        loop=LoopConfig(epochs=4, batch_size=32),
        stop=StopConfig(),
    )
    images, labels = make_stripes(300)
    dataset = from_arrays(images, labels, class_names=NAMES, name="stripes")
    fit(config, dataset=dataset, workdir=folder / "run", console=Console(quiet=True))
    for name, index in {"a/one.png": 0, "b/one.png": 1, "b/two.PNG": 2}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(images[index, ..., 0]).save(folder / name)
    (folder / "b" / "notes.txt").write_text("no image")
    (folder / "empty").mkdir()
    (folder / "broken.png").write_text("no image")
    return folder


def call(capsys, *args):
    """Returns exit code, output and error output of the command."""
    code = main([str(arg) for arg in args])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def arrays_in(path):
    with np.load(path) as arrays:
        return dict(arrays)


def size_of(path):
    with Image.open(path) as opened:
        return opened.size


def written(folder):
    return {path.name for path in folder.iterdir()}


def files_of(name, methods=METHODS):
    return {f"{name}.npz", f"{name}-feature-maps.png", *(f"{name}-{method}.png" for method in methods)}


def test_pictures_and_arrays_of_every_image(folder, tmp_path, capsys):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    code, out, _ = call(capsys, run, folder / "a" / "one.png", folder / "a", folder / "b")
    assert code == 0
    explanations = run / "explanations"
    assert written(explanations) == {"filters.png"} | files_of("one") | files_of("one-2") | files_of("two")
    classifier = load_run(run)
    for name, source in {"one": "a/one.png", "one-2": "b/one.png", "two": "b/two.PNG"}.items():
        arrays = arrays_in(explanations / f"{name}.npz")
        image = read_picture(folder / source).pixels
        predicted = classifier.predict([image])
        assert str(arrays["source"]) == str(folder / source)
        np.testing.assert_array_equal(arrays["image"], image)
        np.testing.assert_allclose(arrays["probabilities"], predicted.probabilities[0], atol=1e-5)
        assert tuple(arrays["class_names"]) == NAMES
        assert str(arrays["predicted"]) == str(arrays["explained"]) == predicted.names[0]
        assert f"{folder / source}: {predicted.names[0]}, {predicted.probabilities[0].max():.1%}\n" in out
        label = int(predicted.labels[0])
        black = np.zeros_like(image)
        difference = (classifier.logits([image]) - classifier.logits([black]))[0, label]
        assert arrays["integrated-gradients"].sum() == pytest.approx(difference, rel=0.011)
        assert {arrays[m].shape for m in ("grad-cam", "occlusion")} == {(8, 8)}
        assert arrays["smooth-grad"].shape == (8, 8, 1)
        assert str(arrays["layer"]) == "BatchNorm_1"
        assert arrays["feature_maps"].shape == (4, 4, 4)
        for method in METHODS:
            assert size_of(explanations / f"{name}-{method}.png") == (3 * 224 + 2 * 14, 224)
    for line in out.splitlines():
        if line.startswith("  "):
            assert set(line.split()) <= written(explanations)


def test_another_class_layer_and_choice_of_methods(folder, tmp_path, capsys):
    out = tmp_path / "out"
    image = folder / "a" / "one.png"
    assert call(capsys, folder / "run", image, "--out", out)[0] == 0
    before = arrays_in(out / "one.npz")
    other = next(name for name in NAMES if name != str(before["predicted"]))
    args = ["--class-name", other, "--layer", "Conv_0", "--methods", "grad-cam", "occlusion", "--out", out]
    code, printed, _ = call(capsys, folder / "run", image, *args)
    assert code == 0
    assert f"explained as {other}" in printed
    # what was explained before, of another class, is gone
    assert written(out) == {"filters.png"} | files_of("one", {"grad-cam", "occlusion"})
    after = arrays_in(out / "one.npz")
    assert str(after["explained"]) == other
    assert after["feature_maps"].shape == (8, 8, 4)
    classifier = load_run(folder / "run")
    logits_fn = logits_function(classifier, classifier.variables)
    expected = explain_image(
        classifier, logits_fn, after["image"], NAMES.index(other), methods=["grad-cam", "occlusion"], layer="Conv_0"
    )
    for method, values in expected.items():
        np.testing.assert_allclose(after[method], values, rtol=1e-3, atol=1e-4)
        assert not np.allclose(before[method], values, atol=1e-3)


def test_the_same_name_of_another_folder_is_not_written_over(folder, tmp_path, capsys):
    for source in ("a", "b", "a"):
        args = [folder / "run", folder / source / "one.png", "--out", tmp_path, "--methods", "grad-cam"]
        assert call(capsys, *args)[0] == 0
    assert written(tmp_path) == {"filters.png"} | files_of("one", {"grad-cam"}) | files_of("one-2", {"grad-cam"})
    assert str(arrays_in(tmp_path / "one-2.npz")["source"]) == str(folder / "b" / "one.png")


@pytest.mark.parametrize("end", ["", "*.png"])
def test_unreadable_files_are_listed_and_the_rest_goes_on(folder, tmp_path, capsys, end):
    (tmp_path / "images").mkdir()
    shutil.copy(folder / "a/one.png", tmp_path / "images/one.png")
    for name in ("broken.png", ".hidden.png"):
        shutil.copy(folder / "broken.png", tmp_path / "images" / name)
    args = [tmp_path / "images" / end, folder / "b/two.PNG", "--methods", "occlusion", "--out", tmp_path / "out"]
    code, out, err = call(capsys, folder / "run", *args)
    assert code == 1
    assert written(tmp_path / "out") == {"filters.png"} | files_of("one", ["occlusion"]) | files_of(
        "two", ["occlusion"]
    )
    assert "one.png: " in out
    assert "1 of 3 files could not be read:\n" in err
    assert (".hidden.png (1)" in err) == (end == "")  # said of a folder; a glob does not match it
    assert f"{tmp_path / 'images' / 'broken.png'} is no image" in err


def test_where_no_file_can_be_read_nothing_is_written(folder, tmp_path, capsys):
    code, out, err = call(capsys, folder / "run", folder / "broken.png", "--out", tmp_path / "out")
    assert (code, out) == (1, "")
    assert err.startswith("1 of 1 file could not be read:\n")
    assert not (tmp_path / "out").exists()


class Jump(nn.Module):
    """A logit that all but jumps, in a model without a convolution."""

    @nn.compact
    def __call__(self, images, train):
        return jax.nn.sigmoid(1e7 * (images.mean(axis=(1, 2, 3))[:, None] - np.float32([[0.0501, 2, 3]])))


def test_it_says_what_a_model_has_not_got_and_what_did_not_succeed(folder, tmp_path, capsys, monkeypatch):
    classifier = dataclasses.replace(load_run(folder / "run"), model=Jump(), mean=None, std=None)
    monkeypatch.setattr("flaxcls.explain.load_run", lambda workdir: classifier)
    code, out, err = call(capsys, folder / "run", folder / "a", folder / "b", "--out", tmp_path)
    assert code == 0
    assert err.count("Grad-CAM and feature maps are left out: the model has no layer") == 1
    assert err.count("filters.png is left out: the model has no two-dimensional convolution") == 1
    inexact = "Integrated gradients are not exact here: their sum differs from the difference of the logits by 100.0%"
    assert out.count(inexact) == 3
    assert out.endswith(f"The files are in {tmp_path}.\n")


def test_an_interrupt(folder, tmp_path, capsys, monkeypatch):
    interrupt = signal.raise_signal
    monkeypatch.setattr("flaxcls.analysis.explain_files.explain_image", lambda *_, **__: interrupt(signal.SIGINT))
    code, out, err = call(capsys, folder / "run", folder / "a", "--out", tmp_path)
    assert (code, out, err) == (130, "", "")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["empty"], ["empty has no image", "name the file itself"]),
        (["nowhere.png"], ["nowhere.png is no file"]),
        ([], ["no image was named"]),
        (["a", "--methods", "gradcam"], ["unknown method 'gradcam'", "Did you mean 'grad-cam'?", "occlusion"]),
        (["a", "--class-name", "row"], ["unknown class 'row'", "Did you mean 'rows'?", "columns"]),
        (["a", "--layer", "Conv_9"], ["unknown layer 'Conv_9'", "Did you mean 'Conv_1'?", "BatchNorm_1"]),
        (["a", "--out", "broken.png"], ["broken.png cannot be written", "--out"]),
    ],
)
def test_bad_input(folder, tmp_path, monkeypatch, capsys, args, words):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    code, _, error = call(capsys, "run", *args)
    assert code == 2
    assert error.startswith("error: ")
    for word in words:
        assert word in error
    assert sorted(folder.rglob("*")) == before


def test_what_is_no_run(folder, capsys):
    code, _, error = call(capsys, folder, folder / "a")
    assert code == 2
    assert "has no config.json" in error

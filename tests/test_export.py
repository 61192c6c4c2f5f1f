"""The command, as a user types it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flaxcls.analysis import load_run
from flaxcls.analysis.prediction import predict_files
from flaxcls.config import AugmentConfig, Config, DataConfig, LoopConfig, ModelConfig, OptimConfig, StopConfig
from flaxcls.export import main
from flaxcls.run import fit

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from rich.console import Console

    config = Config(
        model=ModelConfig(widths=(4,), dense=(8,), norm="batch"),
        optim=OptimConfig(learning_rate=1e-2, warmup_epochs=0.0),
        loop=LoopConfig(epochs=3, batch_size=64),
        stop=StopConfig(),
    )
    return fit(config, workdir=tmp_path_factory.mktemp("digits") / "run", console=Console(quiet=True)).workdir


def call(capfd, *args):
    """Returns exit code, output and error output of the command."""
    code = main([str(arg) for arg in args])
    return code, *capfd.readouterr()


def test_it_writes_to_the_run_and_replaces_nothing_unasked(run, capfd):
    code, out, err = call(capfd, run)
    assert (code, err) == (0, "")
    assert str(run / "export/model.stablehlo") in out
    assert json.loads((run / "export/model.json").read_text())["temperature"] > 0  # fitted on the validation split
    code, _, err = call(capfd, run)
    assert code == 2
    assert "holds model.json and model.stablehlo: name another folder by --out, or replace the export by" in err
    assert call(capfd, run, "--overwrite")[0] == 0


# the program, called by a process that knows jax alone
ALONE = """
import sys
sys.modules["flaxcls"] = None  # importing it would now fail
import jax, numpy as np
from jax import export
model = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
np.save("probabilities.npy", jax.jit(model.call)(np.load("inputs.npy"))[1])
"""


def test_files_of_16_bits_go_through_the_description_and_the_program_without_flaxcls(quiet, tmp_path, capfd):
    rng = np.random.default_rng(0)
    for number in range(60):
        folder = tmp_path / "data" / ("dark", "bright")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 2048, (20, 30)) + 2047 * (number % 2)  # 12 bits
        Image.fromarray(pixels.astype(np.uint16)).save(folder / f"{number}.png")
    config = Config(
        data=DataConfig(source="folder", dir=str(tmp_path / "data"), color="grey", image_size=(8, 12), resize="pad"),
        augment=AugmentConfig(crop_padding=0),
        model=ModelConfig(widths=(4,), dense=()),
        loop=LoopConfig(epochs=1, batch_size=16),
        stop=StopConfig(),
    )
    run = fit(config, workdir=tmp_path / "run", console=quiet).workdir
    code, out, _ = call(capfd, run, "--out", tmp_path / "out")
    assert code == 0
    said = (
        "Input: f32[b 8 12 1], 0..1, grey: pictures scaled and padded with black to 8x12, their values 0..4095 scaled"
    )
    assert said in out
    files = sorted(str(path) for path in (tmp_path / "data").rglob("*.png"))[:7]
    by_hand = Path(__file__).parent / "analysis/export/by_hand.py"
    for command in ([by_hand, "out/model.json", "inputs.npy", *files], ["-c", ALONE, "out/model.stablehlo"]):
        subprocess.run([sys.executable, "-I", *command], check=True, cwd=tmp_path)
    expected = predict_files(load_run(run), files).predictions.probabilities
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy"), expected, atol=1e-5)


def test_it_says_what_smaller_weights_cost(run, capfd, tmp_path):
    code, out, _ = call(capfd, run, "--dtype", "int8", "--out", tmp_path)
    assert code == 0
    found = json.loads((tmp_path / "model.json").read_text())["compared_with_float32"]
    before, after = found["accuracy"]
    assert f"accuracy  {before:.4f} -> {after:.4f}" in out
    assert f"{found['bytes'][0]:,} -> {found['bytes'][1]:,} bytes" in out
    assert ("no clear difference" in out) == (found["chance"] > 0.01)


@pytest.mark.parametrize("name", ["model.onnx", "model.stablehlo"])
def test_a_file_of_somebody_else_stays(run, capfd, tmp_path, name):
    (tmp_path / name).write_text("mine")
    code, _, err = call(capfd, run, "--out", tmp_path)
    assert code == 2
    assert f"{tmp_path} holds {name}: " in err
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"
    assert call(capfd, run, "--out", tmp_path, "--overwrite")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"model.stablehlo", "model.json"}


def test_an_interrupt(run, capfd, monkeypatch, tmp_path):
    monkeypatch.setattr("flaxcls.analysis.export.files.to_stablehlo", lambda *_: signal.raise_signal(signal.SIGINT))
    assert call(capfd, run, "--out", tmp_path) == (130, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere"], "nowhere has no config.json"),
        (["RUN", "--format", "onnx"], "--format onnx needs --onnx-python: make the environment by"),
        (["RUN", "--out", "file"], "file is no folder"),
        (["RUN", "--out", "file/deep"], "file/deep is no folder"),
        (["RUN", "--out", "x" * 300], "cannot be written: File name too long"),
        (["RUN", "--format", "onnx", "--onnx-python", "none", "--out", "o"], "--onnx-python none cannot be run"),
    ],
)
def test_bad_input(run, capfd, monkeypatch, tmp_path, args, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    code, _, err = call(capfd, *(run if arg == "RUN" else arg for arg in args))
    assert code == 2
    assert err.startswith("error: ")
    assert words in err

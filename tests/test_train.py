"""The command, as a user types it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from flax import linen as nn

from flaxcls.config import Config, DataConfig, LoopConfig
from flaxcls.train import main, parse

pytestmark = pytest.mark.usefixtures("shared_programs")

TINY = ["--model.widths", "4", "--model.dense", "8", "--loop.epochs", "1"]


def call(capfd, *args):
    """Returns exit code and error output of the command."""
    try:
        code = main([str(arg) for arg in args])
    except SystemExit as stop:  # as the parser ends
        code = stop.code
    return code, " ".join(capfd.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--data.source", "digit"], ["'digit'", "Did you mean 'digits'?"]),
        (["--model.name", "cn"], ["'cn'", "Did you mean 'cnn'?"]),
        (["--model.pooling", "maxx"], ["'maxx'", "Did you mean 'max'?"]),
        (["--optim.name", "adamm"], ["'adamm'", "Did you mean 'adam'?"]),
        (["--optim.lerning-rate", "1"], ["--optim.lerning-rate", "Perhaps you meant", "--optim.learning-rate"]),
        (["--loop.epochs", "many"], ["--loop.epochs", "many"]),
        (["--loop.batch-size", "0"], ["loop.batch_size is 0, but must be 1 or more"]),
        (["--loop.batch-size", "-64"], ["loop.batch_size is -64, but must be 1 or more"]),
        (["--loop.epochs", "0"], ["loop.epochs is 0, but must be 1 or more"]),
        (["--optim.learning-rate", "-1"], ["optim.learning_rate is -1.0, but must be above 0"]),
        (["--optim.learning-rate", "0"], ["optim.learning_rate is 0.0, but must be above 0"]),
        (["--optim.rate-factors", "Dens_*", "0.1"], ["unknown parameter 'Dens_*'", "Conv_0/kernel", "Dense_0/kernel"]),
        (["--optim.rate-factors", "Dense_*"], ["--optim.rate-factors", "'Dense_*' is no list of pairs"]),
        (["--optim.rate-factors", "Dense_*", "x"], ["--optim.rate-factors", "'x'"]),
        (["--optim.rate-factors", "Dense_*", "-1"], ["optim.rate_factors is {'Dense_*': -1.0}, but each factor must"]),
        (["--optim.freeze", "Conv_*", "1.5"], ["--optim.freeze", "'1.5'"]),
        (["--optim.freeze", "Conv_*"], ["--optim.freeze", "'Conv_*' is no list of pairs"]),
        (["--optim.freeze", "Dens_*", "0"], ["optim.freeze: unknown parameter 'Dens_*'", "Dense_0/kernel"]),
        (["--loop.batch-size", "2000"], ["loop.batch_size is 2000", "has 1295 examples", "no larger"]),
        (["--model.widths", "4", "4", "4", "4", "4"], ["too small for the network", "fewer model.widths"]),
        (["missing.py"], ["missing.py is no file", "CONFIG"]),
        (["text.py"], ["text.py is not Python"]),
        (["binary.py"], ["binary.py is not Python"]),
        (["empty.py"], ["empty.py defines no CONFIG", "add CONFIG"]),
        (["exits.py"], ["exits.py does not run: SystemExit"]),
        (["untyped.py"], ["loop.epochs is '3', but must be of type int"]),
        (["wrong.py"], ["wrong.py does not run: TypeError", "epoch"]),
        (["--workdir", "text.py"], ["text.py cannot be written", "--workdir"]),
        (["--workdir", "/proc/flaxcls"], ["/proc/flaxcls cannot be written", "--workdir"]),
        (["--workdir", "full"], ["full is not empty", "--resume", "--overwrite"]),
        (["--workdir", "full", "--resume"], ["full has no config.json", "no run to resume"]),
        (["--workdir", "full", "--overwrite"], ["full is not empty and has no config.json"]),
        (["--resume"], ["resume needs the run's directory", "--workdir"]),
        (["--resume", "auto"], ["resume is auto, which needs the run's directory", "--workdir"]),
        (["--data.source", "tfds"], ["data.name is None", "needs the name of a data set"]),
        (
            ["--data.source", "tfds", "--data.name", "x", "--data.dir", "full"],
            ["'x' was looked for in", "/full", "tfds build x"],
        ),
        (["--stop-after", "-1"], ["stop_after is -1"]),
    ],
)
def test_bad_input_is_an_error_with_code_2_and_nothing_is_written(args, words, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/notes").write_text("precious")
    Path("text.py").write_text("Dear Sir or Madam,")
    Path("binary.py").write_bytes(b"\x00\xff\xfe")
    Path("empty.py").write_text("config = 1")
    Path("exits.py").write_text("raise SystemExit(0)")
    Path("untyped.py").write_text("from flaxcls.config import *\nCONFIG = Config(loop=LoopConfig(epochs='3'))")
    Path("wrong.py").write_text("from flaxcls.config import *\nCONFIG = Config(loop=LoopConfig(epoch=1))")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code, error = call(capfd, *args)
    assert code == 2
    for word in words:
        assert word in error
    assert "Traceback" not in error
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_read_only_place_is_refused(tmp_path, capfd):
    """A file system of its own, because root writes into folders whatever their mode is."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,ro", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode != 0:  # no right to mount: then the mode does it
        folder.chmod(0o500)
    try:
        code, error = call(capfd, *TINY, "--workdir", folder / "run")
    finally:
        subprocess.run(["umount", folder], check=False, capture_output=True)
    assert code == 2
    assert "cannot be written" in error


def test_nan_has_the_exit_code_3(tmp_path, capfd):
    args = [*TINY, "--optim.learning-rate", "1e30", "--workdir", tmp_path / "run", "--loop.log-every", "5"]
    code, error = call(capfd, *args)
    assert code == 3
    assert "at step" in error
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_dry_run_shows_and_writes_nothing(tmp_path, capfd):
    assert main(["--dry-run", "--workdir", str(tmp_path / "run"), "--optim.schedule", "linear"]) == 0
    text = capfd.readouterr().out
    for word in ("90,090", "1,215 steps of 64", "(linear)", "transformed", "MFLOPs", "nothing was trained"):
        assert word in text
    assert list(tmp_path.iterdir()) == []


def test_stop_after_and_resume(tmp_path, capfd):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert call(capfd, *TINY, "--workdir", whole)[0] == 0
    assert call(capfd, *TINY, "--workdir", parts, "--stop-after", "7")[0] == 0
    assert not (parts / "result.json").exists()
    assert call(capfd, "--workdir", parts, "--resume")[0] == 0  # the options are those of the run
    one, other = (json.loads((path / "result.json").read_text()) for path in (whole, parts))
    assert one["fingerprint"] == other["fingerprint"]
    code, error = call(capfd, "--workdir", parts, "--resume", "--seed", "5")
    assert code == 2
    assert "seed: 0 -> 5" in error


def test_resume_auto_starts_a_run_and_goes_on_with_it_by_one_command(tmp_path, capfd):
    command = (*TINY, "--workdir", tmp_path / "run", "--resume", "auto")
    assert call(capfd, *command, "--stop-after", "7")[0] == 0
    assert not (tmp_path / "run" / "result.json").exists()
    assert call(capfd, *command)[0] == 0
    assert call(capfd, *TINY, "--workdir", tmp_path / "whole")[0] == 0
    one, other = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("run", "whole"))
    assert one["fingerprint"] == other["fingerprint"]
    code, error = call(capfd, *command, "--overwrite")
    assert code == 2
    assert "does not go with overwrite" in error


def test_resume_stands_before_an_experiment_alone_and_with_auto(tmp_path):
    path, workdir = tmp_path / "mine.py", ["--workdir", str(tmp_path / "run")]
    path.write_text("from flaxcls.config import *\nCONFIG = Config(seed=5)")
    for args, expected in (
        (["--resume", "auto", str(path), *workdir], "no"),
        ([str(path), "--resume", "auto", *workdir], "no"),
        (["--resume", str(path), *workdir], "yes"),
        ([str(path), *workdir, "--resume"], "yes"),
        ([str(path), *workdir, "--resume=auto"], "no"),
        ([str(path), *workdir], "no"),
    ):
        command = parse(args)
        assert (command.experiment, command.config.seed, command.resume) == (path, 5, expected), args


def test_factors_by_path_are_pairs_and_stay_those_of_the_run(tmp_path, capfd):
    run, factors = tmp_path / "run", ["--optim.rate-factors", "Dense_*", "0.1", "*/bias", "2"]
    factors += ["--optim.freeze", "Conv_*", "0"]
    assert call(capfd, *TINY, "--workdir", run, "--stop-after", "3", *factors)[0] == 0
    written = json.loads((run / "config.json").read_text())["optim"]
    assert (written["rate_factors"], written["decay_factors"]) == ({"Dense_*": 0.1, "*/bias": 2.0}, {})
    assert written["freeze"] == {"Conv_*": 0}
    assert parse(["--workdir", str(run), "--resume"]).config.optim.rate_factors == written["rate_factors"]
    code, error = call(capfd, "--workdir", run, "--resume", "--optim.rate-factors", "Dense_*", "0.2")
    assert code == 2
    assert "optim.rate_factors: {'Dense_*': 0.1, '*/bias': 2.0} -> {'Dense_*': 0.2}" in error
    assert call(capfd, "--workdir", run, "--resume", *factors)[0] == 0


def test_options_go_on_top_of_the_experiment(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from flaxcls.config import *\nCONFIG = Config(seed=5, loop=LoopConfig(epochs=7))")
    command = parse([str(path), "--loop.batch-size", "16"])
    assert command.config == Config(seed=5, loop=LoopConfig(epochs=7, batch_size=16))
    assert parse([]).config == Config()


def test_every_option_is_in_the_help_with_a_sentence(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in (
        "--optim.learning-rate FLOAT",
        "--workdir",
        "--resume",
        "--loop.epochs",
        "--seed",
        "--data.dir",
        "--optim.rate-factors [PATH FLOAT ...]",
    ):
        assert option in text
    assert "Learning rate; with a schedule, its peak. (default: 0.004)" in text


@pytest.mark.slow
def test_as_a_process_on_one_device_it_resumes_to_the_same_bits(tmp_path):
    """The real command, without the two virtual devices of these tests, compiling anew each time."""
    environment = {**os.environ, "XLA_FLAGS": "", "COLUMNS": "100", "JAX_ENABLE_COMPILATION_CACHE": "false"}

    def command(*args, code=0):
        words = [sys.executable, "-m", "flaxcls.train", *args]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done

    output = command(*TINY, "--workdir", "whole").stdout
    assert "test accuracy" in output
    assert "1 x cpu" in output
    assert "\x1b" not in output  # no terminal, so no bar
    command(*TINY, "--workdir", "parts", "--stop-after", "13")
    command("--workdir", "parts", "--resume")
    whole, parts = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "parts"))
    assert whole["fingerprint"] == parts["fingerprint"]
    assert command("--optim.name", "adamm", code=2).stdout == ""


def test_an_experiment_with_a_model_of_its_own_has_the_same_command(tmp_path, capsys):
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            return nn.Dense(10)(images.reshape(images.shape[0], -1))

    default = Config(data=DataConfig(train_examples=100), loop=LoopConfig(epochs=5, batch_size=50))
    seen = []
    options = {"default": default, "parts": lambda config: seen.append(config) or {"model": Linear()}}
    args = ["--workdir", str(tmp_path / "run"), "--loop.epochs", "1"]
    assert main([*args, "--dry-run"], **options) == 0
    assert main(args, **options) == 0
    assert seen == [replace(default, loop=replace(default.loop, epochs=1))] * 2
    assert json.loads((tmp_path / "run/result.json").read_text())["parameters"] == 650
    assert main([*args, "--loop.batch-size", "0"], **options) == 2
    assert len(seen) == 2
    assert "650" in capsys.readouterr().out

"""A run that holds nothing out for validation: it trains on all, and its last parameters are the result."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from flaxcls import evaluate, export, predict, report
from flaxcls.analysis import load_run
from flaxcls.config import Config, DataConfig, LoopConfig, ModelConfig, OptimConfig, StopConfig
from flaxcls.data import from_arrays, load_dataset
from flaxcls.errors import InputError, Interrupted
from flaxcls.run import fit
from flaxcls.run.dry_run import dry_run
from tests.conftest import make_stripes

pytestmark = pytest.mark.usefixtures("shared_programs")

CONFIG = Config(
    data=DataConfig(validation_fraction=0, test_fraction=0.3),
    model=ModelConfig(widths=(4,), dense=(8,)),
    optim=OptimConfig(learning_rate=1e-2, warmup_epochs=0.0, ema_decay=None),
    loop=LoopConfig(epochs=3, batch_size=128, log_every=4),  # 1,258 digits: 30 steps, epochs end in 10, 20 and 30
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    console = Console(record=True, width=200, file=io.StringIO())
    result = fit(CONFIG, workdir=tmp_path_factory.mktemp("runs") / "run", console=console)
    console.print(result.table())
    return result, console.export_text()


def test_it_trains_on_all_and_keeps_the_last_parameters(trained):
    result, said = trained
    assert result.best_step == result.steps == 30
    assert result.test["accuracy"] > 0.2
    assert json.loads((result.workdir / "result.json").read_text())["validation"] == {}
    assert "digits: 1,258 train, 539 test images of 10 classes" in said
    assert not re.search("validation|best", said)
    assert re.search(r"last step +│ 30 of 30", said)
    lines = [json.loads(line) for line in (result.workdir / "metrics.jsonl").read_text().splitlines()]
    assert {line["split"] for line in lines} == {"train"}
    assert {path.name for path in (result.workdir / "checkpoints").iterdir()} == {"20", "30"}
    assert load_run(result.workdir).step == 30


def test_a_resumed_run_comes_to_the_same_bits(trained, tmp_path):
    options = {"workdir": tmp_path / "run", "console": Console(quiet=True)}
    with pytest.raises(Interrupted):
        fit(CONFIG, **options, stop_after=17)
    assert load_run(tmp_path / "run").step == 17
    assert fit(CONFIG, **options, resume=True).fingerprint == trained[0].fingerprint


def test_early_stopping_needs_a_validation_split(tmp_path):
    config = replace(CONFIG, stop=StopConfig(patience=2))
    dataset = from_arrays(*make_stripes(200), validation_fraction=0)
    for options in ({}, {"dataset": dataset}):
        with pytest.raises(
            InputError, match=r"stop\.patience is 2, but .* has no validation split, .*: leave .* for example to"
        ):
            fit(config, workdir=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
    dry_run(replace(CONFIG, loop=replace(CONFIG.loop, epochs=1)), console=Console(quiet=True))


def call(command, capfd, *args):
    code = command.main([str(arg) for arg in args])
    texts = capfd.readouterr()
    return code, *(" ".join(text.split()) for text in texts)


def test_the_commands_ask_for_no_validation_split_and_say_so_where_they_are_asked(trained, capfd, tmp_path):
    workdir = trained[0].workdir
    code, out, _ = call(evaluate, capfd, workdir)
    assert code == 0
    assert "fitted on nothing: digits has no" in out
    found = json.loads((workdir / "evaluation/test/metrics.json").read_text())
    assert found["accuracy"] == trained[0].test["accuracy"]
    assert found["calibration"]["temperature"] == 1
    assert not [note for note in found["notes"] if note.startswith("calibration")]
    for command in (evaluate, report):
        code, _, error = call(command, capfd, workdir, "--split", "validation")
        assert code == 2
        assert "digits has no validation split, as data.validation_fraction is 0: choose test or train by" in error

    assert call(report, capfd, workdir)[0] == 0
    assert "best by validation" not in (workdir / "report.html").read_text()

    Image.fromarray(load_dataset(CONFIG.data).test.images[0, :, :, 0].astype(np.uint8)).save(tmp_path / "digit.png")
    code, out, error = call(predict, capfd, workdir, tmp_path / "digit.png")
    assert code == 0
    assert "not calibrated: the run was trained without a validation split" in error

    code, out, _ = call(export, capfd, workdir, "--dtype", "int8")
    assert code == 0
    assert "What int8 costs was not measured: the run was trained without a validation split" in out
    assert not (workdir / "calibration.json").exists()

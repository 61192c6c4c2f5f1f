"""Checkpoints of earlier formats go on in this version.

format_1 was written with jax 0.10.2 before the first release, by

    python -m flaxcls.train --workdir format_1 --stop-after 8 --data.train-examples 64 --loop.batch-size 32
        --loop.epochs 6 --loop.save-every 3 --loop.log-every 5 --model.widths 4 --model.dense 8 --model.norm batch
        --model.dropout 0.2 --augment.mixup 0.2 --optim.accumulate 2 --optim.plateau-patience 1
        --optim.schedule constant --stop.patience 3 --stop.skip 0

and of it only what a run goes on from is kept. Records of that time had no hash of their own.
"""

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from flaxcls import evaluate, export, report
from flaxcls.config_json import to_json
from flaxcls.errors import InputError
from flaxcls.run import fit
from flaxcls.run.workdir import read_config

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture
def workdir(tmp_path):
    return shutil.copytree(Path(__file__).with_name("format_1"), tmp_path / "run")


def test_the_first_format_goes_on(workdir):
    """The hash in its record shows that its arrays are the saved ones."""
    before = (workdir / "metrics.jsonl").read_text()
    text = io.StringIO()
    result = fit(read_config(workdir), workdir=workdir, resume=True, console=Console(file=text, width=200))
    assert "continuing after step 8" in text.getvalue()
    assert "damaged" not in text.getvalue()
    assert (workdir / "metrics.jsonl").read_text().startswith(before)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "validation"] == [2, 4, 6, 8, 10, 12]
    assert result.validation["loss"] == pytest.approx(min(line["loss"] for line in lines if line["split"] != "train"))


def make_later(workdir):
    """Makes the run one of a later version, and returns the path of a record."""
    paths = list(workdir.glob("checkpoints/*/record/metadata"))
    for path in paths:
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    (workdir / "config.json").write_text(json.dumps({**json.loads((workdir / "config.json").read_text()), "new": 1}))
    return paths[0]


@pytest.mark.parametrize("main", [evaluate.main, export.main, report.main], ids=["evaluate", "export", "report"])
def test_a_run_of_a_later_version_is_not_used(workdir, capfd, main):
    make_later(workdir)
    assert main([str(workdir)]) == 2
    assert "has the format 2, and this version of flaxcls reads up to 1" in capfd.readouterr().err


def test_a_format_of_a_later_version_is_refused_and_not_set_aside(workdir, quiet):
    config = read_config(workdir)
    path = make_later(workdir)
    (workdir / "config.json").write_text(to_json(config))
    with pytest.raises(InputError, match="has the format 2, and this version of flaxcls reads up to 1"):
        fit(config, workdir=workdir, resume=True, console=quiet)
    assert path.exists()

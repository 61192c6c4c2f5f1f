"""Runs the commands and examples of the README."""

import re
import subprocess
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from flaxcls.run import fit
from tests.conftest import make_stripes

README = (Path(__file__).parent.parent / "README.md").read_text()


def block(name):
    return re.search(rf"<!-- {name} -->\n\n```python\n(.*?)```", README, re.DOTALL).group(1)


def test_the_research_example(capsys):
    rng = np.random.default_rng(0)
    batches = [
        {"image": rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8), "label": np.arange(4, dtype=np.int32)}
        for _ in range(2)
    ]
    names = {"batches": batches}
    exec(block("research"), names)
    assert names["state"].step == 2
    assert np.isfinite(names["metrics"]["loss"])
    assert len(block("research").strip().splitlines()) == 10


def test_the_four_ways_agree():
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8), "label": np.arange(8, dtype=np.int32)}
    names = {"batch": batch, "key": jax.random.key(1)}
    exec(block("four-ways"), names)
    for way in ("over_mesh", "pmapped", "mapped"):
        chex.assert_trees_all_close(names[way].model_state, names["one"].model_state, rtol=1e-4, atol=1e-5)
        assert names[way].step == 1


def test_the_notebook_example(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images, labels = make_stripes(200)
    source = block("notebook").replace("Config()", "Config(loop=LoopConfig(epochs=1))")
    exec("from flaxcls.config import LoopConfig\n" + source, {"images": images, "labels": labels})
    assert "accuracy" in capsys.readouterr().out
    assert list(tmp_path.glob("runs/arrays-cnn-*/result.json"))


def test_the_use_example(stripes, small_config, quiet, tmp_path, capsys):
    result = fit(small_config, dataset=stripes, workdir=tmp_path / "run", console=quiet)
    exec(block("use"), {"workdir": result.workdir, "images": stripes.test.images[:2]})
    said = capsys.readouterr().out
    assert any(repr(name) in said for name in stripes.class_names)


@pytest.mark.parametrize("name", ["train", "test"])
def test_the_two_commands_are_one_line_each(name):
    """As `.ci/run` finds them."""
    finder = Path(__file__).parent.parent / ".ci" / "readme_command"
    command = subprocess.run([finder, name], check=True, capture_output=True, text=True).stdout
    assert command.startswith("python3 -m venv .venv && ")
    assert command.count("\n") == 1

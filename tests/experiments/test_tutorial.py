"""The tutorial's README: its commands run, shortened, and its Python prints what stands below it."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slow import slow

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "tutorial"
README = (FOLDER / "README.md").read_text()

# (command, what stands between it and the next command)
COMMANDS = re.findall(r"```bash\n(.*?)\n```(.*?)(?=```bash|\Z)", README, re.DOTALL)
# (Python, its output where there is one)
SNIPPETS = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", README, re.DOTALL)
SHORTER = {
    "experiments.tutorial": ["--shortened", "--output", "{folder}"],
    "flaxcls.train": ["--loop.epochs", "1", "--data.train-examples", "640", "--workdir", "{folder}/run"],
}


@pytest.mark.parametrize(
    ("command", "shown"),
    [slow(command, shown, id=command) for command, shown in COMMANDS],
)
def test_a_command_gives_the_figures_and_tables_below_it(command, shown, tmp_path):
    words = shlex.split(command)
    assert words[:2] == ["python", "-m"]
    if "DATA_DIR" in words:
        if "FLAXCLS_TFDS_DIR" not in os.environ:
            pytest.skip("FLAXCLS_TFDS_DIR names no data")
        words[words.index("DATA_DIR")] = os.environ["FLAXCLS_TFDS_DIR"]
    shorter = next(options for start, options in SHORTER.items() if words[2].startswith(start))
    words = [sys.executable, *words[1:], *(option.format(folder=tmp_path) for option in shorter)]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"  # compiling is most of the work here
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for figure in re.findall(r"!\[.*?\]\(figures/(.*?)\)", shown):
        assert (tmp_path / figure).is_file()
    for header in re.findall(r"^(\|.*\|)\n\| ---", shown, re.MULTILINE):
        assert header in done.stdout


@pytest.mark.parametrize(("source", "output"), SNIPPETS)
def test_a_snippet_prints_what_stands_below_it(source, output, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(source, {})
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == output.splitlines()


def test_every_link_leads_somewhere_and_every_figure_is_small():
    headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {"#" + re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = {link for link in re.findall(r"\]\((.*?)\)", README) if not link.startswith("http")} - anchors
    assert not [link for link in links if not (FOLDER / link).exists()]
    figures = {FOLDER / link for link in links if link.endswith(".png")}
    assert figures == set((FOLDER / "figures").glob("*.png"))
    assert max(figure.stat().st_size for figure in figures) < 150_000

"""Files of a run directory that someone else has made: nothing in them is executed, whatever they hold."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from flaxcls.errors import InputError, Interrupted
from flaxcls.run import fit
from flaxcls.run.checkpoint_files import SEAL
from flaxcls.run.workdir import read_config

pytestmark = pytest.mark.usefixtures("shared_programs")

# The command as it is, but what unpickles or runs code from below the run directory is told of.
WATCHED = """
import sys
seen = []

def audit(event, args):
    if event in ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"):
        seen.append((event, str(args)[:200]))
    elif event == "exec" and sys.argv[2] in getattr(args[0], "co_filename", ""):
        seen.append((event, args[0].co_filename))

from flaxcls.train import main
sys.addaudithook(audit)
code = main(sys.argv[1:])
print("SEEN", seen)
sys.exit(code)
"""


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def resume(workdir):
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, "--workdir", workdir, "--resume"], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.fixture
def stopped(whole_run, plain_config, tmp_path, quiet):
    """A run on digits, with the checkpoints of steps 8 and 10."""
    if whole_run.exists():
        return shutil.copytree(whole_run, tmp_path / "run")
    config = replace(
        plain_config,
        data=replace(plain_config.data, train_examples=64),
        loop=replace(plain_config.loop, epochs=8, save_every=2),
    )
    with pytest.raises(Interrupted):
        fit(config, workdir=whole_run, console=quiet, stop_after=10)
    return shutil.copytree(whole_run, tmp_path / "run")


def test_no_pickle_is_loaded_wherever_one_lies(stopped, tmp_path):
    """In place of every file of the newest checkpoint, one after the other, and beside the others."""
    evil = pickle.dumps(Payload(tmp_path / "executed"))
    (stopped / "metrics.pkl").write_bytes(evil)
    (stopped / "sitecustomize.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    (stopped / "config.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    for path in (stopped / "checkpoints" / "10").rglob("*"):
        if path.is_file():
            path.write_bytes(evil)
    code, output, errors = resume(stopped)
    assert code == 0, errors
    assert "the checkpoint of step 10 is damaged and was set aside" in output
    assert "continuing after step 8" in output
    assert "SEEN []" in output
    assert not (tmp_path / "executed").exists()


def test_the_watch_sees_what_it_should(tmp_path):
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    (tmp_path / "evil.py").write_text("import pickle, sys\npickle.load(open(sys.argv[2] + '/evil.pkl', 'rb'))")
    program = WATCHED.replace("code = main(sys.argv[1:])", "import runpy; code = 0; runpy.run_path(sys.argv[1])")
    command = [sys.executable, "-c", program, tmp_path / "evil.py", tmp_path]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(event in output for event in ("pickle.find_class", "os.system", "evil.py"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"__reduce__": ["os.system", ["touch x"]]}', "unknown field '__reduce__'"),
        ("{\"seed\": \"__import__('os').system('touch x')\"}", "seed is .* but must be of type int"),
        ('{"model": {"name": "os.system"}}', "unknown model.name 'os.system'"),
        ('{"model": {"widths": "!!python/object/apply:os.system [touch x]"}}', "model.widths is '!!python"),
        ("[" * 100_000, "the configuration is not JSON"),
        ('{"seed": 1e999}', "seed is inf"),
        ('{"loop": {"epochs": NaN}}', "loop.epochs is nan"),
        ('{"optim": {"rate_factors": {"../../etc/passwd": [[]]}}}', "optim.rate_factors"),
        ("\x00\xff", "the configuration is not JSON"),
    ],
)
def test_a_configuration_that_is_none_is_an_error(stopped, quiet, text, message):
    before = sorted((stopped / "checkpoints").rglob("*"))
    (stopped / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        fit(read_config(stopped), workdir=stopped, resume=True, console=quiet)
    assert sorted((stopped / "checkpoints").rglob("*")) == before


@pytest.mark.parametrize(
    "change",
    [
        {"early_stopping": {"__class__": "os.system"}},
        {"early_stopping": {"patience": "touch x"}},
        {"meter": [1, 2]},
        {"meter": {"sums": "x"}},
        {"sha256": 5},
        {"config": None},
        {"evaluated": "touch x"},
        {"rollbacks": -1},
        {"rollbacks": "1"},
        {"format": True},
    ],
    ids=lambda change: json.dumps(change),
)
def test_a_record_with_other_things_in_it_is_a_damaged_checkpoint(stopped, change):
    path = stopped / "checkpoints" / "10" / "record" / "metadata"
    record = {name: value for name, value in json.loads(path.read_text()).items() if name != SEAL}
    path.write_text(json.dumps({**record, **change}))
    text = io.StringIO()
    with pytest.raises(Interrupted):
        fit(read_config(stopped), workdir=stopped, resume=True, stop_after=12, console=Console(file=text, width=300))
    assert "the checkpoint of step 10 is damaged and was set aside" in text.getvalue()


def test_links_that_lead_elsewhere_are_not_followed_to_delete(stopped, tmp_path, quiet):
    """--overwrite and the sweeping of event files remove links, and never what they lead to."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("precious")
    shutil.rmtree(stopped / "tensorboard")
    (stopped / "tensorboard").symlink_to(precious)
    (stopped / "extra").symlink_to(precious)
    config = read_config(stopped)
    fit(config, workdir=stopped, resume=True, console=quiet)
    fit(config, workdir=stopped, overwrite=True, console=quiet)
    assert (precious / "thesis.tex").read_text() == "precious"
    assert [path.name for path in precious.iterdir()] == ["thesis.tex"]
    assert Path(stopped / "tensorboard").is_dir()

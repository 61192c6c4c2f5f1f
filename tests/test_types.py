"""A type checker sees the types of the package in a program outside of the checkout."""

import subprocess
import sys
from importlib.resources import files

PROGRAM = """\
from flaxcls import train_step

reveal_type(train_step)
train_step("no state")
"""
# The types of the other libraries are left out, which takes seconds instead of a minute.
SETTINGS = """\
[mypy]
[mypy-jax.*,flax.*,optax.*,numpy.*]
follow_imports = skip
"""


def test_mypy_knows_the_types_of_train_step(tmp_path):
    assert (files("flaxcls") / "py.typed").is_file()
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    command = [sys.executable, "-m", "mypy", "--no-incremental", "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert 'Revealed type is "def (state: flaxcls.state.TrainState, batch: TypedDict(flaxcls.types.Batch' in done.stdout
    assert 'Argument 1 to "train_step" has incompatible type "str"; expected "TrainState"' in done.stdout

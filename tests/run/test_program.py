"""The description of the caller's own model and optimizer, by which a run does not go on with others."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

from flaxcls.errors import InputError, Interrupted
from flaxcls.models import build_model
from flaxcls.run import fit
from flaxcls.run.program import compare_programs
from flaxcls.run.setup import make_setup
from tests.foreign.modules import Network, Sowing

PROGRAM = """
import json, optax
from flaxcls.config import Config
from flaxcls.data import from_arrays
from flaxcls.run.setup import make_setup
from tests.conftest import make_stripes
from tests.foreign.modules import Sowing

print(json.dumps(make_setup(Config(), from_arrays(*make_stripes(150)), Sowing(), optax.lbfgs()).program))
"""


def described(config, dataset, model=None, tx=None):
    return make_setup(config, dataset, model or Network(), tx or optax.adam(1e-2)).program


@pytest.mark.slow
def test_two_processes_describe_a_program_alike_also_in_a_terminal():
    def run(seed, code):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path.cwd())}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    coloured = "import jax._src.pretty_printer as printer; printer.CAN_USE_COLOR = True\n" + PROGRAM
    assert run("1", PROGRAM) == run("2", coloured)


def table_schedule(rate):
    table = jnp.full(10, rate)
    return jax.jit(lambda step: table[step])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (optax.adam(1e-3), optax.adam(3.0)),
        (optax.inject_hyperparams(optax.sgd)(0.1), optax.inject_hyperparams(optax.sgd)(3.0)),
        (optax.sgd(table_schedule(0.1)), optax.sgd(table_schedule(3.0))),
    ],
    ids=["literal", "state", "constant"],
)
def test_a_rate_is_part_of_the_program_wherever_it_is_kept(one, other, small_config, stripes):
    first, again, second = (described(small_config, stripes, tx=tx)["hash"] for tx in (one, one, other))
    assert first == again != second


def test_the_packages_own_are_not_described(small_config, stripes):
    assert make_setup(small_config, stripes, None, None).program == {}


def test_the_packages_own_and_the_callers_are_not_the_same(small_config, stripes, tmp_path, quiet):
    options = {"dataset": stripes, "workdir": tmp_path / "run", "console": quiet}
    own = build_model(replace(small_config.model, dropout=0.0), 3)
    with pytest.raises(Interrupted):
        fit(small_config, model=own, stop_after=4, **options)
    with pytest.raises(InputError, match=r"model: CNN.* -> the package's own"):
        fit(small_config, resume=True, **options)
    fit(small_config, resume=True, allow_changes=True, **options)
    (line,) = (tmp_path / "run" / "changes.jsonl").read_text().splitlines()
    assert "the package's own" in json.loads(line)["changes"][0]


def test_other_versions_or_devices_are_a_line_and_older_records_say_nothing(small_config, stripes):
    current = described(small_config, stripes)
    (line,) = compare_programs({**current, "hash": "x", "made with": "jax 0.1"}, current, allow_changes=False)
    assert line.endswith("or only how it is traced, as the run was made with jax 0.1")
    assert compare_programs(None, current, allow_changes=False) == []
    with pytest.raises(InputError, match=r"model: Network\(\) -> Sowing\(\)|model: Network.* -> Sowing"):
        compare_programs(current, described(small_config, stripes, model=Sowing()), allow_changes=False)

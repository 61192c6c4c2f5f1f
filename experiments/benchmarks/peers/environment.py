"""The environment of the peers of flaxcls: Keras on TensorFlow and on JAX, and PyTorch, at fixed versions.

flaxcls does not depend on them. They live in a virtual environment of their own, which a benchmark makes when it first
needs it. For a PyTorch without CUDA, which is smaller and as fast on a CPU, name its index in PIP_EXTRA_INDEX_URL.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.benchmarks.measure import Ran, run

TENSORFLOW = "tensorflow-cpu==2.21.0"
REQUIREMENTS = (
    TENSORFLOW,
    "keras==3.15.1",
    "torch==2.13.0",
    'jax==0.10.2; python_version < "3.12"',
    'jax==0.12.0.1; python_version >= "3.12"',
)


def install(
    peers: Path, requirements: Sequence[str] = REQUIREMENTS, base: str | Path = sys.executable
) -> dict[str, str]:
    """Returns the environment variables to run the peers with, including PYTHON; installs missing packages first.

    Args:
      peers: folder of the virtual environment; it is made if it is missing.
      requirements: packages that it must hold.
      base: Python to make it with.
    """
    python = peers.absolute() / "bin" / "python"
    if not python.exists():
        subprocess.run([base, "-m", "venv", peers], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements], check=True)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "KERAS_BACKEND")}
    return {
        **kept,
        "PYTHON": str(python),
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_PLATFORMS": "cpu",
        "KERAS_HOME": str(peers.absolute() / "keras"),  # Keras writes its settings there, else into the home folder
    }


def run_peer(
    env: Mapping[str, str], script: str, out: Path, *arguments: str, started: Callable[[int], None] | None = None
) -> tuple[dict[str, Any], Ran]:
    """Runs a script of this folder, whose first argument is the JSON file to write; returns the JSON and its costs.

    `started`: see `run`. Raises ProgramError if the script fails.
    """
    ran = run([env["PYTHON"], "-P", Path(__file__).with_name(script), out, *arguments], env, started)
    return json.loads(out.read_text()), ran


@contextmanager
def answering(env: Mapping[str, str], script: str, *arguments: str) -> Iterator[tuple[Any, Callable[..., Any]]]:
    """Yields the first line of JSON of a script of this folder, and a function that sends a request for an answer."""
    command = [env["PYTHON"], "-P", str(Path(__file__).with_name(script)), *arguments]
    with subprocess.Popen(command, text=True, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        requests, answers = process.stdin, process.stdout
        assert requests is not None
        assert answers is not None

        def ask(do: str, **request: Any) -> Any:
            print(json.dumps({"do": do, **request}), file=requests, flush=True)
            return json.loads(answers.readline())

        yield json.loads(answers.readline()), ask

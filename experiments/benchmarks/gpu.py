"""What flaxcls does on one NVIDIA GPU, in under nine minutes, on a machine without a network.

Measured are, in the order of `BUDGETS`, each in a process of its own that has its share of the time:

- cold, cached: a process of `python -m experiments.cifar10_speedrun`, from its start to its end, with an empty
  compilation cache, and with the one that it left, which the other parts use too;
- warm: the speed run by `fit`, again and again in one process after a run that warms up, each with another seed. Timed
  are initialisation with the whitening, training with its augmentation, and the final evaluation with test-time
  augmentation. Not timed are reading the data, putting the training images on the device, compiling, and the
  checkpoint between training and evaluation; the time with it, and that of `fit` as a whole, are told beside it.
  Operations are not deterministic here. The accuracy is that of the data at hand, which may be a JPEG copy;
- profile: the parts of a warm run one by one, and the kernels of its last dispatch from a trace;
- resident, streaming: images/s of resnet50 at 224x224 in bfloat16, batch 256, from images on the device, and from JPEGs
  that worker processes read;
- torch: the same recipe in PyTorch, on the same images, called operation by operation and compiled;
- determinism: the speed run and a step of the default run, with XLA's deterministic operations and without.

A part that fails or takes too long has a row that says so, and the others go on. The command needs a checkout and, as
files, what `experiments.benchmarks.gpu_pack` has packed; without --files it takes what is installed and --data-dir.

Command:   python -m experiments.benchmarks.gpu --files build/gpu
           measured in three calls: with --parts cold cached warm profile on a first machine, and on a second with
           --parts warm resident streaming determinism (80, 69, 52 and 85 s), then --parts torch (74 s)
Hardware:  one NVIDIA H100 80GB HBM3, 16 cores of an Intel Xeon, jax 0.11.2, Python 3.12; 26 November 2026
Result:    the speed run in 1.132 s (n = 25, 1.124 to 1.161, mean 1.135; 23.5 % of the peak), 90.73 % (sd 0.15); with
           the checkpoint 1.643 s, `fit` as a whole 1.827 s; a process 70 s cold, 26 s cached (n = 1); on the second
           machine 1.120 s (n = 5, 1.117 to 1.136). There, the recipe in PyTorch 2.11 in 2.70 s (n = 7, 2.38 to 2.73)
           and 90.69 %, compiled, with CUDA graphs, in 2.15 s (n = 7, 2.00 to 2.42) and 90.68 %. resnet50 at 5,674
           images/s (n = 14 intervals, 5,472 to 6,974; 13.9 % of the peak) from images on the device, at 5,584 (n = 8,
           5,545 to 6,134) from JPEGs. Deterministic operations: 1.020 times the time of the speed run (n = 11, 0.999
           to 1.024), 1.11 times that of a step of the default run (n = 7, 0.76 to 1.22)
"""

import argparse
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.benchmarks.gpu_files import WHEEL_FOLDER, unpack_records
from experiments.benchmarks.measure import Row, report

# seconds that a part may take, where that much is left
BUDGETS = {
    "cold": 120,
    "cached": 50,
    "warm": 90,
    "profile": 40,
    "resident": 110,
    "streaming": 100,
    "torch": 170,
    "determinism": 100,
}
WHOLE = 510  # seconds; to stop a part and to print take a few more
LEAST = 10  # seconds, without which a part is not begun
MISSING = "parts without a result"


def install(wheels: Path, site: Path) -> None:
    """Installs the wheels in a folder into another folder. Raises SystemExit where they are not for this Python."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps"]
    files = sorted(str(path) for path in wheels.glob("*.whl"))
    command = [*pip, "--no-compile", "--no-cache-dir", "--target", str(site), *files]
    if subprocess.run(command, check=False).returncode != 0:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise SystemExit(
            f"the wheels in {wheels} cannot be installed, as pip says above: pack them for this Python by "
            f"python -m experiments.benchmarks.gpu_pack --python {version}."
        )


def run_part(command: Sequence[str], env: Mapping[str, str], seconds: float) -> str | None:
    """Runs a program; returns why it failed, or None. After so many seconds it is ended with all that it started."""
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, env=env, stderr=errors, start_new_session=True) as process:
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                return f"it was not over after its {seconds:.0f} s"
            finally:
                _end(process)
        if code == 0:
            return None
        errors.seek(0)
        printed = errors.read()
    print(printed[-4000:], file=sys.stderr)
    lines = [line for line in printed.splitlines() if line.strip()] or ["it printed nothing"]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)]
    return f"failed with {code}: {(named or lines)[-1][:200]}"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process and those of its session that are left."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def measure(
    parts: Sequence[str], options: Sequence[str], env: Mapping[str, str], out: Path, end: float, console: Console
) -> tuple[list[Row], dict[str, str]]:
    """Returns the rows of the parts, one that says why for each that failed, and the device and versions.

    Args:
      parts: names in `BUDGETS`.
      options: of `gpu_parts`, beside those that are set here.
      env: of the processes.
      out: folder of their files.
      end: by `time.monotonic`, when all is to be over.
      console: told how it goes.
    """
    rows: list[Row] = []
    where: dict[str, str] = {}
    for part in parts:
        began = time.monotonic()
        seconds = min(BUDGETS[part], end - began)
        if seconds < LEAST:
            problem: str | None = f"not begun, as {max(seconds, 0):.0f} s were left"
        else:
            module = [sys.executable, "-m", "experiments.benchmarks.gpu_parts", part, "--out", str(out)]
            file = out / f"{part}.json"
            file.unlink(missing_ok=True)
            problem = run_part([*module, "--seconds", str(seconds), *options], env, seconds)
            if problem is None:
                found = json.loads(file.read_text())
                rows += [Row(**row) for row in found["rows"]]
                where = found["where"] or where
        if problem is not None:
            rows.append(Row(part, MISSING, "why", [], note=problem))
        console.print(f"{part}: {problem or 'done'}, {time.monotonic() - began:.0f} s", markup=False, highlight=False)
    return rows, where


def main(args: Sequence[str] | None = None) -> None:
    """Prepares, measures and reports."""
    began = time.monotonic()
    given = _parse(args)
    console = Console(width=120)
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        place, data_dir = Path(folder), given.data_dir
        env = {**os.environ, "XDG_CACHE_HOME": str(place / "cache")}
        env.pop("JAX_COMPILATION_CACHE_DIR", None)  # which would be used instead, and hold what others have compiled
        if given.files is not None:
            install(given.files / WHEEL_FOLDER, place / "site")
            env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(place / "site"), os.environ.get("PYTHONPATH"))))
        if data_dir is None:
            data_dir = place / "data"
            unpack_records(given.files, data_dir)
        console.print(f"prepared, {time.monotonic() - began:.0f} s", highlight=False)
        options = ["--data-dir", str(data_dir), "--runs", str(given.runs), *(["--tiny"] if given.tiny else [])]
        rows, where = measure(given.parts, options, env, out, began + given.seconds, console)
    settings: dict[str, Any] = {**where, "on": datetime.date.today().isoformat(), "runs": given.runs}
    if given.tiny:
        settings["tiny"] = "the numbers say nothing"
    report(rows, out / "gpu.json", settings, console)
    for part in given.parts:  # whose rows are in it
        (out / f"{part}.json").unlink(missing_ok=True)
    console.print(f"{time.monotonic() - began:.0f} s in all", highlight=False)


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options; tyro, which other commands use, need not be installed yet."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.gpu")
    parser.add_argument("--files", type=Path, help="folder that experiments.benchmarks.gpu_pack has made")
    parser.add_argument("--data-dir", type=Path, help="where cifar10 was prepared; without it that of --files")
    parser.add_argument("--out", type=Path, default=Path("build/gpu-results"), help="folder of the results")
    parser.add_argument("--parts", nargs="+", choices=[*BUDGETS], default=[*BUDGETS], help="what is measured")
    parser.add_argument("--runs", type=int, default=25, help="warm runs, and others where the time allows it")
    parser.add_argument("--seconds", type=float, default=WHOLE, help="after which no part goes on")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that everything runs")
    given = parser.parse_args(args)
    if given.files is None and given.data_dir is None:
        parser.error("--files or --data-dir is needed: make the former by python -m experiments.benchmarks.gpu_pack.")
    return given


if __name__ == "__main__":
    main()

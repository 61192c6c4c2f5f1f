"""The speed of flaxcls on one NVIDIA GPU, in under nine minutes, on a machine without a network.

The parts, in the order of `BUDGETS`. Each is a process of its own with its share of the time:

- cold, cached: a process of `python -m experiments.cifar10_speedrun`, from start to end, with an empty compilation
  cache, and with the cache that it left. The other parts use that cache too;
- warm: the speed run by `fit`, many times in one process after a warm-up run, each time with another seed. Timed are
  initialisation with the whitening, training with augmentation, and the final evaluation with test-time augmentation.
  Not timed are reading the data, placing the training images on the device, compiling, and the checkpoint between
  training and evaluation; the time with the checkpoint and the time of the whole `fit` are separate rows. Operations
  are not deterministic here. The accuracy is that of the given images, which may be a JPEG copy;
- profile: the stages of a warm run one by one, and the kernels of its last dispatch from a trace;
- resident, streaming: images/s of resnet50 at 224x224 in bfloat16, batch 256, from images on the device, and from JPEGs
  that worker processes read;
- torch: the same recipe in PyTorch, on the same images, called operation by operation and compiled;
- determinism: the speed run and a step of the default run, with XLA's deterministic operations and without.

A part that fails or takes too long has a row that says so; the others go on. The command needs a checkout, and --files
with the files that `experiments.benchmarks.gpu_pack` packed; without --files it uses the installed packages and
--data-dir.

Command:   python -m experiments.benchmarks.gpu --files build/gpu
           measured in three calls: with --parts cold cached warm profile on a first machine, and on a second with
           --parts warm resident streaming determinism (80, 69, 52 and 85 s), then --parts torch (74 s)
Hardware:  one NVIDIA H100 80GB HBM3, 16 cores of an Intel Xeon, jax 0.11.2, Python 3.12; 26 November 2026
Result:    README.md
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

from experiments.benchmarks.gpu.pack import WHEEL_FOLDER, unpack_records
from experiments.benchmarks.measure import Row, report

# seconds that each part may take, if so much time is left
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
WHOLE = 510  # seconds; stopping a part and printing take a few more
LEAST = 10  # seconds; a part does not start with less
MISSING = "parts without a result"


def install(wheels: Path, site: Path) -> None:
    """Installs the wheels in a folder into another folder. Raises SystemExit if they do not fit this Python."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps"]
    files = sorted(str(path) for path in wheels.glob("*.whl"))
    command = [*pip, "--no-compile", "--no-cache-dir", "--target", str(site), *files]
    if subprocess.run(command, check=False).returncode != 0:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise SystemExit(
            f"pip cannot install the wheels in {wheels}, see above: pack them for this Python with "
            f"python -m experiments.benchmarks.gpu_pack --python {version}."
        )


def run_part(command: Sequence[str], env: Mapping[str, str], seconds: float) -> str | None:
    """Runs a program, and returns why it failed, or None. Ends it and its children after that many seconds."""
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, env=env, stderr=errors, start_new_session=True) as process:
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                return f"it did not end within its {seconds:.0f} s"
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
    """Ends a process and the remaining processes of its session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def measure(
    parts: Sequence[str], options: Sequence[str], env: Mapping[str, str], out: Path, end: float, console: Console
) -> tuple[list[Row], dict[str, str]]:
    """Returns the rows of the parts, and the device and versions. A part that failed has one row that says why.

    Args:
      parts: names in `BUDGETS`.
      options: further options for the command of `parts`.
      env: environment variables of the processes.
      out: folder for their files.
      end: the `time.monotonic` at which all must have ended.
      console: prints the progress.
    """
    rows: list[Row] = []
    where: dict[str, str] = {}
    for part in parts:
        began = time.monotonic()
        seconds = min(BUDGETS[part], end - began)
        if seconds < LEAST:
            problem: str | None = f"not started: {max(seconds, 0):.0f} s were left"
        else:
            module = [sys.executable, "-m", "experiments.benchmarks.gpu.parts", part, "--out", str(out)]
            file = out / f"{part}.json"
            file.unlink(missing_ok=True)
            problem = run_part([*module, "--seconds", str(seconds), *options], env, seconds)
            if problem is None:
                result = json.loads(file.read_text())
                rows += [Row(**row) for row in result["rows"]]
                where = result["where"] or where
        if problem is not None:
            rows.append(Row(part, MISSING, "why", [], note=problem))
        console.print(f"{part}: {problem or 'done'}, {time.monotonic() - began:.0f} s", markup=False, highlight=False)
    return rows, where


def main(args: Sequence[str] | None = None) -> None:
    """Installs and unpacks, measures, and reports."""
    began = time.monotonic()
    options = _parse(args)
    console = Console(width=120)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        place, data_dir = Path(folder), options.data_dir
        env = {**os.environ, "XDG_CACHE_HOME": str(place / "cache")}
        env.pop("JAX_COMPILATION_CACHE_DIR", None)  # it takes precedence, and may hold compiled programs already
        if options.files is not None:
            install(options.files / WHEEL_FOLDER, place / "site")
            env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(place / "site"), os.environ.get("PYTHONPATH"))))
        if data_dir is None:
            data_dir = place / "data"
            unpack_records(options.files, data_dir)
        console.print(f"prepared, {time.monotonic() - began:.0f} s", highlight=False)
        part_options = ["--data-dir", str(data_dir), "--runs", str(options.runs), *(["--tiny"] if options.tiny else [])]
        rows, where = measure(options.parts, part_options, env, out, began + options.seconds, console)
    settings: dict[str, Any] = {**where, "on": datetime.date.today().isoformat(), "runs": options.runs}
    if options.tiny:
        settings["tiny"] = "the numbers say nothing"
    report(rows, out / "gpu.json", settings, console)
    for part in options.parts:  # gpu.json holds their rows
        (out / f"{part}.json").unlink(missing_ok=True)
    console.print(f"{time.monotonic() - began:.0f} s in all", highlight=False)


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options. argparse reads them, as tyro may not be installed yet."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.gpu")
    parser.add_argument("--files", type=Path, help="folder made by experiments.benchmarks.gpu_pack")
    parser.add_argument("--data-dir", type=Path, help="folder that cifar10 was prepared in; default: unpack --files")
    parser.add_argument("--out", type=Path, default=Path("build/gpu-results"), help="folder for the results")
    parser.add_argument("--parts", nargs="+", choices=[*BUDGETS], default=[*BUDGETS], help="the parts to measure")
    parser.add_argument("--runs", type=int, default=25, help="most runs of each measurement, as far as time allows")
    parser.add_argument("--seconds", type=float, default=WHOLE, help="time limit for all parts together")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to test that everything runs")
    options = parser.parse_args(args)
    if options.files is None and options.data_dir is None:
        parser.error("--files or --data-dir is needed: python -m experiments.benchmarks.gpu_pack makes --files.")
    return options


if __name__ == "__main__":
    main()

"""A check that the memory, threads and open files of a long run do not grow, as Linux counts them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
from rich.table import Table

from experiments.soak import run
from flaxcls.run.evaluation import evaluate
from flaxcls.train import main

EVERY = 50  # steps from one evaluation and checkpoint to the next, and from one sample to the next
SETTLED = 500  # steps after which nothing may grow
BOUND = 1.0  # MB per 1,000 steps
POOL = "ts_pool_worker"  # threads of tensorstore's pool, which grows up to a bound when many are needed at once
POOL_BOUND = 128  # the number of simultaneous file operations that orbax allows
GIVEN_BACK = 5.0  # MB; a larger drop between two samples is memory given back to the system


def watch(workdir: Path, *, steps: int) -> list[dict[str, Any]]:
    """Returns samples of a run of `steps` steps: step, memory in MB, threads, tensorstore's threads, open files."""
    command = [sys.executable, "-m", "experiments.soak.memory", str(workdir), str(steps)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    samples: list[dict[str, Any]] = json.loads(workdir.with_suffix(".json").read_text())
    return samples


def slope(samples: list[dict[str, Any]]) -> float:
    """Returns the growth of memory after it has settled, in MB per 1,000 steps, by least squares.

    Large drops, when memory is given back to the system at once, would hide growth; they are left out.
    """
    settled = [sample for sample in samples if sample["step"] >= SETTLED]
    changes = np.diff([sample["memory"] for sample in settled], prepend=settled[0]["memory"])
    grown = np.cumsum(np.where(changes < -GIVEN_BACK, 0, changes))
    return float(np.polyfit(np.array([sample["step"] for sample in settled]) / 1000, grown, 1)[0])


def grows(samples: list[dict[str, Any]]) -> bool:
    """True if memory grows by more than the bound after it has settled, or threads or files from half to half.

    The least number of each half counts, because a sample may fall into a save.
    """
    settled = [sample for sample in samples if sample["step"] >= SETTLED]
    halves = settled[: len(settled) // 2], settled[len(settled) // 2 :]
    first, second = ({name: min(s[name] for s in half) for name in ("threads", "files")} for half in halves)
    pool = max(sample["pool"] for sample in samples)
    return slope(samples) > BOUND or pool > POOL_BOUND or any(second[name] > first[name] for name in first)


def table(samples: list[dict[str, Any]]) -> Table:
    """Returns a table of the samples at every 500 steps, and the slope."""
    printed = Table(title=f"a run that evaluates and saves every {EVERY} steps", title_justify="left")
    for header in ("step", "memory, MB", "threads", "and tensorstore's", "open files"):
        printed.add_column(header, justify="right")
    for sample in samples:
        if sample["step"] % 500 == 0:
            printed.add_row(*(f"{sample[name]:g}" for name in ("step", "memory", "threads", "pool", "files")))
    printed.caption = f"memory after step {SETTLED}: {slope(samples):+.2f} MB per 1,000 steps"
    printed.caption_justify = "left"
    return printed


def _sample_run(workdir: Path, steps: int) -> int:
    """Runs the training command, and takes a sample before each evaluation."""
    options = f"--loop.epochs {steps // EVERY} --loop.batch-size {800 // EVERY} --loop.save-every {EVERY}"
    arguments = [run.__file__, "--workdir", str(workdir), "--stop.patience", "None", *options.split()]
    process = psutil.Process()
    samples: list[dict[str, Any]] = []

    def sample_and_evaluate(*args: Any, **options: Any) -> Any:
        tasks = Path("/proc/self/task").glob("*/comm")
        names = [path.read_text().strip() for path in tasks]
        samples.append(
            {
                "step": EVERY * (len(samples) + 1),
                "memory": round(process.memory_info().rss / 1e6, 2),
                "threads": len(names) - names.count(POOL),
                "pool": names.count(POOL),
                "files": process.num_fds(),
            }
        )
        return evaluate(*args, **options)

    with mock.patch("flaxcls.run.loop.evaluate", sample_and_evaluate):
        code = main(arguments)
    workdir.with_suffix(".json").write_text(json.dumps(samples[:-2]))  # the last two are from the test at the end
    return code


if __name__ == "__main__":
    sys.exit(_sample_run(Path(sys.argv[1]), int(sys.argv[2])))

"""The training command with a trap: at one given moment, the process kills itself by SIGKILL.

    python -m experiments.soak.trap '{"point": "save", "at": 12, "delay": 0}' [arguments of flaxcls.train]

A point is a kind of moment; `at` is the number of the moment of that kind, from 1. The signal comes `delay` seconds
after it. With `at` 0 nothing is killed, and the number of moments of each kind is written to the file `counts`.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from flaxcls.run.evaluation import evaluate
from flaxcls.run.logs import _Files
from flaxcls.train import main

# kind of moment -> pattern of a file operation of Python and its paths; the first match counts
FILE_POINTS = {
    "finalisation": r"os\.rename .*checkpoints/\d+\.orbax-checkpoint-tmp .*checkpoints/\d+$",
    "save": r".*checkpoints/\d+\.orbax-checkpoint-tmp",
    "deletion of an old checkpoint": r"(shutil\.rmtree|os\.rmdir|os\.remove) .*checkpoints/\d+",
    "other files": r".*(metrics\.jsonl|config\.json|result\.json|tensorboard|lock|damaged)",
}
COMPILATION, EVALUATION, LINE = "compilation", "evaluation", "line of metrics"


class Trap:
    """Counts the moments of each kind, and ends the process at one of them."""

    def __init__(self, point: str, at: int, delay: float) -> None:
        self.point, self.at, self.delay = point, at, delay
        self.counts: dict[str, int] = {}
        self.compilations: list[float] = []

    def passes(self, point: str) -> None:
        """Counts a moment of this kind, which is about to come, and kills the process if it is the chosen one."""
        count = self.counts[point] = self.counts.get(point, 0) + 1
        if (point, count) == (self.point, self.at):
            if not self.delay:
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Thread(target=self._die, daemon=True).start()

    def _die(self) -> None:
        time.sleep(self.delay)
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, workdir: Path) -> None:
        """Sets the trap in file operations below `workdir`, compilations, evaluations and lines of the log."""
        inside = str(workdir)

        def audit(event: str, args: tuple[Any, ...]) -> None:
            writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
            if not (writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")):
                return
            paths = [str(arg) for arg in args[:2] if isinstance(arg, str | os.PathLike)]
            if event in ("os.remove", "os.rmdir") and args[1] != -1:  # the name is relative to an open folder
                paths = [f"{Path(f'/proc/self/fd/{args[1]}').readlink()}/{paths[0]}"]
            if paths and inside in paths[0]:
                operation = f"{event} {' '.join(paths)}"
                point = next((name for name, pattern in FILE_POINTS.items() if re.match(pattern, operation)), None)
                if point:
                    self.passes(point)

        def on_compile(event: str, duration_secs: float, **kwargs: str | int) -> None:
            if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":  # XLA's compilation comes next
                self.passes(COMPILATION)
            elif event == "/jax/core/compile/backend_compile_duration":
                self.compilations.append(duration_secs)

        def watched_evaluate(eval_step: Any, *args: Any, **options: Any) -> Any:
            def watched_step(*args: Any) -> Any:
                self.passes(EVALUATION)
                return eval_step(*args)

            return evaluate(watched_step, *args, **options)

        add_scalars = _Files._add_scalars

        def watched_add_scalars(files: Any, line: Any) -> None:  # called after the line is in metrics.jsonl
            self.passes(LINE)
            add_scalars(files, line)

        mock.patch("flaxcls.run.loop.evaluate", watched_evaluate).start()
        mock.patch.object(_Files, "_add_scalars", watched_add_scalars).start()
        jax.monitoring.register_event_duration_secs_listener(on_compile)
        sys.addaudithook(audit)


def run(spec: dict[str, Any], args: list[str]) -> int:
    """Runs the training command with these arguments and the trap in `spec`; returns its exit code."""
    trap = Trap(spec["point"], spec["at"], spec.get("delay", 0.0))
    trap.watch(Path(args[args.index("--workdir") + 1]))
    code = main(args)
    if "counts" in spec:
        Path(spec["counts"]).write_text(json.dumps({"points": trap.counts, "compilations": trap.compilations}))
    return code


if __name__ == "__main__":
    sys.exit(run(json.loads(sys.argv[1]), sys.argv[2:]))

"""Runs: training with logs, checkpoints and early stopping, in a run directory."""

from flaxcls.run.loop import fit
from flaxcls.run.result import FitResult

__all__ = ["FitResult", "fit"]

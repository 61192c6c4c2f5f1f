"""Runs: training with logs, checkpoints and early stopping, in a run directory."""

from flaxcls.run.dry_run import dry_run
from flaxcls.run.loop import fit
from flaxcls.run.result import FitResult

__all__ = ["FitResult", "dry_run", "fit"]

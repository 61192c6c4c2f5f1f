"""Training of image classifiers with JAX and Flax."""

from importlib.metadata import version

from flaxcls.state import TrainState, create_state
from flaxcls.step import drop_not_finite, eval_step, train_step, train_steps
from flaxcls.types import Batch

__version__ = version("flaxcls")

__all__ = ["Batch", "TrainState", "create_state", "drop_not_finite", "eval_step", "train_step", "train_steps"]

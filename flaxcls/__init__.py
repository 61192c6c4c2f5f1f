"""Training of image classifiers with JAX and Flax."""

from importlib.metadata import version

from flaxcls.state import TrainState, create_state
from flaxcls.step import eval_step, train_step
from flaxcls.types import Batch

__version__ = version("flaxcls")

__all__ = ["Batch", "TrainState", "create_state", "eval_step", "train_step"]

"""The plan of a run: the one place where epochs become steps. All events after a step depend on its number alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flaxcls.config import LoopConfig


@dataclass(frozen=True)
class Plan:
    """The steps after which a run does something; step s is the s-th update, counted from 1.

    examples: of the training split.
    warmup_steps: steps in which the learning rate rises.
    eval_epochs: epochs between two evaluations.
    skipped_evaluations: evaluations at the start that early stopping ignores.
    save_steps: steps between two checkpoints; None: checkpoints are written only after evaluations.
    log_steps: steps between two lines of metrics.
    dispatch_steps: the most steps of a dispatch.
    freeze_steps: (glob, the step after which the parameters that it matches do not change).
    """

    examples: int
    batch_size: int
    total_steps: int
    steps_per_epoch: int
    warmup_steps: int
    eval_epochs: int
    skipped_evaluations: int
    save_steps: int | None
    log_steps: int
    dispatch_steps: int = 1
    freeze_steps: tuple[tuple[str, int], ...] = ()

    def dispatch_end(self, step: int) -> int:
        """Returns the last step of the dispatch after `step`. All other events happen at the end of a dispatch."""
        phases = [begin for _, begin in self.freeze_steps if begin > step]
        return min((step // self.dispatch_steps + 1) * self.dispatch_steps, *phases, self.total_steps)

    def frozen(self, step: int) -> tuple[str, ...]:
        """Returns the globs of the parameters that the dispatch after `step` does not change."""
        return tuple(glob for glob, begin in self.freeze_steps if begin <= step)

    def epochs_done(self, step: int) -> int:
        """Returns the number of epochs that are over after `step`."""
        return step * self.batch_size // self.examples

    def logs(self, step: int) -> bool:
        """Returns True if a line of metrics is written after `step`, the end of a dispatch."""
        return self._rises(step, lambda s: s // self.log_steps)

    def evaluates(self, step: int) -> bool:
        """Returns True if `step` ends `eval_epochs` epochs, or training: then the validation split is evaluated."""
        return self._rises(step, lambda s: self.epochs_done(s) // self.eval_epochs)

    def saves(self, step: int) -> bool:
        """Returns True if a checkpoint is written after `step`."""
        steps = self.save_steps
        return self.evaluates(step) or (steps is not None and self._rises(step, lambda s: s // steps))

    def _rises(self, step: int, count: Callable[[int], int]) -> bool:
        """Returns True if `count` rises within the dispatch that ends with `step`, or if `step` is the last one."""
        phases = [begin for _, begin in self.freeze_steps if begin < step]
        start = max((step - 1) // self.dispatch_steps * self.dispatch_steps, *phases, 0)
        return count(step) > count(start) or step == self.total_steps


def make_plan(
    loop: LoopConfig,
    *,
    examples: int,
    warmup_epochs: float = 0.0,
    skip: float = 0.0,
    freeze: Mapping[str, float] | None = None,
) -> Plan:
    """Returns the plan of a run.

    Args:
      loop: epochs, batch size and periods.
      examples: of the training split.
      warmup_epochs: epochs in which the learning rate rises.
      skip: the share of evaluations, from the start, that early stopping ignores.
      freeze: glob -> the epochs after which the parameters that it matches do not change.
    """

    def to_steps(epochs: float) -> int:
        return round(epochs * examples / loop.batch_size)

    evaluations = -(-loop.epochs // loop.eval_every)
    return Plan(
        examples=examples,
        batch_size=loop.batch_size,
        total_steps=-(-loop.epochs * examples // loop.batch_size),
        steps_per_epoch=-(-examples // loop.batch_size),
        warmup_steps=to_steps(warmup_epochs),
        eval_epochs=loop.eval_every,
        skipped_evaluations=int(skip * evaluations),
        save_steps=loop.save_every,
        log_steps=loop.log_every,
        dispatch_steps=loop.steps_per_dispatch,
        freeze_steps=tuple((glob, to_steps(epochs)) for glob, epochs in (freeze or {}).items()),
    )

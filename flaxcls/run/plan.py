"""The one place where epochs become steps. What happens after a step depends on its number alone."""

from collections.abc import Callable
from dataclasses import dataclass

from flaxcls.config import Config


@dataclass(frozen=True)
class Plan:
    """When things happen, in steps; step s is the s-th update, from 1."""

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

    @classmethod
    def make(cls, config: Config, examples: int) -> "Plan":
        """Returns the plan of `config` for a training split of so many examples."""
        loop = config.loop
        evaluations = -(-loop.epochs // loop.eval_every)
        return cls(
            examples=examples,
            batch_size=loop.batch_size,
            total_steps=-(-loop.epochs * examples // loop.batch_size),
            steps_per_epoch=-(-examples // loop.batch_size),
            warmup_steps=round(config.optim.warmup_epochs * examples / loop.batch_size),
            eval_epochs=loop.eval_every,
            skipped_evaluations=int(config.stop.skip * evaluations),
            save_steps=loop.save_every,
            log_steps=loop.log_every,
            dispatch_steps=loop.steps_per_dispatch,
            freeze_steps=tuple(
                (glob, round(epochs * examples / loop.batch_size)) for glob, epochs in config.optim.freeze.items()
            ),
        )

    def dispatch_end(self, step: int) -> int:
        """The last step of the dispatch that goes on after `step`: their ends are where anything else can happen."""
        phases = [begin for _, begin in self.freeze_steps if begin > step]
        return min((step // self.dispatch_steps + 1) * self.dispatch_steps, *phases, self.total_steps)

    def frozen(self, step: int) -> tuple[str, ...]:
        """The globs of the parameters that stay as they are in the dispatch that goes on after `step`."""
        return tuple(glob for glob, begin in self.freeze_steps if begin <= step)

    def epochs_done(self, step: int) -> int:
        """How often every example has been seen after `step`."""
        return step * self.batch_size // self.examples

    def logs(self, step: int) -> bool:
        """Whether the metrics since the last such step are written after `step`, the end of a dispatch."""
        return self._passes(step, lambda s: s // self.log_steps)

    def evaluates(self, step: int) -> bool:
        """Whether the validation split is evaluated after `step`: when every `eval_epochs` epochs are over."""
        return self._passes(step, lambda s: self.epochs_done(s) // self.eval_epochs)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is written after `step`."""
        steps = self.save_steps
        return self.evaluates(step) or (steps is not None and self._passes(step, lambda s: s // steps))

    def _passes(self, step: int, count: Callable[[int], int]) -> bool:
        """Whether `count` rises within the dispatch that ends with `step`, or that is the last."""
        phases = [begin for _, begin in self.freeze_steps if begin < step]
        before = max((step - 1) // self.dispatch_steps * self.dispatch_steps, *phases, 0)
        return count(step) > count(before) or step == self.total_steps

"""The one place where epochs become steps. What happens after a step depends on its number alone."""

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
        )

    def epochs_done(self, step: int) -> int:
        """How often every example has been seen after `step`."""
        return step * self.batch_size // self.examples

    def logs(self, step: int) -> bool:
        """Whether the metrics since the last such step are written after `step`."""
        return step % self.log_steps == 0 or step == self.total_steps

    def evaluates(self, step: int) -> bool:
        """Whether the validation split is evaluated after `step`: at the end of every `eval_epochs` epochs."""
        before, after = (self.epochs_done(s) // self.eval_epochs for s in (step - 1, step))
        return after > before or step == self.total_steps

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is written after `step`."""
        return self.evaluates(step) or (self.save_steps is not None and step % self.save_steps == 0)

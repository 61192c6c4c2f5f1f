"""The result of a finished run."""

import dataclasses
import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from rich.markup import escape
from rich.table import Table

from flaxcls.models.summary import count
from flaxcls.run.checkpoint_files import fingerprint
from flaxcls.state import TrainState

LIBRARIES = ("flaxcls", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclass(frozen=True)
class FitResult:
    """The result of `fit`; result.json holds all but `state` and `workdir`.

    test, validation: accuracy (0..1) and loss (nats) of the best parameters; validation is empty without such a split.
    best_step: the step of the best parameters; without a validation split, the last step.
    steps: the number of trained steps.
    seconds: from the call of `fit` to its end, without earlier sessions of a resumed run.
    images_per_second: over the training steps of all sessions, without compilation, evaluation and saving.
    skipped_updates, rollbacks: how often loop.on_nan dropped an update or went back to a checkpoint.
    unread: for each split, how many of its examples could not be read (data.unreadable replace). Others took the place
      of those of train, and those of validation and test were left out. Empty if all could be read.
    parameters: the number of parameters.
    versions: of Python and of the libraries.
    device: number and kind of the devices.
    fingerprint: SHA-256 over the tested parameters and model state.
    state: the state with the best parameters.
    workdir: the run directory.
    """

    test: dict[str, float]
    validation: dict[str, float]
    best_step: int
    steps: int
    seconds: float
    images_per_second: float
    skipped_updates: int
    rollbacks: int
    unread: dict[str, int]
    parameters: int
    versions: dict[str, str]
    device: str
    fingerprint: str
    state: TrainState
    workdir: Path

    @classmethod
    def of_state(cls, state: TrainState, **values: Any) -> "FitResult":
        """Returns the result for the tested state; adds parameter count, fingerprint, versions and device."""
        return cls(
            state=state,
            parameters=count(state.params),
            fingerprint=fingerprint(state.eval_variables),
            versions=versions(),
            device=device(),
            **values,
        )

    def to_json(self) -> str:
        """Returns the text of result.json."""
        hidden = ("state", "workdir")
        names = [field.name for field in dataclasses.fields(self) if field.name not in hidden]
        values = {name: getattr(self, name) for name in names}
        return json.dumps(values, indent=2, allow_nan=False) + "\n"

    def table(self) -> Table:
        """Returns the result as a table to print."""
        summary = Table(title=escape(f"result of {self.workdir}"), title_justify="left", show_header=False)
        for split, values in (("test", self.test), ("validation", self.validation)):
            if values:
                summary.add_row(f"{split} accuracy", f"{values['accuracy']:.2%}")
                summary.add_row(f"{split} loss", f"{values['loss']:.4f}")
        for row in (
            ("best step" if self.validation else "last step", f"{self.best_step:,} of {self.steps:,}"),
            ("time", f"{self.seconds:.1f} s, {self.images_per_second:,.0f} images/s"),
            ("parameters", f"{self.parameters:,}"),
            ("device", self.device),
            ("fingerprint", self.fingerprint[:16]),
        ):
            summary.add_row(*row)
        if self.skipped_updates or self.rollbacks:
            summary.add_row("NaN or infinity", f"{self.skipped_updates} updates dropped, {self.rollbacks} rollbacks")
        if self.unread:
            counts = ", ".join(f"{count:,} of {split}" for split, count in self.unread.items())
            summary.add_row("examples not read", f"{counts}, see unread.jsonl")
        return summary


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that decide a run's numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def device() -> str:
    """Returns the number and kind of the devices, such as "1 x cpu"."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}"

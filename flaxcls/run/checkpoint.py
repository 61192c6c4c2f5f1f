"""Checkpoints: the latest and the best of a run, side by side. The only file that imports orbax."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import orbax.checkpoint as ocp

from flaxcls.state import TrainState


class Checkpoints:
    """The checkpoints of one run, written in the background; to be closed.

    Each holds the state's arrays and a JSON record of everything else that the run goes on from.
    """

    def __init__(self, directory: Path) -> None:
        self._best_step: int | None = None
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(preservation_policy=self, cleanup_tmp_directories=True),
            item_names=("state", "record"),
        )

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Keeps the latest and the best: orbax's own policies lose the best where steps are saved without metrics."""
        return [item is checkpoints[-1] or item.step == self._best_step for item in checkpoints]

    @property
    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, record: dict[str, Any], *, best_step: int | None) -> None:
        """Writes `step` in the background; older ones but `best_step` are deleted when it is whole.

        The arrays are copied before this returns, so that the next step may be given the state's buffers. An error of
        the save before this one is raised here.
        """
        if step == self.latest_step:
            return
        self._best_step = best_step
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        self._manager.save(step, args=items)

    def restore_record(self, step: int) -> dict[str, Any]:
        """Returns the JSON record of the checkpoint at `step`."""
        items = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))
        return dict(items["record"])

    def restore_state(self, step: int, like: TrainState) -> TrainState:
        """Returns the state at `step`, of the shapes, types and shardings of `like`."""
        items = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))
        return TrainState(**{name: getattr(items["state"], name) for name in TrainState.__dataclass_fields__})

    def wait(self) -> None:
        """Returns when what was saved is whole on the disk."""
        self._manager.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.close()

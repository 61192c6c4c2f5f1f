"""Checkpoints: the two latest and the best of a run, side by side."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

from flaxcls.errors import InputError, StorageError
from flaxcls.places import absolute, in_bucket
from flaxcls.run.checkpoint_files import RECORD, SEAL, damage, first_line, sealed, unfinished
from flaxcls.run.fingerprint import fingerprint
from flaxcls.run.processes import agree, is_first, wait_for_all
from flaxcls.run.workdir import remove, write_whole
from flaxcls.state import TrainState

DAMAGED = "damaged"
UNFINISHED = "it was not written to its end"


@dataclass(frozen=True)
class Restored:
    """What a run goes on from, and the damaged checkpoints that were passed over: step -> what is wrong."""

    step: int
    state: TrainState
    record: dict[str, Any]
    passed_over: dict[int, str]


class _Manager(ocp.CheckpointManager):  # type: ignore[misc]  # it is not typed
    def reached_preemption(self, step: int) -> bool:
        """Leaves it to the training loop to ask, which counts its polls and not steps."""
        return False


class Checkpoints:
    """The checkpoints of one run, written in the background; to be closed.

    Each holds the state's arrays, a JSON record of everything else that the run goes on from, and in it the SHA-256 of
    the arrays. What cannot be written raises StorageError, at the next call of any method.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = absolute(directory)
        self._best_step: int | None = None
        self._planned_step: int | None = None
        self._manager = _Manager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self,
                # in the background, a folder that cannot be made would be noticed by nobody for twenty minutes
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            ),
            item_names=("state", "record"),
        )

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Keeps the two latest, lest one damaged file be the end of a run, the latest planned one, and the best.

        orbax's own policies lose the best where steps are saved without metrics.
        """
        steps = [item.step for item in checkpoints]
        kept = {*steps[-2:], self._planned_step, self._best_step}
        return [step in kept for step in steps]

    @property
    def steps(self) -> list[int]:
        """The steps of the finished checkpoints."""
        return sorted(self._manager.all_steps())

    @property
    def latest_step(self) -> int | None:
        """The step of the newest finished checkpoint, or None."""
        return self._manager.latest_step()

    def save(
        self, step: int, state: TrainState, record: dict[str, Any], *, best_step: int | None, planned: bool = True
    ) -> None:
        """Writes `step` in the background; when it is whole, those that `should_preserve` does not name are deleted.

        The arrays are copied before this returns, so that the next step may be given the state's buffers.

        planned: whether it would have been saved without a signal, which is what a rollback may go back to.
        """
        if step == self.latest_step:
            return
        self._best_step = best_step
        self._planned_step = step if planned else self._planned_step
        record = sealed({**record, "planned_step": self._planned_step, "sha256": fingerprint(state)})
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        with self._storage_errors():
            self._manager.save(step, args=items)

    def replace_record(self, step: int, record: dict[str, Any]) -> None:
        """Gives the finished checkpoint of `step`, now as planned, another record; it has either at any moment."""
        self._planned_step = step
        record = sealed({**record, "planned_step": step, "sha256": self.restore_record(step)["sha256"]})
        wait_for_all("the record has been read")
        if is_first():
            with self._storage_errors():
                write_whole(self._directory / str(step) / RECORD, json.dumps(record))

    def check(self) -> None:
        """Raises StorageError if what is written in the background has failed."""
        with self._storage_errors():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Returns when what was saved is whole on the disk."""
        with self._storage_errors():
            self._manager.wait_until_finished()

    def restore_newest(self, like: TrainState, check: Callable[[dict[str, Any]], None]) -> Restored | None:
        """Returns the newest intact checkpoint, or None where there is none at all.

        Damaged ones that are newer are moved to damaged/ beside the directory, and so are those half written; in a
        bucket these are deleted.

        Args:
          like: shapes, types and shardings of the state.
          check: raises InputError where a record is of another run, and any other error where it is damaged.

        Raises:
          InputError: if there are checkpoints, but all are damaged; nothing is moved then.
        """
        passed_over: dict[int, str] = {}
        half = unfinished(self._directory)
        for step in reversed(self.steps):
            try:
                record = self.restore_record(step)
                check(record)
            except InputError:
                raise
            except Exception as error:  # whatever reading a damaged file comes to
                passed_over[step] = damage(error)
                continue
            try:
                state = self.restore_state(step, like)
            except Exception as error:
                passed_over[step] = damage(error)
                continue
            for damaged in passed_over:
                self.set_aside(damaged)
            self._planned_step = record.get("planned_step", step)
            return Restored(step, state, record, {**self._set_unfinished_aside(half), **passed_over})
        if passed_over and in_bucket(self._directory):
            # a process that has just lost the run may have saved and deleted meanwhile
            self._manager.reload()
            if not passed_over.keys() >= set(self.steps):
                return self.restore_newest(like, check)
        if passed_over:
            wrong = "\n  ".join(f"step {step}: {problem}" for step, problem in passed_over.items())
            raise InputError(
                f"no checkpoint in {self._directory} is intact:\n  {wrong}\n"
                "Restore them from a copy, or start the run anew with --overwrite."
            )
        self._set_unfinished_aside(half)
        return None

    def _set_unfinished_aside(self, half: dict[int, Path]) -> dict[int, str]:
        for path in half.values():
            if in_bucket(path):  # where the checkpoint of that step is to be written
                self._delete(path)
            else:
                self._set_aside(path)
        return dict.fromkeys(half, UNFINISHED)

    def roll_back(self, like: TrainState, check: Callable[[dict[str, Any]], None]) -> Restored | None:
        """Deletes what is newer than the latest planned checkpoint, and restores that as `restore_newest` does."""
        for step in self.steps:
            if self._planned_step is None or step > self._planned_step:
                self._manager.delete(step)
        return self.restore_newest(like, check)

    def restore_record(self, step: int) -> dict[str, Any]:
        """Returns the JSON record of the checkpoint at `step`; StorageError if it is not the one that was saved."""
        items = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))
        record = dict(items["record"])
        if SEAL in record and record != sealed(record):
            raise StorageError("the record is not the one that was saved.")
        return record

    def restore_state(self, step: int, like: TrainState) -> TrainState:
        """Returns the state at `step`, of the shapes, types and shardings of `like`.

        Raises StorageError if its bits are not those that were saved.
        """
        problem: Exception | None = None
        try:
            items = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))
        except Exception as error:  # of this process, which may read other files than the others
            problem = error
        if not agree(problem is None):
            raise problem or StorageError(f"another process could not read its part of step {step}.")
        state = TrainState(**{name: getattr(items["state"], name) for name in TrainState.__dataclass_fields__})
        if fingerprint(state) != self.restore_record(step)["sha256"]:
            raise StorageError(f"the arrays of step {step} are not those that were saved.")
        return state

    def set_aside(self, step: int) -> Path:
        """Moves the checkpoint of `step`, if it is there, to damaged/ beside the directory, and returns its place."""
        return self._set_aside(self._directory / str(step))

    def _delete(self, path: Path) -> None:
        wait_for_all(f"{path.name} is known")
        if is_first():
            remove(path)
        wait_for_all(f"{path.name} has been deleted")
        self._manager.reload()

    def _set_aside(self, path: Path) -> Path:
        wait_for_all(f"{path.name} has been read")
        place = self._directory.parent / DAMAGED
        target = place / path.name
        for number in range(1, 1000):
            if not target.exists():
                break
            target = place / f"{path.name}-{number}"
        if is_first() and path.exists():
            if not in_bucket(place):
                place.mkdir(exist_ok=True)
            path.rename(target)
        wait_for_all(f"{path.name} has been set aside")
        self._manager.reload()
        return target

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError:  # of what was to be computed, or of another process
            raise
        except Exception as error:
            raise StorageError(
                f"a checkpoint could not be written to {self._directory}: {first_line(error)}"
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._storage_errors():
                self._manager.close()
        except StorageError:
            if error is None:
                raise

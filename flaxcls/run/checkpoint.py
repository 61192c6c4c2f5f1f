"""Checkpoints: the two latest and the best of a run, side by side."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

from flaxcls.errors import InputError, StorageError
from flaxcls.run.checkpoint_files import (
    RECORD,
    damage,
    fingerprint,
    first_line,
    read_record,
    read_steps,
    read_tree,
    sealed,
    unfinished,
)
from flaxcls.run.multihost.sync import all_agree, is_first, run_on_all, value_from_first, wait_for_all
from flaxcls.state import TrainState
from flaxcls.storage import absolute, in_bucket, move, os_errors, remove, write_whole

DAMAGED = "damaged"
UNFINISHED = "it was not written to its end"
LOOKS = 5  # at checkpoints that another process changes meanwhile
PAUSE = 2.0  # seconds, in which it may end with what looks damaged


@dataclass(frozen=True)
class Restored:
    """What a run goes on from, and the damaged checkpoints that were passed over: step -> what is wrong."""

    step: int
    state: TrainState
    record: dict[str, Any]
    passed_over: dict[int, str]


@dataclass(frozen=True)
class _Listed:
    """The steps of the finished checkpoints, and the others: step -> name."""

    steps: list[int]
    unfinished: dict[int, str]


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
                lightweight_initialize=True,  # or it fails where another process deletes what it has just listed
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
        record = sealed({**record, "planned_step": step, "sha256": read_record(self._directory, step)["sha256"]})
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
        """Returns the newest intact checkpoint, the same on all processes, or None where there is none at all.

        Damaged ones that are newer are moved to damaged/ beside the directory, and so are those half written; in a
        bucket these are deleted. There, another process from which the run was just taken may still write and delete,
        so that what is found counts only if the same is there after it was read.

        Args:
          like: shapes, types and shardings of the state.
          check: raises InputError where a record is of another run, and any other error where it is damaged.

        Raises:
          InputError: if there are checkpoints, but all are damaged; nothing is moved then.
          StorageError: if another process goes on writing or deleting checkpoints in the bucket.
        """
        for _ in range(LOOKS):
            listed = self._listed()
            restored, passed_over = self._newest_of(listed.steps, like, check)
            if not in_bucket(self._directory):
                break
            if passed_over or listed.unfinished:
                time.sleep(PAUSE)
            self._reload()
            if self._listed() == listed and all_agree(self.steps == listed.steps):
                break
            restored = None  # its memory is needed
        else:
            raise StorageError(
                f"the checkpoints in {self._directory} change while they are read: another process writes there."
            )
        if passed_over and restored is None:
            wrong = "\n  ".join(f"step {step}: {problem}" for step, problem in passed_over.items())
            raise InputError(
                f"no checkpoint in {self._directory} is intact:\n  {wrong}\n"
                "Restore them from a copy, or start the run anew with --overwrite."
            )
        for step in passed_over:
            self.set_aside(step)
        for name in listed.unfinished.values():
            if in_bucket(self._directory):  # where the checkpoint of that step is to be written
                self._delete(self._directory / name)
            else:
                self._set_aside(self._directory / name)
        if restored is None:
            return None
        self._planned_step = restored.record.get("planned_step", restored.step)
        return replace(restored, passed_over={**dict.fromkeys(listed.unfinished, UNFINISHED), **passed_over})

    def _listed(self) -> "_Listed":
        """Returns what the first process finds in the directory."""

        def look() -> list[Any]:
            with os_errors():
                half = {step: path.name for step, path in unfinished(self._directory).items()}
                return [read_steps(self._directory), list(half.items())]

        steps, half = value_from_first(look)
        return _Listed(steps, dict(half))

    def _newest_of(
        self, steps: list[int], like: TrainState, check: Callable[[dict[str, Any]], None]
    ) -> tuple[Restored | None, dict[int, str]]:
        """Returns the newest of these steps that is intact, and what is wrong with those that are newer."""
        passed_over: dict[int, str] = {}
        for step in reversed(steps):

            def read(step: int = step) -> dict[str, Any]:
                check(record := read_record(self._directory, step))
                return record

            try:
                record = run_on_all(read, f"read its part of step {step}")
                return Restored(step, self.restore_state(step, like), record, {}), passed_over
            except InputError:
                raise
            except Exception as error:  # whatever reading a damaged file comes to
                passed_over[step] = damage(error)
        return None, passed_over

    def roll_back(self, like: TrainState, check: Callable[[dict[str, Any]], None]) -> Restored | None:
        """Deletes what is newer than the latest planned checkpoint, and restores that as `restore_newest` does."""
        for step in self._listed().steps:
            if self._planned_step is None or step > self._planned_step:
                self._manager.delete(step)
        return self.restore_newest(like, check)

    def restore_state(self, step: int, like: TrainState) -> TrainState:
        """Returns the state at `step`, of the shapes, types and shardings of `like`.

        Raises StorageError if its bits are not those that were saved, or a process cannot read its part.
        """

        def read() -> tuple[str, Any]:
            record = read_record(self._directory, step)
            return record["sha256"], read_tree(self._directory / str(step) / "state", like)

        sha256, tree = run_on_all(read, f"read its part of step {step}")
        state = TrainState(**{name: getattr(tree, name) for name in TrainState.__dataclass_fields__})
        if not all_agree(
            fingerprint(state) == sha256
        ):  # of what all hold in common, each process has read its own copy
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
        self._reload()

    def _set_aside(self, path: Path) -> Path:
        wait_for_all(f"{path.name} has been read")
        place = self._directory.parent / DAMAGED
        target = place / path.name
        for number in range(1, 1000):
            if not target.exists():
                break
            target = place / f"{path.name}-{number}"
        if is_first() and path.exists():
            move(path, target)
        wait_for_all(f"{path.name} has been set aside")
        self._reload()
        return target

    def _reload(self) -> None:
        """Has orbax look again, which fails where another process deletes what it has just listed."""
        for look in range(1, LOOKS + 1):
            try:
                self._manager.reload()
                return
            except (FileNotFoundError, NotADirectoryError):
                if look == LOOKS:
                    raise

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

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
LOOKS = 5  # reads of the directory, at most, while another process changes it
PAUSE = 2.0  # seconds in which another process may finish a checkpoint that looks damaged


@dataclass(frozen=True)
class Restored:
    """The checkpoint that a run goes on from.

    passed_over: the damaged and unfinished checkpoints that were not used: step -> problem.
    """

    step: int
    state: TrainState
    record: dict[str, Any]
    passed_over: dict[int, str]


@dataclass(frozen=True)
class _Listing:
    """The checkpoints in a directory.

    steps: of the finished checkpoints.
    unfinished: step -> name of the folder.
    """

    steps: list[int]
    unfinished: dict[int, str]


class _Manager(ocp.CheckpointManager):  # type: ignore[misc]  # orbax has no types
    def reached_preemption(self, step: int) -> bool:
        """Returns False: the training loop itself asks for signals, and counts polls instead of steps."""
        return False


class Checkpoints:
    """The checkpoints of one run, written in the background; to be closed.

    Each checkpoint holds the arrays of the state, and a JSON record of everything else that a resumed run needs. The
    record includes the SHA-256 of the arrays. If writing fails, the next call of any method raises StorageError.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = absolute(directory)
        self._best_step: int | None = None
        self._planned_step: int | None = None
        self._manager = _Manager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self,
                # in the background, a folder that cannot be made would go unnoticed for twenty minutes
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
                lightweight_initialize=True,  # else it fails if another process deletes a folder that it is listing
            ),
            item_names=("state", "record"),
        )

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns True for each checkpoint to keep: the two latest, the latest planned one, and the best.

        The second latest is a reserve, so that one damaged file does not end a run. orbax's own policies lose the best
        checkpoint if steps are saved without metrics.
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
        """Writes a checkpoint of `step` in the background, then deletes those that `should_preserve` does not keep.

        The arrays are copied before this returns, so the next step may reuse the buffers of the state.

        planned: True if an undisturbed run would write it too; a rollback goes back to such a checkpoint.
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
        """Replaces the record of the finished checkpoint of `step`, which counts as planned from now on.

        At any moment the checkpoint has the old record or the new one.
        """
        self._planned_step = step
        record = sealed({**record, "planned_step": step, "sha256": read_record(self._directory, step)["sha256"]})
        wait_for_all("the record has been read")
        if is_first():
            with self._storage_errors():
                write_whole(self._directory / str(step) / RECORD, json.dumps(record))

    def check(self) -> None:
        """Raises StorageError if writing in the background has failed."""
        with self._storage_errors():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits until every saved checkpoint is whole on the disk."""
        with self._storage_errors():
            self._manager.wait_until_finished()

    def restore_newest(self, like: TrainState, check: Callable[[dict[str, Any]], None]) -> Restored | None:
        """Returns the newest intact checkpoint, the same one on all processes, or None if there are no checkpoints.

        Newer checkpoints, which are damaged, are moved to damaged/ beside the directory. Unfinished checkpoints are
        moved there, too; in a bucket they are deleted.

        In a bucket, the process that had this run before may still write and delete checkpoints. There, a result counts
        only if the directory lists the same checkpoints before and after they are read.

        Args:
          like: shapes, types and shardings of the state.
          check: takes a record; raises InputError if it is from another run, and any other error if it is damaged.

        Raises:
          InputError: if all checkpoints are damaged; none is moved then.
          StorageError: if another process keeps writing or deleting checkpoints in the bucket.
        """
        for _ in range(LOOKS):
            listing = self._list_checkpoints()
            restored, passed_over = self._restore_intact(listing.steps, like, check)
            if not in_bucket(self._directory):
                break
            if passed_over or listing.unfinished:
                time.sleep(PAUSE)
            self._reload()
            if self._list_checkpoints() == listing and all_agree(self.steps == listing.steps):
                break
            restored = None  # frees its memory for the next read
        else:
            raise StorageError(
                f"the checkpoints in {self._directory} change while they are read: another process writes there."
            )
        if passed_over and restored is None:
            problems = "\n  ".join(f"step {step}: {problem}" for step, problem in passed_over.items())
            raise InputError(
                f"no checkpoint in {self._directory} is intact:\n  {problems}\n"
                "Restore them from a copy, or start the run anew with --overwrite."
            )
        for step in passed_over:
            self.set_aside(step)
        for name in listing.unfinished.values():
            if in_bucket(self._directory):  # the new checkpoint of that step will be written to the same folder
                self._delete(self._directory / name)
            else:
                self._move_to_damaged(self._directory / name)
        if restored is None:
            return None
        self._planned_step = restored.record.get("planned_step", restored.step)
        return replace(restored, passed_over={**dict.fromkeys(listing.unfinished, UNFINISHED), **passed_over})

    def _list_checkpoints(self) -> _Listing:
        """Returns, on all processes, the checkpoints that the first process finds in the directory."""

        def list_directory() -> list[Any]:
            with os_errors():
                names = [(step, path.name) for step, path in unfinished(self._directory).items()]
                return [read_steps(self._directory), names]

        steps, names = value_from_first(list_directory)
        return _Listing(steps, dict(names))

    def _restore_intact(
        self, steps: list[int], like: TrainState, check: Callable[[dict[str, Any]], None]
    ) -> tuple[Restored | None, dict[int, str]]:
        """Returns the newest intact checkpoint of `steps`, and the problems of the newer ones: step -> problem."""
        passed_over: dict[int, str] = {}
        for step in reversed(steps):

            def read_checked_record(step: int = step) -> dict[str, Any]:
                check(record := read_record(self._directory, step))
                return record

            try:
                record = run_on_all(read_checked_record, f"read its part of step {step}")
                return Restored(step, self.restore_state(step, like), record, {}), passed_over
            except InputError:
                raise
            except Exception as error:  # reading a damaged file can raise anything
                passed_over[step] = damage(error)
        return None, passed_over

    def roll_back(self, like: TrainState, check: Callable[[dict[str, Any]], None]) -> Restored | None:
        """Deletes the checkpoints after the latest planned one, and restores that one like `restore_newest`."""
        for step in self._list_checkpoints().steps:
            if self._planned_step is None or step > self._planned_step:
                self._manager.delete(step)
        return self.restore_newest(like, check)

    def restore_state(self, step: int, like: TrainState) -> TrainState:
        """Returns the state at `step`, with the shapes, types and shardings of `like`.

        Raises StorageError if its bits differ from the saved ones, or if a process cannot read its part.
        """

        def read_part() -> tuple[str, Any]:
            record = read_record(self._directory, step)
            return record["sha256"], read_tree(self._directory / str(step) / "state", like)

        sha256, tree = run_on_all(read_part, f"read its part of step {step}")
        state = TrainState(**{name: getattr(tree, name) for name in TrainState.__dataclass_fields__})
        # on each process: each has read its own copy of the replicated arrays
        if not all_agree(fingerprint(state) == sha256):
            raise StorageError(f"the arrays of step {step} are not the ones that were saved.")
        return state

    def set_aside(self, step: int) -> Path:
        """Moves the checkpoint of `step`, if it exists, to damaged/ beside the directory, and returns its new path."""
        return self._move_to_damaged(self._directory / str(step))

    def _delete(self, path: Path) -> None:
        """Deletes an unfinished checkpoint."""
        wait_for_all(f"{path.name} is known")
        if is_first():
            remove(path)
        wait_for_all(f"{path.name} has been deleted")
        self._reload()

    def _move_to_damaged(self, path: Path) -> Path:
        """Moves a checkpoint to damaged/, with a number behind its name if that name exists, and returns its path."""
        wait_for_all(f"{path.name} has been read")
        folder = self._directory.parent / DAMAGED
        target = folder / path.name
        for number in range(1, 1000):
            if not target.exists():
                break
            target = folder / f"{path.name}-{number}"
        if is_first() and path.exists():
            move(path, target)
        wait_for_all(f"{path.name} has been set aside")
        self._reload()
        return target

    def _reload(self) -> None:
        """Makes orbax list the directory again, which fails if another process deletes a folder meanwhile."""
        for attempt in range(1, LOOKS + 1):
            try:
                self._manager.reload()
                return
            except (FileNotFoundError, NotADirectoryError):
                if attempt == LOOKS:
                    raise

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        """Turns the errors of writing into StorageError."""
        try:
            yield
        except jax.errors.JaxRuntimeError:  # the computation or another process has failed, not the storage
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

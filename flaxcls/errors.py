"""The errors that a user can cause, their exit codes, and the message for a mistyped name."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A value from the user breaks a rule. The message names the value, the rule and the way out."""


class DivergenceError(RuntimeError):
    """The loss or its gradient became NaN or infinite, and training has stopped."""


class StorageError(RuntimeError):
    """A file of the run could not be written, or its content is no longer what was written."""


class WorkerError(RuntimeError):
    """A process that makes batches could not be started, or was killed."""


class Interrupted(Exception):  # noqa: N818 (like KeyboardInterrupt, it is not a fault)
    """Training was asked to stop before its end; it can be resumed."""


def exit_code(error: BaseException) -> int:
    """Returns a command's exit code: 2 for bad input, 3 for NaN or infinity, 4 for storage, 130 for SIGINT, else 1.

    SystemExit, which SIGTERM raises, has its own code.
    """
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    codes = {InputError: 2, DivergenceError: 3, StorageError: 4, KeyboardInterrupt: 130}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), 1)


def refuse(problem: str, problems: list[str] | None) -> None:
    """Raises InputError with the problem or, if there is a list of problems, adds it to that."""
    if problems is None:
        raise InputError(problem)
    problems.append(problem)


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """Returns the message that `name` is not one of the `known` names, with a suggestion if one of them is similar."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r}.{hint} Known: {', '.join(known)}."

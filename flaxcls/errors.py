"""The errors that a user can cause, what a command ends with, and the suggestion for a mistyped name."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What the user gave breaks a rule: the message names the value, the rule and the way out."""


class DivergenceError(RuntimeError):
    """The loss or its gradient became NaN or infinite: training has stopped."""


class StorageError(RuntimeError):
    """What the run writes could not be written, or does not read as it was written."""


class Interrupted(Exception):  # noqa: N818 (like KeyboardInterrupt, it is not a fault)
    """Training has stopped before its end, by request, and can be resumed."""


def exit_code(error: BaseException) -> int:
    """Returns what a command ends with: 2 for bad input, 3 for NaN or infinity, 4 for storage, 1 for anything else.

    130 is for SIGINT; SystemExit, as of SIGTERM, has its own.
    """
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    codes = {InputError: 2, DivergenceError: 3, StorageError: 4, KeyboardInterrupt: 130}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), 1)


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """Returns the message for a `name` that is none of the `known` ones, with a suggestion where one is near."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r}.{hint} Known: {', '.join(known)}."

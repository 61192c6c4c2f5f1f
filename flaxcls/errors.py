"""The errors that a user can cause, and the suggestion for a mistyped name."""

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


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """Returns the message for a `name` that is none of the `known` ones, with a suggestion where one is near."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r}.{hint} Known: {', '.join(known)}."

"""What keeps the memory of a long run from growing: what glibc's malloc can be told. Elsewhere, this does nothing."""

import ctypes
import gc
import os
from typing import Any

from flaxcls.run.processes import cores

_M_ARENA_MAX = -8  # of glibc's malloc.h


def bound_malloc_arenas() -> None:
    """Lets malloc keep no more heaps than this thread and XLA's need, unless MALLOC_ARENA_MAX says how many.

    Each checkpoint is written by new threads, and malloc gives a thread a heap of its own, which stays when it ends:
    some MB for every thousand steps that save often. XLA has two threads a core, and is to have a heap for each: what
    they share they wait for, and find in the cache of another core. To be called before there are many threads.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        _call("mallopt", _M_ARENA_MAX, 1 + 2 * cores())


def give_back_memory() -> None:
    """Gives what is not in use back to the system: after compilations, that is much."""
    gc.collect()
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> int | None:
    """Returns what a function of the C library returns, or None where there is none of this name."""
    function: Any = getattr(ctypes.CDLL(None), name, None)
    return None if function is None else int(function(*arguments))

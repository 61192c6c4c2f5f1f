"""What keeps the memory of a long run from growing: what glibc's malloc can be told. Elsewhere, this does nothing."""

import ctypes
import gc
import os
from typing import Any

_M_ARENA_MAX = -8  # of glibc's malloc.h


def bound_malloc_arenas(count: int = 1) -> None:
    """Lets malloc keep no more than so many heaps, unless MALLOC_ARENA_MAX says how many.

    Each checkpoint is written by new threads, and malloc gives a thread a heap of its own, which stays when it ends:
    some MB for every thousand steps that save often. To be called before there are many threads.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        _call("mallopt", _M_ARENA_MAX, count)


def give_back_memory() -> None:
    """Gives what is not in use back to the system: after compilations, that is much."""
    gc.collect()
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    function: Any = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)

"""What keeps the memory of a long run from growing: what glibc's malloc can be told. Elsewhere, this does nothing."""

import ctypes
import gc
import os
from typing import Any

from flaxcls.run.processes import cores

# of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def tune_malloc() -> None:
    """Tells malloc what suits training on CPUs, but for what MALLOC_* variables say. To be called before XLA starts.

    Each checkpoint is written by new threads, and malloc gives a thread a heap of its own, which stays when it ends:
    some MB for every thousand steps that save often. It may keep one for this thread and each of XLA's, two a core,
    which would wait for each other in fewer. And it keeps what is freed: the memory that a step of a large batch works
    in is otherwise mapped anew, page by page, in each step.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        _call("mallopt", _M_ARENA_MAX, 1 + 2 * cores())
    told = any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"))
    # older ones refuse the first; told the second alone they would map more than before
    if not told and _call("mallopt", _M_MMAP_THRESHOLD, 2**30):
        _call("mallopt", _M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_memory() -> None:
    """Gives what is not in use back to the system: after compilations, that is much."""
    gc.collect()
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> int | None:
    """Returns what a function of the C library returns, or None where there is none of this name."""
    function: Any = getattr(ctypes.CDLL(None), name, None)
    return None if function is None else int(function(*arguments))

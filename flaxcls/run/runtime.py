"""How a process runs XLA: flags for fast convolutions on CPUs, the cache of compiled programs, memory and cores."""

import ctypes
import gc
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import warnings
from pathlib import Path
from typing import Any

import jax

CACHE_BYTES = 2 * 2**30  # above this size, the programs that were not used for the longest time are deleted
# of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

# By version of jaxlib, for those that were measured (experiments/benchmarks/NOTES.md): another one may not know the
# flags, which would end the process. Convolutions not by YNNPACK, but by Eigen (0.10: 1.8 times the speed of the
# tutorial's network) or by oneDNN (0.12: 1.3 times).
_NO_YNN_CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
CPU_FLAGS = {
    "0.10": _NO_YNN_CONVOLUTIONS,
    "0.12": f"{_NO_YNN_CONVOLUTIONS} --xla_cpu_experimental_onednn_custom_call=true",
}


def use_cpu_flags() -> str | None:
    """Sets the flags of this jaxlib for the CPU programs of the process, and returns them; None: all is as it was.

    To be called before JAX computes anything. Where XLA_FLAGS is set, be it to nothing, it is left as it is; so it is
    where JAX may find a GPU or TPU, whose libraries need not know the flags. The warning is then silenced that a
    program with one of oneDNN's products of matrices cannot be kept in the cache.
    """
    flags = CPU_FLAGS.get(".".join(importlib.metadata.version("jaxlib").split(".")[:2]))
    if flags is None or "XLA_FLAGS" in os.environ or (os.environ.get("JAX_PLATFORMS") != "cpu" and _has_accelerator()):
        return None
    os.environ["XLA_FLAGS"] = flags
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry.*bad_alloc")
    return flags


def _has_accelerator() -> bool:
    """Returns whether a library is installed by which JAX would look for a GPU or TPU."""
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or any(importlib.util.find_spec(name) for name in ("libtpu", "jax_plugins"))


def use_compilation_cache() -> Path | None:
    """Turns the cache on in a directory of this user and this kind of processor, and returns it; None: it is as it was.

    That is $XDG_CACHE_HOME/flaxcls, or ~/.cache/flaxcls. Where JAX has been told of a directory, by
    JAX_COMPILATION_CACHE_DIR or its configuration, or not to use any, by JAX_ENABLE_COMPILATION_CACHE=false, nothing
    is changed, nor where the directory cannot be written. Programs in it are code that is run: it is for its user only.
    """
    if jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache:
        return None
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        place = Path(base).expanduser() / "flaxcls" / f"programs-{_processor()}"
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # without a home
        return None
    if not os.access(place, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(place))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    return place


def _processor() -> str:
    """Returns a name of the processor and what it can do: homes are shared by machines, whose programs differ."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else [platform.processor()]
    told = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return hashlib.sha256("\n".join(sorted(told) or lines[:1]).encode()).hexdigest()[:12]


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


def cores() -> int:
    """Returns the number of cores that this process may use; on macOS, which does not say, all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

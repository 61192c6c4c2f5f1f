"""Settings with which a process runs XLA: flags for fast CPU convolutions, cache of programs, memory and cores."""

import contextlib
import ctypes
import gc
import hashlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

CACHE_BYTES = 2 * 2**30  # above this size, the least recently used programs are deleted
# constants of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

# By version of jaxlib, for the versions that were measured (experiments/benchmarks/NOTES.md); a version that does not
# know a flag ends the process. Instead of YNNPACK, Eigen computes the convolutions (0.10: 1.8 times the speed of the
# tutorial's network), or oneDNN (0.12: 1.3 times).
_NO_YNN_CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
CPU_FLAGS = {
    "0.10": _NO_YNN_CONVOLUTIONS,
    "0.12": f"{_NO_YNN_CONVOLUTIONS} --xla_cpu_experimental_onednn_custom_call=true",
}


def use_cpu_flags() -> str | None:
    """Sets the flags of this jaxlib for the CPU programs of the process and returns them, or None if nothing changes.

    Call it before JAX computes anything. Nothing changes if XLA_FLAGS is set, even if it is empty, or if JAX may find a
    GPU or TPU, whose libraries may not know the flags. If the flags are set, one warning is silenced: that a program
    with one of oneDNN's matrix products cannot be kept in the cache.
    """
    flags = CPU_FLAGS.get(".".join(importlib.metadata.version("jaxlib").split(".")[:2]))
    if flags is None or "XLA_FLAGS" in os.environ or (os.environ.get("JAX_PLATFORMS") != "cpu" and _has_accelerator()):
        return None
    os.environ["XLA_FLAGS"] = flags
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry.*bad_alloc")
    return flags


def _has_accelerator() -> bool:
    """Returns True if a library is installed with which JAX looks for a GPU or TPU."""
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or any(importlib.util.find_spec(name) for name in ("libtpu", "jax_plugins"))


def use_compilation_cache() -> Path | None:
    """Turns on JAX's cache of compiled programs and returns its directory, or None if nothing changes.

    The directory belongs to this user and this kind of processor, and lies in $XDG_CACHE_HOME/flaxcls or
    ~/.cache/flaxcls. Nothing changes if JAX has a directory already (by JAX_COMPILATION_CACHE_DIR or its
    configuration), if JAX_ENABLE_COMPILATION_CACHE=false forbids the cache, or if the directory cannot be written. JAX
    runs the programs in it as code, so only the user has access to it.
    """
    if jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache:
        return None
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        place = Path(base).expanduser() / "flaxcls" / f"programs-{_hash_processor()}"
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None
    if not os.access(place, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(place))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    return place


def _hash_processor() -> str:
    """Returns a hash of the processor's model and features: machines that share a home may need other programs."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else [platform.processor()]
    features = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return hashlib.sha256("\n".join(sorted(features) or lines[:1]).encode()).hexdigest()[:12]


def tune_malloc() -> None:
    """Sets options of malloc for training on CPUs, except those that MALLOC_* variables set. Call it before XLA starts.

    The first option limits the number of heaps. New threads write each checkpoint, and malloc gives each thread its own
    heap, which remains when the thread ends: some MB for every thousand steps that save often. The limit is one heap
    for this thread and one for each thread of XLA: with fewer heaps, these threads wait for each other. XLA has two
    threads a core, whatever the quota of the container.

    The other options keep freed memory. Otherwise, each step of a large batch maps its working memory anew, page by
    page. Without glibc this does nothing.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        _call("mallopt", _M_ARENA_MAX, 1 + 2 * schedulable_cores())
    user_decides = any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"))
    # older versions refuse the first option, and with the second option alone they would map more than before
    if not user_decides and _call("mallopt", _M_MMAP_THRESHOLD, 2**30):
        _call("mallopt", _M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_memory() -> None:
    """Releases unused memory to the system; after compilations, there is much of it."""
    gc.collect()
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> int | None:
    """Calls a function of the C library and returns its result, or None if there is no such function."""
    function: Any = getattr(ctypes.CDLL(None), name, None)
    return None if function is None else int(function(*arguments))


def schedulable_cores() -> int:
    """Returns the number of cores that this process may run on; on macOS, which does not tell, all cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores(root: Path = Path("/")) -> int:
    """Returns the number of cores whose time this process gets: those it may run on, or the quota of its container.

    A quota of 1.5 cores counts as 2. root: where proc/ and sys/ are.
    """
    return min([schedulable_cores(), *(math.ceil(quota) for quota in _cpu_quotas(root))])


def available_memory(root: Path = Path("/")) -> int | None:
    """Returns the bytes that this process can still take: of the machine, or of the limit of its container.

    Cached files do not count as taken. None: not known, as on macOS. root: where proc/ and sys/ are.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        left = [1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))]
    except (OSError, StopIteration):
        return None
    for place, version_2 in _control_groups(root, "memory"):
        limit, taken = ("max", "current") if version_2 else ("limit_in_bytes", "usage_in_bytes")
        prefix = "" if version_2 else "total_"  # version 1: with that of the groups below
        with contextlib.suppress(OSError, ValueError):  # there is no file, or no limit: "max"
            bytes_left = int((place / f"memory.{limit}").read_text()) - int((place / f"memory.{taken}").read_text())
            pairs = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
            cached = sum(int(pairs.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
            left.append(max(0, bytes_left + cached))
    return min(left)


def _cpu_quotas(root: Path) -> list[float]:
    """Returns the quotas, in cores, of the control groups of this process and of all groups around them."""
    quotas = []
    for place, version_2 in _control_groups(root, "cpu"):
        with contextlib.suppress(OSError, ValueError):  # there is no file, or no limit: "max"
            if version_2:
                quota, period = map(int, (place / "cpu.max").read_text().split())
            else:
                quota, period = (int((place / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            if quota > 0:  # version 1: -1 is no limit
                quotas.append(quota / period)
    return quotas


def _control_groups(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Yields the folders of the control groups of this process and of all around them, and True for version 2."""
    membership = root / "proc/self/cgroup"
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, group = line.split(":", 2)
        version_2 = not controllers
        if not version_2 and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" if version_2 else root / "sys/fs/cgroup" / controller
        # in a container, `group` may be its path on the host, which is not there; its own group is then at the top
        folder = top / os.path.normpath(group).lstrip("/")
        for place in (folder, *folder.parents):
            if not place.is_relative_to(top):
                break
            yield place, version_2

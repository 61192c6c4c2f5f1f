"""JAX's cache of compiled programs, which the next process reads instead of compiling again."""

import hashlib
import os
import platform
from pathlib import Path

import jax

LARGEST = 2 * 2**30  # bytes; what was not used for longest is then deleted


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
        jax.config.update("jax_compilation_cache_max_size", LARGEST)
    return place


def _processor() -> str:
    """Returns a name of the processor and what it can do: homes are shared by machines, whose programs differ."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else [platform.processor()]
    told = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return hashlib.sha256("\n".join(sorted(told) or lines[:1]).encode()).hexdigest()[:12]

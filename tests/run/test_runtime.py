"""The cache of compiled programs, in processes as a user starts them, and what malloc is told."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from flaxcls.run import runtime
from flaxcls.run.runtime import CPU_FLAGS, use_compilation_cache, use_cpu_flags

# of a program that compiles sooner
SMALL = ["--augment.crop-padding", "0", "--model.widths", "4", "--model.dense", "--stop.skip", "0"]


def train(place: Path, **more: str) -> list[str]:
    """Runs one step in a process of its own, with its cache below `place`; returns the names of what is kept there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(place), **more}
    command = [sys.executable, "-m", "flaxcls.train", "--stop-after", "1", "--loop.epochs", "1", "--overwrite"]
    command += [*SMALL, "--workdir", str(place / "run")]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=True)
    assert done.stderr == ""
    return sorted(path.name for path in (place / "flaxcls").glob("*/*-cache"))


@pytest.mark.slow
def test_the_second_process_compiles_nothing_that_the_first_has_kept(tmp_path):
    first = train(tmp_path)
    assert any("dispatch" in name for name in first)
    assert train(tmp_path) == first
    (place,) = (tmp_path / "flaxcls").iterdir()
    assert place.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_command_keeps_nothing_where_the_cache_is_turned_off(tmp_path):
    assert train(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false") == []
    assert not (tmp_path / "flaxcls").exists()


@pytest.fixture
def unset():
    """JAX as it is where nothing was set; what the test sets is undone."""
    names = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_it_is_turned_off_as_jax_is_told(tmp_path, monkeypatch, unset):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_enable_compilation_cache", False)
    assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir is None
    assert not [*tmp_path.iterdir()]


def test_a_directory_that_was_chosen_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    chosen = jax.config.jax_compilation_cache_dir
    assert chosen is not None
    assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir == chosen
    assert not [*tmp_path.iterdir()]


def test_a_place_that_cannot_be_made(tmp_path, monkeypatch, unset):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir is None


def flags(**environment):
    """Returns XLA_FLAGS as the command leaves them in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    code = "import os; from flaxcls.run.runtime import use_cpu_flags; use_cpu_flags(); import jax; jax.devices(); "
    code += "print(os.environ.get('XLA_FLAGS', 'none'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **environment}, text=True, capture_output=True, check=True
    )
    return done.stdout.strip()


def test_the_flag_of_this_jaxlib_is_one_that_it_knows():
    version = ".".join(jax.lib.__version__.split(".")[:2])
    assert flags(JAX_PLATFORMS="cpu") == CPU_FLAGS.get(version, "none")


@pytest.mark.parametrize("chosen", ["", "--xla_force_host_platform_device_count=2"])
def test_flags_that_were_set_stay(chosen):
    assert flags(JAX_PLATFORMS="cpu", XLA_FLAGS=chosen) == chosen


def test_no_flag_where_there_may_be_an_accelerator(monkeypatch):
    for name in ("XLA_FLAGS", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("flaxcls.run.runtime.importlib.metadata.entry_points", lambda **group: [group])
    assert use_cpu_flags() is None
    assert "XLA_FLAGS" not in os.environ


VARIABLES = ("MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
ARENAS, KEPT = [(-8, 7)], [(-3, 2**30), (-1, 2**31 - 1)]


@pytest.mark.parametrize(
    ("told", "expected"),
    [(None, ARENAS + KEPT), (VARIABLES[0], KEPT), (VARIABLES[1], ARENAS), (VARIABLES[2], ARENAS)],
)
def test_malloc_keeps_a_heap_for_each_thread_of_xla_and_what_is_freed_unless_told_otherwise(
    told, expected, monkeypatch
):
    calls = []
    monkeypatch.setattr(runtime, "_call", lambda name, *call: calls.append(call) or 1)
    monkeypatch.setattr(runtime, "schedulable_cores", lambda: 3)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if told:
        monkeypatch.setenv(told, "2")
    runtime.tune_malloc()
    assert calls == expected


def test_a_libc_that_refuses_to_keep_is_told_no_more(monkeypatch):
    calls = []
    monkeypatch.setattr(runtime, "_call", lambda name, *call: calls.append(call) or 0)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    runtime.tune_malloc()
    assert [call[0] for call in calls] == [-8, -3]


def test_glibc_takes_what_it_is_told():
    runtime.give_back_memory()
    if "CS_GNU_LIBC_VERSION" in os.confstr_names:
        assert runtime._call("mallopt", -8, 64) == 1


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V1 = "5:memory:/docker/1f\n4:cpu,cpuacct:/docker/1f\n3:cpuset:/docker/1f\n"
QUOTAS = {
    "a container": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
    "a part of a core": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1),
    "one and a half": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
    "no limit": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
    "more than there are": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 8),
    "of the group around it": (
        {
            "proc/self/cgroup": "0::/kubepods.slice/pod1.slice/cri-2.scope\n",
            "sys/fs/cgroup/kubepods.slice/pod1.slice/cri-2.scope/cpu.max": "max 100000\n",
            "sys/fs/cgroup/kubepods.slice/pod1.slice/cpu.max": "300000 100000\n",
        },
        3,
    ),
    "not of a neighbour": (
        {"proc/self/cgroup": "0::/one\n", "sys/fs/cgroup/two/cpu.max": "100000 100000\n"},
        8,
    ),
    "above the namespace": ({"proc/self/cgroup": "0::/../one\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
    "version 1, in the container": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        4,
    ),
    "version 1, on the host": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/docker/1f/cpu.cfs_quota_us": "250000\n",
            "sys/fs/cgroup/cpu/docker/1f/cpu.cfs_period_us": "50000\n",
        },
        5,
    ),
    "no control groups": ({}, 8),
}


@pytest.mark.parametrize("case", QUOTAS)
def test_no_more_cores_count_than_the_quota_of_the_container_gives(case, tmp_path, monkeypatch):
    files, expected = QUOTAS[case]
    monkeypatch.setattr(runtime, "schedulable_cores", lambda: 8)
    assert runtime.cores(write(tmp_path, files)) == expected


MEMINFO = "MemTotal: 8000000 kB\nMemFree: 100 kB\nMemAvailable: 4000000 kB\n"
LIMITS = {
    "no control groups": ({"proc/meminfo": MEMINFO}, 4_096_000_000),
    "no limit": (
        {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"},
        4_096_000_000,
    ),
    "what a container's limit leaves, with the files that are cached": (
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/one\n",
            "sys/fs/cgroup/one/memory.max": "3000\n",
            "sys/fs/cgroup/one/memory.current": "2500\n",
            "sys/fs/cgroup/one/memory.stat": "anon 2000\nactive_file 100\ninactive_file 300\n",
        },
        900,
    ),
    "the limit of the group around it": (
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/pod/one\n",
            "sys/fs/cgroup/pod/one/memory.max": "max\n",
            "sys/fs/cgroup/pod/memory.max": "700\n",
            "sys/fs/cgroup/pod/memory.current": "800\n",
            "sys/fs/cgroup/pod/memory.stat": "anon 800\n",
        },
        0,
    ),
    "version 1": (
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "4:memory:/docker/1f\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "5000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000\n",
            "sys/fs/cgroup/memory/memory.stat": "active_file 1\ntotal_active_file 50\ntotal_inactive_file 7\n",
        },
        4057,
    ),
    "not told": ({}, None),
}


@pytest.mark.parametrize("case", LIMITS)
def test_the_memory_that_is_there_is_that_of_the_machine_or_of_its_container(case, tmp_path):
    files, expected = LIMITS[case]
    assert runtime.available_memory(write(tmp_path, files)) == expected

import os

import pytest

from flaxcls.run import memory

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
    monkeypatch.setattr(memory, "_call", lambda name, *call: calls.append(call) or 1)
    monkeypatch.setattr(memory, "cores", lambda: 3)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if told:
        monkeypatch.setenv(told, "2")
    memory.tune_malloc()
    assert calls == expected


def test_a_libc_that_refuses_to_keep_is_told_no_more(monkeypatch):
    calls = []
    monkeypatch.setattr(memory, "_call", lambda name, *call: calls.append(call) or 0)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    memory.tune_malloc()
    assert [call[0] for call in calls] == [-8, -3]


def test_glibc_takes_what_it_is_told():
    memory.give_back_memory()
    if "CS_GNU_LIBC_VERSION" in os.confstr_names:
        assert memory._call("mallopt", -8, 64) == 1

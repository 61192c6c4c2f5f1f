import os

from flaxcls.run import memory


def test_malloc_keeps_a_heap_for_each_thread_of_xla_unless_it_was_told_otherwise(monkeypatch):
    calls = []
    monkeypatch.setattr(memory, "_call", lambda *call: calls.append(call))
    monkeypatch.setattr(memory, "cores", lambda: 3)
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    memory.bound_malloc_arenas()
    assert calls == [("mallopt", -8, 7)]
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    memory.bound_malloc_arenas()
    assert len(calls) == 1


def test_glibc_takes_what_it_is_told():
    memory.give_back_memory()
    if "CS_GNU_LIBC_VERSION" in os.confstr_names:
        assert memory._call("mallopt", -8, 64) == 1

"""Programs that take turns on a machine: one runs for some seconds, while the others are held by SIGSTOP.

If a machine's speed drifts within seconds, programs that run one after another meet different speeds. Programs that
take turns meet the same one. Each is timed without the seconds in which it was held.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
# receives the process group of a program after its start
Started = Callable[[int], None]


@dataclass(frozen=True)
class TimeSlice:
    """A period in which a program ran, in seconds since 1970."""

    began: float
    ended: float


def running_seconds(slices: Sequence[TimeSlice], began: float, ended: float) -> float:
    """Returns how many of the seconds from `began` to `ended` lie within the slices."""
    return sum(max(0.0, min(one.ended, ended) - max(one.began, began)) for one in slices)


def take_turns(
    programs: Mapping[str, Callable[[Started], T]], seconds: float, needed: str
) -> tuple[dict[str, Future[T]], dict[str, list[TimeSlice]]]:
    """Runs programs until all have ended, one of them at a time.

    Args:
      programs: each starts one program, passes its process group to its argument, and returns when it has ended.
      seconds: length of a turn.
      needed: name of the program whose error ends all.

    Returns:
      The result and the running periods of each.
    """
    groups: dict[str, int] = {}
    jobs: dict[str, Future[T]] = {}
    slices: dict[str, list[TimeSlice]] = {name: [] for name in programs}
    ending = threading.Event()

    def start(name: str, pool: ThreadPoolExecutor) -> None:
        known = threading.Event()

        def started(group: int) -> None:
            groups[name] = group
            if ending.is_set():
                send(name, signal.SIGKILL)
            known.set()

        jobs[name] = pool.submit(programs[name], started)
        jobs[name].add_done_callback(lambda _: known.set())
        known.wait()

    def has_ended(name: str) -> bool:
        return name in jobs and jobs[name].done()

    def send(name: str, number: int) -> None:
        with contextlib.suppress(KeyError, ProcessLookupError):  # the program did not start, or has just ended
            os.killpg(groups[name], number)

    with ThreadPoolExecutor(len(programs)) as pool:
        try:
            while not all(map(has_ended, programs)):
                for name in programs:
                    if has_ended(name):
                        continue
                    began = time.time()
                    if name in jobs:
                        send(name, signal.SIGCONT)
                    else:
                        start(name, pool)
                    wait([jobs[name]], timeout=seconds)
                    if not has_ended(name):
                        send(name, signal.SIGSTOP)
                    elif name == needed:
                        jobs[name].result()
                    slices[name].append(TimeSlice(began, time.time()))
        finally:
            ending.set()
            for name in [*groups]:
                if not has_ended(name):
                    send(name, signal.SIGKILL)
    return jobs, slices

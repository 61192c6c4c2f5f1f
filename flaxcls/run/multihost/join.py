"""The processes of one run, each with devices of its own: how they find each other, and end together."""

import importlib.util
import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax._src import distributed as jax_distributed  # its store of keys and values has no public name
from jax._src.clusters import ClusterEnv  # nor has what it knows of Slurm and the others
from jax._src.xla_bridge import backends_are_initialized  # nor this; jax.distributed says it once all have come

from flaxcls.errors import DivergenceError, InputError, Interrupted, StorageError, exit_code
from flaxcls.run.multihost.rendezvous import meet

_FAILED = "flaxcls/failed"
PROGRAM = "python -m flaxcls.train"


@dataclass(frozen=True)
class Distributed:
    """How the processes of a run find each other. None: as TPU, Slurm, Open MPI or Kubernetes say; else it is one."""

    coordinator: str | None = None
    """Address and free port of process 0, which all others can reach, such as host0:8476."""
    num_processes: int | None = None
    """How many processes the run has, on all hosts."""
    process_id: int | None = None
    """Which of them this one is, from 0 on."""
    timeout: int = 120
    """Seconds within which all processes must have come."""
    heartbeat: int = 30
    """Seconds without a sign of life after which a process is taken for dead, which ends all."""


@contextmanager
def joined(options: Distributed, alike: str = "") -> Iterator[None]:
    """Joins this process to the others of its run, where there are any; to be entered before JAX knows its devices.

    An error that leaves it ends all of them: it is printed here and by process 0, and all end with its `exit_code`.
    What all have agreed on, to stop at a step, leaves it as it came.

    Args:
      options: how they find each other.
      alike: what must be the same for all of them, such as a hash of the configuration.

    Raises:
      InputError: if the options do not go together, not all processes came within options.timeout, or `alike` differs.
    """
    _check(options)
    number = _join(options, alike)
    if number is None:
        yield
        return
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(done, number), daemon=True)
    watch.start()
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Interrupted) and not getattr(error, "agreed", False):
            _end_all(error, number)
        raise
    finally:
        done.set()
        watch.join()


def launcher() -> str | None:
    """Returns what has started several processes, by the environment it gives them, or None."""
    given = os.environ
    slurm = given.get("SLURM_STEP_NUM_TASKS", given.get("SLURM_NTASKS", 1))
    if int(slurm) > 1 and {"SLURM_PROCID", "SLURM_STEP_NODELIST"} <= given.keys():
        return "Slurm"
    if int(given.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "Open MPI"
    if given.get("JAX_PLATFORMS", "tpu").startswith("tpu") and importlib.util.find_spec("libtpu"):
        names = {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_PROCESS_ADDRESSES_PATH"}
        if names & given.keys() or any(Path(name).exists() for name in ("/dev/accel0", "/dev/vfio/0")):
            return "TPU"
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= given.keys():
        return "Kubernetes"
    return None


def _check(options: Distributed) -> None:
    for name in ("timeout", "heartbeat"):
        if getattr(options, name) < 1:
            raise InputError(f"distributed.{name} is {getattr(options, name)}, but must be 1 or more, in seconds.")
    named = (options.coordinator, options.num_processes, options.process_id)
    if None in named and named != (None, None, None) and options.num_processes != 1:
        raise InputError(
            f"distributed.coordinator is {options.coordinator}, num_processes {options.num_processes} and process_id "
            f"{options.process_id}: give all three, or none where TPU, Slurm, Open MPI or Kubernetes tell them."
        )
    port = re.fullmatch(r".+:(\d+)", options.coordinator or "host0:1")
    if port is None or not 0 < int(port[1]) < 2**16:
        raise InputError(
            f"distributed.coordinator is {options.coordinator!r}, but must be an address and a port, like host0:8476."
        )
    if None not in (options.num_processes, options.process_id):
        count, number = options.num_processes, options.process_id
        if not 0 <= number < count:  # type: ignore[operator]
            raise InputError(
                f"distributed.process_id is {number} of {count} processes, but they are numbered from 0 to {count - 1}."  # type: ignore[operator]
            )


def _join(options: Distributed, alike: str) -> int | None:
    """Initialises jax.distributed if this is one of several processes, and returns its number, else None."""
    if options.num_processes == 1:
        return None
    by = "its options" if options.coordinator is not None else launcher()
    if by is None:
        return None
    if by == "Kubernetes" and importlib.util.find_spec("kubernetes") is None:
        raise InputError(
            "this is a process of an indexed job of Kubernetes, and what tells JAX about the others is not installed: "
            "pip install kubernetes, or give --distributed.coordinator, --distributed.num-processes and "
            "--distributed.process-id (with 1 process if it is the only one)."
        )
    try:
        place, count, number, local = _settings(options)
    except Exception as error:  # of JAX, the network or the launcher
        problem = f"{by} did not tell how the processes find each other: {error}"
        raise InputError(f"{problem} {_by_hand(None, None)}") from error
    if count is None or count == 1:
        return None  # such as a TPU VM by itself
    if backends_are_initialized():
        raise InputError(
            "JAX has computed something, or looked at its devices, before the processes of the run were joined: leave "
            "that out of the experiment file."
        )
    try:
        meet(place, count, number, options.timeout, alike)
    except InputError as error:
        raise InputError(f"{error} So many were named by {by}. {_by_hand(place, count)}") from error
    jax.distributed.initialize(
        coordinator_address=place,
        num_processes=count,
        process_id=number,
        local_device_ids=local,
        cluster_detection_method="deactivate",
        initialization_timeout=options.timeout,
        heartbeat_timeout_seconds=options.heartbeat,
        shutdown_timeout_seconds=max(options.heartbeat, 60),
    )
    return int(number)


def _settings(options: Distributed) -> tuple[Any, Any, Any, Any]:
    """Returns the place of process 0, how many processes there are, this one's number, and its local devices."""
    if options.coordinator is not None:
        return options.coordinator, options.num_processes, options.process_id, None
    return ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, options.timeout)


def _by_hand(place: str | None, count: int | None) -> str:
    return (
        f"Start this on each host, with its own number I from 0 on:\n  {PROGRAM} ... --distributed.coordinator "
        f"{place or 'HOST0:PORT'} --distributed.num-processes {count or 'N'} --distributed.process-id I"
    )


def _watch(done: threading.Event, number: int) -> None:
    """Asks every other second whether a process has failed, and ends this one as that one ended."""
    while not done.wait(2):
        if (word := _failed()) is not None and word["process"] != number:
            _end_as(word, number)


def _end_all(error: BaseException, number: int) -> None:
    """Tells the other processes of an error, prints it and ends this one, as waiting for them could take for ever.

    Where another one has failed before, this process ends as that one did: what it met may be the other's end.
    """
    lost = isinstance(error, jax.errors.JaxRuntimeError)
    before = _failed() if lost else None
    word = {"process": number, "text": _told(error), "code": exit_code(error)}
    if before is None:
        try:
            _client().key_value_set(_FAILED, json.dumps(word))
        except Exception:  # another one has been faster, or the service is gone
            before = _failed()
    if before is None or (number == 0 and not lost):
        print(word["text"] if number == 0 else f"process {number}: {word['text']}", file=sys.stderr, flush=True)
    _end_as(before or word, number)


def _told(error: BaseException) -> str:
    if isinstance(error, InputError | DivergenceError | StorageError):
        return f"error: {error}"
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "stopped by a signal before or after training"
    text = "".join(traceback.format_exception(error)).rstrip()
    if isinstance(error, jax.errors.JaxRuntimeError):
        text += (
            "\nerror: this process could not go on. Where it speaks of a connection, another one has died without a "
            "word: it was killed, or its host is gone. --resume goes on from the latest checkpoint, with any number of "
            "processes."
        )
    return text


def _failed() -> dict[str, Any] | None:
    """Returns what the first process that failed has said, or None."""
    try:
        word: dict[str, Any] = json.loads(_client().key_value_try_get(_FAILED))
    except Exception:  # nothing is there, or the service is gone, of which JAX says more
        return None
    return word


def _end_as(word: dict[str, Any], number: int) -> None:
    """Ends this process with the code of one that failed. Process 0 says why, and stays until all have heard of it."""
    if number == 0:
        if word["process"] != 0:
            print(f"process {word['process']}: {word['text']}", file=sys.stderr, flush=True)
        time.sleep(4)  # the service lives here
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(word["code"])


def _client() -> Any:
    """Returns what asks JAX's service, None where there is none any more."""
    return jax_distributed.global_state.client

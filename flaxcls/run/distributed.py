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

from flaxcls.errors import DivergenceError, InputError, Interrupted, StorageError, exit_code
from flaxcls.run.rendezvous import meet

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
def joined(options: Distributed) -> Iterator[None]:
    """Joins this process to the others of its run, where there are any; to be entered before JAX knows its devices.

    An error that leaves it ends all of them: it is printed here and by process 0, and the exit code is `exit_code`'s.
    What all have agreed on, to stop at a step, leaves it as it came.

    Raises:
      InputError: if the options do not go together, or not all processes came within options.timeout.
    """
    _check(options)
    if not _join(options):
        yield
        return
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(done,), daemon=True)
    watch.start()
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        _end_all(error)
    finally:
        done.set()
        watch.join()


def launcher() -> str | None:
    """Returns what has started several processes, by the environment it gives them, or None."""
    given = os.environ
    if int(given.get("SLURM_NTASKS", 1)) > 1 and {"SLURM_PROCID", "SLURM_STEP_NODELIST"} <= given.keys():
        return "Slurm"
    if int(given.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "Open MPI"
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= given.keys():
        return "Kubernetes"
    on_tpu = given.get("JAX_PLATFORMS", "tpu").startswith("tpu") and importlib.util.find_spec("libtpu")
    if on_tpu and any(Path(name).exists() for name in ("/dev/accel0", "/dev/vfio/0")):
        return "TPU"
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
    if options.coordinator is not None and not re.fullmatch(r".+:\d+", options.coordinator):
        raise InputError(
            f"distributed.coordinator is {options.coordinator!r}, but must be an address and a port, like host0:8476."
        )
    if None not in (options.num_processes, options.process_id):
        count, number = options.num_processes, options.process_id
        if not 0 <= number < count:  # type: ignore[operator]
            raise InputError(
                f"distributed.process_id is {number} of {count} processes, but they are numbered from 0 to {count - 1}."  # type: ignore[operator]
            )


def _join(options: Distributed) -> bool:
    """Initialises jax.distributed if this is one of several processes, and returns whether it is."""
    if options.num_processes == 1:
        return False
    by = "its options" if options.coordinator is not None else launcher()
    if by is None:
        return False
    if by == "Kubernetes" and importlib.util.find_spec("kubernetes") is None:
        raise InputError(
            "this is a process of an indexed job of Kubernetes, and what tells JAX about the others is not installed: "
            "pip install kubernetes, or give --distributed.coordinator, --distributed.num-processes and "
            "--distributed.process-id (with 1 process if it is the only one)."
        )
    try:
        place, count, number, local = _settings(options)
    except Exception as error:  # of JAX, the network or the launcher
        raise InputError(
            f"{by} did not tell how the processes find each other: {error} {_by_hand(None, None)}"
        ) from error
    if count == 1:
        return False
    try:
        meet(place, count, number, options.timeout)
    except InputError as error:
        raise InputError(f"{error} {by} named them. {_by_hand(place, count)}") from error
    jax.distributed.initialize(
        coordinator_address=place,
        num_processes=count,
        process_id=number,
        local_device_ids=local,
        cluster_detection_method="deactivate",
        initialization_timeout=options.timeout,
        heartbeat_timeout_seconds=options.heartbeat,
    )
    return True


def _settings(options: Distributed) -> tuple[str, int, int, Any]:
    """Returns the place of process 0, how many processes there are, this one's number, and its local devices."""
    if options.coordinator is not None:
        return options.coordinator, options.num_processes or 1, options.process_id or 0, None
    detect = ClusterEnv.auto_detect_unset_distributed_params
    place, count, number, local = detect(None, None, None, None, None, options.timeout)
    if place is None or count is None or number is None:
        raise RuntimeError("JAX finds no cluster.")
    return place, count, number, local


def _by_hand(place: str | None, count: int | None) -> str:
    return (
        f"Start this on each host, with its own number I from 0 on:\n  {PROGRAM} ... --distributed.coordinator "
        f"{place or 'HOST0:PORT'} --distributed.num-processes {count or 'N'} --distributed.process-id I"
    )


def _watch(done: threading.Event) -> None:
    """Asks every other second whether a process has failed, and ends this one as that one ended."""
    while not done.wait(2):
        try:
            word = json.loads(_client().key_value_try_get(_FAILED))
        except Exception:  # nothing is there, or the service is gone, of which JAX says more
            continue
        if word["process"] != jax.process_index():
            if jax.process_index() == 0:
                print(f"process {word['process']}: {word['text']}", file=sys.stderr, flush=True)
            _end(word["code"])


def _end_all(error: Exception) -> None:
    """Tells the other processes of an error, prints it and ends this one, as waiting for them could take for ever."""
    ours = isinstance(error, InputError | DivergenceError | StorageError)
    text = f"error: {error}" if ours else "".join(traceback.format_exception(error)).rstrip()
    if isinstance(error, jax.errors.JaxRuntimeError):
        text += (
            "\nerror: this process could not go on, as where another one died without a word: it was killed, or its "
            "host is gone. --resume goes on from the latest checkpoint, with any number of processes."
        )
    word = {"process": jax.process_index(), "text": text, "code": exit_code(error)}
    try:
        _client().key_value_set(_FAILED, json.dumps(word))
        first = True
    except Exception:  # another one has been faster, or the service is gone
        first = False
    if first or not ours:
        print(
            text if jax.process_index() == 0 else f"process {jax.process_index()}: {text}", file=sys.stderr, flush=True
        )
    if jax.process_index() == 0:
        time.sleep(4)  # the service lives here, and the others are to hear of it
    _end(exit_code(error))


def _client() -> Any:
    """Returns what asks JAX's service, None where there is none any more."""
    return jax_distributed.global_state.client


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

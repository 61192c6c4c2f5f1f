"""The connection of the processes of a run, each with its own devices: they find each other, and end together."""

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
from jax._src import distributed as jax_distributed  # its key-value store has no public name
from jax._src.clusters import ClusterEnv  # nor has its detection of Slurm and other launchers
from jax._src.xla_bridge import backends_are_initialized  # nor this; jax.distributed checks it only after all have met

from flaxcls.errors import DivergenceError, InputError, Interrupted, StorageError, exit_code
from flaxcls.run.multihost.rendezvous import meet

_FAILURE_KEY = "flaxcls/failed"
PROGRAM = "python -m flaxcls.train"
# The variables by which JAX knows the processes of a launcher.
_VARIABLES = {
    "Slurm": ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
}


@dataclass(frozen=True)
class Distributed:
    """Options by which the processes of a run find each other.

    If coordinator, num_processes and process_id are None, TPU, Slurm, Open MPI or Kubernetes provide them; elsewhere
    the run has one process.
    """

    coordinator: str | None = None
    """Address and free port of process 0, such as host0:8476. All other processes must be able to reach it."""
    num_processes: int | None = None
    """Number of processes of the run, on all hosts together."""
    process_id: int | None = None
    """Number of this process, counted from 0."""
    timeout: int = 120
    """Seconds within which all processes must connect."""
    heartbeat: int = 30
    """Seconds without a sign of life after which a process counts as dead; then all processes end."""


@contextmanager
def joined(options: Distributed, alike: str = "") -> Iterator[None]:
    """Connects this process with the others of its run, if there are any. Enter it before JAX looks at its devices.

    An error in the block ends all processes: this process and process 0 print it, and all end with its `exit_code`. An
    exception for a stop that all processes have agreed on is passed on unchanged.

    Args:
      options: how the processes find each other.
      alike: a text that must be the same for all processes, such as a hash of the configuration.

    Raises:
      InputError: if the options do not fit together, processes are missing after options.timeout, or `alike` differs.
    """
    _check_options(options)
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
    """Returns the name of the system that started several processes, known by its variables; None if there is none."""
    environment = os.environ
    slurm_tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", 1))
    # the shell of an allocation has a rank and a local id, but no step; a rank without a local id is half a task
    is_task = (
        "SLURM_STEP_NODELIST" in environment
        or "SLURM_LOCALID" not in environment
        or environment.get("SLURM_PROCID") != "0"
    )
    if int(slurm_tasks) > 1 and "SLURM_PROCID" in environment and is_task:
        return "Slurm"
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "Open MPI"
    if environment.get("JAX_PLATFORMS", "tpu").startswith("tpu") and importlib.util.find_spec("libtpu"):
        names = {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_PROCESS_ADDRESSES_PATH"}
        if names & environment.keys() or any(Path(name).exists() for name in ("/dev/accel0", "/dev/vfio/0")):
            return "TPU"
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys():
        return "Kubernetes"
    return None


def _check_options(options: Distributed) -> None:
    for name in ("timeout", "heartbeat"):
        if getattr(options, name) < 1:
            raise InputError(f"distributed.{name} is {getattr(options, name)}, but must be 1 or more, in seconds.")
    given = (options.coordinator, options.num_processes, options.process_id)
    if None in given and given != (None, None, None) and options.num_processes != 1:
        raise InputError(
            f"distributed.coordinator is {options.coordinator}, num_processes {options.num_processes} and process_id "
            f"{options.process_id}: give all three, or none if TPU, Slurm, Open MPI or Kubernetes set them."
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
    """Initialises jax.distributed and returns the number of this process, or None if it is the only one."""
    if options.num_processes == 1:
        return None
    source = "the options" if options.coordinator is not None else launcher()
    if source is None:
        return None
    if source == "Kubernetes" and importlib.util.find_spec("kubernetes") is None:
        raise InputError(
            "this process belongs to an indexed job of Kubernetes, and the package that tells JAX about the other "
            "processes is not installed: pip install kubernetes, or give --distributed.coordinator, "
            "--distributed.num-processes and --distributed.process-id (only --distributed.num-processes 1 if there is "
            "no other process)."
        )
    try:
        place, count, number, local = _find_settings(options)
    except Exception as error:  # from JAX, the network or the launcher
        problem = f"{source} did not tell how the processes find each other: {error}"
        raise InputError(f"{problem} {_explain_manual_start(None, None)}") from error
    if count is None and source in _VARIABLES:
        missing = [name for name in _VARIABLES[source] if name not in os.environ]
        raise InputError(
            f"{source} has started this process as one of several, but JAX does not find the others, and each would "
            f"train alone; not set: {', '.join(missing) or 'nothing that is known'}. "
            f"{_explain_manual_start(None, None)}\nIf there is no other process, give --distributed.num-processes 1."
        )
    if count is None or count == 1:
        return None  # such as a single TPU VM
    if backends_are_initialized():
        raise InputError(
            "JAX has computed something or looked at its devices before the processes of the run were connected: "
            "remove that from the experiment file."
        )
    try:
        meet(place, count, number, options.timeout, alike)
    except InputError as error:
        raise InputError(
            f"{error} The number of processes comes from {source}. {_explain_manual_start(place, count)}"
        ) from error
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


def _find_settings(options: Distributed) -> tuple[Any, Any, Any, Any]:
    """Returns the place of process 0, the number of processes, the number of this one, and its local devices."""
    if options.coordinator is not None:
        return options.coordinator, options.num_processes, options.process_id, None
    return ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, options.timeout)


def _explain_manual_start(place: str | None, count: int | None) -> str:
    return (
        f"Start this on each host, with its own number I, counted from 0:\n  {PROGRAM} ... --distributed.coordinator "
        f"{place or 'HOST0:PORT'} --distributed.num-processes {count or 'N'} --distributed.process-id I"
    )


def _watch(done: threading.Event, number: int) -> None:
    """Checks every other second if another process has failed, and then ends this one in the same way."""
    while not done.wait(2):
        if (failure := _read_failure()) is not None and failure["process"] != number:
            _exit_with(failure, number)


def _end_all(error: BaseException, number: int) -> None:
    """Tells the other processes about an error, prints it and ends this process, without waiting for the others.

    If another process has failed before, this one ends with the code of that one, because its error may be a
    consequence.
    """
    may_be_consequence = isinstance(error, jax.errors.JaxRuntimeError)
    earlier = _read_failure() if may_be_consequence else None
    failure = {"process": number, "text": _describe(error), "code": exit_code(error)}
    if earlier is None:
        try:
            _get_client().key_value_set(_FAILURE_KEY, json.dumps(failure))
        except Exception:  # another process was faster, or the service is gone
            earlier = _read_failure()
    if earlier is None or (number == 0 and not may_be_consequence):
        print(failure["text"] if number == 0 else f"process {number}: {failure['text']}", file=sys.stderr, flush=True)
    _exit_with(earlier or failure, number)


def _describe(error: BaseException) -> str:
    """Returns the text that is printed for an error."""
    if isinstance(error, InputError | DivergenceError | StorageError):
        return f"error: {error}"
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "stopped by a signal before or after training"
    text = "".join(traceback.format_exception(error)).rstrip()
    if isinstance(error, jax.errors.JaxRuntimeError):
        text += (
            "\nerror: this process could not go on. If the error above is about a connection, another process has died "
            "without a message: it was killed, or its host is gone. --resume goes on from the latest checkpoint, with "
            "any number of processes."
        )
    return text


def _read_failure() -> dict[str, Any] | None:
    """Returns number, text and exit code of the first process that failed, or None if none has failed."""
    try:
        failure: dict[str, Any] = json.loads(_get_client().key_value_try_get(_FAILURE_KEY))
    except Exception:  # there is no failure, or the service is gone, which JAX reports itself
        return None
    return failure


def _exit_with(failure: dict[str, Any], number: int) -> None:
    """Ends this process with the code of the failed one. Process 0 prints the text, and waits until all know of it."""
    if number == 0:
        if failure["process"] != 0:
            print(f"process {failure['process']}: {failure['text']}", file=sys.stderr, flush=True)
        time.sleep(4)  # the service, which the others ask, lives in this process
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(failure["code"])


def _get_client() -> Any:
    """Returns the client of JAX's service, or None if the service is gone."""
    return jax_distributed.global_state.client

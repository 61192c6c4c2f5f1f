"""The processes of a run meet before JAX connects them, as it ends all without a word where one does not come.

Process 0 listens at the port where JAX's service will be; the others tell it their numbers, and are told when all have
come or who has not.
"""

import contextlib
import json
import socket
import time
from typing import Any

from flaxcls.errors import InputError

_LONGEST = 65536  # bytes of a message
_PAUSE = 0.2  # seconds between two tries to reach process 0
_SHORT = 5  # seconds in which one that has connected says who it is


def meet(place: str, count: int, number: int, timeout: float, alike: str = "") -> None:
    """Returns when all processes have come.

    Args:
      place: "host:port" of process 0.
      count: processes that are expected.
      number: of this one.
      timeout: seconds within which they must come.
      alike: what must be the same for all of them.

    Raises:
      InputError: where they have not, they do not fit together, or the port is taken.
    """
    host, port = place.rsplit(":", 1)
    word = {"number": number, "count": count, "alike": alike}
    if number == 0:
        problem = _await_others(int(port), word, time.monotonic() + timeout)
    else:
        problem = _tell(host.strip("[]"), int(port), word, timeout)
    if problem:
        raise InputError(f"{count} processes were expected at {place} within {timeout:g} s, {problem}")


def _await_others(port: int, ours: dict[str, Any], deadline: float) -> str:
    """Returns what is wrong, which those that have come are told, or nothing."""
    others = range(1, ours["count"])
    came: dict[int, socket.socket] = {}
    refused: list[socket.socket] = []
    problem = ""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", port), family=_family(), dualstack_ipv6=_dual()))
        except OSError as error:
            return f"but port {port} cannot be listened at on the host of process 0: {error.strerror or error}."
        while came.keys() != set(others) and not problem:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection = stack.enter_context(server.accept()[0])
                word = _read(connection, _SHORT)
                number, count = int(word["number"]), int(word["count"])
            except (OSError, ValueError, TypeError, KeyError):  # nobody, or somebody else
                if time.monotonic() >= deadline:
                    here, missing = ([n for n in others if (n in came) is found] for found in (True, False))
                    problem = f"but not all came; here: {_listed([0, *here])}; missing: {_listed(missing)}."
                continue
            if count != ours["count"]:
                problem = f"but process {number} expects {count} of them."
            elif number not in others or (number in came and _is_open(came[number])):
                problem = f"but two say that they are process {number}."
            elif word.get("alike") != ours["alike"]:
                problem = f"but process {number} was given other options than process 0, or has another version."
            if problem:
                refused.append(connection)
            else:
                came[number] = connection
        for connection in (*came.values(), *refused):
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps({"problem": problem}).encode() + b"\n")
    return problem


def _tell(host: str, port: int, word: dict[str, Any], timeout: float) -> str:
    """Returns what process 0 says is wrong, or nothing."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError), socket.create_connection((host, port), timeout=_SHORT) as there:
            there.sendall(json.dumps(word).encode() + b"\n")
            return str(_read(there, timeout + _SHORT).get("problem", ""))  # it answers in its own time
        time.sleep(_PAUSE)
    return "but process 0 could not be reached there."


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _is_open(connection: socket.socket) -> bool:
    """Returns whether the other side still waits; what has been started again has closed its first one."""
    connection.settimeout(0)
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _read(connection: socket.socket, timeout: float) -> dict[str, Any]:
    """Returns the object of one line. Raises OSError or ValueError where none comes."""
    deadline, data = time.monotonic() + timeout, b""
    while not data.endswith(b"\n"):
        connection.settimeout(max(deadline - time.monotonic(), 0.01))
        part = connection.recv(4096)
        data += part
        if not part or len(data) > _LONGEST:
            raise ValueError("no message")
    word = json.loads(data)
    if not isinstance(word, dict):
        raise ValueError("no message")
    return word


def _dual() -> bool:
    return socket.has_dualstack_ipv6()


def _family() -> socket.AddressFamily:
    return socket.AF_INET6 if _dual() else socket.AF_INET

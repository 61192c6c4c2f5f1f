"""A meeting of the processes of a run before JAX connects them: if one is missing, JAX ends all without a message.

Process 0 listens on the port that JAX's service will use. The others connect and send their numbers, and process 0
answers when all are connected, or with the numbers of those that are missing.
"""

import contextlib
import json
import socket
import time
from typing import Any

from flaxcls.errors import InputError

_MAX_BYTES = 65536  # of a message
_PAUSE = 0.2  # seconds between two attempts to reach process 0
_SHORT = 5  # seconds to connect, and then to send one's number


def meet(place: str, count: int, number: int, timeout: float, alike: str = "") -> None:
    """Returns when all processes of the run are connected to process 0.

    Args:
      place: "host:port" of process 0.
      count: the number of processes of the run.
      number: the number of this process.
      timeout: seconds within which all must connect.
      alike: a text that must be the same for all processes.

    Raises:
      InputError: if processes are missing or do not fit together, or the port is in use.
    """
    host, port = place.rsplit(":", 1)
    greeting = {"number": number, "count": count, "alike": alike}
    if number == 0:
        problem = _await_others(int(port), greeting, time.monotonic() + timeout)
    else:
        problem = _ask_first(host.strip("[]"), int(port), greeting, timeout)
    if problem:
        raise InputError(f"{count} processes were expected at {place} within {timeout:g} s, {problem}")


def _await_others(port: int, own: dict[str, Any], deadline: float) -> str:
    """Waits for the other processes; returns the problem, or "", and sends it to all that are connected.

    own: the greeting of process 0.
    """
    others = range(1, own["count"])
    connections: dict[int, socket.socket] = {}
    refused: list[socket.socket] = []
    problem = ""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", port), family=family, dualstack_ipv6=dual))
        except OSError as error:
            return f"but process 0 cannot listen on port {port} of its host: {error.strerror or error}."
        while not problem and _waiting(connections) != set(others):
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection = stack.enter_context(server.accept()[0])
                greeting = _receive(connection, _SHORT)
                number, count = int(greeting["number"]), int(greeting["count"])
            except (OSError, ValueError, TypeError, KeyError):  # no connection, or one of another program
                if time.monotonic() >= deadline:
                    waiting = _waiting(connections)
                    connected = _join_numbers([0, *(other for other in others if other in waiting)])
                    missing = _join_numbers([other for other in others if other not in waiting])
                    problem = f"but some are missing: {missing}; connected: {connected}."
                continue
            if count != own["count"]:
                problem = f"but process {number} expects {count} processes."
            elif number not in others or number in _waiting(connections):
                problem = f"but two of them have the number {number}."
            elif greeting.get("alike") != own["alike"]:
                problem = f"but process {number} was given other options than process 0, or has another version."
            if problem:
                refused.append(connection)
            else:
                connections[number] = connection
        for connection in (*connections.values(), *refused):
            with contextlib.suppress(OSError):
                connection.settimeout(_SHORT)
                connection.sendall(json.dumps({"problem": problem}).encode() + b"\n")
    return problem


def _ask_first(host: str, port: int, greeting: dict[str, Any], timeout: float) -> str:
    """Sends the greeting to process 0; returns the problem that it answers with, or ""."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError), socket.create_connection((host, port), _SHORT) as connection:
            connection.sendall(json.dumps(greeting).encode() + b"\n")
            # process 0 answers at the end of its own timeout, which may have begun later
            return str(_receive(connection, timeout + _SHORT).get("problem", ""))
        time.sleep(_PAUSE)
    return "but process 0 could not be reached there."


def _join_numbers(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _waiting(connections: dict[int, socket.socket]) -> set[int]:
    """Returns the numbers of the processes that are still connected."""
    return {number for number, connection in connections.items() if _is_open(connection)}


def _is_open(connection: socket.socket) -> bool:
    """Returns True if the other side still waits; a process that was started again has closed its first connection."""
    connection.settimeout(0)
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _receive(connection: socket.socket, timeout: float) -> dict[str, Any]:
    """Returns the message from one line of JSON. Raises OSError or ValueError if there is none."""
    deadline, data = time.monotonic() + timeout, b""
    while not data.endswith(b"\n"):
        connection.settimeout(max(deadline - time.monotonic(), 0.01))
        part = connection.recv(4096)
        data += part
        if not part or len(data) > _MAX_BYTES:
            raise ValueError("no message")
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError("no message")
    return message

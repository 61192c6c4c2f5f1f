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


def meet(place: str, count: int, number: int, timeout: float) -> None:
    """Returns when all processes have come.

    Args:
      place: "host:port" of process 0.
      count: processes that are expected.
      number: of this one.
      timeout: seconds within which they must come.

    Raises:
      InputError: where they have not, their numbers or counts do not fit together, or the port is taken.
    """
    host, port = place.rsplit(":", 1)
    deadline = time.monotonic() + timeout
    if number == 0:
        problem = _await_others(int(port), count, deadline)
    else:
        problem = _tell(host.strip("[]"), int(port), {"number": number, "count": count}, deadline)
    if problem:
        raise InputError(f"{count} processes were expected at {place} within {timeout:g} s, {problem}")


def _await_others(port: int, count: int, deadline: float) -> str:
    """Returns what is wrong, which those that have come are told, or nothing."""
    came: dict[int, socket.socket] = {}
    problem = ""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", port), family=_family(), dualstack_ipv6=_dual()))
        except OSError as error:
            return f"but port {port} cannot be listened at on the host of process 0: {error.strerror or error}."
        while len(came) < count - 1 and not problem:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection = stack.enter_context(server.accept()[0])
                word = _read(connection, deadline)
            except (OSError, ValueError):  # nobody, or somebody else
                if time.monotonic() >= deadline:
                    missing = sorted(set(range(1, count)) - came.keys())
                    problem = f"but not all came; missing: {', '.join(map(str, missing))}."
                continue
            number: Any = word.get("number")
            if word.get("count") != count:
                problem = f"but process {number} expects {word.get('count')} of them."
            elif number in came or number not in range(1, count):
                problem = f"but two say that they are process {number}."
            else:
                came[number] = connection
        for connection in came.values():
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps({"problem": problem}).encode() + b"\n")
    return problem


def _tell(host: str, port: int, word: dict[str, int], deadline: float) -> str:
    """Returns what process 0 says is wrong, or nothing."""
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError), socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(json.dumps(word).encode() + b"\n")
            # it answers at its own deadline, which may be later than this one's
            return str(_read(connection, deadline + 60).get("problem", ""))
        time.sleep(_PAUSE)
    return "but process 0 could not be reached there."


def _read(connection: socket.socket, deadline: float) -> dict[str, Any]:
    """Returns the object of one line. Raises OSError or ValueError where none comes."""
    data = b""
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

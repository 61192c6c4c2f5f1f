"""A process that makes the images of batches for another one: `python -m flaxcls.data.worker SOCKET`.

It knows nothing of the data set: each request is a pickled function that makes the images of one batch. The reply is
what the function returns, or the exception that it raises. The process ends when the other end of the socket is closed.
"""

import contextlib
import pickle
import socket
import sys
import traceback
from typing import Any

from flaxcls.errors import InputError


def main(descriptor: int) -> None:
    """Answers the requests that come through the socket."""
    with (
        contextlib.suppress(EOFError, ConnectionError),  # the other end is closed, or its process was killed
        socket.socket(fileno=descriptor) as connection,
        connection.makefile("rb") as requests,
        connection.makefile("wb") as replies,
    ):
        while True:
            pickle.dump(_answer(pickle.load(requests)), replies, pickle.HIGHEST_PROTOCOL)
            replies.flush()


def _answer(request: bytes) -> Any:
    """Returns what the pickled function returns, or an exception that can be sent."""
    try:
        return pickle.loads(request)()
    except Exception as error:
        if not isinstance(error, InputError):  # whose message says all
            error.add_note(f"In the worker process:\n{traceback.format_exc()}")
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # its class takes other arguments, or is not known elsewhere
            return RuntimeError("\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]))
        return error


if __name__ == "__main__":
    main(int(sys.argv[1]))

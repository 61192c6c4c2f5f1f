import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from flaxcls.errors import InputError
from flaxcls.run.multihost.rendezvous import meet


@pytest.fixture
def place():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def meet_all(place, processes, timeout=10):
    """Returns what each of (count, number, ...) was answered."""

    def one(process):
        try:
            meet(place, *process[:2], timeout, *process[2:])
        except InputError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(one, processes))


def test_all_go_on_when_all_have_come(place):
    for _ in range(2):  # and the port is free again
        assert meet_all(place, [(4, number) for number in (3, 1, 0, 2)]) == [None] * 4


def test_who_is_missing_is_told_to_all_that_came(place):
    for said in meet_all(place, [(4, 0), (4, 2)], timeout=1):
        assert said == f"4 processes were expected at {place} within 1 s, but some are missing: 1, 3; connected: 0, 2."


def test_without_process_0(place):
    assert "process 0 could not be reached there" in meet_all(place, [(2, 1)], timeout=0.5)[0]


@pytest.mark.parametrize(
    ("processes", "message"),
    [
        ([(3, 0), (3, 1), (3, 1)], "but two of them have the number 1"),
        ([(2, 0), (3, 1)], "but process 1 expects 3 processes"),
        ([(2, 0, "a"), (2, 1, "b")], "but process 1 was given other options than process 0, or has another version"),
    ],
)
def test_what_does_not_go_together_is_told_to_all_that_came(place, processes, message):
    answers = meet_all(place, processes, timeout=3)
    assert all(message in answer for answer in answers)


def connect(place):
    host, port = place.split(":")
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=5)
        except ConnectionRefusedError:
            time.sleep(0.05)


@pytest.mark.slow
def test_strangers_are_not_counted_and_one_that_starts_again_is_not_two(place):
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(meet, place, 3, 0, 30)
        for word in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"[]\n",
            b"\xff\n",
            b'{"number": [1]}\n',
            b'{"number": 1, "count": 3, "alike": ""}\n',
        ):
            with connect(place) as connection:
                connection.sendall(word)
        with connect(place):  # it says nothing
            both = [pool.submit(meet, place, 3, number, 30) for number in (1, 2)]
            assert [one.result() for one in (first, *both)] == [None] * 3


def test_one_that_ended_before_the_last_came_is_waited_for(place):
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(meet, place, 3, 0, 30)
        with connect(place) as connection:
            connection.sendall(b'{"number": 1, "count": 3, "alike": ""}\n')
            time.sleep(0.2)
        second = pool.submit(meet, place, 3, 2, 30)
        time.sleep(0.5)
        assert not first.done()
        again = pool.submit(meet, place, 3, 1, 30)
        assert [one.result() for one in (first, second, again)] == [None] * 3


def test_a_port_that_is_taken(place):
    port = int(place.split(":")[1])
    message = f"process 0 cannot listen on port {port} of its host: Address already in use"
    with socket.create_server(("", port)), pytest.raises(InputError, match=message):
        meet(place, 2, 0, 1)

"""Two real processes and one run directory."""

import os
import platform
import signal
import subprocess
import sys

import pytest

from flaxcls.errors import InputError
from flaxcls.run.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from flaxcls.run.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_is_refused_with_pid_and_host_and_a_dead_ones_lock_is_taken_over(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"in use by process {first.pid} on {platform.node()}, since "):
            locked(tmp_path).__enter__()
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    with locked(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / "lock.json").read_text()
    assert not (tmp_path / "lock.json").exists()


def test_an_owner_that_cannot_be_read_is_another_process(tmp_path):
    with locked(tmp_path):
        (tmp_path / "lock.json").write_text("{")
        with pytest.raises(InputError, match="in use by another process"):
            locked(tmp_path).__enter__()

"""What all commands do alike."""

import contextlib
import importlib
import os

import pytest
from rich.console import Console

from flaxcls.cli import run_command

COMMANDS = ("train", "inspect", "evaluate", "report", "predict", "explain", "export")


def call_for_nobody(command):
    """Returns the code of a command whose output is a pipe that its reader has left, such as `head` after its lines."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as output, contextlib.redirect_stdout(output):
        return command()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_reader_of_the_help_may_leave(command):
    assert call_for_nobody(lambda: importlib.import_module(f"flaxcls.{command}").main(["--help"])) == 141


@pytest.mark.parametrize("write", [print, lambda text: Console().print(text)], ids=["print", "rich"])
def test_the_reader_of_the_output_may_leave(write):
    assert call_for_nobody(lambda: run_command(lambda: write("a line") or 0)) == 141


def test_the_code_of_a_command_whose_output_is_read_stays(capsys):
    assert run_command(lambda: 1) == 1
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module("flaxcls.report").main(["--help"])
    assert stopped.value.code == 0
    assert "report" in capsys.readouterr().out

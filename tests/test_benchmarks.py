"""The benchmarks: what they compute, worked out by hand, and that their peers' scripts are Python."""

import json
import py_compile
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tensorboardX import SummaryWriter

from experiments.benchmarks import measure, throughput
from experiments.benchmarks.measure import ProgramError, Row, compare, in_turn, run

FOLDER = Path(measure.__file__).parent
PEERS = sorted(path for name in ("keras", "torch", "tfdata") for path in FOLDER.glob(f"*_{name}.py"))


@pytest.mark.parametrize("path", PEERS, ids=lambda path: path.stem)
def test_the_script_of_a_peer_compiles(path, tmp_path):
    py_compile.compile(str(path), cfile=str(tmp_path / "compiled"), doraise=True)


def test_each_system_is_measured_once_a_repeat_and_another_one_first_each_time():
    assert [*in_turn("abc", 4)] == [*"abc", *"bca", *"cab", *"abc"]


def test_a_ratio_is_that_of_two_measurements_of_one_repeat():
    ours, theirs, failed = compare("speed", "images/s", {"flaxcls": [3.0, 8.0, 5.0], "one": [2.0, 2.0, 10.0], "no": []})
    assert (ours.ratios, theirs.ratios, failed.ratios) == ([], [1.5, 4.0, 0.5], [])


def test_the_report_has_medians_spreads_and_ratios_on_the_screen_and_in_its_file(tmp_path):
    rows = compare(
        "speed",
        "images/s",
        {"flaxcls": [3000.0, 8000.0, 5000.0], "one": [2000.0, 2000.0, 10000.0], "no": []},
        versions={"one": {"keras": "1.2"}},
        notes={"no": "failed: [no] compiler"},
    )
    console = Console(width=120)
    with console.capture() as shown:
        measure.report(rows, tmp_path / "made" / "rows.json", {"images": 10}, console)
    written = json.loads((tmp_path / "made" / "rows.json").read_text())
    assert [row["system"] for row in written] == ["flaxcls", "one", "no"]
    assert [Row(**{name: row[name] for name in Row.__dataclass_fields__}) for row in written] == rows
    assert written[1]["summary"] == {"median": 2000, "min": 2000, "max": 10000}
    assert written[1]["ratio"] == {"median": 1.5, "min": 0.5, "max": 4.0}
    assert (written[1]["n"], written[1]["settings"], written[2]["summary"]) == (3, {"images": 10}, None)
    for expected in (
        "one: keras 1.2",
        "2,000 to 10,000",
        "1.50 (0.50 to 4.00)",
        "failed: [no] compiler",
        "speed, images",
    ):
        assert expected in shown.get()


def test_a_program_runs_in_a_terminal_and_its_own_memory_is_counted():
    ballast = bytearray(400 * 2**20)
    for index in range(0, len(ballast), 4096):
        ballast[index] = 1
    small = run([sys.executable, "-S", "-c", "import sys; assert sys.stdout.isatty(); print('x' * 200_000)"])
    assert small.peak_bytes < 100 * 2**20
    large = run([sys.executable, "-S", "-c", "import time; x = b'1' * (200 * 2**20); time.sleep(0.3)"])
    assert 200 * 2**20 < large.peak_bytes < 300 * 2**20
    assert 0.3 < large.seconds < 10
    assert large.began > small.began


def test_a_program_that_fails_says_why(capsys):
    with pytest.raises(ProgramError, match=r"failed: ValueError: no compiler"):
        run([sys.executable, "-c", "raise ValueError('no compiler')"])
    with pytest.raises(ProgramError, match="it printed nothing"):
        run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert "Traceback" in capsys.readouterr().err


def test_the_speed_of_an_epoch_is_its_images_over_the_seconds_of_its_lines():
    def line(step, epoch, speed, split="train"):
        return {"step": step, "epoch": epoch, "split": split, "images_per_second": speed}

    lines = [
        line(50, 0, 1.0),
        line(78, 1, 0.0, "validation"),
        line(100, 1, 500.0),  # 500 images, 1 s
        line(150, 1, 250.0),  # 500 images, 2 s
        line(156, 2, 0.0, "validation"),
        line(200, 2, 100.0),  # 500 images, 5 s
        line(234, 3, 68.0),  # the last of three epochs: 340 images, 5 s
    ]
    assert throughput.epoch_rates(lines, batch_size=10, epochs=3) == pytest.approx([1000 / 3, 840 / 10])


def test_the_times_of_events_are_read_from_the_files_of_tensorboard(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for step, time in enumerate((100.5, 107.25, 120.0)):
            writer.add_scalar("validation/loss", 0.5, step, walltime=time)
            writer.add_scalar("train/loss", 0.5, step, walltime=time + 1)
    assert throughput.event_times(tmp_path, "validation/loss") == [100.5, 107.25, 120.0]

"""The benchmarks: what they compute, worked out by hand, and that their peers' scripts are Python."""

import json
import math
import py_compile
import re
import runpy
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from experiments.benchmarks import measure, overhead, resizing, scaling, startup, workers
from experiments.benchmarks.exactness import step_seconds
from experiments.benchmarks.measure import ProgramError, Row, compare, in_turn, run
from experiments.benchmarks.overhead import Turn
from experiments.benchmarks.seeds import rows_of as rows_of_seeds
from flaxcls.config import AugmentConfig, Config, ModelConfig, OptimConfig
from flaxcls.data import load_dataset
from flaxcls.run import fit
from flaxcls.run.checkpoint import Checkpoints
from flaxcls.run.checkpoint_files import fingerprint
from flaxcls.run.setup import make_setup

COMMANDS = (
    *("throughput", "memory", "startup", "overhead", "gpu", "gpu_pack", "gpu_traffic"),
    *("gradients", "exactness", "scaling", "streaming", "workers", "augment", "seeds", "resizing"),
)
PEERS = sorted(Path(measure.__file__).parent.joinpath("peers").glob("*_*.py"))


@pytest.mark.parametrize("path", PEERS, ids=lambda path: path.stem)
def test_the_script_of_a_peer_compiles_and_needs_nothing_of_flaxcls(path, tmp_path):
    assert not re.search(r"^\s*(from|import) (flaxcls|experiments)", path.read_text(), re.MULTILINE)
    py_compile.compile(str(path), cfile=str(tmp_path / "compiled"), doraise=True)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_it_takes(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"experiments.benchmarks.{name}", run_name="__main__")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: python -m experiments.benchmarks.{name} " in shown
    assert "--out" in shown or name == "exactness"


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
        "1.500 (0.500 to 4.000)",
        "failed: [no] compiler",
        "speed, images",
        "flaxcls to it",
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


def test_a_program_is_not_waited_for_once_only_what_it_started_is_left():
    code = "import subprocess, sys; print('x'); subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(15)'])"
    began = time.perf_counter()
    run([sys.executable, "-c", code])
    assert time.perf_counter() - began < 12


def test_a_program_that_fails_says_why(capsys):
    with pytest.raises(ProgramError, match=r"failed: ValueError: no compiler"):
        run([sys.executable, "-c", "raise ValueError('no compiler\\nTo see more, set MORE')"])
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
    assert scaling.epoch_rates(lines, batch_size=10, epochs=3) == pytest.approx([1000 / 3, 840 / 10])


@pytest.mark.slow
def test_the_first_step_ends_before_the_command_does(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(startup, "run", lambda *args: ran.append(run(*args)) or ran[-1])
    assert 0.5 < startup.first_step_seconds(tmp_path / "cache") < ran[0].seconds
    assert [*(tmp_path / "cache").iterdir()]


def test_the_default_run_is_still_the_one_that_keras_is_given(tmp_path):
    config = Config()  # peers/train_keras.py states it again for Keras
    assert config.augment == AugmentConfig(normalize=True, crop_padding=1)
    assert config.model == ModelConfig(name="cnn")
    assert config.optim == OptimConfig(
        name="adamw", learning_rate=4e-3, schedule="cosine", warmup_epochs=1.0, weight_decay=1e-2, ema_decay=0.99
    )
    assert (config.loop.epochs, config.loop.batch_size) == (60, 64)
    setup = make_setup(config, load_dataset(config.data), None, None)
    leaves = jax.tree.leaves(setup.abstract_state.params)
    assert sum(math.prod(leaf.shape) for leaf in leaves) == 90_090  # what Keras counts


def test_startup_is_compared_cold_and_warm():
    found = {
        "cold": {startup.FIRST: [8.0], startup.WHOLE: [20.0]},
        "warm": {startup.FIRST: [4.0], startup.WHOLE: [15.0]},
    }
    rows = startup.rows_of(found, {startup.FIRST: [16.0], startup.WHOLE: [30.0]}, {})
    assert [row.ratios for row in rows if row.ratios] == [[0.5], [0.25], [20 / 30], [0.5]]


def test_the_overhead_of_a_step_an_epoch_and_a_checkpoint_is_that_of_turns():
    first, calm, with_checkpoint = Turn(9, 9.0, 9.0, 2.0), Turn(10, 5.5, 5.0, 0.0), Turn(8, 8.0, 4.0, 1.0)
    rows = overhead.rows_of("task", [first, calm, calm, with_checkpoint, calm])
    found = {(row.quantity, row.system): row for row in rows}
    step, epoch = found["task: a step", "bare"], found["task: an epoch with validation", "bare"]
    assert (step.values, step.ratios) == ([500] * 3, pytest.approx([1.1] * 3))
    assert (epoch.values, epoch.ratios) == ([11_000, 15_000], [9 / 11, 19 / 15])
    assert found["task: held up by a checkpoint", "flaxcls"].values == [-2000, 3000]


@pytest.mark.slow
def test_fit_and_its_bare_steps_take_turns(stripes, small_config, quiet, tmp_path, monkeypatch):
    config = replace(small_config, loop=replace(small_config.loop, epochs=5, batch_size=4, log_every=5))
    save, saved = Checkpoints.save, []

    def slow_save(self, step, state, *args, **options):
        saved.append(fingerprint(state))
        time.sleep(0.3)
        save(self, step, state, *args, **options)

    monkeypatch.setattr(Checkpoints, "save", slow_save)
    turns = overhead.measure(config, stripes)
    fit(config, dataset=stripes, workdir=tmp_path / "run", console=quiet)
    assert saved[:5] == saved[5:]  # the bare steps leave the run's own alone
    epochs = overhead.epochs_of(turns)
    plan = make_setup(config, stripes, None, None).plan
    saves = [step for step in range(1, plan.total_steps + 1) if plan.saves(step)]
    assert [sum(turn.steps for turn in epoch) for epoch in epochs] == [*np.diff(saves)[:-1]]
    for *calm, last in epochs:
        assert calm
        assert all(turn.evaluation == 0 for turn in calm)
        assert last.fit - last.bare - last.evaluation > 0.2
        assert 0 < last.bare < 10


def test_the_plain_loop_trains_on_each_batch_once_and_says_so(stripes, small_config):
    setup = make_setup(small_config, stripes, None, None)
    asked, told = [], []
    seconds = step_seconds(
        setup,
        lambda number: asked.append(number) or setup.loader.load(number, number + 1),
        3,
        lambda step, metrics: told.append((step, metrics["loss"].shape)),
    )
    assert (asked, told) == ([0, 1, 2, 3], [(1, (1,)), (2, (1,)), (3, (1,))])
    assert 0 < seconds < 10


@pytest.mark.slow
def test_the_speed_of_two_processes_is_that_of_their_run(tmp_path, monkeypatch):
    experiment = tmp_path / "small.py"
    experiment.write_text("from flaxcls.config import *\nCONFIG = Config(loop=LoopConfig(log_every=2))")
    monkeypatch.setattr(scaling, "EXPERIMENT", experiment)
    options = ["--data.train-examples", "128"]
    assert scaling.images_per_second(2, 1, options, epochs=2, batch_size=32) > 0
    with pytest.raises(RuntimeError, match="2 processes of 1 devices failed"):
        scaling.images_per_second(2, 1, options, epochs=2, batch_size=33)


def test_seeds_are_measured_in_one_program_and_separately():
    rows = rows_of_seeds("dense network, 8x8", seeds=2, batch_size=4, steps=1, repeats=1)
    assert [(row.system, len(row.values), len(row.ratios)) for row in rows] == [("vmap", 1, 0), ("separate", 1, 1)]


def test_exposures_of_a_tile_and_neighbouring_photos_stay_together(tmp_path):
    for name in (
        "MT_Fray/Imgs/exp1_num_500",
        "MT_Crack/Imgs/exp2_num_530",
        "MT_Free/Imgs/exp3_num_560",
        "MT_Fray/Imgs/exp1_num_900",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".jpg", ".png"):  # the .png is a mask
            (tmp_path / name).with_suffix(suffix).touch()
    tiles = {path.stem: (label, group) for path, label, _, group in resizing.rows_of_tiles(tmp_path)}
    assert sorted(tiles) == ["exp1_num_500", "exp1_num_900", "exp2_num_530"]
    assert tiles["exp1_num_500"][1] == tiles["exp2_num_530"][1] != tiles["exp1_num_900"][1]
    (tmp_path / "kiwi").mkdir()
    for name in ("train_Kiwi_011", "train_Kiwi_019", "train_Kiwi_020", "test_Kiwi_012"):
        (tmp_path / "kiwi" / f"{name}.jpg").touch()
    photos = {path.stem: (split, group) for path, _, split, group in resizing.rows_of_grocery(tmp_path)}
    assert photos["train_Kiwi_011"] == photos["train_Kiwi_019"] != photos["train_Kiwi_020"]
    assert [name for name, (split, _) in photos.items() if split == "test"] == ["test_Kiwi_012"]


@pytest.mark.slow
def test_ways_to_the_size_are_compared_within_a_seed_on_the_whole_validation_split(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for label in ("one", "two"):
        (tmp_path / "flowers" / label).mkdir(parents=True)
        for number in range(24):
            pixels = rng.integers(0, 100, (20 + number % 2 * 20, 30, 3), dtype=np.uint8) + 100 * (label == "two")
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "flowers" / label / f"{number}.png")
    resizing.main(flowers=tmp_path / "flowers", seeds=2, steps=2, out=tmp_path / "rows.json")
    found = json.loads((tmp_path / "rows.json").read_text())["accuracies"]["validation"]["flowers"]
    assert {way: len(values) for way, values in found.items()} == {"crop": 2, "squash": 2, "pad": 2}
    assert all(round(12 * value) == pytest.approx(12 * value) for values in found.values() for value in values)
    shown = capsys.readouterr().out
    assert "| validation accuracy, % (sd) | crop | squash | pad | crop - squash | pad - squash |" in shown
    assert "test accuracy" not in shown


def test_the_table_of_the_ways_has_differences_within_a_seed(capsys):
    resizing.report({"x": {"crop": [0.5, 0.7], "squash": [0.4, 0.6], "pad": [0.4, 0.5]}}, "test")
    assert "| x | 60.0 (14.1) | 50.0 (14.1) | 45.0 (7.1) | 10.0 (0.0) | -5.0 (7.1) |" in capsys.readouterr().out


@pytest.mark.slow
def test_the_memory_of_a_worker_does_not_grow_with_the_number_of_files(tmp_path):
    private = []
    for count in (1000, 200_000):
        (tmp_path / str(count)).mkdir()
        private.append(workers.measure(workers.imagenet_like(tmp_path / str(count), count, 10), 1, 10)[1])
    assert private[1] - private[0] < 5  # MiB

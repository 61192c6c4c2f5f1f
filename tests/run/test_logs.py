import io
import json

import pytest
from rich.console import Console

from experiments.soak.outcome import events
from flaxcls.errors import InputError
from flaxcls.run.checkpoint import Restored
from flaxcls.run.logs import Logs

SPEED = {"images_per_second": 1234.0, "step_seconds": 0.0519}


def restored(step, *, evaluated=True, steps=0):
    return Restored(step, state=None, record={"evaluated": evaluated, "meter": {"steps": steps}}, passed_over={})


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_line_goes_to_metrics_jsonl_and_to_tensorboard(tmp_path):
    with Logs(tmp_path, console=Console(quiet=True), total_steps=10, restored=None) as logs:
        logs.write("train", 5, 1, {"loss": 0.5, "accuracy": 0.25, **SPEED})
        logs.write("validation", 5, 1, {"loss": 0.75})
    assert lines(tmp_path) == [
        {"step": 5, "epoch": 1, "split": "train", "loss": 0.5, "accuracy": 0.25, **SPEED},
        {"step": 5, "epoch": 1, "split": "validation", "loss": 0.75},
    ]
    assert ("validation/loss", 5, 0.75) in events(tmp_path / "tensorboard")
    assert ("train/accuracy", 5, 0.25) in events(tmp_path / "tensorboard")


def test_lines_after_the_checkpoint_and_a_broken_one_are_cut_off(tmp_path):
    whole = [json.dumps({"step": step, "split": "train"}) + "\n" for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(whole) + '{"step": 4, "spl')
    with Logs(tmp_path, console=Console(quiet=True), total_steps=10, restored=restored(2)) as logs:
        logs.write("train", 3, 0, {"loss": 1.0, "accuracy": 0.0, **SPEED})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert lines(tmp_path)[2]["loss"] == 1.0


def test_a_damaged_line_before_the_checkpoint_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "split": "train"}\n\0\xff\n{"step": 2, "split": "train"}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl is damaged: .*Delete the lines that are not JSON"):
        Logs(tmp_path, console=Console(quiet=True), total_steps=10, restored=restored(2))


def test_a_resumed_runs_event_files_hold_what_metrics_jsonl_holds_once(tmp_path):
    options = {"console": Console(quiet=True), "total_steps": 10}
    with Logs(tmp_path, **options, restored=None) as logs:
        for step in (1, 2, 3):
            logs.write("train", step, 0, {"loss": step, "accuracy": 0.0, **SPEED})
            logs.write("validation", step, 0, {"loss": step})
    with Logs(tmp_path, **options, restored=restored(2, evaluated=False)) as logs:
        logs.write("validation", 2, 0, {"loss": 20})
    expected = [("train", 1), ("validation", 1), ("train", 2), ("validation", 2)]
    assert [(line["split"], line["step"]) for line in lines(tmp_path)] == expected
    losses = [(tag, step, value) for tag, step, value in events(tmp_path / "tensorboard") if tag.endswith("loss")]
    assert losses == [(f"{line['split']}/loss", line["step"], line["loss"]) for line in lines(tmp_path)]


def test_where_there_is_no_terminal_there_are_plain_lines(tmp_path):
    console = Console(file=io.StringIO(), width=80)
    with Logs(tmp_path, console=console, total_steps=2, restored=None) as logs:
        logs.advance(1, 0)
        logs.write("train", 1, 0, {"loss": 1.0, "accuracy": 0.0, **SPEED})
        logs.say("epoch 1 [/b]")
        logs.advance(2, 1)
    first, second = console.file.getvalue().splitlines()
    for part in (
        "epoch   0",
        "step      1/2",
        "loss 1.0000",
        "accuracy 0.00%",
        "1,234 images/s",
        "51.9 ms/step",
        "0.0 min left",
    ):
        assert part in first
    assert second == "epoch 1 [/b]"


def test_a_terminal_gets_a_bar_with_epoch_step_loss_accuracy_speed_and_time_left(tmp_path):
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with Logs(tmp_path, console=console, total_steps=200, restored=None) as logs:
        logs.advance(7, 3)
        logs.write("train", 7, 3, {"loss": 0.1234, "accuracy": 0.5, **SPEED, "mfu": 0.456})
        logs._progress.refresh()
    shown = console.file.getvalue()
    for part in (
        "epoch 3",
        "step 7/200",
        "loss 0.1234",
        "accuracy 50.00%",
        "1,234 images/s",
        "51.9 ms/step",
        "MFU 46%",
        ":",
    ):
        assert part in shown


def test_a_line_that_early_stopping_brought_about_goes_with_the_evaluation_that_is_due_again(tmp_path):
    options = {"console": Console(quiet=True), "total_steps": 10}
    with Logs(tmp_path, **options, restored=None) as logs:
        logs.write("train", 2, 0, {"loss": 2.0, "accuracy": 0.5, **SPEED})
        logs.write("train", 3, 1, {"loss": 1.0, "accuracy": 0.5, **SPEED})
        logs.write("validation", 3, 1, {"loss": 0.5})
    with Logs(tmp_path, **options, restored=restored(3, evaluated=False, steps=1)):
        assert [line["step"] for line in lines(tmp_path)] == [2]

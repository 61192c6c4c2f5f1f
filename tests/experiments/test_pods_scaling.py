"""Tests the predictions for many chips: formulas by hand, the tables of SCALING.md, the collectives of programs."""

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import jax
import pytest

from experiments.pods import programs, scaling
from experiments.pods.scaling import CHIPS, KINDS, Chip, Work
from flaxcls.train import parse
from flaxcls.validation import validate

FOLDER = Path(scaling.__file__).parent
TEXT = (FOLDER / "SCALING.md").read_text()

# two slices of 16 in a torus of 4x4 compute 1 GFLOP an image in 1 ms
CHIP = Chip("small", peak=1e12 / 0.5, link=100e9, slice=16, ring=16, dimensions=2, network=1e9)
WORK = Work(image_flops=10**9, gradient=8_000_000, statistics=1600, rounds=10)


@pytest.fixture
def half_of_the_peak(monkeypatch):
    monkeypatch.setattr(scaling, "MEASURED", 0.5 * scaling.PEAKS["NVIDIA H100"] / WORK.image_flops)


def test_the_computation_is_that_of_the_share_of_the_peak_that_was_measured(half_of_the_peak):
    assert scaling.compute_seconds(CHIP, 64, WORK) == pytest.approx(64e-3)


def test_one_chip_reduces_nothing():
    assert scaling.all_reduce_seconds(CHIP, 1, 8_000_000, rounds=10) == 0


def test_within_a_slice_rings_send_nearly_twice_the_bytes():
    # 2 * 15/16 of 8 MB at 100 GB/s, and 2 phases * 2 sides * 3 hops of 1 us
    assert scaling.all_reduce_seconds(CHIP, 16, 8_000_000) == pytest.approx(150e-6 + 12e-6)
    # 2 * 3/4 of 8 MB at half the speed, as a part of the torus has no rings, and 2 * 2 * 1 hops
    assert scaling.all_reduce_seconds(CHIP, 4, 8_000_000) == pytest.approx(240e-6 + 4e-6)


def test_across_slices_each_chip_sends_its_part():
    # what a slice takes, and 2 * 1/2 of 0.5 MB at 1 GB/s, and up and down a tree of 2
    assert scaling.all_reduce_seconds(CHIP, 32, 8_000_000) == pytest.approx(162e-6 + 500e-6 + 20e-6)
    # of 9 slices, the last one not full
    assert scaling.all_reduce_seconds(CHIP, 129, 0, rounds=3) == pytest.approx(3 * (12e-6 + 2 * 4 * 10e-6))


def test_a_step_is_the_sum_or_hides_the_gradients_alone(half_of_the_peak):
    slow, fast = scaling.step_seconds(CHIP, 16, 2, WORK)
    statistics = 2 * 15 / 16 * 1600 / 100e9 + 10 * 12e-6
    assert slow == pytest.approx(2e-3 + 162e-6 + statistics)
    assert fast == pytest.approx(2e-3 + statistics)
    assert scaling.step_seconds(CHIP, 16, 0.1, WORK)[1] == pytest.approx(162e-6 + statistics)
    assert scaling.efficiencies(CHIP, 16, 2, WORK) == pytest.approx((2e-3 / slow, 2e-3 / fast))
    own = scaling.own_statistics(WORK)
    assert scaling.step_seconds(CHIP, 16, 2, own) == pytest.approx((2e-3 + 162e-6, 2e-3))


def test_the_least_batch_is_the_first_that_is_worth_it():
    work = scaling.resnet50_work()
    for chip in KINDS:
        for chips in CHIPS:
            for share in (0.5, 0.9):
                least = scaling.least_batch(chip, chips, work, share)
                assert scaling.efficiencies(chip, chips, least, work)[0] >= share
                assert scaling.efficiencies(chip, chips, least - 1, work)[0] < share
        chips = scaling.most_chips(chip, 32_768, work, 0.5)
        assert scaling.efficiencies(chip, chips, 32_768 / chips, work)[0] >= 0.5
        if chips < 4096:
            assert scaling.efficiencies(chip, 2 * chips, 16_384 / chips, work)[0] < 0.5


@pytest.mark.parametrize("batch", ["256 images a chip", "32,768 images in all"])
def test_more_chips_are_less_efficient_and_overlap_never_hurts(batch):
    for chip in KINDS:
        found = [row for row in scaling.rows() if (row["chip"], row["batch"]) == (chip.name, batch)]
        assert [row["chips"] for row in found] == [*CHIPS]
        for row in found:
            shares = row["efficiency"]
            assert 0 < shares["overlap_none"] <= shares["overlap_full"] <= 1
            assert shares["overlap_none"] <= shares["own_statistics"] <= 1
        for fewer, more in pairwise(found):
            assert more["efficiency"]["overlap_none"] < fewer["efficiency"]["overlap_none"]


def test_the_work_is_that_of_the_published_network():
    work = scaling.resnet50_work()
    assert work.gradient == 4 * (25_557_032 + 2)  # torchvision's resnet50 has as many
    assert work.statistics == 4 * 3 * 26_560
    # 4.09 G multiplications and additions an image, forward
    assert work.image_flops == pytest.approx(3 * 2 * 4.09e9, rel=0.02)


def test_the_document_holds_what_the_command_prints_now(capsys, tmp_path):
    scaling.predict(tmp_path)
    printed = capsys.readouterr().out.strip()
    tables = printed.split("\n\n")
    assert len(tables) == 5
    for made in tables:
        assert made in TEXT, f"write it into SCALING.md:\n{made}"
    assert (tmp_path / "scaling.json").read_text() == (FOLDER / "scaling.json").read_text()
    assert (tmp_path / "scaling.svg").read_text().startswith("<svg")


def test_the_document_holds_what_was_compiled():
    counted = json.loads((FOLDER / "compiled.json").read_text())["programs"]
    assert programs.compiled_table(counted) in TEXT
    assert {one["devices"] for one in counted} >= {8, 64, 512}
    for one in counted:
        assert one["network"] == "resnet50"
        assert one["all_reduce"] == pytest.approx(one["predicted_all_reduce"], rel=1e-3)
        assert one["all_gather"] == pytest.approx(one["predicted_all_gather"], rel=0.05)
        if one["fsdp"] == 1:
            assert one["predicted_all_reduce"] == scaling.resnet50_work().gradient + scaling.resnet50_work().statistics
            assert one["collectives"] == scaling.resnet50_work().rounds + 1
            assert one["flops"] == pytest.approx(one["model_flops"], rel=0.05)


def test_the_links_of_the_document_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert "scaling.svg" in links
    assert all((FOLDER / link).exists() for link in links if not link.startswith("https://"))


def test_the_recipe_is_a_configuration():
    shown = re.search(r"<!-- recipe -->\n\n    python -m flaxcls\.train (.*?)\n\n", TEXT, re.DOTALL).group(1)
    config = parse(shown.replace("\\", "").split()).config
    validate(config)
    assert (config.optim.name, config.loop.batch_size, config.optim.warmup_epochs) == ("lamb", 32_768, 20)


def check(one):
    exact = one["fsdp"] == 1  # batch norm comes to less than a hundredth
    assert one["all_reduce"] == pytest.approx(one["predicted_all_reduce"], rel=0 if exact else 0.05, abs=0)
    assert one["all_gather"] == pytest.approx(one["predicted_all_gather"], rel=0.05)
    assert one["others"] == 0


@pytest.mark.slow
def test_a_program_of_two_devices_holds_the_predicted_bytes():
    one = programs.program(network="cnn", image_size=8, classes=10)
    assert (one["devices"], one["fsdp"]) == (jax.device_count(), 1)
    check(one)


@pytest.mark.slow
def test_a_program_of_four_devices_in_a_process_of_its_own_holds_the_predicted_bytes():
    one = programs.compiled_apart(4, "--network", "cnn", "--image-size", "8", "--classes", "10", "--fsdp", "2")
    assert (one["devices"], one["fsdp"]) == (4, 2)
    check(one)


@pytest.mark.slow
def test_the_commands_say_what_they_take():
    for name, option in (("scaling", "--out"), ("programs", "--devices")):
        command = [sys.executable, "-m", f"experiments.pods.{name}", "--help"]
        ran = subprocess.run(command, capture_output=True, text=True)
        assert ran.returncode == 0
        assert option in ran.stdout

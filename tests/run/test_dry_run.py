"""`dry_run`: what it shows agrees with what the run then does, and it leaves nothing behind."""

import io
from dataclasses import replace

import cv2
import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from flaxcls.config import DataConfig
from flaxcls.errors import InputError
from flaxcls.run import dry_run, fit, messages, resume
from flaxcls.run.dry_run import _draw_schedule
from flaxcls.run.plan import make_plan
from flaxcls.run.setup import make_setup
from tests.conftest import make_stripes

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture
def shown(stripes, small_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def shown(config=small_config, **options):
        text = io.StringIO()
        dry_run(config, dataset=stripes, console=Console(file=text, width=100), **options)
        return text.getvalue()

    return shown


def test_it_shows_network_plan_schedule_batch_and_cost_and_writes_nothing(shown, small_config, stripes, tmp_path):
    text = shown(workdir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert "Conv_0" in text
    assert "stripes: 109 train, 11 validation, 30 test images of 3 classes" in text
    assert ["class", "train", "validation", "test"] in [line.split() for line in text.splitlines()]
    order = ("source: arrays\n", "train: 109, the rest\n", "class ", "sizes: all 8x8\n", "exact copies: ", "memory: ")
    places = [text.index(line) for line in order]
    assert places == sorted(places)
    assert "11 steps of 32, 3.4 an epoch, 0 of warm-up" in text
    assert "learning rate in 1e-2 by step (cosine)" in text
    setup = make_setup(small_config, stripes, None, None)
    raw = jax.tree.map(lambda array: array[0], setup.loader.load(0, 1))
    images = np.asarray(raw["image"])
    key, _ = jax.random.split(jax.random.fold_in(jax.random.key(small_config.seed), 0))
    seen = np.asarray(setup.transform(key, raw)["image"])
    for name, array in (("as read", images), ("transformed", seen)):
        (line,) = (line for line in text.splitlines() if f"│ {name} " in line)
        numbers = [float(cell) for cell in line.split("│")[3:7]]
        np.testing.assert_allclose(numbers, [array.min(), array.mean(), array.std(), array.max()], rtol=1e-3, atol=1e-3)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(setup.abstract_state.params))
    assert f"{4 * parameters / 2**10:.1f} KiB" in text
    assert "nothing was trained or written" in text


@pytest.mark.parametrize(
    ("available", "way"),
    [
        (10_000, "read from their files in each epoch, as they take more than is there"),
        (10_000_000, "kept in memory"),
    ],
)
def test_images_that_take_more_memory_than_is_there_are_not_decoded_into_it(
    small_config, tmp_path, monkeypatch, available, way
):
    images, labels = make_stripes(60)
    for number, (image, label) in enumerate(zip(images[..., 0], labels, strict=True)):
        (tmp_path / "data" / "abc"[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "data" / "abc"[label] / f"{number}.png")
    for module in (resume, messages):  # 11.2 KiB are needed
        monkeypatch.setattr(module, "available_memory", lambda: available)
    text = io.StringIO()
    data = DataConfig(source="folder", dir=str(tmp_path / "data"))
    dry_run(replace(small_config, data=data), console=Console(file=text, width=400))
    assert f"memory: the decoded images take 11.2 KiB and are {way} (data.memory: 2 GiB), " in text.getvalue()


def test_the_run_after_it_is_the_run_without_it(shown, small_config, stripes, quiet):
    results = [fit(small_config, dataset=stripes, workdir="before", console=quiet)]
    shown()
    results.append(fit(small_config, dataset=stripes, workdir="after", console=quiet))
    assert results[0].fingerprint == results[1].fingerprint


@pytest.mark.slow
def test_it_says_what_microbatches_mixing_and_a_plateau_do(shown, small_config):
    optim = replace(small_config.optim, accumulate=2, plateau_patience=2, plateau_factor=0.5, schedule="constant")
    text = shown(replace(small_config, optim=optim, augment=replace(small_config.augment, mixup=0.2)))
    assert "11 steps of 32 in 2 microbatches, 3.4 an epoch" in text
    assert "soft labels: 3 of 3 classes" in text
    assert "multiplied by 0.5 whenever 2 epochs bring no lower training loss" in text


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine_restarts", "exponential", "piecewise", "one_cycle"])
def test_every_schedule_is_drawn(small_config, schedule):
    config = replace(small_config, optim=replace(small_config.optim, schedule=schedule))
    drawn = _draw_schedule(config.optim, make_plan(config.loop, examples=109), width=60)
    assert f"({schedule})" in drawn
    assert len(drawn.splitlines()) > 10


def test_it_refuses_what_fit_refuses(shown, small_config, stripes, quiet, tmp_path):
    fit(small_config, dataset=stripes, workdir=tmp_path / "run", console=quiet)
    with pytest.raises(InputError, match="is not empty"):
        shown(workdir=tmp_path / "run")
    with pytest.raises(InputError, match=r"loop\.epochs is 0"):
        shown(replace(small_config, loop=replace(small_config.loop, epochs=0)))


@pytest.fixture
def pets(tmp_path):
    """Returns a folder of 20 images of 8x8, in two classes."""
    for number in range(20):
        place = tmp_path / "pets" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)).save(
            place / f"{number}.png"
        )
    return tmp_path / "pets"


def refuse(config, folder, **options):
    """Returns what a dry run of a folder shows before it refuses it, and the error."""
    text, data = io.StringIO(), DataConfig(source="folder", dir=str(folder), **options)
    with pytest.raises(InputError) as refused:
        dry_run(replace(config, data=data), console=Console(file=text, width=200))
    return text.getvalue(), str(refused.value)


def test_the_data_is_shown_before_it_is_refused_for_all_that_does_not_fit_it(small_config, pets):
    augment = replace(small_config.augment, cutout=1000)
    text, error = refuse(replace(small_config, augment=augment), pets)
    assert "train: 14, the rest\n" in text
    assert "the model would see 8x8, 3 channels" in text
    assert [line.split(" is ")[0] for line in error.splitlines()] == ["loop.batch_size", "augment.cutout"]
    assert "loop.batch_size" not in text  # the error says it


def test_data_that_training_does_not_read_is_shown_as_far_as_it_can_be(small_config, pets):
    cv2.imwrite(str(pets / "a" / "deep.png"), np.full((8, 8), 4000, np.uint16))
    (pets / "a" / "empty.png").write_text("no image")
    cut = pets / "b" / "1.png"
    cut.write_bytes(cut.read_bytes()[:-60])  # its header is whole
    text, error = refuse(small_config, pets)
    assert "channels and depth: 3 channels of 8 bits (20), 1 channel of 16 bits (1)" in text
    assert "values of 0..4000 in the files; which of them are black and white is not known" in text
    assert "not readable" not in text
    refusals = ["1 of 22 files cannot be used:", "have values of several types: ", "loop.batch_size is 32, but"]
    places = [error.index(words) for words in refusals]
    assert places == sorted(places)
    assert "empty.png is no image that can be read" in error


@pytest.mark.parametrize("unreadable", ["stop", "skip", "replace"])
def test_files_that_cannot_be_read_are_listed_where_something_else_is_refused_first(small_config, pets, unreadable):
    (pets / "a" / "empty.png").write_text("no image")
    (pets / "c").mkdir()
    text, error = refuse(small_config, pets, unreadable=unreadable)
    assert error.startswith(f"the class folder {pets / 'c'} holds no image")
    assert "not readable (1), training " in text
    assert text.count("empty.png is no image that can be read") == 1


def test_what_is_left_out_is_said_once(small_config, pets):
    (pets / "a" / "empty.png").write_text("no image")
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(pets / "b" / "odd.png")
    text, data = io.StringIO(), DataConfig(source="folder", dir=str(pets), unreadable="skip")
    small = replace(small_config, data=data, loop=replace(small_config.loop, batch_size=4))
    dry_run(small, console=Console(file=text, width=200))
    assert text.getvalue().count("empty.png") == 1
    assert text.getvalue().count("squashed") == 1
    assert "data set pets: 15 train, 2 validation, 4 test images of 2 classes\n" in text.getvalue()


def test_it_says_what_is_frozen_and_shows_the_same_batch_where_the_split_is_on_the_devices(shown, small_config):
    config = replace(small_config, data=replace(small_config.data, on_device=True))
    config = replace(config, optim=replace(config.optim, freeze={"Conv_*": 1, "[DB]*": 0}))
    text = shown(config)
    assert "Conv_* is frozen after step 3\n[DB]* is frozen after step 0\n" in text
    assert "with state, training split and key" in text
    images = [[line for line in part.splitlines() if "│ as read " in line] for part in (text, shown())]
    assert images[0] == images[1] != []

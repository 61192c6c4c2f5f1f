"""The command, and its page in a real browser, opened from the disk as a user does."""

import base64
import io
import re
import shutil

import numpy as np
import pytest
import tifffile
from PIL import Image
from selenium.webdriver.common.by import By

from flaxcls.analysis.look import look_at
from flaxcls.config import AugmentConfig, DataConfig
from flaxcls.data import load_dataset
from flaxcls.data.inspection import inspect_dataset
from flaxcls.inspect import main
from flaxcls.run.preview import draw_views
from tests.browser import requests_of, start_browser

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Returns given splits of one colour a class; one of test is a copy, one is cut off, one is wide."""
    place = tmp_path_factory.mktemp("data") / "shapes"
    noise = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 2), ("test", 2)):
        for name, colour in COLOURS.items():
            (place / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.full((24, 24, 3), colour) + noise.integers(-9, 6, (24, 24, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(place / part / name / f"{part}{number}.png")
    shutil.copy(place / "train" / "red" / "train3.png", place / "test" / "red" / "again.png")
    whole = (place / "train" / "blue" / "train0.png").read_bytes()
    (place / "train" / "blue" / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (96, 24), COLOURS["green"]).save(place / "train" / "green" / "wide.png")
    return place


@pytest.fixture(scope="module")
def page(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "shapes.html"
    assert main([str(shapes), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def browser():
    yield from start_browser()


def opened(browser, page):
    """Opens a page, and returns what was requested and what the console said."""
    requests_of(browser)
    browser.get_log("browser")
    browser.get(page.as_uri())
    return requests_of(browser), browser.get_log("browser")


def test_it_opens_without_an_error_or_a_request_and_says_the_facts(browser, page, shapes):
    sent, console = opened(browser, page)
    assert [url for url in sent if not url.startswith("data:")] == [page.as_uri()]
    assert console == []
    facts = browser.find_element(By.ID, "facts").text
    assert f"folder of classes {shapes}" in facts
    assert "2 sizes, 24x24 (38), 24x96 (1)" in facts
    assert "memory" in facts
    assert "train/red/train3.png" in browser.find_element(By.ID, "copies").text
    assert "test/red/again.png" in browser.find_element(By.ID, "copies").text
    assert "squashed by 75%, 24 x 96" in browser.find_element(By.ID, "extremes").text
    assert "cut.png is no image that can be read" in browser.find_element(By.ID, "unreadable").text
    pictures = browser.find_elements(By.TAG_NAME, "img")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#sheet figure")) == 18
    assert len(browser.find_elements(By.CSS_SELECTOR, "#sheet img")) == 18 * 3
    assert all(picture.get_attribute("alt") for picture in pictures)
    assert browser.execute_script("return [...document.images].every((image) => image.naturalWidth > 0)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 400])
def test_it_fits_a_phone_and_the_dark(browser, page, width, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    try:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        opened(browser, page)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        back = browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
        assert (int(re.findall(r"\d+", back)[0]) > 200) == (scheme == "light")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def pixels(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def look(place, channels=None, augment=None, **options):
    problems = []
    config = DataConfig(source="folder", dir=str(place), memory=0.0, **options)
    dataset = load_dataset(config, problems=problems)
    facts = inspect_dataset(dataset, memory_limit=2, available=None, problems=problems)

    def draw(indices):
        return draw_views(augment or AugmentConfig(), dataset, dataset.train, indices, draws=2)

    return dataset, look_at(dataset, facts, channels=channels, draw_views=draw)


def test_the_sheet_has_what_the_model_sees_and_what_training_makes_of_it(shapes):
    dataset, found = look(shapes, augment=AugmentConfig(crop_padding=0, alternating_flip=True))
    assert [name for name, _ in found.classes] == list(dataset.class_names)
    for _, examples in found.classes:
        assert len(examples) == 6
        for shown in examples:
            seen, first, second = (pixels(url)[::4, ::4] for _, url in shown.pictures)
            np.testing.assert_array_equal(seen, dataset.train.images[dataset.train.ids.index(shown.name)])
            mirrored = [np.abs(view.astype(int) - seen[:, ::-1]).max() <= 1 for view in (first, second)]
            plain = [np.abs(view.astype(int) - seen).max() <= 1 for view in (first, second)]
            if shown.name != "train/green/wide.png":  # it is of one colour
                assert sorted([mirrored, plain]) == [[False, True], [True, False]]


@pytest.mark.parametrize("options", [{"mixup": 0.2}, {"resized_crop": 0.3, "crop_padding": 0}, {"normalize": False}])
def test_every_augmentation_can_be_shown(shapes, options):
    _, found = look(shapes, augment=AugmentConfig(**options))
    assert all(len(shown.pictures) == 3 for _, examples in found.classes for shown in examples)


def test_deep_pictures_of_many_channels_are_shown_by_their_range(tmp_path):
    for name, bright in (("dark", 1), ("light", 3)):
        (tmp_path / name).mkdir()
        for number in range(4):
            bands = np.zeros((8, 8, 5), np.uint16)
            bands[..., 0], bands[..., 4], bands[0, 0, 3] = 1000 * bright, 500 + number, 4095
            tifffile.imwrite(tmp_path / name / f"{number}.tif", bands, photometric="minisblack", planarconfig="contig")
    _, found = look(tmp_path, color="stored")
    assert pixels(found.classes[1][1][0].pictures[0][1])[-1, -1].tolist() == [round(255 * 3000 / 4095), 0, 0]
    _, found = look(tmp_path, color="stored", channels=(5, 2, 1))
    middle = pixels(found.classes[0][1][0].pictures[0][1])[-1, -1].tolist()
    assert (middle[0] in range(30, 33), middle[1], middle[2]) == (True, 0, round(255 * 1000 / 4095))


def test_pictures_that_training_refuses_are_shown_as_their_files_have_them(tmp_path):
    for number in range(4):
        for name in ("a", "b"):
            (tmp_path / name).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (200, 100, 0)).save(tmp_path / "a" / f"{number}.png")
        tifffile.imwrite(tmp_path / "b" / f"{number}.tif", np.linspace(-9, 9, 64, dtype=np.float32).reshape(8, 8))
    _, found = look(tmp_path)
    (_, url), *_ = found.classes[0][1][0].pictures
    assert pixels(url)[0, 0].tolist() == [200, 100, 0]
    (_, url), *_ = found.classes[1][1][0].pictures
    assert (pixels(url).min(), pixels(url).max()) == (0, 255)


def test_it_prints_the_facts_and_goes_on_past_what_training_refuses(shapes, tmp_path, capsys):
    shutil.copytree(shapes, tmp_path / "d")
    (tmp_path / "d" / "train" / "black").mkdir()
    assert main([str(tmp_path / "d"), "--out", str(tmp_path / "d.html")]) == 0
    printed = capsys.readouterr().out
    assert "train: 26, given by folders\n" in printed
    assert "exact copies: 1 group; 1 of test are also in train\n" in printed
    assert "training refuses (1):\n  the class folder" in printed
    assert "cut.png is no image" in printed
    assert "What training refuses" in (tmp_path / "d.html").read_text()


def test_the_digits_can_be_looked_at_too(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "digits.html")]) == 0
    assert "sizes: all 8x8\n" in capsys.readouterr().out


def test_a_large_set_is_not_read_as_a_whole(shapes, tmp_path, capsys):
    assert main([str(shapes), "--out", str(tmp_path / "page.html"), "--data.memory", "0"]) == 0
    assert "Only the headers were read" in (tmp_path / "page.html").read_text()
    assert "read from their files in each epoch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["none"], "data.dir 'none' is no folder"),
        (["{shapes}", "--out", "{page}"], "is there already: name a new file"),
        (["{shapes}", "--data.dir", "other"], "is given, and so is data.dir"),
        (["{shapes}", "--channels", "1", "9", "2"], "channels is 1 9 2, but must be one or three numbers of 1 to 3"),
        (["{shapes}", "--augment.hue", "2"], "augment.hue is 2.0"),
    ],
)
def test_bad_input_is_answered_with_the_way_out(shapes, page, tmp_path, capsys, args, words):
    assert main(["--out", str(tmp_path / "new.html"), *(arg.format(shapes=shapes, page=page) for arg in args)]) == 2
    assert words in capsys.readouterr().err


def test_a_page_is_replaced_where_that_is_asked_for(shapes, tmp_path):
    (tmp_path / "page.html").write_text("old")
    assert main([str(shapes), "--out", str(tmp_path / "page.html"), "--overwrite"]) == 0
    assert "Contact sheet" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("unreadable", ["stop", "skip", "replace"])
def test_a_damaged_file_is_listed_whatever_training_does_with_it(tmp_path, capsys, unreadable):
    noise = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for number in range(9):
            Image.fromarray(noise.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "d" / name / f"{number}.jpg")
    cut = tmp_path / "d" / "a" / "3.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    options = ["--out", str(tmp_path / "d.html"), "--data.unreadable", unreadable]
    assert main([str(tmp_path / "d"), *options]) == 0
    (line,) = re.findall(r"not readable \(1\):\n  (.*)\n", capsys.readouterr().out)
    assert line.startswith(f"{cut} is no image that can be read")
    assert "--resume" not in (tmp_path / "d.html").read_text()

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

from flaxcls.analysis.gallery import draw_gallery
from flaxcls.config import AugmentConfig, DataConfig
from flaxcls.data import load_dataset
from flaxcls.data.inspection import inspect_dataset
from flaxcls.inspect import main
from flaxcls.run.preview import draw_views
from tests.browser import requests_of, start_browser

BLUE = "blue" + 188 * "e"  # a name that cannot be broken at a blank
COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), BLUE: (10, 10, 250)}


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
    whole = (place / "train" / BLUE / "train0.png").read_bytes()
    (place / "train" / BLUE / "cut.png").write_bytes(whole[: len(whole) // 2])
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
    assert "largest, squashed by 75%, 24x96" in browser.find_element(By.ID, "extremes").text
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


def look(place, channels=None, augment=None, has_range=True, **options):
    problems = []
    config = DataConfig(source="folder", dir=str(place), **{"memory": 0.0, **options})
    dataset = load_dataset(config, problems=problems)
    facts = inspect_dataset(dataset, memory_limit=2, available=None, problems=problems)

    def draw(indices):
        return draw_views(augment or AugmentConfig(), dataset, dataset.train, indices, draws=2)

    names = dataset.preparation.name_channels(config.path_column)
    return dataset, draw_gallery(
        dataset, facts, channels=channels, channel_names=names, draw_views=draw, has_range=has_range
    )


def test_the_sheet_has_what_the_model_sees_and_what_training_makes_of_it(shapes):
    dataset, found = look(shapes, augment=AugmentConfig(crop_padding=0, alternating_flip=True))
    assert [name for name, _, _ in found.classes] == list(dataset.class_names)
    for _, _, examples in found.classes:
        assert len(examples) == 6
        for shown in examples:
            seen, first, second = (pixels(drawing.url)[::4, ::4] for drawing in shown.pictures)
            np.testing.assert_array_equal(seen, dataset.train.images[dataset.train.ids.index(shown.name)])
            mirrored = [np.abs(view.astype(int) - seen[:, ::-1]).max() <= 1 for view in (first, second)]
            plain = [np.abs(view.astype(int) - seen).max() <= 1 for view in (first, second)]
            if shown.name != "train/green/wide.png":  # it is of one colour
                assert sorted([mirrored, plain]) == [[False, True], [True, False]]


@pytest.mark.parametrize("options", [{"mixup": 0.2}, {"resized_crop": 0.3, "crop_padding": 0}, {"normalize": False}])
def test_every_augmentation_can_be_shown(shapes, options):
    _, found = look(shapes, augment=AugmentConfig(**options))
    assert all(len(shown.pictures) == 3 for _, _, examples in found.classes for shown in examples)


def test_deep_pictures_of_many_channels_are_shown_by_their_range(tmp_path):
    for name, bright in (("dark", 1), ("light", 3)):
        (tmp_path / name).mkdir()
        for number in range(4):
            bands = np.zeros((8, 8, 5), np.uint16)
            bands[..., 0], bands[..., 4], bands[0, 0, 3] = 1000 * bright, 500 + number, 4095
            tifffile.imwrite(tmp_path / name / f"{number}.tif", bands, photometric="minisblack", planarconfig="contig")
    _, found = look(tmp_path, color="stored")
    assert pixels(found.classes[1].examples[0].pictures[0].url)[-1, -1].tolist() == [round(255 * 3000 / 4095), 0, 0]
    _, found = look(tmp_path, color="stored", channels=(5, 2, 1))
    middle = pixels(found.classes[0].examples[0].pictures[0].url)[-1, -1].tolist()
    assert (middle[0] in range(30, 33), middle[1], middle[2]) == (True, 0, round(255 * 1000 / 4095))


def test_the_file_and_the_input_show_the_same_channels(tmp_path):
    """What is transparent is laid on white in both or in none, and of two bands both show the first."""
    for name in ("a", "b"):
        (tmp_path / "rgba" / name).mkdir(parents=True)
        (tmp_path / "two" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGBA", (8, 8), (200, 100, 50, 0)).save(tmp_path / "rgba" / name / f"{number}.png")
            bands = np.full((8, 8, 2), (30, 90), np.uint8)
            tifffile.imwrite(
                tmp_path / "two" / name / f"{number}.tif", bands, photometric="minisblack", planarconfig="contig"
            )

    def colours(place, **options):
        found = look(tmp_path / place, **options)[1]
        ((_, shown),) = found.extremes
        return [pixels(drawing.url)[0, 0].tolist() for drawing in shown.pictures], found.channels

    both = [[200, 100, 50]] * 2, "red, green, blue, of red, green, blue, alpha"
    assert colours("rgba", color="stored") == both
    assert colours("rgba", color="stored", channels=(4,)) == (
        [[0] * 3] * 2,
        "alpha as grey, of red, green, blue, alpha",
    )
    assert colours("rgba") == ([[255] * 3] * 2, "red, green, blue")
    assert colours("rgba", channels=(3, 1, 2))[1] == "blue, red, green as red, green, blue, of red, green, blue"
    assert colours("two", color="stored") == ([[30] * 3] * 2, "channel 1 as grey, of channel 1, channel 2")
    assert colours("two", color="stored", channels=(2,))[0] == [[90] * 3] * 2


def test_channels_that_are_asked_for_hold_for_files_of_other_channels(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGBA", (8, 8), (200, 100, 50, 255)).save(tmp_path / name / f"{number}.png")
    ((_, shown),) = look(tmp_path, channels=(3, 2, 1))[1].extremes
    assert [pixels(drawing.url)[0, 0].tolist() for drawing in shown.pictures] == [[50, 100, 200]] * 2
    ((_, shown),) = look(tmp_path, color="grey")[1].extremes
    assert pixels(shown.pictures[0].url)[0, 0].tolist() == [200, 100, 50]  # the file has colours


def test_an_extreme_that_cannot_be_read_is_another_of_its_size_or_said(tmp_path):
    noise = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number, side in enumerate((24, 24, 24, 24, 24, 24, 9, 40)):
            Image.fromarray(noise.integers(0, 256, (side, side, 3), np.uint8)).save(tmp_path / name / f"{number}.png")

    def cut(name):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-100])

    cut("a/6.png")
    cut("a/7.png")
    found = look(tmp_path)[1]
    assert [(title, shown.name) for title, shown in found.extremes] == [("smallest", "b/6.png"), ("largest", "b/7.png")]
    assert found.not_shown == []
    cut("b/7.png")
    found = look(tmp_path)[1]
    assert [title for title, _ in found.extremes] == ["smallest"]
    assert found.not_shown == ["largest, 40x40: none of its 2 images can be read"]
    assert len(found.refused) == 2
    for name in ("a", "b"):
        for number in range(6):
            cut(f"{name}/{number}.png")
        for number in (6, 7):
            (tmp_path / name / f"{number}.png").unlink()
    assert main([str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "of the size of all, 24x24: none of the first 6 of its 12 images can be read" in page
    assert "All images have the size" not in page


def save_grey(path, low, high, kind=np.uint16):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.linspace(low, high, 64).reshape(8, 8).astype(kind)
    tifffile.imwrite(path, pixels)


def drawn_ends(found, what):
    """Returns the darkest and the brightest value in the pictures of the first image of each class."""
    pictures = [
        next(pixels(drawing.url) for drawing in shown[0].pictures if drawing.what == what)
        for _, _, shown in found.classes
    ]
    return [(int(picture.min()), int(picture.max())) for picture in pictures]


def test_files_are_drawn_in_the_range_of_the_set(tmp_path):
    """A file of 12 bits among those of 16 is as dark as the model sees it, and the range is said."""
    for number in range(4):
        save_grey(tmp_path / "deep" / "a" / f"{number}.tif", 0, 4095)
        save_grey(tmp_path / "deep" / "b" / f"{number}.tif", 0, 65535)
        save_grey(tmp_path / "signed" / "a" / f"{number}.tif", -100, 0, np.float32)
        save_grey(tmp_path / "signed" / "b" / f"{number}.tif", 0, 100, np.float32)
    (tmp_path / "deep" / "empty").mkdir()  # so that training refuses it
    _, found = look(tmp_path / "deep")
    assert drawn_ends(found, "file")[:2] == drawn_ends(found, "input")[:2] == [(0, 16), (0, 255)]
    assert "In all pictures, 0 is black and 65535 white." in found.scale
    _, found = look(tmp_path / "signed")
    assert drawn_ends(found, "file") == drawn_ends(found, "input") == [(0, 128), (128, 255)]
    assert "In all pictures, -100 is black and 100 white." in found.scale


def test_types_without_a_range_in_common_each_have_one_and_no_input_is_drawn(tmp_path):
    for number in range(4):
        save_grey(tmp_path / "a" / f"{number}.tif", 0, 4095 if number else 409)
        save_grey(tmp_path / "b" / f"{number}.tif", -9, 9 if number else 0, np.float32)
        save_grey(tmp_path / "c" / f"{number}.tif", 10, 200, np.uint8)
    _, found = look(tmp_path, has_range=False)
    shown = {shown.name: [drawing.what for drawing in shown.pictures] for of in found.classes for shown in of.examples}
    assert set(map(tuple, shown.values())) == {("file",)}
    by_name = {shown.name: pixels(shown.pictures[0].url) for of in found.classes for shown in of.examples}
    ends = {name: (int(picture.min()), int(picture.max())) for name, picture in by_name.items()}
    whole = {"a/0.tif": (0, 25), "a/1.tif": (0, 255), "b/0.tif": (0, 128), "b/1.tif": (0, 255), "c/1.tif": (10, 200)}
    assert {name: whole[name] for name in ends if name in whole} == {name: ends[name] for name in ends if name in whole}
    assert "16 bits: 0 is black and 4095 white" in found.scale
    assert "floating-point numbers: -9 is black and 9 white" in found.scale
    assert main([str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "no input is drawn" in page
    assert "Augmented" not in page


def test_copies_are_named_the_worst_first_and_drawn_once(shapes, tmp_path):
    shutil.copytree(shapes, tmp_path / "d")
    for number in range(8):
        shutil.copy(
            tmp_path / "d" / "train" / "green" / f"train{number}.png",
            tmp_path / "d" / "train" / "green" / f"b{number}.png",
        )
    shutil.copy(tmp_path / "d" / "train" / "red" / "train5.png", tmp_path / "d" / "train" / "green" / "wrong.png")
    shutil.copy(tmp_path / "d" / "train" / "red" / "train6.png", tmp_path / "d" / "val" / "red" / "late.png")
    _, found = look(tmp_path / "d")
    kinds = [pair.kind for pair in found.copies]
    assert kinds == ["two labels", "in two splits", "in two splits", *["in one split"] * 7]
    assert {(shown.label, shown.part, shown.name) for shown in found.copies[0].examples} == {
        ("red", "train", "train/red/train5.png"),
        ("green", "train", "train/green/wrong.png"),
    }
    assert [len(pair.shown.pictures) for pair in found.copies] == [1] * 10
    assert main([str(tmp_path / "d"), "--out", str(tmp_path / "page.html")]) == 0
    section = (tmp_path / "page.html").read_text().partition('<section id="copies">')[2]
    words = re.sub("<[^>]*>", "", section)
    assert section.count("<img") == 10
    assert "two labels" in words
    assert "green in train: train/green/wrong.png" in words
    assert "red in train: train/red/train5.png" in words
    assert "... and 1 more pair." in words


def test_where_there_are_no_copies_there_is_no_section(tmp_path):
    assert main(["--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("opies") == 1  # in the facts
    assert re.findall('<a href="#(.*?)">(.*?)</a>', page) == re.findall('<section id="(.*?)">\\s*<h2>(.*?)</h2>', page)


def test_an_image_of_several_files_is_named_by_its_column(tmp_path):
    rows = []
    for number in range(8):
        for band in ("red", "nir"):
            save_grey(tmp_path / f"{number}_{band}.tif", 0, 200 + number, np.uint8)
        rows.append(f"{number}_red.tif,{number}_nir.tif,{'ab'[number % 2]}")
    (tmp_path / "t.csv").write_text("\n".join(["visible,infrared,label", *rows]))
    args = ["--data.path-column", "visible", "infrared", "--out", str(tmp_path / "page.html")]
    assert main([str(tmp_path / "t.csv"), *args]) == 0
    words = " ".join(re.sub("<[^>]*>", "", (tmp_path / "page.html").read_text()).split())
    assert "named by that in the column visible, and the others are in infrared" in words
    assert "visible: 0_red.tif, 8x8" in words


def test_what_cannot_be_read_and_what_is_no_input_are_kept_apart(tmp_path, capsys):
    for name in ("a", "b"):
        for number in range(6):
            save_grey(tmp_path / "d" / name / f"{number}.tif", 0, 200 + number, np.uint8)
    bands = np.full((8, 8, 4), (250, 0, 0, 9), np.uint8)
    tifffile.imwrite(tmp_path / "d" / "a" / "four.tif", bands, photometric="minisblack", planarconfig="contig")
    whole = (tmp_path / "d" / "b" / "0.tif").read_bytes()
    (tmp_path / "d" / "b" / "cut.tif").write_bytes(whole[:-20])
    for unreadable in ("stop", "replace"):
        args = ["--data.unreadable", unreadable, "--out", str(tmp_path / "page.html"), "--overwrite"]
        assert main([str(tmp_path / "d"), *args]) == 0
        printed, page = capsys.readouterr().out, (tmp_path / "page.html").read_text()
        sections = dict(re.findall('<section id="(.*?)">(.*?)</section>', page, re.DOTALL))
        other = "problems" if unreadable == "stop" else "unusable"
        assert "cut.tif is no image that can be read" in sections["unreadable"]
        assert "four.tif" not in sections["unreadable"]
        assert "four.tif: an image of 4 channels cannot be converted to 3" in sections[other]
        assert re.search(r"not readable \(1\), .*\n  .*cut.tif is no image", printed)
        title = r"training refuses \(1\)" if unreadable == "stop" else r"readable, but no input of the model \(1\), .*"
        assert re.search(rf"{title}:\n  .*four.tif: an image of 4 channels", printed)


def test_what_is_no_input_is_drawn_from_its_file(tmp_path):
    for number in range(4):
        save_grey(tmp_path / "a" / f"{number}.tif", 0, 200 + number, np.uint8)
        (tmp_path / "b").mkdir(exist_ok=True)
        bands = np.full((8, 8, 4), (250, 0, 0, number), np.uint8)
        tifffile.imwrite(tmp_path / "b" / f"{number}.tif", bands, photometric="minisblack", planarconfig="contig")
    found = look(tmp_path)[1]
    for shown in found.classes[1].examples:
        (drawing,) = shown.pictures
        assert (drawing.what, pixels(drawing.url)[0, 0].tolist()) == ("file", [250, 0, 0])
    assert {refusal.is_readable for refusal in found.refused} == {True}


def test_a_folder_without_classes_shows_all_its_images(tmp_path, capsys):
    for number in range(9):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    _, found = look(tmp_path)
    ((name, count, examples),) = found.classes
    assert (name, count) == ("without a label", 9)
    assert [pixels(shown.pictures[0].url)[0, 0].tolist() for shown in examples] == [[20 * n, 0, 0] for n in range(9)]
    assert main([str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    printed, page = capsys.readouterr().out, (tmp_path / "page.html").read_text()
    assert "training refuses (1):" in printed
    assert "it needs one for each class" in page
    assert "cut.png is no image that can be read" in page
    assert 'id="classes"' not in page


def test_pictures_have_their_proportions_a_name_and_a_scale(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGB", (400, 200), (9, 9, 30 * number)).save(tmp_path / name / f"{number}.png")
    args = ["--out", str(tmp_path / "page.html"), "--data.image-size", "256", "256"]
    assert main([str(tmp_path), *args, "--augment.cutmix", "1"]) == 0
    page = (tmp_path / "page.html").read_text()
    sizes = re.findall(r'width="(\d+)" height="(\d+)" alt="[^"]*"><small>(.*?)</small>', page)
    assert set(sizes) == {
        ("96", "96", "input"),
        ("96", "48", "file"),
        ("96", "96", "augmented 1"),
        ("96", "96", "augmented 2"),
    }
    words = " ".join(re.sub("<[^>]*>", "", page).split())
    assert "A picture of 256x256, the size of an input, is drawn at 38% of its size." in words
    assert "Partners for CutMix are" in words
    assert " x 2" not in words
    assert main([str(tmp_path), *args, "--overwrite"]) == 0
    assert "Partners" not in (tmp_path / "page.html").read_text()


def test_options_are_not_broken_and_long_names_are_shortened(browser, tmp_path):
    long = "d" * 50 + "-1234"
    for name in ("a", "b"):
        for number in range(4):
            save_grey(tmp_path / "d" / name / f"{number}{long}.tif", 0, 200 + number, np.uint8)
        (tmp_path / "d" / name / f"{long}.txt").write_text("text")
    assert main([str(tmp_path / "d"), "--out", str(tmp_path / "page.html")]) == 0
    opened(browser, tmp_path / "page.html")
    options = browser.find_elements(By.CSS_SELECTOR, "#facts code")
    assert {"--data.color", "data.memory"} <= {option.text for option in options}
    assert {
        option.value_of_css_property("white-space-collapse") + option.value_of_css_property("text-wrap-mode")
        for option in options
    } == {"collapsenowrap"}
    (note,) = [line for line in browser.find_elements(By.CSS_SELECTOR, "#facts li") if "passed over" in line.text]
    assert long not in note.text
    assert [span.get_attribute("title") for span in note.find_elements(By.TAG_NAME, "span")] == [
        f"a/{long}.txt",
        f"b/{long}.txt",
    ]
    figure = browser.find_element(By.CSS_SELECTOR, "#sheet figure")
    assert long not in figure.text
    assert long in figure.get_attribute("title")


def test_it_prints_the_facts_and_goes_on_past_what_training_refuses(shapes, tmp_path, capsys):
    shutil.copytree(shapes, tmp_path / "d")
    (tmp_path / "d" / "train" / "black").mkdir()
    assert main([str(tmp_path / "d"), "--out", str(tmp_path / "d.html")]) == 0
    printed = capsys.readouterr().out
    assert "train: 26, given by folders\n" in printed
    assert "exact copies: 1 group; 1 of test is also in train\n" in printed
    assert "training refuses (1):\n  the class folder" in printed
    assert "cut.png is no image" in printed
    assert "What training refuses" in (tmp_path / "d.html").read_text()


def test_the_digits_can_be_looked_at_too(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "digits.html")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("the digits of scikit-learn are inspected: name a folder or a table")
    assert "sizes: all 8x8\n" in printed


def test_a_large_set_is_not_read_as_a_whole(shapes, tmp_path, capsys):
    assert main([str(shapes), "--out", str(tmp_path / "page.html"), "--data.memory", "0"]) == 0
    assert "Only the headers were read" in (tmp_path / "page.html").read_text()
    assert "read from their files in each epoch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["none"], "data.dir 'none' is no folder"),
        (["{shapes}", "--out", "{page}"], "is there already: name a new file, or replace it with --overwrite"),
        (["none", "--out", "{shapes}", "--overwrite"], "is no file, so it is not replaced"),
        (["none", "--out", "{shapes}/no/x.html", "--overwrite"], "in a folder that is not there"),
        (["{shapes}", "--data.dir", "other"], "is given, and so is data.dir"),
        (["{shapes}", "--data.source", "tfds"], "is given, and so is data.source"),
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


def test_the_source_may_be_named_beside_the_folder(shapes, tmp_path):
    args = ["--data.source", "folder", "--data.memory", "0", "--out", str(tmp_path / "page.html")]
    assert main([str(shapes), *args]) == 0
    assert "Contact sheet" in (tmp_path / "page.html").read_text()


def test_how_images_come_to_their_size_is_said_once(shapes, tmp_path, capsys):
    assert main([str(shapes), "--out", str(tmp_path / "page.html")]) == 0
    printed, page = capsys.readouterr().out, (tmp_path / "page.html").read_text()
    assert printed.count("squashed") == 1
    facts = page[page.index('id="facts"') : page.index('id="classes"')]
    assert facts.count("squashed") == 1


WORDS = {
    "stop": "training stops at them",
    "skip": "training leaves them out (--data.unreadable skip)",
    "replace": "takes the next image of the class in place of each other one (--data.unreadable replace)",
}


@pytest.mark.parametrize("unreadable", WORDS)
def test_a_damaged_file_is_listed_with_what_training_does_with_it(tmp_path, capsys, unreadable):
    noise = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for number in range(9):
            Image.fromarray(noise.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "d" / name / f"{number}.jpg")
    cut = tmp_path / "d" / "a" / "3.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    options = ["--out", str(tmp_path / "d.html"), "--data.unreadable", unreadable]
    assert main([str(tmp_path / "d"), *options]) == 0
    printed, page = capsys.readouterr().out, (tmp_path / "d.html").read_text()
    ((words, line),) = re.findall(r"not readable \(1\), (.*):\n  (.*)\n", printed)
    assert line.startswith(f"{cut} is no image that can be read")
    assert printed.count(str(cut)) == 1
    assert WORDS[unreadable] in words
    assert WORDS[unreadable][1:] in re.sub("<[^>]*>", "", page)
    counts = [int(count) for count in re.findall(r"^(?:train|validation|test): (\d+),", printed, re.MULTILINE)]
    assert sum(counts) == 18 - (unreadable == "skip")
    assert "--resume" not in page


@pytest.mark.parametrize("memory", ["2", "0"])
def test_what_is_readable_but_no_input_is_not_left_out(tmp_path, capsys, memory):
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (8, 8), (200, 10 * number, ord(name))).save(tmp_path / "d" / name / f"{number}.png")
    bands = np.zeros((8, 8, 5), np.uint8)
    tifffile.imwrite(tmp_path / "d" / "a" / "5.tif", bands, photometric="minisblack", planarconfig="contig")
    options = ["--data.unreadable", "skip", "--data.memory", memory, "--out", str(tmp_path / "d.html")]
    assert main([str(tmp_path / "d"), *options]) == 0
    assert re.search(r"training refuses \(1\):\n  .*5.tif: an image of 5 channels cannot", capsys.readouterr().out)

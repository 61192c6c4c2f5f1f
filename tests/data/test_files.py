import io
import os

import numpy as np
import pytest
from PIL import Image

from flaxcls.data.decode import read_head
from flaxcls.data.files import describe_left_out, describe_masks, describe_twins, find_below, is_image, select
from flaxcls.errors import InputError


def encoded(form, mode="RGB"):
    file = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).convert(mode).save(file, form)
    return file.getvalue()


def put(place, **contents):
    for name, content in contents.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.mark.parametrize("form", ["AVIF", "BMP", "DDS", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TIFF", "WEBP"])
def test_an_image_is_one_whatever_its_name(tmp_path, form):
    path = tmp_path / "noname"
    path.write_bytes(encoded(form))
    assert is_image(str(path))
    assert read_head(path, "noname").size == (8, 8)  # it is read, too


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"Python is",
        b"P1 is the first patient",
        b"BMI,age,label\n20,30,a\n21,31,b\n",
        b"\x93NUMPY\1\0",
        b"{}",
        b"%PDF",
    ],
)
def test_text_and_other_data_are_none(tmp_path, content):
    put(tmp_path, file=content)
    assert not is_image(str(tmp_path / "file"))
    assert not is_image(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("content", [b"....ftypheic....", b"....ftypmif1heic", b"\xff\x0a" + b"jxl"])
def test_formats_that_are_not_read_are_not_passed_over(tmp_path, content):
    put(tmp_path, file=content)
    assert is_image(str(tmp_path / "file"))


def test_what_lies_below_a_folder(tmp_path):
    png = encoded("PNG")
    put(
        tmp_path, **{"b/z.png": png, "b/a/y": png, "a.jpg": b"", "notes.txt": b"no image", "b/labels.npy": b"\x93NUMPY"}
    )
    put(tmp_path, **{"b/.ipynb_checkpoints/z.png": png, "__MACOSX/b/z.png": png, ".hidden.png": png})
    put(tmp_path, **{"b/Thumbs.db": b"x", "b/@eaDir/z.png/SYNO.jpg": png})
    (tmp_path / "empty").mkdir()
    below = find_below(tmp_path)
    assert below.images == ["a.jpg", "b/a/y", "b/z.png"]
    assert below.others == ["b/labels.npy", "notes.txt"]
    assert below.folders == ["b", "b/a", "empty"]
    assert describe_left_out(below.others, below.hidden) == [
        "passed over, as they are no images (2): b/labels.npy, notes.txt",
        "left out, as they are hidden or left behind by tools (5): .hidden.png (1), __MACOSX (1), "
        ".ipynb_checkpoints (1), @eaDir (1), Thumbs.db (1)",
    ]


def test_the_first_ten_are_named_and_all_are_counted():
    (line,) = describe_left_out([f"{number}.txt" for number in range(1200)], [])
    assert "(1,200)" in line
    assert line.endswith("9.txt and 1,190 more")


def test_links_are_followed_and_may_lead_back_or_nowhere(tmp_path):
    put(tmp_path, **{"d/a/x.png": encoded("PNG"), "elsewhere/y.png": encoded("PNG")})
    (tmp_path / "d/b").symlink_to("../elsewhere")
    (tmp_path / "d/a/back").symlink_to("..")
    (tmp_path / "d/a/self.png").symlink_to("self.png")
    (tmp_path / "d/a/gone.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "d/pipe")  # opening it would wait for ever
    assert find_below(tmp_path / "d").images == ["a/gone.jpg", "a/self.png", "a/x.png", "b/y.png"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    with pytest.raises(InputError, match=r"the folder .*nowhere cannot be listed: No such file"):
        find_below(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        ([], ["masks"], ["a/x.png", "b/deep/x_mask.jpg", "b/x.png"]),
        ([], ["*_mask.*"], ["a/masks/x.png", "a/x.png", "b/x.png"]),
        ([], ["b/deep/", "a/masks/*"], ["a/x.png", "b/x.png"]),
        (["b"], [], ["b/deep/x_mask.jpg", "b/x.png"]),
        (["b/**/x*"], [], ["b/deep/x_mask.jpg", "b/x.png"]),
        (["*.png", "*.jpg"], ["a"], ["b/deep/x_mask.jpg", "b/x.png"]),
    ],
)
def test_patterns_are_compared_with_paths_names_and_folders(include, exclude, left):
    assert select(["a/masks/x.png", "a/x.png", "b/deep/x_mask.jpg", "b/x.png"], include, exclude) == (left, [])


def test_patterns_that_match_nothing_are_returned():
    assert select(["a/x.png"], ["*.png", "*.gif"], ["A"]) == (["a/x.png"], ["*.gif", "A"])


def test_masks_are_suspected_by_their_names():
    masks = [f"cat/{n}_mask.png" for n in range(3)] + ["cat/0_mask_1.png", "dog/1-Seg.tif"]
    line = describe_masks([*(f"cat/{n}.png" for n in range(3)), "dog/1.jpg", *masks])
    assert line.startswith("5 of 9 images have the name of another one and an ending, such as cat/0_mask")
    assert line.endswith("--data.exclude '*_mask*' '*-Seg*'")
    assert describe_masks(["a/gas_mask.png", "a/x.png"]) is None  # it stands alone
    assert describe_masks([*(f"a/{n}.png" for n in range(20)), "a/0_mask.png"]) is None


def test_images_that_differ_only_in_their_ending_are_pointed_at():
    photos = [f"dent/{number}.jpg" for number in range(6)]
    masks = [f"dent/{number}.png" for number in range(5)]
    assert describe_twins([*photos, *masks]) == (
        "5 of 11 images have the name of another one with another ending, such as dent/0.png beside .jpg: if they are "
        "masks or copies, leave them out with --data.exclude '*.png'"
    )
    assert describe_twins([*masks, *(path.replace(".jpg", ".TIF") for path in photos)]).endswith("'*.png'")
    assert describe_twins(photos) is None
    assert describe_twins([*photos, "scratch/0.png"]) is None  # in another folder
    assert describe_twins(["dent/a", "b.c/a", *(f"{number}.jpg" for number in range(50)), "1.png"]) is None

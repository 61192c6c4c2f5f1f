"""A file that --out names is new, whole, or not there; what other commands hold is left alone."""

import pytest

from flaxcls.errors import InputError
from flaxcls.storage import check_new, write_new


def test_a_new_file_is_tried_and_nothing_is_left(tmp_path):
    check_new(tmp_path / "new.csv")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "link.csv").symlink_to("nowhere")
    for name, words in {"link.csv": "is there already", "no/x.csv": "in a folder that is not there"}.items():
        with pytest.raises(InputError, match=words):
            check_new(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["link.csv"]


def test_the_place_is_taken_before_the_work_so_that_nobody_else_gets_it(tmp_path):
    out = tmp_path / "page.html"

    def make():
        with pytest.raises(InputError, match="is there already: name a new file, or replace it with --overwrite"):
            write_new(out, lambda: b"another", overwrite=False)
        return b"ours"

    write_new(out, make, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert out.read_bytes() == b"ours"


@pytest.mark.parametrize("overwrite", [None, False, True])
@pytest.mark.parametrize("error", [InputError("bad data"), KeyboardInterrupt(), SystemExit(143)])
def test_nothing_stays_of_what_fails(tmp_path, overwrite, error):
    def fail():
        raise error

    with pytest.raises(type(error)):
        write_new(tmp_path / "page.html", fail, overwrite=overwrite)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_only_when_the_new_one_is_whole(tmp_path):
    out = tmp_path / "page.html"
    out.write_text("old")

    def make():
        assert out.read_text() == "old"
        return b"new"

    write_new(out, make, overwrite=True)
    assert out.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(("name", "words"), [("no/x.html", "in a folder that is not there"), ("", "is no file")])
def test_a_place_that_cannot_be_replaced_is_said_before_the_work(tmp_path, name, words):
    with pytest.raises(InputError, match=words):
        write_new(tmp_path / name, lambda: pytest.fail("it was called"), overwrite=True)

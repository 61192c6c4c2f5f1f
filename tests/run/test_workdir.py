import json
from pathlib import Path

import pytest

from flaxcls.config import Config, DataConfig
from flaxcls.config_json import to_json
from flaxcls.errors import InputError
from flaxcls.run.workdir import check_workdir, note_changes, open_workdir, read_config, with_absolute_paths


def open_(workdir, config=None, *, resume=False, overwrite=False):
    check_workdir(workdir, config or Config(), resume=resume, overwrite=overwrite)
    with open_workdir(workdir, config or Config(), name="digits-cnn", resume=resume, overwrite=overwrite) as opened:
        return opened


def test_a_fresh_one_below_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = open_(None), open_(None)
    assert first != second
    assert first.parent.name == "runs"
    assert first.name.startswith("digits-cnn-")
    assert read_config(second) == Config()


def test_the_resolved_configuration_is_written_and_read_back_equal(tmp_path):
    config = Config(seed=7)
    assert read_config(open_(tmp_path / "a" / "b", config)) == config


def test_nothing_is_overwritten_unless_that_is_said(tmp_path):
    workdir = open_(tmp_path / "run")
    (workdir / "metrics.jsonl").write_text("precious")
    with pytest.raises(InputError, match=r"is not empty: continue that run with --resume, replace it with --overwrite"):
        open_(workdir)
    assert (workdir / "metrics.jsonl").read_text() == "precious"
    open_(workdir, overwrite=True)
    assert not (workdir / "metrics.jsonl").exists()


def test_overwrite_deletes_runs_and_nothing_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="is no run directory"):
        open_(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_an_empty_directory_is_taken(tmp_path):
    assert open_(tmp_path) == tmp_path
    assert (tmp_path / "config.json").read_text() == to_json(Config())


def test_resume_needs_a_run_with_the_same_configuration(tmp_path):
    with pytest.raises(InputError, match="there is no run to resume"):
        open_(tmp_path / "missing", resume=True)
    assert not (tmp_path / "missing").exists()
    workdir = open_(tmp_path / "run")
    open_(workdir, resume=True)
    with pytest.raises(InputError, match="seed: 0 -> 1"):
        open_(workdir, Config(seed=1), resume=True)
    with pytest.raises(InputError, match="name it with --workdir"):
        open_(None, resume=True)
    with pytest.raises(InputError, match="choose one"):
        open_(workdir, resume=True, overwrite=True)


def test_a_file_where_runs_should_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("precious")
    with pytest.raises(InputError, match="the run directory below runs cannot be written"):
        open_(None)


@pytest.mark.parametrize("place", ["/proc/flaxcls", "file", "file/below"])
def test_a_directory_that_cannot_be_written(tmp_path, place, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError, match=r"cannot be written: .*\. Name another with --workdir"):
        open_(tmp_path / place)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("kept", [None, "/data", "gs://bucket/data"])
def test_the_place_of_the_data_is_kept_as_it_is_from_anywhere(tmp_path, monkeypatch, kept):
    monkeypatch.chdir(tmp_path)
    config = Config(data=DataConfig(source="folder", dir="photos"))
    assert with_absolute_paths(config).data.dir == str(tmp_path / "photos")
    config = Config(data=DataConfig(source="folder", dir=kept))
    assert with_absolute_paths(config) == config


@pytest.mark.parametrize("name", ["a[1]", "a*", "what?"])
def test_a_name_that_is_a_pattern_is_refused_before_anything_is_written(tmp_path, monkeypatch, name):
    with pytest.raises(InputError, match=r"has one of \[ \* \? in its path, .* name another --workdir"):
        open_(tmp_path / name)
    assert not (tmp_path / name).exists()
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(InputError, match="in its path"):
        open_(None)
    assert not (tmp_path / name / "runs").exists()


@pytest.mark.parametrize("cut_off", ["rename", "unlink", "replace"])
def test_an_overwriting_that_is_cut_off_leaves_no_checkpoint_of_the_old_run_to_the_new(tmp_path, monkeypatch, cut_off):
    workdir = open_(tmp_path / "run")
    (workdir / "checkpoints" / "8").mkdir(parents=True)
    (workdir / "metrics.jsonl").write_text("old")

    def dies(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, cut_off, dies)
    with pytest.raises(KeyboardInterrupt):
        open_(workdir, Config(seed=1), overwrite=True)
    monkeypatch.undo()
    assert read_config(workdir) == Config() or not (workdir / "checkpoints").exists()
    open_(workdir, Config(seed=1), overwrite=True)
    assert read_config(workdir) == Config(seed=1)
    assert sorted(path.name for path in workdir.iterdir()) == ["config.json", "lock"]


def test_a_line_of_changes_that_a_crash_has_cut_short_spoils_no_other(tmp_path):
    workdir = open_(tmp_path / "run")
    note_changes(workdir, Config(seed=1), 1, [])
    cut = (workdir / "changes.jsonl").read_text()[:-5]
    (workdir / "changes.jsonl").write_text(cut)
    note_changes(workdir, Config(seed=2), 2, [])
    first, second = (workdir / "changes.jsonl").read_text().splitlines()
    assert first == cut
    assert json.loads(second) == {"step": 2, "changes": ["seed: 1 -> 2"]}

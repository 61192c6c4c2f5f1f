"""Run directories and data in a bucket: real processes, and a server of Google Cloud Storage on this machine."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest

from experiments.soak.outcome import differing, outcome
from flaxcls.errors import InputError
from flaxcls.places import as_path
from flaxcls.run import fit
from tests.data.test_tfds import Toy

OPTIONS = (
    *("--data.train-examples", "320", "--loop.epochs", "12", "--loop.batch-size", "32", "--loop.log-every", "1"),
    *("--model.widths", "4", "--model.dense", "8"),
)


class Bucket:
    """The bucket, by plain requests, and what starts commands that have it."""

    def __init__(self, port, cache):
        self.url = f"http://127.0.0.1:{port}"
        self._environment = {
            **os.environ,
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # another API, which the server lacks
            "XDG_CACHE_HOME": str(cache),
        }

    def names(self, prefix):
        with urlopen(f"{self.url}/storage/v1/b/bucket/o?prefix={quote(prefix, '')}") as answer:
            return [item["name"] for item in json.load(answer)["items"]]

    def read(self, name):
        with urlopen(f"{self.url}/storage/v1/b/bucket/o/{quote(name, '')}?alt=media") as answer:
            return answer.read()

    def write(self, name, data):
        place = f"{self.url}/upload/storage/v1/b/bucket/o?uploadType=media&name={quote(name, '')}"
        urlopen(Request(place, data, {"Content-Type": "application/octet-stream"})).close()

    def fetch(self, prefix, to):
        for name in self.names(f"{prefix}/"):
            target = to / name.removeprefix(f"{prefix}/")
            if not name.endswith("/"):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(self.read(name))
        return to

    def start(self, *words, command="train"):
        return subprocess.Popen(
            [sys.executable, "-m", f"flaxcls.{command}", *map(str, words)],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words, command="train", code=0):
        process = self.start(*words, command=command)
        printed = process.communicate(timeout=180)[0]
        assert process.returncode == code, printed
        return printed

    def wait_for_a_checkpoint(self, run, process):
        whole = re.compile(f"{run}/checkpoints/[0-9]+/commit_success.txt")  # each part of it has such a file, too
        while not any(whole.fullmatch(name) for name in self.names(f"{run}/checkpoints/")):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    place = tmp_path_factory.mktemp("bucket")
    with (place / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-m", "tests.gcs_server", place / "port"], stdout=log, stderr=log)
        try:
            while not (place / "port").exists():
                assert server.poll() is None, (place / "log").read_text()
                time.sleep(0.05)
            yield Bucket((place / "port").read_text(), place / "cache")
        finally:
            server.kill()
            server.wait()


def test_a_run_that_is_killed_goes_on_and_ends_as_one_on_a_disk_that_was_not(bucket, tmp_path):
    bucket.run(*OPTIONS, "--workdir", tmp_path / "whole")
    killed = bucket.start(*OPTIONS, "--workdir", "gs://bucket/runs/a", "--resume", "auto")
    bucket.wait_for_a_checkpoint("runs/a", killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    printed = bucket.run(*OPTIONS, "--workdir", "gs://bucket/runs/a", "--resume", "auto")
    assert "continuing after step" in printed
    found = bucket.fetch("runs/a", tmp_path / "found")
    assert differing(outcome(tmp_path / "whole"), outcome(found)) == []
    assert not (found / "lock.json").exists()
    assert not Path("gs:").exists()

    assert "is not empty" in bucket.run(*OPTIONS, "--workdir", "gs://bucket/runs/a", code=2)
    assert "name a place there by --out" in bucket.run("gs://bucket/runs/a", command="evaluate", code=2)
    bucket.run("gs://bucket/runs/a", "--out", tmp_path / "evaluation", command="evaluate")
    evaluated = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert evaluated["accuracy"] == pytest.approx(json.loads((found / "result.json").read_text())["test"]["accuracy"])


def test_half_a_checkpoint_is_deleted_and_the_run_goes_on_from_the_one_before(bucket, tmp_path):
    bucket.run(*OPTIONS, "--workdir", tmp_path / "whole", "--stop-after", 30)
    bucket.run(*OPTIONS, "--workdir", "gs://bucket/runs/half", "--stop-after", 20)
    for name in bucket.names("runs/half/checkpoints/20/"):
        if not name.endswith("commit_success.txt"):
            bucket.write(name.replace("/20/", "/30/"), bucket.read(name)[:-1])
    printed = bucket.run(*OPTIONS, "--workdir", "gs://bucket/runs/half", "--resume", "--stop-after", 30)
    assert "step 30 is damaged and was deleted: it was not written to its end" in printed
    assert "continuing after step 20" in printed
    metrics = [bucket.read("runs/half/metrics.jsonl"), (tmp_path / "whole" / "metrics.jsonl").read_bytes()]
    ours, theirs = ([json.loads(line)["loss"] for line in text.splitlines()] for text in metrics)
    assert ours == theirs


def test_the_last_to_come_has_the_run_and_the_other_ends_and_a_signal_saves(bucket):
    words = (*OPTIONS, "--loop.epochs", "100000", "--workdir", "gs://bucket/runs/b", "--resume", "auto")
    first = bucket.start(*words)
    bucket.wait_for_a_checkpoint("runs/b", first)
    second = bucket.start(*words)
    printed = first.communicate(timeout=180)[0]
    time.sleep(2)
    second.terminate()
    of_second = second.communicate(timeout=180)[0]
    assert first.returncode == 2, printed
    assert "the run directory gs://bucket/runs/b was taken over by " in printed
    # 4 where the first deleted a checkpoint while the second looked for it: started again, it goes on
    assert second.returncode in (143, 4), of_second
    assert "continuing after step" in bucket.run(*words, "--loop.epochs", "1", "--allow-changes")
    assert bucket.names("runs/b/lock.json") == []


def test_two_processes_share_a_run_in_a_bucket(bucket):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = (*OPTIONS, "--loop.epochs", "2", "--workdir", "gs://bucket/runs/two", "--resume", "auto")
    meet = ("--distributed.coordinator", f"127.0.0.1:{port}", "--distributed.num-processes", "2")
    processes = [bucket.start(*words, *meet, "--distributed.process-id", number) for number in range(2)]
    printed = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert json.loads(bucket.read("runs/two/result.json"))["device"] == "4 x cpu"


def test_a_prepared_data_set_is_read_from_a_bucket(bucket, tmp_path):
    Toy(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            bucket.write(f"tfds/{path.relative_to(tmp_path)}", path.read_bytes())
    data = ("--data.source", "tfds", "--data.name", "toy", "--data.dir", "gs://bucket/tfds", "--loop.batch-size", "8")
    printed = bucket.run(*data, *OPTIONS[2:4], *OPTIONS[8:], "--loop.epochs", "1", "--workdir", tmp_path / "run")
    assert "toy" in printed
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["dir"] == "gs://bucket/tfds"


@pytest.mark.parametrize("place", ["s3://bucket/run", "gs://", Path("s3://bucket/run")])
def test_other_urls_are_no_place(place):
    with pytest.raises(InputError, match="is neither a path on this machine nor gs://BUCKET/PATH"):
        as_path(place)


def test_folders_of_images_are_not_read_from_a_bucket(small_config, quiet, tmp_path):
    data = replace(small_config.data, source="folder", dir="gs://bucket/images")
    with pytest.raises(InputError, match=r"data.dir 'gs://bucket/images' is in a bucket, .* mount it there"):
        fit(replace(small_config, data=data), console=quiet, workdir=tmp_path / "run")

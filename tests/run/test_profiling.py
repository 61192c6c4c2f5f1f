"""The trace of a few steps, as TensorBoard and Perfetto read it."""

import dataclasses
import gzip
import json

import pytest

from flaxcls.errors import Interrupted
from flaxcls.run import fit
from flaxcls.run.profiling import BEFORE, TRACED

pytestmark = pytest.mark.usefixtures("shared_programs")


def profiled(config):
    return dataclasses.replace(config, loop=dataclasses.replace(config.loop, profile=True))


def traces(workdir):
    return sorted((workdir / "profile").glob("plugins/profile/*/*.trace.json.gz"))


def test_it_holds_a_few_steps_and_changes_nothing(small_config, stripes, quiet, tmp_path):
    plain, traced = (
        fit(config, dataset=stripes, workdir=tmp_path / name, console=quiet)
        for name, config in (("plain", small_config), ("traced", profiled(small_config)))
    )
    assert traced.fingerprint == plain.fingerprint
    assert not (tmp_path / "plain" / "profile").exists()
    (path,) = traces(tmp_path / "traced")
    assert [*path.parent.glob("*.xplane.pb")]
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = {int(event["args"]["step_num"]) for event in events if event.get("name") == "train"}
    assert steps == set(range(BEFORE, BEFORE + TRACED))
    assert any("convolution" in event.get("args", {}).get("hlo_op", "") for event in events)


def test_a_run_that_ends_before_has_what_there_was_and_a_resumed_one_may_ask_for_it(
    small_config, stripes, quiet, tmp_path
):
    for config, stop_after, resume in ((small_config, 2, False), (profiled(small_config), 9, True)):
        with pytest.raises(Interrupted):
            fit(config, dataset=stripes, workdir=tmp_path, console=quiet, stop_after=stop_after, resume=resume)
    assert len(traces(tmp_path)) == 1

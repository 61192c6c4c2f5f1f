"""The page's text; what it does in a browser is tested with the command."""

import json
import re
from pathlib import Path

import numpy as np

from flaxcls.analysis.calibration import softmax
from flaxcls.analysis.evaluation import Evaluation
from flaxcls.analysis.report import RunContent, render
from flaxcls.analysis.scores import scores


def evaluation(logits, labels, names, *, ids=None, temperature=1.0, images=None):
    """Returns what `evaluate_run` would, of logits f32[n k]."""
    labels, probabilities = np.array(labels), softmax(logits, temperature)
    metrics = scores(probabilities, logits.argmax(axis=1), labels, names)
    metrics |= {"dataset": "animals", "split": "test", "step": 1}
    metrics["calibration"] = {
        "temperature": 1.0,
        "temperature_fitted_on": "validation",
        "ece_before": 0.1,
        "ece_after": 0.1,
    }
    ids = ids or [f"{number}.png" for number in range(len(labels))]
    if images is None:
        images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    return Evaluation("test", ids, labels, images, logits, temperature, tuple(names), metrics)


RIGHT, WRONG = (np.eye(2, dtype=np.float32)[[0, 1, 0, 1]] * sign for sign in (3, -3))


def content(**changes):
    """Returns a run of two classes and four examples, that knows them all."""
    values = {
        "name": "run",
        "workdir": Path("runs/run"),
        "config": {"seed": 0},
        "evaluation": evaluation(RIGHT, [0, 1, 0, 1], ["cat", "dog"]),
        "step": 1,
        "stopped_early": False,
        "lines": [],
        "result": None,
        "mistakes": [],
        "no_grad_cam": "",
        "pairs": [],
        "copies": [],
        "copies_found": 0,
    }
    return RunContent(**{**values, **changes})


def text_of(page):
    """Returns the words of a page without its programs."""
    return " ".join(re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL).split())


def test_each_note_has_a_line_of_its_own():
    found = evaluation(RIGHT, [0, 1, 0, 1], ["cat", "dog"])
    found.metrics["notes"] = {"data": "4 images are grey\n2 of 6 files cannot be read:\n  a.png\n  b.png"}
    page = render([content(evaluation=found)])
    lines = re.findall(r'<p class="note">(data: .*?)</p>', page, re.DOTALL)
    assert lines == ["data: 4 images are grey", "data: 2 of 6 files cannot be read:\n  a.png\n  b.png"]


def test_a_run_that_has_not_ended_and_knows_everything():
    text = text_of(render([content()]))
    for words in (
        "accuracy 100.00%",
        "the run has not ended",
        "Nothing has been logged yet.",
        "There are none: every example is predicted right.",
        "None was found",
        "The environment is recorded at the end of a run",
    ):
        assert words in text


def test_names_cannot_break_out_of_the_page():
    hostile = '</script><script>document.title = "taken"</script><img src=x onerror=alert(1)>'
    found = evaluation(WRONG, [0, 1, 0, 1], [hostile, "dog"], ids=[hostile, "1", "2", "3"])
    page = render([content(name=hostile, evaluation=found, config={hostile: hostile})])
    assert hostile not in page
    assert "<img src=x" not in page
    data = json.loads(re.search(r'id="report-data">(.*?)</script>', page)[1])
    assert list(data["thresholds"]["0"]) == [hostile, "dog"]


def test_what_is_undefined_says_so():
    found = evaluation(RIGHT[:2], [0, 0], ["cat", "dog"])
    page = render([content(evaluation=found)])
    assert "The curves are undefined: all examples are of one class." in text_of(page)
    reason = found.metrics["undefined"]["per_class/1/recall"]
    assert f'title="{reason}"' in page.replace("&#39;", "'")


def test_several_runs_are_compared_on_the_same_examples_only():
    other = content(name="other", evaluation=evaluation(WRONG, [0, 1, 0, 1], ["cat", "dog"]), config={"seed": 1})
    text = text_of(render([content(), other]))
    assert "run / other 4 0 0.125 0.125 no clear difference" in text
    assert "accuracy 1.0000 ★ 0.0000" in text
    assert "seed 0 1" in text
    strange = evaluation(RIGHT, [0, 1, 0, 1], ["cat", "dog"], ids=list("abcd"))
    text = text_of(render([content(), content(name="strange", evaluation=strange)]))
    assert "not comparable: the runs were evaluated on different examples" in text
    assert "All options are the same." in text
    assert "\N{BLACK STAR}" not in text


def test_examples_of_the_same_number_may_be_others():
    ours = evaluation(RIGHT, [0, 1, 0, 1], ["cat", "dog"])
    other = evaluation(WRONG, [0, 1, 0, 1], ["cat", "dog"], images=ours.images + 1)
    text = text_of(render([content(), content(name="other", evaluation=other)]))
    assert "not comparable" in text
    assert "\N{BLACK STAR}" not in text


def test_the_best_is_the_least_where_less_is_better():
    other = evaluation(RIGHT, [0, 1, 0, 1], ["cat", "dog"])
    other.metrics["calibration"] = {**other.metrics["calibration"], "ece_after": 0.05}
    text = text_of(render([content(), content(name="other", evaluation=other)]))
    assert "calibration error 0.1000 0.0500 \N{BLACK STAR}" in text

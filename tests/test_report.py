"""The command and its page in a real browser, opened from the disk as a user does."""

import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from flaxcls.analysis.evaluation import evaluate_run, write
from flaxcls.analysis.report import render
from flaxcls.analysis.report.content import Mistake
from flaxcls.config import Config, DataConfig, LoopConfig, ModelConfig, StopConfig
from flaxcls.report import main
from flaxcls.run import fit
from tests.analysis.report.test_page import WRONG, content, evaluation
from tests.browser import requests_of, start_browser

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns the directories of two runs that differ in their seed and their patience; the second stops early."""
    place = tmp_path_factory.mktemp("runs")
    for name, seed, stop in (("first", 0, StopConfig()), ("second", 1, StopConfig(patience=1, min_delta=10.0))):
        config = Config(
            seed=seed,
            data=DataConfig(test_fraction=0.2, train_examples=400),
            model=ModelConfig(widths=(4,), dense=(8,)),
            loop=LoopConfig(epochs=6, log_every=5),
            stop=stop,
        )
        fit(config, workdir=place / name, console=Console(quiet=True))
    return place / "first", place / "second"


@pytest.fixture(scope="module")
def page(runs):
    assert main([str(runs[0])]) == 0
    return runs[0] / "report.html"


@pytest.fixture(scope="module")
def browser():
    yield from start_browser()


def opened(browser, page):
    """Opens a page from the disk, and returns what was requested and what the console said until it was drawn."""
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(page.as_uri())
    WebDriverWait(browser, 30).until(
        lambda driver: driver.execute_script("return document.documentElement.dataset.ready")
    )
    return requests_of(browser), browser.get_log("browser")


def find(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


def numbers(browser):
    found = browser.find_elements(By.CSS_SELECTOR, "#thresholds-0 [data-number]")
    return {each.get_attribute("data-number"): each.text for each in found}


def signals(browser, chart):
    return browser.execute_script(f"return ['x', 'y'].map((name) => views['{chart}'].signal(name))")


def test_it_opens_from_disk_without_an_error_or_a_request(browser, page):
    sent, console = opened(browser, page)
    assert [url for url in sent if not url.startswith("data:")] == [page.as_uri()]
    assert console == []
    charts = browser.find_elements(By.CSS_SELECTOR, ".chart svg")
    names = ["curve-loss", "curve-accuracy", "curve-learning_rate", "curve-images_per_second"]
    names += ["confusion-0", "roc-0", "precision-recall-0", "reliability-0"]
    assert len(charts) == len(names)
    assert all(browser.execute_script(f"return views['{name}'].signal('width')") > 300 for name in names)
    assert all(browser.find_elements(By.CSS_SELECTOR, f"#{name} svg path") for name in names)
    assert "best by validation" in find(browser, "#curve-loss").text


def test_the_summary_is_that_of_the_evaluation(browser, page, runs, tmp_path):
    opened(browser, page)
    found = evaluate_run(runs[0]).metrics
    low, high = found["accuracy_interval"]
    cards = find(browser, ".cards").text
    assert f"{found['accuracy']:.2%}" in cards
    assert f"95 % interval {low:.2%} to {high:.2%}" in cards
    matrix = [int(text) for text in find(browser, "#confusion-0").text.split() if re.fullmatch(r"\d+", text)]
    assert sorted(matrix)[-1] >= max(map(max, found["confusion_matrix"]))
    assert len(browser.find_elements(By.CSS_SELECTOR, "#mistakes-0 figure")) == min(
        24, round(found["examples"] * (1 - found["accuracy"]))
    )


def test_the_threshold_moves_the_numbers(browser, page, runs, tmp_path):
    opened(browser, page)
    table = pq.read_table(write(evaluate_run(runs[0]), tmp_path)[0])
    labels = np.array(table["label"])
    Select(find(browser, "#thresholds-0 select")).select_by_visible_text("3")
    slider = find(browser, "#thresholds-0 .threshold")
    points = set()
    for keys, threshold in (("", 0.5), (Keys.ARROW_LEFT * 40, 0.3), (Keys.HOME, 0.0), (Keys.END, 1.0)):
        slider.send_keys(keys)
        assert float(find(browser, "#thresholds-0 .value").text) == threshold
        chosen, positive = np.array(table["p_3"]) >= np.float32(threshold), labels == 3
        right = int((chosen & positive).sum())
        expected = {
            "true positives": str(right),
            "false positives": str((chosen & ~positive).sum()),
            "false negatives": str((~chosen & positive).sum()),
            "true negatives": str((~chosen & ~positive).sum()),
            "recall": f"{right / positive.sum():.2%}",
            "precision": f"{right / chosen.sum():.2%}" if chosen.any() else "\N{EN DASH}",
        }
        assert {name: numbers(browser)[name] for name in expected} == expected
        fpr, recall = (chosen & ~positive).sum() / (~positive).sum(), right / positive.sum()
        assert signals(browser, "roc-0") == pytest.approx([fpr, recall])
        precision = right / chosen.sum() if chosen.any() else -1
        assert signals(browser, "precision-recall-0") == pytest.approx([recall, precision])
        assert slider.get_attribute("aria-valuetext") == f"{threshold:.3f}"
        points.add(find(browser, "#roc-0 .mark-symbol path").get_attribute("transform"))
    assert len(points) >= 3


def test_the_class_decides_which_curve_is_drawn(browser, page):
    opened(browser, page)
    drawn = set()
    for name in ("0", "8"):
        Select(find(browser, "#thresholds-0 select")).select_by_visible_text(name)
        drawn.add(find(browser, "#roc-0 .mark-line path").get_attribute("d"))
    assert len(drawn) == 2


def test_the_matrix_switches_to_rates(browser, page):
    opened(browser, page)
    assert "%" not in find(browser, "#confusion-0").text
    find(browser, "#confusion-section-0 input[value=rates]").click()
    WebDriverWait(browser, 10).until(lambda driver: "%" in find(driver, "#confusion-0").text)


@pytest.mark.parametrize("column", [0, 1, 3])
def test_sorting_sorts(browser, page, column):
    opened(browser, page)

    def values():
        cells = browser.find_elements(By.CSS_SELECTOR, f"#classes-0 tbody tr > :nth-child({column + 1})")
        return [float(cell.text.rstrip("%")) for cell in cells]

    before = values()
    button = browser.find_elements(By.CSS_SELECTOR, "#classes-0 thead button")[column]
    button.send_keys(Keys.ENTER)  # as the keyboard does
    assert values() == sorted(before)
    button.click()
    assert values() == sorted(before, reverse=True)
    assert button.find_element(By.XPATH, "..").get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1200, "dark")])
def test_it_fits_a_phone_and_the_dark(browser, page, width, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    try:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        opened(browser, page)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width

        def brightness(selector, name):
            shades = re.findall(r"\d+", find(browser, selector).value_of_css_property(name))[:3]
            return sum(map(int, shades)) / 3

        back, text = brightness("body", "background-color"), brightness("#curve-loss .role-axis-label text", "fill")
        assert (text < 80 and back > 200) if scheme == "light" else (text > 200 and back < 80)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_long_names_fit_a_phone(browser, tmp_path):
    name = 190 * "n"  # of a run and of a class, without a blank
    found = evaluation(WRONG, [0, 1, 0, 1], [name, "dog"])
    mistake = Mistake(name, name, "dog", 0.9, 0.1, "data:,", None)
    runs = [content(name=start + name, evaluation=found, mistakes=[mistake], no_grad_cam=name) for start in "ab"]
    page = tmp_path / "page.html"
    page.write_text(render(runs))
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    try:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        opened(browser, page)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_requests_are_forbidden(browser, page):
    opened(browser, page)
    asked = "return fetch('https://example.org').then(() => 'sent', () => 'refused')"
    assert browser.execute_script(asked) == "refused"
    assert "Content Security Policy" in browser.get_log("browser")[0]["message"]


def test_it_prints(browser, page):
    opened(browser, page)
    assert browser.print_page()
    assert all(each.get_attribute("open") for each in browser.find_elements(By.TAG_NAME, "details"))
    try:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        assert not find(browser, "nav").is_displayed()
        labels = browser.find_elements(By.CSS_SELECTOR, "#confusion-section-0 label")
        assert [label.text for label in labels if label.is_displayed()] == ["counts"]
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_several_runs_side_by_side(browser, runs, tmp_path):
    assert main([*map(str, runs), "--out", str(tmp_path / "two.html")]) == 0
    _, console = opened(browser, tmp_path / "two.html")
    assert console == []
    text = find(browser, "#comparison").text
    first, second = (evaluate_run(run) for run in runs)
    right = [each.predicted == each.labels for each in (first, second)]
    counts = [(right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum()]
    assert f"first / second {counts[0]} {counts[1]}" in text
    assert "seed 0 1" in text
    assert "stop.patience null 1" in text
    assert "model.widths" not in text
    assert f"{first.metrics['accuracy']:.4f}" in text
    assert "stopped early" in find(browser, "#run-1").text
    assert "stopped early" not in find(browser, "#run-0").text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "no run was given"),
        (["none"], "none has no config.json, so it is no run directory"),
        (["{run}", "{run}"], "a run is given twice"),
        (["{run}", "--split", "tset"], "Did you mean 'test'?"),
        (["{run}", "--out", "/proc/report.html"], "cannot be written to /proc/report.html"),
    ],
)
def test_bad_input_is_answered_with_the_way_out(runs, capfd, args, words):
    try:
        code = main([arg.format(run=runs[0]) for arg in args])
    except SystemExit as stop:  # as the parser ends
        code = stop.code
    assert code == 2
    assert words in " ".join(capfd.readouterr().err.replace("│", " ").split())

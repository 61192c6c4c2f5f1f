import dataclasses
import itertools
import json
import shutil

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from jax.sharding import AxisType, Mesh
from rich.console import Console
from sklearn import metrics as reference

from flaxcls.analysis import inference as module
from flaxcls.analysis import load_run
from flaxcls.analysis.calibration import fit_temperature
from flaxcls.analysis.evaluation import evaluate_run, write
from flaxcls.config import Config, DataConfig, LoopConfig, ModelConfig, OptimConfig, StopConfig
from flaxcls.data import Split, from_arrays
from flaxcls.errors import InputError
from flaxcls.run import fit
from tests.conftest import make_stripes

pytestmark = pytest.mark.usefixtures("shared_programs")

NAMES = ("rows", "columns", "none", "dots", "rings", "waves")  # of which the last three have hardly an example


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on images of which every fifth has a wrong label, with an evaluation batch of an odd size."""
    config = Config(
        model=ModelConfig(widths=(4,), dense=(8,), norm="batch"),
        optim=OptimConfig(learning_rate=1e-2, warmup_epochs=0.0),
        loop=LoopConfig(epochs=4, batch_size=32, eval_batch_size=13),
        stop=StopConfig(),
    )
    images, labels = make_stripes(400)
    wrong = np.random.default_rng(1).random(400) < 0.2
    labels = np.where(wrong, np.arange(400) % 6, labels)
    dataset = from_arrays(images, labels, class_names=NAMES, name="stripes")
    workdir = tmp_path_factory.mktemp("trained") / "run"
    return fit(config, dataset=dataset, workdir=workdir, console=Console(quiet=True)), dataset


@pytest.fixture
def workdir(trained, tmp_path):
    return shutil.copytree(trained[0].workdir, tmp_path / "run")


def test_every_metric_is_recomputed_from_the_table(trained, workdir, tmp_path):
    result, dataset = trained
    predictions, metrics, roc = write(evaluate_run(workdir, dataset=dataset), tmp_path / "out")
    found = json.loads(metrics.read_text())
    table = pq.read_table(predictions)
    assert table.column_names == ["id", "label", "predicted", *(f"p_{name}" for name in NAMES)]
    kept = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert json.loads(kept["class_names"]) == list(NAMES)
    assert {str(field.type) for field in table.schema} == {"string", "int32", "float"}

    assert table["id"].to_pylist() == dataset.test.ids
    labels, predicted = (table[name].to_numpy() for name in ("label", "predicted"))
    np.testing.assert_array_equal(labels, dataset.test.labels)
    stored = np.stack([table[f"p_{name}"].to_numpy() for name in NAMES], axis=1)
    np.testing.assert_array_equal(predicted, stored.argmax(axis=1))
    chances = stored.astype(float) / stored.astype(float).sum(axis=1, keepdims=True)
    one_hot, count = np.eye(6)[labels], len(labels)

    def ece(chances):
        confidence, right = chances.max(axis=1), chances.argmax(axis=1) == labels
        edges = np.linspace(0, 1, 16)
        inside = [(low < confidence) & (confidence <= high) for low, high in itertools.pairwise(edges)]
        return sum(abs(confidence[i].sum() - right[i].sum()) for i in inside) / count

    for row, curve in zip(found["per_class"], json.loads(roc.read_text())["classes"].values(), strict=True):
        area = np.trapezoid(curve["true_positive_rate"], curve["false_positive_rate"])
        assert row["roc_auc"] == pytest.approx(area)

    assert found["accuracy"] == (labels == predicted).mean() == result.test["accuracy"]
    share, z = found["accuracy"], 1.959963984540054
    for bound in found["accuracy_interval"]:  # both bounds solve |share - p| = z sqrt(p (1 - p) / n)
        assert abs(share - bound) == pytest.approx(z * np.sqrt(bound * (1 - bound) / count))
    assert found["top_5"] == np.mean([label in np.argsort(-row)[:5] for label, row in zip(labels, stored, strict=True)])
    assert found["cohen_kappa"] == pytest.approx(reference.cohen_kappa_score(labels, predicted))
    assert found["log_loss"] == pytest.approx(-np.log(chances[np.arange(count), labels]).mean())
    assert found["brier_score"] == pytest.approx(np.square(chances - one_hot).sum(axis=1).mean())
    confusion = np.array(found["confusion_matrix"])
    assert confusion.sum() == count == found["examples"]
    expected = {name: [] for name in ("precision", "recall", "f1", "roc_auc", "average_precision")}
    for k, row in enumerate(found["per_class"]):
        true, said = labels == k, predicted == k
        hits = (true & said).sum()
        assert (row["name"], row["support"], row["predicted"]) == (NAMES[k], true.sum(), said.sum())
        assert confusion[k].tolist() == [(true & (predicted == other)).sum() for other in range(6)]
        expected["precision"].append(hits / said.sum() if said.any() else None)
        expected["recall"].append(hits / true.sum() if true.any() else None)
        expected["f1"].append(2 * hits / (true.sum() + said.sum()) if (true | said).any() else None)
        pairs = np.sign(stored[true, k][:, None] - stored[~true, k][None])
        expected["roc_auc"].append((pairs.mean() + 1) / 2 if true.any() else None)
        expected["average_precision"].append(
            reference.average_precision_score(true, stored[:, k]) if true.any() else None
        )
    for name, values in expected.items():
        assert [row[name] for row in found["per_class"]] == pytest.approx(values)
        defined = np.array([(value, (labels == k).sum()) for k, value in enumerate(values) if value is not None])
        assert found[name]["macro"] == pytest.approx(defined[:, 0].mean())
        assert found[name]["weighted"] == pytest.approx(np.average(defined[:, 0], weights=defined[:, 1]))
    assert [found[name]["micro"] for name in ("precision", "recall", "f1")] == [share] * 3
    assert found["balanced_accuracy"] == found["recall"]["macro"]
    never = [k for k, row in enumerate(found["per_class"]) if row["predicted"] == 0]
    assert never  # or the case shows nothing
    assert set(found["undefined"]) == {f"per_class/{k}/precision" for k in never}

    temperature = float(kept["temperature"])
    raw = stored.astype(float) ** temperature  # the softmax of the logits is p^T, made to sum to 1
    raw /= raw.sum(axis=1, keepdims=True)
    assert found["calibration"] == {
        "temperature": temperature,
        "temperature_fitted_on": "validation",
        "bins": 15,
        "ece_before": pytest.approx(ece(raw), abs=1e-6),
        "ece_after": pytest.approx(ece(stored), abs=1e-6),
        "log_loss_before": pytest.approx(-np.log(raw[np.arange(count), labels]).mean(), rel=1e-5),
        "log_loss_after": found["log_loss"],
    }
    assert found["calibration"]["log_loss_before"] == pytest.approx(result.test["loss"], rel=1e-4)
    assert (found["split"], found["step"], found["dataset"]) == ("test", result.best_step, "stripes")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_example_comes_once_on_one_device_and_on_two(trained, workdir, monkeypatch, split):
    dataset = trained[1]
    assert jax.device_count() == 2
    expected = load_run(workdir).logits(getattr(dataset, split).images, batch_size=len(dataset.train.labels))
    two = evaluate_run(workdir, dataset=dataset, split=split)
    mesh = Mesh(np.asarray(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
    monkeypatch.setattr(module, "make_mesh", lambda: mesh)
    one = evaluate_run(workdir, dataset=dataset, split=split)
    for found in (one, two):
        np.testing.assert_allclose(found.logits, expected, atol=1e-5)
        np.testing.assert_array_equal(found.labels, getattr(dataset, split).labels)
    assert one.metrics["accuracy"] == two.metrics["accuracy"]


def test_a_batch_is_shared_by_the_devices(trained, workdir, monkeypatch):
    seen = []

    def on_devices(tree, sharding, put=module.on_devices):
        seen.append(put(tree, sharding))
        return seen[-1]

    monkeypatch.setattr(module, "on_devices", on_devices)
    evaluate_run(workdir, dataset=trained[1])
    images = [placed for placed in seen if isinstance(placed, jax.Array)]
    assert {shard.data.shape[0] for placed in images for shard in placed.addressable_shards} == {7}
    assert {len(placed.addressable_shards) for placed in images} == {2}


class Decoded:
    """Images that are read when they are asked for, and are no array."""

    def __init__(self, images):
        self.shape, self.dtype, self.images = images.shape, images.dtype, images

    def __getitem__(self, index):
        return self.images[index]


def test_floats_and_images_that_are_decoded_late(trained, workdir):
    dataset = trained[1]
    expected = evaluate_run(workdir, dataset=dataset).logits
    for change in (lambda images: (images / 255).astype(np.float32), Decoded):
        parts = {part: getattr(dataset, part) for part in ("train", "validation", "test")}
        other = dataclasses.replace(dataset, **{n: Split(change(s.images), s.labels) for n, s in parts.items()})
        np.testing.assert_allclose(evaluate_run(workdir, dataset=other).logits, expected, atol=1e-4)


def test_the_temperature_is_of_the_validation_split(trained, workdir):
    dataset = trained[1]
    logits = load_run(workdir).logits(dataset.validation.images)
    best = fit_temperature(logits, dataset.validation.labels)
    assert not 0.98 < best < 1.02  # or the case shows nothing
    shuffled = dataclasses.replace(dataset, test=Split(dataset.test.images, dataset.test.labels[::-1].copy()))
    assert evaluate_run(workdir, dataset=shuffled).temperature == pytest.approx(best, rel=1e-3)
    assert load_run(workdir).temperature == pytest.approx(best, rel=1e-3)
    # from now on it is read, also where the validation split is another
    flipped = dataset.validation._replace(labels=5 - dataset.validation.labels)
    assert evaluate_run(workdir, dataset=dataclasses.replace(dataset, validation=flipped)).temperature == pytest.approx(
        best, rel=1e-3
    )
    found = evaluate_run(workdir, dataset=dataset, split="validation").metrics
    assert "in-sample" in found["notes"]["calibration/ece_after"]
    assert found["calibration"]["log_loss_after"] < found["calibration"]["log_loss_before"]


def test_the_temperature_is_not_kept_where_it_is_not_the_runs(trained, workdir):
    result, dataset = trained
    fewer = dataclasses.replace(dataset, train=dataset.train.take(np.arange(100)))
    found = evaluate_run(workdir, dataset=fewer)
    assert "so the run may have been trained on examples of this split" in found.metrics["notes"]["dataset"]
    assert "examples: [288, 32, 80] -> [100, 32, 80]" in found.metrics["notes"]["dataset"]
    evaluate_run(workdir, dataset=dataset, step=result.best_step)
    assert load_run(workdir).temperature is None
    (workdir / "calibration.json").mkdir()  # so that it cannot be written
    assert evaluate_run(workdir, dataset=dataset).temperature != 1


def test_a_temperature_that_could_not_be_fitted_says_so(trained, workdir):
    dataset = trained[1]
    predicted = load_run(workdir).logits(dataset.validation.images).argmax(axis=1)
    right = dataclasses.replace(dataset, validation=Split(dataset.validation.images, predicted.astype(np.int32)))
    found = evaluate_run(workdir, dataset=right)
    assert found.temperature == 1
    assert "so no temperature can be fitted" in found.metrics["notes"]["calibration/temperature"]


def test_what_cannot_be_evaluated(trained, workdir, tmp_path):
    dataset = trained[1]
    with pytest.raises(InputError, match=r"unknown split 'tests'. Did you mean 'test'"):
        evaluate_run(workdir, dataset=dataset, split="tests")
    with pytest.raises(InputError, match=r"stripes, which fit was given in Python, so no command can .*dataset="):
        evaluate_run(workdir)
    with pytest.raises(InputError, match=r"digits has 10 classes, and the run was trained on 6: .* lacks \['rows'"):
        evaluate_run(workdir, data=DataConfig(split_seed=1))
    with pytest.raises(InputError, match="they come in another order"):
        evaluate_run(workdir, dataset=dataclasses.replace(dataset, class_names=NAMES[::-1]))
    large = from_arrays(dataset.train.images.repeat(2, axis=1), dataset.train.labels, class_names=NAMES)
    with pytest.raises(InputError, match="images of 16x8x1, but the run was trained on images of 8x8x1"):
        evaluate_run(workdir, dataset=large)
    with pytest.raises(InputError, match=r"data.test_fraction is 2, but must be above 0"):
        evaluate_run(workdir, data=DataConfig(test_fraction=2))
    nothing = dataclasses.replace(dataset, test=dataset.test.take(np.arange(0)))
    with pytest.raises(InputError, match="the test split has no example"):
        evaluate_run(workdir, dataset=nothing)
    images = (dataset.test.images / 255).astype(np.float32)
    images[3] = np.nan
    with pytest.raises(InputError, match=r"NaN or infinite for 1 of 80 examples"):
        evaluate_run(workdir, dataset=dataclasses.replace(dataset, test=Split(images, dataset.test.labels)))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written to .*--out"):
        write(evaluate_run(workdir, dataset=dataset), tmp_path / "file")


def test_a_failed_write_leaves_the_old_files(trained, workdir, tmp_path):
    found = evaluate_run(workdir, dataset=trained[1])
    old = {path: path.read_bytes() for path in write(found, tmp_path)}
    with pytest.raises(ValueError, match="JSON"):
        write(dataclasses.replace(found, metrics={"accuracy": float("nan")}), tmp_path)
    assert {path: path.read_bytes() for path in old} == old

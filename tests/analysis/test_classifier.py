import jax
import numpy as np
import pytest
import tifffile

from flaxcls.analysis import load_run
from flaxcls.analysis.evaluation import evaluate_run, worst
from flaxcls.analysis.explain_files import METHODS, explain_image, logits_function
from flaxcls.analysis.export import export_run
from flaxcls.analysis.pictures import data_url, enlarged
from flaxcls.analysis.prediction import predict_files
from flaxcls.analysis.report import read_run, render
from flaxcls.errors import InputError
from flaxcls.run import fit
from flaxcls.run.checkpoint_files import read_record, read_steps
from flaxcls.run.resume import check_record
from tests.conftest import make_stripes

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from rich.console import Console

    from flaxcls.config import Config, LoopConfig, ModelConfig, OptimConfig, StopConfig
    from flaxcls.data import from_arrays

    config = Config(
        model=ModelConfig(widths=(4,), dense=(8,), norm="batch"),
        optim=OptimConfig(learning_rate=1e-2, warmup_epochs=0.0),
        loop=LoopConfig(epochs=4, batch_size=32),
        stop=StopConfig(),
    )
    images, labels = make_stripes(300)
    dataset = from_arrays(images, labels, class_names=("rows", "columns", "none"), name="stripes")
    workdir = tmp_path_factory.mktemp("trained") / "run"
    return fit(config, dataset=dataset, workdir=workdir, console=Console(quiet=True)), dataset


def test_it_predicts_what_the_run_tested(trained):
    result, dataset = trained
    classifier = load_run(result.workdir)
    predictions = classifier.predict(dataset.test.images, batch_size=7)
    accuracy = (predictions.labels == dataset.test.labels).mean()
    assert accuracy == pytest.approx(result.test["accuracy"])
    chosen = predictions.probabilities[np.arange(len(dataset.test.labels)), dataset.test.labels]
    assert -np.log(chosen).mean() == pytest.approx(result.test["loss"], rel=1e-4)
    np.testing.assert_allclose(predictions.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert classifier.step == result.best_step
    assert set(predictions.names) <= {"rows", "columns", "none"}


def test_images_of_any_size_and_kind(trained):
    result, dataset = trained
    classifier = load_run(result.workdir)
    image = dataset.test.images[0]
    large = image.repeat(3, axis=0).repeat(3, axis=1)
    colours = large.repeat(3, axis=2)
    opaque = np.concatenate([colours, np.full_like(large, 255)], axis=2)
    wide = large.repeat(2, axis=1)
    kinds = classifier.predict([image, image[..., 0], large, colours, opaque, wide]).probabilities
    np.testing.assert_allclose(kinds, kinds[:1].repeat(6, axis=0), atol=1e-5)
    assert classifier.predict(np.zeros((0, 5, 5, 3), np.uint8)).probabilities.shape == (0, 3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 1), np.int64), r"int64\[8, 8, 1\] was given, .* is needed"),
        (np.zeros(8, np.uint8), "is needed"),
        (np.zeros((8, 0, 1), np.uint8), "is needed"),
        (np.zeros((8, 8, 5), np.uint8), "an image of 5 channels cannot be converted to 1"),
        (np.linspace(-1, 1, 64).reshape(8, 8), r"floats in -1\.\.1, and 0 NaN, but they must be in 0\.\.1"),
        (np.array([[0.25, np.nan], [np.inf, 0.5]]), r"floats in 0\.25\.\.inf, and 1 NaN"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_image_is_refused(trained, image, message):
    with pytest.raises(InputError, match=message):
        load_run(trained[0].workdir).predict([image])


def test_a_run_on_bytes_takes_floats_and_no_size_rounds_them(trained):
    result, dataset = trained
    classifier = load_run(result.workdir)
    images = dataset.test.images[:6]
    expected = classifier.logits(images)
    assert classifier.image_dtype == "uint8"
    for floats in (images / 255, (images / 255).astype(np.float32), images[..., 0] / 255):
        np.testing.assert_allclose(classifier.logits(floats), expected, rtol=1e-5, atol=1e-5)
    mixed = classifier.logits([images[0], images[1] / 255, images[2]])
    np.testing.assert_allclose(mixed, expected[:3], rtol=1e-5, atol=1e-5)
    dim = images.astype(np.float32) / 255 / 1000  # as bytes, all would be black
    large = dim.repeat(3, axis=1).repeat(3, axis=2)
    np.testing.assert_allclose(classifier.logits(large), classifier.logits(dim), rtol=1e-5, atol=1e-5)
    assert np.abs(classifier.logits(dim) - classifier.logits(0 * dim)).max() > 1e-5


@pytest.fixture(scope="module")
def on_floats(tmp_path_factory):
    """A run on floats that no bytes can hold, in 5 channels."""
    from rich.console import Console

    from flaxcls.config import Config, LoopConfig, ModelConfig, OptimConfig, StopConfig
    from flaxcls.data import from_arrays

    config = Config(
        model=ModelConfig(widths=(4,), dense=(8,), norm="batch"),
        optim=OptimConfig(learning_rate=1e-2, warmup_epochs=0.0),
        loop=LoopConfig(epochs=2, batch_size=32),
        stop=StopConfig(),
    )
    images, labels = make_stripes(200)
    floats = (images / 255) ** np.linspace(0.5, 1.5, 5)
    dataset = from_arrays(floats, labels, class_names=("rows", "columns", "none"), name="floats")
    workdir = tmp_path_factory.mktemp("floats") / "run"
    return fit(config, dataset=dataset, workdir=workdir, console=Console(quiet=True)).workdir, dataset


def test_a_run_on_floats_predicts_what_it_evaluates(on_floats):
    workdir, dataset = on_floats
    found = evaluate_run(workdir, dataset=dataset)
    classifier = load_run(workdir)
    assert (classifier.image_dtype, classifier.temperature) == ("float32", found.temperature)
    images = dataset.test.images
    np.testing.assert_allclose(classifier.logits(images), found.logits, rtol=1e-6, atol=1e-6)
    predicted = classifier.predict(images.astype(np.float64)).probabilities
    np.testing.assert_allclose(predicted, found.probabilities, rtol=1e-5, atol=1e-6)
    rounded = np.rint(images * 255).astype(np.uint8)
    np.testing.assert_allclose(classifier.logits(rounded), found.logits, atol=0.1)


def test_a_run_on_floats_reads_bytes_in_files_as_it_takes_them_in_arrays(on_floats, tmp_path):
    workdir, _ = on_floats
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 5), dtype=np.uint8)
    for number, image in enumerate(images):
        tifffile.imwrite(tmp_path / f"{number}.tif", image, photometric="minisblack", planarconfig="contig")
    classifier = load_run(workdir)
    found = predict_files(classifier, [str(tmp_path / f"{number}.tif") for number in range(3)])
    assert found.complaint == ""
    np.testing.assert_allclose(found.predictions.probabilities, classifier.predict(images).probabilities, atol=1e-5)


@pytest.mark.slow
def test_what_looks_at_a_run_on_floats_sees_the_floats(on_floats, tmp_path):
    workdir, dataset = on_floats
    classifier = load_run(workdir)
    images = dataset.test.images
    expected = classifier.logits(images[:3])

    description = export_run(workdir, classifier, tmp_path / "export")
    assert (description["input"]["images"], description["input"]["values"]) == ("f32[b 8 8 5]", "0..1, 5 channels")
    assert "np.zeros((7, 8, 8, 5), np.float32)" in description["usage"]
    program = jax.export.deserialize(bytearray((tmp_path / "export/model.stablehlo").read_bytes()))
    np.testing.assert_allclose(program.call(images[:3])[0], expected, rtol=1e-5, atol=1e-5)

    logits_fn = logits_function(classifier, classifier.variables)
    arrays = explain_image(classifier, logits_fn, classifier.prepared(images[0]), 1, methods=METHODS)
    (black,) = classifier.logits(np.zeros_like(images[:1]))
    gained = arrays["integrated-gradients"].sum()
    assert gained == pytest.approx(expected[0, 1] - black[1], rel=0.02, abs=0.01)

    content = read_run(workdir, name="run", split="test", dataset=dataset)
    wrong = worst(evaluate_run(workdir, dataset=dataset), 1)
    for mistake, index in zip(content.mistakes, wrong, strict=False):
        picture = np.rint(255 * images[index][..., :3]).astype(np.uint8)
        assert mistake.picture == data_url(enlarged(picture, 128))
    assert " Channels shown: channel 1, channel 2, channel 3 as red, green, blue, of channel 1, " in render([content])


def test_a_run_on_floats_is_not_resumed_with_bytes_and_an_older_one_is(on_floats):
    workdir, _ = on_floats
    record = read_record(workdir / "checkpoints", max(read_steps(workdir / "checkpoints")))
    floats = {name: record[name] for name in ("data", "image_shape", "preparation")}
    check_record(record, floats)
    check_record({name: value for name, value in record.items() if name != "preparation"}, floats)
    former = {name: value for name, value in record["preparation"].items() if name != "of_bytes"}
    check_record({**record, "preparation": former}, floats)
    check_record(record, {**floats, "preparation": {**floats["preparation"], "alpha": True}})  # not known at that time
    with pytest.raises(InputError, match=r"preparation value_range: \[0.0, 1.0\], but is resumed with None"):
        check_record(record, {**floats, "preparation": {**floats["preparation"], "value_range": None}})

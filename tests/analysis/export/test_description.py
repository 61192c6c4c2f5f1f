"""model.json, followed by `by_hand`."""

import json
import platform

import cv2
import jax
import numpy as np
import pytest
import tifffile
from PIL import Image

from flaxcls.analysis import Classifier
from flaxcls.analysis.export import export_run
from flaxcls.analysis.export.description import describe_preparation
from flaxcls.analysis.prediction import predict_files
from flaxcls.augment import make_views
from flaxcls.config import AugmentConfig, Config, DataConfig, ModelConfig
from flaxcls.data.decode import read_picture
from flaxcls.data.picture import Picture
from flaxcls.data.preparation import Preparation
from flaxcls.data.stored import read_bands
from flaxcls.models import build_model
from tests.analysis.export import by_hand

# OpenCV rounds bytes in its own way, which is known for this processor; floats differ by up to 8e-6 at 150 pixels
OFF = 0 if platform.machine() in ("x86_64", "AMD64") else 1
COLOURS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREYS = np.random.default_rng(1).integers(0, 4096, (45, 61), dtype=np.uint16)
DEEP_COLOURS = np.random.default_rng(2).integers(0, 4096, (50, 29, 4), dtype=np.uint16)


def smooth(rows, columns):
    """Returns colours with edges and slopes, as pictures have."""
    return Image.fromarray(COLOURS).resize((columns, rows), Image.Resampling.BICUBIC)


def save_turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth(48, 96).save(path, exif=exif, **({"quality": 95} if path.suffix == ".jpg" else {}))


def save_transparent(path):
    image = smooth(50, 40)
    image.putalpha(image.convert("L").rotate(90, expand=False))
    image.save(path)


PICTURES = {
    "turned.jpg": save_turned,
    "turned.tif": save_turned,
    "transparent.png": save_transparent,
    "grey.png": lambda path: smooth(33, 96).convert("L").save(path),
    "grey_transparent.png": lambda path: smooth(21, 40).convert("LA").save(path, transparency=None),
    "one_colour_transparent.png": lambda path: smooth(40, 21).convert("L").save(path, transparency=100),
    "palette.png": lambda path: smooth(100, 70).quantize(32).save(path),
    "palette_transparent.gif": lambda path: smooth(50, 70).quantize(8).save(path, transparency=2),
    "black_and_white.png": lambda path: smooth(64, 64).convert("1").save(path),
    "inks.jpg": lambda path: smooth(70, 50).convert("CMYK").save(path, quality=95),
    "small.png": lambda path: smooth(9, 14).save(path),
    "halved.bmp": lambda path: smooth(64, 48).save(path),
    "its_size.webp": lambda path: smooth(32, 24).save(path, lossless=True),
    "flat.png": lambda path: smooth(2, 90).save(path),
}
DEEP = {
    "12_bits.png": lambda path: Image.fromarray(GREYS).save(path),
    "12_bits.pgm": lambda path: path.write_bytes(b"P5 61 45 4095\n" + GREYS.astype(">u2").tobytes()),
    "12_bits_large.tif": lambda path: Image.fromarray(GREYS.repeat(3, axis=0).repeat(2, axis=1)).save(path),
    "floats.tif": lambda path: save_floats(path),
    "colours_of_16_bits.png": lambda path: cv2.imwrite(str(path), DEEP_COLOURS[..., :3]),
    "transparent_of_16_bits.png": lambda path: cv2.imwrite(str(path), 16 * DEEP_COLOURS),
    "colours_of_16_bits.tif": lambda path: tifffile.imwrite(path, DEEP_COLOURS[..., :3], photometric="rgb"),
}


def save_floats(path):
    """Writes floats outside of every range, some of them NaN or infinite."""
    values = GREYS.astype("f4") - 9
    values[GREYS > 3900] = np.nan
    values[GREYS > 4000] = np.inf
    values[GREYS > 4050] = -np.inf
    Image.fromarray(values).save(path)


def classifier_of(preparation, **options):
    """Returns a classifier for inputs of this preparation, with untrained weights."""
    config = Config(model=ModelConfig(widths=(4,), dense=()), **options)
    model = build_model(config.model, 4)
    inputs = np.zeros((1, *preparation.shape), "f4")
    variables = jax.jit(lambda key: model.init(key, inputs, train=False))(jax.random.key(0))
    return Classifier(
        config=config,
        model=model,
        variables=jax.tree.map(lambda leaf: 4 * np.asarray(leaf), variables),
        class_names=tuple("abcd"),
        preparation=preparation,
        mean=tuple(np.linspace(0.3, 0.5, preparation.channels)),
        std=tuple(np.linspace(0.1, 0.2, preparation.channels)),
        step=1,
        temperature=1.7,
    )


def save_all(pictures, folder):
    for name, save in pictures.items():
        save(folder / name)
    return [folder / name for name in pictures]


def follow(out, files):
    """Returns input and probabilities of each file by the export in the folder `out`."""
    description = json.loads((out / "model.json").read_text())
    images = np.stack([by_hand.prepare(description, file) for file in files])
    program = jax.export.deserialize(bytearray((out / "model.stablehlo").read_bytes()))
    return images, np.asarray(jax.jit(program.call)(images)[1])


@pytest.mark.parametrize("how", ["crop", "squash", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value_range", [None, (0.0, 200.0), (0.0, 4095.0)])
def test_who_follows_the_description_predicts_the_same(tmp_path, how, channels, value_range):
    """The pictures become smaller by 1.5, 2, 3 and other factors, or larger, in one direction or both."""
    classifier = classifier_of(Preparation((32, 24), channels, how, value_range))
    files = save_all(DEEP if classifier.preparation.is_deep else PICTURES, tmp_path)
    export_run(tmp_path, classifier, tmp_path / "out")
    images, probabilities = follow(tmp_path / "out", files)
    expected = np.stack([classifier.preparation(read_picture(file)) for file in files])
    assert images.dtype == expected.dtype
    np.testing.assert_allclose(images, expected, rtol=0, atol=OFF if value_range is None else 1e-5)
    found = predict_files(classifier, [str(file) for file in files])
    assert found.paths == [str(file) for file in files]
    np.testing.assert_allclose(probabilities, found.predictions.probabilities, atol=1e-2 if OFF else 1e-5)
    assert probabilities.std(axis=0).max() > 0.01  # the pictures are told apart


@pytest.mark.parametrize(
    ("value_range", "takes", "file"),
    [
        (None, {"uint8": True, "others": False}, "colours_of_16_bits.png"),
        ((0.0, 4095.0), {"uint8": False, "others": True}, "turned.jpg"),
        ((0.0, 200.0), {"uint8": True, "others": True}, None),
    ],
)
def test_it_says_which_depths_are_not_for_the_model(tmp_path, value_range, takes, file):
    preparation = Preparation((32, 24), 3, "squash", value_range)
    described = json.loads(json.dumps({"preparation": describe_preparation(preparation)}))
    assert described["preparation"]["steps"][1]["takes"] == takes
    if file:
        (path,) = save_all({file: (PICTURES | DEEP)[file]}, tmp_path)
        with pytest.raises(AssertionError, match="not for this model"):
            by_hand.prepare(described, path)
        assert predict_files(classifier_of(preparation), [str(path)]).paths == []


def test_a_run_on_arrays_of_floats_reads_files_of_any_depth(tmp_path):
    classifier = classifier_of(Preparation((32, 24), 3, "squash", (0.0, 1.0), of_arrays=True))
    files = save_all(PICTURES | DEEP, tmp_path)
    export_run(tmp_path, classifier, tmp_path / "out")
    images, _ = follow(tmp_path / "out", files)
    expected = np.stack([classifier.prepared(read_picture(file)) for file in files])
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-5)
    description = json.loads((tmp_path / "out" / "model.json").read_text())
    assert "A file of signed ones is not for this model" in description["preparation"]["steps"][1]["text"]
    tifffile.imwrite(tmp_path / "signed.tif", GREYS.astype(np.int16) - 1000)
    ((_, reason),) = predict_files(classifier, [str(tmp_path / "signed.tif")]).unreadable
    assert "its values are int16 of -998 to 3095, whose range is not known" in reason
    assert not predict_files(classifier, [str(files[0])]).notes[0].startswith("values of")  # it has that of its type


@pytest.mark.parametrize("value_range", [None, (-100.0, 300.0)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 10])
def test_any_size_and_channels(channels, value_range):
    rng = np.random.default_rng(channels)
    for case in range(12):
        size, old = rng.integers(1, 24, 2), rng.integers(1, 48, 2)
        if case % 4 < 2:
            old = size * (2 if case % 4 == 0 else rng.integers(1, 5, 2))
        how = ("crop", "squash", "pad")[case % 3]
        preparation = Preparation((int(size[0]), int(size[1])), channels, how, value_range)
        image = preparation.unify(Picture(rng.integers(0, 256, (*old, channels), dtype=np.uint8)))
        description = json.loads(json.dumps(describe_preparation(preparation)))
        given = image.astype(np.int64) if value_range is None else image
        found = by_hand.resize(description["steps"][-1], given, preparation.size)
        np.testing.assert_allclose(found, preparation.fit(image), rtol=0, atol=OFF if value_range is None else 1e-5)


def test_the_program_does_what_is_said_of_it(tmp_path):
    augment = AugmentConfig(eval_flip=True, eval_shift=2, eval_pattern="diagonal", crop_fill="reflect")
    classifier = classifier_of(Preparation((16, 16), 3), augment=augment)
    export_run(tmp_path, classifier, tmp_path / "out")
    description = json.loads((tmp_path / "out/model.json").read_text())
    said = description["program"]
    assert said["views"] == {"flip": True, "shift": 2, "pattern": "diagonal", "fill": "reflect"}
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    normalized = (images / said["divisor"] - said["mean"]) / said["std"]
    views = make_views(normalized.astype("f4"), flips=True, shift=2, pattern="diagonal", fill="reflect")
    logits = np.stack(
        [classifier.model.apply(classifier.variables, views[:, view], train=False) for view in range(6)], axis=1
    )
    expected = np.einsum("bvk,v->bk", logits, np.array([1 / 4, 1 / 8, 1 / 8] * 2))
    program = jax.export.deserialize(bytearray((tmp_path / "out/model.stablehlo").read_bytes()))
    found, probabilities = jax.jit(program.call)(images)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(probabilities, jax.nn.softmax(expected / description["temperature"]), atol=1e-5)


def test_a_run_of_before_crops(tmp_path):
    """Records of earlier versions hold only the shape of the images."""
    classifier = classifier_of(Preparation.of_record({"image_shape": [8, 8, 3]}))
    description = export_run(tmp_path, classifier, tmp_path / "out")
    assert description["preparation"]["resize"] == "crop"
    assert description["input"]["images"] == "u8[b 8 8 3]"
    assert description["input"]["channels"] == ["red", "green", "blue"]


@pytest.mark.parametrize(
    ("value_range", "kinds"),
    [(None, ("u1", "u1")), ((0.0, 255.0), ("u1", "u1")), ((0.0, 4095.0), ("u2", "f4")), ((0.0, 255.0), ("u2", "u1"))],
)
@pytest.mark.parametrize("other", [(45, 31), (90, 61), (20, 61), (120, 200)])
def test_channels_of_several_sizes_that_are_files_of_their_own(tmp_path, value_range, kinds, other):
    data = DataConfig(source="folder", path_column=("infrared", "visible"))
    classifier = classifier_of(Preparation((32, 24), 2, "pad", value_range), data=data)
    export_run(tmp_path, classifier, tmp_path / "out")
    rng, files = np.random.default_rng(0), []
    for kind, size in zip(kinds[::-1], (other, (45, 61)), strict=True):  # the second kind is scaled, then the first
        most = 256 if kind == "u1" else 4096
        files.append(tmp_path / f"{len(files)}.tif")
        tifffile.imwrite(files[-1], rng.integers(0, most, size).astype(kind))
    description = json.loads((tmp_path / "out/model.json").read_text())
    for paths in (files, files[::-1]):
        found, expected = by_hand.prepare(description, *paths), classifier.preparation(read_bands(paths))
        if value_range is None:
            np.testing.assert_allclose(found, expected, rtol=0, atol=OFF)
        else:  # of 16 bits, one in some hundred may be rounded to the other side
            assert np.abs(found - expected).max() < 1.01 / value_range[1]
            assert (np.abs(found - expected) > 1e-5).mean() < 0.05


def test_channels_that_are_files_of_their_own_are_named(tmp_path):
    data = DataConfig(source="folder", path_column=("infrared", "visible"))
    classifier = classifier_of(Preparation((8, 8), 2, "squash", (0.0, 1023.0)), data=data)
    description = export_run(tmp_path, classifier, tmp_path / "out")
    assert description["preparation"]["steps"][0]["files"] == ["infrared", "visible"]
    assert description["input"]["images"] == "f32[b 8 8 2]"
    assert description["input"]["channels"] == ["infrared", "visible"]


def test_transparency_is_a_channel_of_its_name(tmp_path):
    classifier = classifier_of(Preparation((8, 8), 4, "squash", alpha=True))
    description = export_run(tmp_path, classifier, tmp_path / "out")
    assert description["input"]["channels"] == ["red", "green", "blue", "alpha"]
    assert description["input"]["values"] == "0..255, the channels red, green, blue, alpha"

import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls.data import from_arrays
from flaxcls.data.images import Images
from flaxcls.data.preparation import Preparation
from flaxcls.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 8, 6, 3), dtype=np.uint8)
LABELS = np.arange(60) % 3
FLOATS = (IMAGES / 255).astype(np.float32)
NUMBERING = r"`classes, labels = np\.unique\(labels, return_inverse=True\)` and class_names=classes"
SIZES = [np.zeros((8 + number % 2, 8, 3), np.uint8) for number in range(60)]


def as_objects(values):
    array = np.empty(len(values), object)
    array[:] = list(values)
    return array


def zeros(*shape):
    return np.zeros((60, *shape), np.uint8)


def changed(images, *values):
    """Returns a copy with these values in the first pixels of image 3."""
    images = images.copy()
    images[3].reshape(-1)[: len(values)] = values
    return images


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (zeros(3, 32, 32), r"\(60, 3, 32, 32\), which looks like \[n c h w\].*`np\.moveaxis\(images, 1, -1\)`"),
        (zeros(1, 28, 28), r"`np\.moveaxis\(images, 1, -1\)`"),
        (zeros(1, 8, 8), r"`np\.moveaxis\(images, 1, -1\)`"),
        (zeros(13, 64, 64), r"`np\.moveaxis\(images, 1, -1\)`"),
        (zeros(32, 32, 20), "20 channels, but .* may have 16 at most"),
        (zeros(8, 8, 17), r"\(60, 8, 8, 17\), so 17 channels, but \[n h w c\] may have 16 at most"),
        (zeros(0, 8, 3), r"shape \(60, 0, 8, 3\), but must be \[n h w c\]"),
        (FLOATS * 255, r"float images are in 0\.\.255, but must be in 0\.\.1: give `images / 255`"),
        (FLOATS * 2 - 1, r"in -1\.\.1, but must be in 0\.\.1: give `\(images \+ 1\) / 2`"),
        (changed(FLOATS, 1.0000001), r"in 0\.\.1\.0000001, but must be in 0\.\.1: give `images\.clip\(0, 1\)`"),
        (FLOATS * 1000, r"in 0\.\.1000, but must be in 0\.\.1: scale them"),
        (changed(FLOATS, np.nan, np.inf), r"2 values are NaN or infinite, in 1 of 60 images \(the first is 3\)"),
        (IMAGES > 99, r"images are bool, .*: give `images\.astype\(np\.uint8\) \* 255`"),
        (IMAGES.tolist(), r"images are int64, .*: give `images\.astype\(np\.uint8\)`"),
        (IMAGES.astype(np.uint16) * 9, r"images are uint16, but must be uint8 of 0\.\.255 or float32 of 0\.\.1\.$"),
        (SIZES, r"one array: .* several sizes.*Images\(list\(images\), Preparation\(\(height, width\), channels\)\)"),
        (
            as_objects(SIZES),
            r"one array: .* several sizes.*Images\(list\(images\), Preparation\(\(height, width\), channels\)\)",
        ),
        ([], r"shape \(0,\), but must be"),
        (None, r"shape \(\), but must be"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_images_that_are_no_images_are_refused_with_what_to_write(images, message):
    with pytest.raises(InputError, match=f"^images.*{message}"):
        from_arrays(images, LABELS)
    with pytest.raises(InputError, match=f"^test.*{message}"):
        from_arrays(IMAGES, LABELS, test=(images, LABELS))


@pytest.mark.parametrize("shape", [(3, 5, 2), (32, 32, 16), (1, 64, 3), (2, 2, 4), (4, 4, 4)])
def test_small_and_flat_images_and_many_channels_are_taken_as_they_are(shape):
    assert from_arrays(zeros(*shape), LABELS).image_shape == shape


@pytest.mark.parametrize(
    "images",
    [list(IMAGES), as_objects(IMAGES), jnp.asarray(IMAGES), jnp.asarray(FLOATS), FLOATS.astype(float), FLOATS.tolist()],
    ids=lambda value: type(value).__name__,
)
def test_what_numpy_converts_is_the_same_data(images):
    plain = FLOATS if "float" in str(np.asarray(images).dtype) else IMAGES
    expected, found = from_arrays(plain, LABELS), from_arrays(images, LABELS.tolist())
    for one, same in zip(expected.splits.values(), found.splits.values(), strict=True):
        assert one.images.dtype == same.images.dtype
        np.testing.assert_array_equal(one.images, same.images)
        np.testing.assert_array_equal(one.labels, same.labels)


@pytest.mark.parametrize(
    "labels",
    [LABELS[:, None], np.eye(3)[LABELS], np.eye(3, dtype=np.float32)[LABELS], np.eye(3, dtype=bool)[LABELS].tolist()],
    ids=["column", "f64", "f32", "bool"],
)
def test_a_column_and_one_hot_labels_mean_their_classes(labels):
    found = from_arrays(IMAGES, labels, validation=(IMAGES, labels))
    np.testing.assert_array_equal(found.validation.labels, LABELS)
    assert found.validation.labels.dtype == np.int32
    assert found.class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS + 1, r"labels are 1 to 3, but class numbers start at 0: give `labels - 1`"),
        (np.array([0, 2, 5])[LABELS], rf"6 classes, 0 to 5, but none is 1, 3, 4\. .*{NUMBERING}"),
        (LABELS * 10**6, rf"none is 1, 2, .*, 10, and 1,999,988 others\. .*{NUMBERING}"),
        (np.eye(4)[LABELS], r"4 classes, 0 to 3, but none is 3\. .* name all in class_names"),
        (LABELS - 1, rf"labels are -1 to 1, but must be class numbers from 0: {NUMBERING.join(['give ', ''])}"),
        (LABELS + 2**32, "labels are 0 to 4294967298, but must be class numbers from 0"),
        (np.array(["cat", "dog", "cow"])[LABELS], rf"labels are <U3, but must be integers, .*{NUMBERING}"),
        (as_objects(np.array(["cat", "dog"])[LABELS % 2]), rf"labels are object, .*{NUMBERING}"),
        (LABELS.astype(float), r"labels are float64, .*: give `labels\.astype\(int\)`"),
        (LABELS == 1, r"labels are bool, .*: give `labels\.astype\(int\)`"),
        (np.where(LABELS == 1, np.nan, 0), rf"labels are float64, .*{NUMBERING}"),
        (np.full((60, 3), 1 / 3), r"one-hot, with a single 1 in each row, but 60 rows are not, .*argmax\(axis=1\)`"),
        (np.stack([LABELS == 0, LABELS < 2], 1), "several labels an image are not supported"),
        ([[1], [2, 3]] * 30, "labels cannot become one array"),
        (np.zeros((60, 2, 2), int), r"labels have the shape \(60, 2, 2\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_labels_that_are_no_class_numbers_are_refused_with_what_to_write(labels, message):
    with pytest.raises(InputError, match=message):
        from_arrays(IMAGES, labels)


def test_what_to_write_for_labels_works():
    names = np.array(["cat", "dog", "cow"])[LABELS]
    classes, labels = np.unique(names, return_inverse=True)
    found = from_arrays(IMAGES, labels, class_names=classes, test=(IMAGES, labels))
    assert [found.class_names[label] for label in found.test.labels] == names.tolist()
    with pytest.raises(InputError, match=r"test: labels are <U3.* `\[list\(classes\)\.index\(label\) for label in"):
        from_arrays(IMAGES, labels, class_names=classes, test=(IMAGES, names))
    again = [list(classes).index(label) for label in names]
    np.testing.assert_array_equal(again, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"class_names": "abc", "labels": LABELS + 1},
            r"label 3, but its 3 classes are numbered 0\.\.2: give `labels - 1`",
        ),
        ({"class_names": "abc", "labels": LABELS - 1}, r"label -1, but its 3 classes are numbered 0\.\.2"),
        ({"class_names": "abc", "labels": LABELS + 2**32}, "labels are 0 to 4294967298"),
        (
            {"class_names": "abcd", "labels": np.eye(3)[LABELS]},
            "one-hot labels have 3 columns, but there are 4 classes",
        ),
        ({"test": (IMAGES, np.eye(4)[LABELS])}, "test: one-hot labels have 4 columns, but there are 3 classes"),
        ({"validation": (IMAGES, LABELS + 1)}, r"validation split .* label 3, .*: give `labels - 1`"),
        (
            {"validation": (IMAGES[:, :5], LABELS)},
            r"validation split of 'arrays' has images uint8\[5, 6, 3\], but train",
        ),
        (
            {"validation": (FLOATS, LABELS)},
            r"validation split of 'arrays' has images float32\[8, 6, 3\], but train",
        ),
        ({"validation": (IMAGES, LABELS[:5])}, r"validation: 60 images, but labels of shape \(5,\)"),
        ({"test": IMAGES}, r"test is of type ndarray, but must be a pair: \(images, labels\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_labels_and_splits_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        from_arrays(IMAGES, **{"labels": LABELS, **options})


@pytest.mark.parametrize("labels", [LABELS, np.eye(5)[LABELS]], ids=["numbers", "one-hot"])
def test_classes_without_a_training_image_are_said(labels):
    assert list(from_arrays(IMAGES, LABELS).notes) == []
    found = from_arrays(IMAGES, labels, class_names=("a", "b", "c", "d", "e"))
    assert found.notes == ["classes without a training image, which cannot be learned: d, e (2 of 5)"]
    only_in_test = from_arrays(IMAGES, LABELS, class_names="abcd", test=(IMAGES, np.full(60, 3)))
    assert only_in_test.notes == ["classes without a training image, which cannot be learned: d (1 of 4)"]
    pictures = Images(list(IMAGES), Preparation((8, 6), 3), whole=True)
    assert from_arrays(pictures, labels, class_names="abcde").notes == found.notes

import jax
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from flaxcls.analysis.classifier import Classifier
from flaxcls.analysis.explain_files import METHODS, explain_files, make_options
from flaxcls.analysis.prediction import predict_files
from flaxcls.config import Config
from flaxcls.data.preparation import Preparation
from flaxcls.errors import InputError

OTHERS = ("integrated-gradients", "smooth-grad", "occlusion")


class Flat(nn.Module):
    """Has neither a convolution nor a map."""

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(2)(images.reshape(len(images), -1))


class Pointwise(nn.Module):
    """Has a map, but no convolution."""

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(2)(nn.relu(nn.Dense(4, name="points")(images)).mean(axis=(1, 2)))


def classifier_of(model):
    shape = (8, 8, 1)
    variables = model.init(jax.random.key(0), np.zeros((1, *shape), np.float32), train=False)
    return Classifier(Config(), model, variables, ("cat", "dog"), Preparation(shape[:2], shape[2]), None, None, step=0)


def test_a_model_without_a_map_is_explained_by_the_other_methods(tmp_path):
    classifier = classifier_of(Flat())
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / "one.png")
    out = tmp_path / "out"
    out.mkdir()
    for kind in ("grad-cam", "feature-maps"):
        (out / f"one-{kind}.png").write_text("of a model before this one")
    options = make_options(classifier)
    assert options.methods == OTHERS
    assert len(options.left_out) == 2
    assert options.left_out[0].startswith("Grad-CAM and feature maps are left out: the model has no layer")
    assert options.left_out[1].startswith("filters.png is left out: the model has no two-dimensional convolution")
    (explained,) = explain_files(classifier, options, predict_files(classifier, [str(tmp_path / "one.png")]), out)
    assert {path.name for path in out.iterdir()} == {"one.npz", *(f"one-{method}.png" for method in OTHERS)}
    assert set(explained.files) == set(out.iterdir())
    assert explained.is_complete
    with np.load(out / "one.npz") as arrays:
        assert set(OTHERS) < set(arrays)
        assert not {"layer", "feature_maps", "grad-cam"} & set(arrays)


def test_methods_that_need_no_map_can_be_asked_for():
    options = make_options(classifier_of(Flat()), methods=["occlusion"], class_name="dog")
    assert (options.methods, options.label) == (("occlusion",), 1)
    assert options.left_out[0].startswith("Feature maps are left out")


@pytest.mark.parametrize("asked", [{"methods": METHODS}, {"layer": "Dense_0"}, {"methods": [], "layer": "Dense_0"}])
def test_a_map_that_is_asked_for_must_be_there(asked):
    with pytest.raises(InputError, match=r"has no layer with an output.*use the other methods, and name no layer"):
        make_options(classifier_of(Flat()), **asked)


def test_a_map_without_a_convolution():
    options = make_options(classifier_of(Pointwise()))
    assert (options.methods, options.layer_path, options.filters) == (METHODS, "points", None)
    assert len(options.left_out) == 1

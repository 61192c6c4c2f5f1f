"""The networks give torchvision's logits with the same weights; `torchvision_logits.py` made the fixture."""

import json

import jax
import numpy as np
import pytest

from flaxcls.models import VGG, ConvNeXt, ResNet, mobilenet_v2
from tests.models.torchvision_logits import FIXTURE, Draw, images
from tests.slow import all_slow_but

NETWORKS = {
    "basic": (64, ResNet(10, depths=(1, 1, 1, 1))),
    "bottleneck": (64, ResNet(10, depths=(1, 1, 1, 1), bottleneck=True)),
    "vgg11": (32, VGG(10, depths=(1, 1, 2, 2, 2), dense=(64, 32))),
    "mobilenet_v2": (64, mobilenet_v2(10)),
    "convnext": (64, ConvNeXt(10, depths=(1, 1, 1, 1), widths=(96, 192, 384, 768))),
}


def drawn(tree, draw, name=""):
    """Fills a tree of shapes, in the order in which the network creates them."""
    if isinstance(tree, dict):
        return {key: drawn(value, draw, key) for key, value in tree.items()}
    shape = tree.shape
    if len(shape) == 4:  # torch has [out in h w], we have [h w in out]
        return draw(name, (shape[3], shape[2], shape[0], shape[1])).transpose(2, 3, 1, 0)
    return draw(name, shape[::-1]).T


@pytest.mark.parametrize("name", all_slow_but(NETWORKS, "resnet18", "vgg11"))
def test_the_logits_are_torchvisions(name):
    size, model = NETWORKS[name]
    draw, variables = Draw(), {}

    def fill(x):  # while tracing, as jax sorts the keys of what a traced function returns
        variables.update(drawn(model.init(jax.random.key(0), x, train=False), draw))

    jax.eval_shape(fill, images(size))
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images(size))
    np.testing.assert_allclose(logits, json.loads(FIXTURE.read_text())[name], rtol=1e-3, atol=1e-3)

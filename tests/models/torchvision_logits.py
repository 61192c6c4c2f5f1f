"""Logits of torchvision's networks with weights drawn from numbered seeds, which ours must give with the same weights.

python tests/models/torchvision_logits.py    # with torch 2.13.0 and torchvision 0.28.0, prints the fixture
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np

FIXTURE = Path(__file__).with_suffix(".json")


def images(size):
    return np.random.RandomState(1).standard_normal((2, size, size, 3)).astype(np.float32)


class Draw:
    """The next values of a kind, in torch's layout: the n-th of a kind are those of seed n."""

    def __init__(self):
        self.drawn = Counter()

    def __call__(self, kind, shape):
        random = np.random.RandomState(self.drawn[kind])  # its streams are frozen, unlike those of numpy's Generator
        self.drawn[kind] += 1
        if kind == "kernel":
            values = random.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
        elif kind in ("scale", "var"):
            values = random.uniform(0.5, 1.5, shape)
        else:
            values = random.standard_normal(shape) * 0.1
        return values.astype(np.float32)


def main():
    import torch
    from torch import nn
    from torchvision.models import convnext, mobilenetv2, resnet, vgg

    vgg11 = vgg.vgg11_bn(num_classes=10)
    vgg11.avgpool = nn.Identity()
    vgg11.classifier = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    stages = [convnext.CNBlockConfig(*stage, 1) for stage in ((96, 192), (192, 384), (384, 768), (768, None))]
    networks = {
        "basic": (64, resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)),
        "bottleneck": (64, resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], num_classes=10)),
        "vgg11": (32, vgg11),
        "mobilenet_v2": (64, mobilenetv2.MobileNetV2(num_classes=10)),
        "convnext": (64, convnext.ConvNeXt(stages, num_classes=10)),
    }
    logits = {}
    for name, (size, network) in networks.items():
        draw = Draw()
        with torch.no_grad():
            for module in network.modules():
                tensors = {"bias": getattr(module, "bias", None), "layer_scale": getattr(module, "layer_scale", None)}
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    tensors["kernel"] = module.weight
                elif isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
                    tensors["scale"] = module.weight
                    tensors["mean"] = getattr(module, "running_mean", None)
                    tensors["var"] = getattr(module, "running_var", None)
                for kind, tensor in tensors.items():
                    if tensor is not None:
                        tensor.copy_(torch.from_numpy(draw(kind, tuple(tensor.shape))))
            x = torch.from_numpy(images(size).transpose(0, 3, 1, 2).copy())
            logits[name] = network.eval()(x).numpy().round(5).tolist()
    print(json.dumps({name: [[round(v, 5) for v in row] for row in rows] for name, rows in logits.items()}, indent=1))


if __name__ == "__main__":
    main()

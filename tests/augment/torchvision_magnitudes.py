"""Writes torchvision_magnitudes.json: the strengths that torchvision's policies draw from, for images of 40x32 pixels.

Run it where torchvision is installed: python tests/augment/torchvision_magnitudes.py
"""

import json
from pathlib import Path

import torchvision
from torchvision.transforms import RandAugment, TrivialAugmentWide

HEIGHT, WIDTH, LEVELS = 40, 32, (0, 9, 30)


def strengths(space):
    """Returns operation -> [strength at each of LEVELS]; for blends it is the distance of the factor from 1."""
    return {
        name: [float(magnitudes[level]) if magnitudes.ndim else float(magnitudes) for level in LEVELS]
        for name, (magnitudes, _) in space.items()
    }


if __name__ == "__main__":
    written = {
        "torchvision": torchvision.__version__,
        "rand_augment": strengths(RandAugment()._augmentation_space(31, (HEIGHT, WIDTH))),
        "trivial_augment": strengths(TrivialAugmentWide()._augmentation_space(31)),
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(written, indent=1) + "\n")

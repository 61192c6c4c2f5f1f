"""A stand-in for ImageNet: synthetic JPEGs in the form of tensorflow-datasets' imagenet2012.

It has the version, features, splits and 1,000 class names of the real data set, which must be downloaded by hand. Its
images have many sizes, one of eight is grey, and they are of four classes, each with a pattern of its own. So you can
try the whole command for ImageNet without the 144 GiB.

Command:   python -m experiments.imagenet_standin --out DIR, then the command in imagenet_resnet50.py
Hardware:  any; TensorFlow is not needed
Time:      6 s for 280 images on 2 cores of a CPU
Accuracy:  on the stand-in it says nothing about ImageNet
"""

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
import tyro

from flaxcls.errors import InputError

CLASSES = ("n01440764", "n02123045", "n03028079", "n07753592")  # tench, tabby cat, church, banana
LONGEST, SHORTEST = 500, 160  # sides, in pixels


def picture(number: int, seed: int) -> bytes:
    """Returns a JPEG of stripes in the direction of its class; the class is `number` modulo the number of classes."""
    rng = np.random.default_rng((seed, number))
    height, width = rng.integers(SHORTEST, LONGEST + 1, 2)
    angle = np.pi * (number % len(CLASSES)) / len(CLASSES)
    rows, columns = np.mgrid[:height, :width]
    waves = np.sin((np.cos(angle) * columns + np.sin(angle) * rows) / rng.uniform(4, 16) + rng.uniform(0, 2 * np.pi))
    channels = 1 if number // len(CLASSES) % 8 == 7 else 3
    colours = rng.uniform(20, 80, channels) * waves[..., np.newaxis] + rng.uniform(100, 155, channels)
    noisy = colours + rng.normal(0, 10, (height, width, 1))
    _, data = cv2.imencode(".jpg", noisy.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return bytes(data)


with tfds.core.registered.skip_registration():  # the real data set has the same name

    class StandIn(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]
        """The builder of the stand-in; it has no description files beside this module."""

        name = "imagenet2012"
        VERSION = tfds.core.Version("5.1.0")
        pkg_dir_path = None

        def __init__(self, sizes: dict[str, int], seed: int, **options: Any) -> None:
            self._sizes, self._seed = sizes, seed
            super().__init__(**options)

        def _info(self) -> tfds.core.DatasetInfo:
            names = tfds.core.tfds_path("datasets/imagenet2012/labels.txt")
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names_file=names),
                "file_name": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description="Synthetic images in the form of ImageNet.",
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
            first = 0
            generators = {}
            for split, count in self._sizes.items():
                generators[split] = self._generate_examples(range(first, first + count))
                first += count
            return generators

        def _generate_examples(self, numbers: range) -> Iterator[tuple[str, dict[str, Any]]]:
            for number in numbers:
                label = CLASSES[number % len(CLASSES)]
                name = f"{label}_{number}.JPEG"
                yield name, {"image": io.BytesIO(picture(number, self._seed)), "label": label, "file_name": name}


def write(out: Path, *, train: int = 240, validation: int = 40, seed: int = 0) -> Path:
    """Writes the stand-in as ArrayRecord files; returns their folder, imagenet2012/5.1.0 below `out`.

    Args:
      out: the later --data.dir.
      train, validation: images of the two splits; there is no test split, as ImageNet's has no labels.
      seed: seed of the images.

    Raises:
      InputError: if the folder exists already, even with the real data set, or a split would have no images.
    """
    if min(train, validation) < 1:
        raise InputError(f"train and validation are {train} and {validation} images, but must be 1 or more.")
    folder = out / "imagenet2012"
    if folder.exists():
        raise InputError(f"{folder} is there already: name another directory.")
    builder = StandIn({"train": train, "validation": validation}, seed, data_dir=out, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_path)


def main(
    out: Annotated[Path, tyro.conf.arg(help="Directory to write imagenet2012 into.")],
    train: Annotated[int, tyro.conf.arg(help="Images to train on; some of them are held out.")] = 240,
    validation: Annotated[int, tyro.conf.arg(help="Images of the validation split, which tests the runs.")] = 40,
    seed: Annotated[int, tyro.conf.arg(help="Seed of the images.")] = 0,
) -> int:
    """Writes a stand-in for tensorflow-datasets' imagenet2012; returns the exit code."""
    try:
        print(write(out, train=train, validation=validation, seed=seed))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))

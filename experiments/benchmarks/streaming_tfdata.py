"""tf.data's side of `experiments.benchmarks.streaming`, which starts it with a Python that has TensorFlow.

It reads one JSON request a line, and prints one JSON answer a line. Its arguments are height and width of what is made,
the batch size and the least share of the area that is cut out.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import tensorflow as tf

HEIGHT, WIDTH, BATCH = map(int, sys.argv[1:4])
LEAST_AREA = float(sys.argv[4])


def cut(data: Any, box: Any, kind: str) -> Any:
    """Returns a part of a JPEG, given as row, column, height and width, at the size: u8[h w 3].

    kind: same: libjpeg's accurate transform, and averages over areas. usual: the defaults of TensorFlow, the fast
      transform and interpolation between pixels, without a thought for those in between.
    """
    if kind == "same":
        image = tf.io.decode_and_crop_jpeg(data, box, channels=3, dct_method="INTEGER_ACCURATE")
        return tf.cast(tf.round(tf.compat.v1.image.resize_area(image[tf.newaxis], (HEIGHT, WIDTH))[0]), tf.uint8)
    image = tf.io.decode_and_crop_jpeg(data, box, channels=3)
    return tf.cast(tf.image.resize(image, (HEIGHT, WIDTH)), tf.uint8)


def random_box(data: Any) -> Any:
    """Returns row, column, height and width of a random part of a JPEG."""
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        tf.io.extract_jpeg_shape(data),
        tf.zeros((1, 0, 4)),
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(LEAST_AREA, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.stack([begin[0], begin[1], size[0], size[1]])


def made(paths: list[str], labels: list[int], kind: str) -> Any:
    """Returns the endless stream of batches."""

    def example(path: Any, label: Any) -> Any:
        data = tf.io.read_file(path)
        return cut(data, random_box(data), kind), label

    files = tf.data.Dataset.from_tensor_slices((paths, np.array(labels, np.int32)))
    files = files.shuffle(len(paths), seed=0).repeat()
    made = files.map(example, num_parallel_calls=tf.data.AUTOTUNE)
    return made.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def seconds(paths: list[str], labels: list[int], kind: str, warm_up: int, batches: int) -> float:
    """Returns the seconds that so many batches take after the first ones."""
    iterator = iter(made(paths, labels, kind))
    for _ in range(warm_up):
        next(iterator)
    began = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    return time.perf_counter() - began


def answer(do: str, **request: Any) -> Any:
    """Returns what one request asks for."""
    if do == "seconds":
        return seconds(**request)
    if do == "areas":  # of random parts of one file
        data = tf.io.read_file(request["path"])
        return [float(tf.reduce_prod(random_box(data)[2:])) for _ in range(request["count"])]
    return cut(tf.io.read_file(request["path"]), request["box"], request["kind"]).numpy().tolist()


print(json.dumps({"tensorflow": tf.__version__, "python": sys.version.split()[0]}), flush=True)
for line in sys.stdin:
    print(json.dumps(answer(**json.loads(line))), flush=True)

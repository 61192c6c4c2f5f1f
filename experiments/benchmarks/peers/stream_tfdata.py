"""tf.data's side of `streaming`, which starts it with a Python that has TensorFlow.

It reads one JSON request a line, and prints one JSON answer a line. Its arguments are the height and the width of the
made images, and the batch size.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import tensorflow as tf

HEIGHT, WIDTH, BATCH = map(int, sys.argv[1:])


def cut(data: Any, box: Any, kind: str) -> Any:
    """Returns a part of a JPEG, given as row, column, height and width, scaled to HEIGHT x WIDTH: u8[h w 3].

    kind: "whole" decodes the whole image by libjpeg's accurate transform, and scales as flaxcls does. "part" does the
      same, but decodes only the part. "usual" decodes only the part, by TensorFlow's defaults: the fast transform, and
      interpolation between pixels at any scale.
    """
    if kind == "usual":
        image = tf.io.decode_and_crop_jpeg(data, box, channels=3)
        return tf.cast(tf.image.resize(image, (HEIGHT, WIDTH)), tf.uint8)
    if kind == "part":
        image = tf.io.decode_and_crop_jpeg(data, box, channels=3, dct_method="INTEGER_ACCURATE")
    else:
        top, left, height, width = tf.unstack(box)
        image = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
        image = image[top : top + height, left : left + width]
    scaled = tf.cond(
        (box[2] >= HEIGHT) & (box[3] >= WIDTH) & ((box[2] > 2 * HEIGHT) | (box[3] > 2 * WIDTH)),
        lambda: tf.raw_ops.ResizeArea(images=image[tf.newaxis], size=(HEIGHT, WIDTH))[0],
        lambda: tf.image.resize(image, (HEIGHT, WIDTH)),
    )
    return tf.cast(tf.round(scaled), tf.uint8)


def seconds(kind: str, paths: list[str], boxes: list[Any], labels: list[int], warm_up: int) -> float:
    """Returns the seconds for these images in batches, without the first `warm_up` batches."""

    def example(path: Any, box: Any, label: Any) -> Any:
        return cut(tf.io.read_file(path), box, kind), label

    stream = tf.data.Dataset.from_tensor_slices((paths, np.array(boxes, np.int32), np.array(labels, np.int32)))
    stream = stream.map(example, num_parallel_calls=tf.data.AUTOTUNE)
    iterator = iter(stream.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE))
    for _ in range(warm_up):
        next(iterator)
    began = time.perf_counter()
    for _ in iterator:
        pass
    return time.perf_counter() - began


def answer(do: str, **request: Any) -> Any:
    """Returns the answer to one request: seconds, or the pixels of one part."""
    if do == "seconds":
        return seconds(**request)
    return cut(tf.io.read_file(request["path"]), tf.constant(request["box"]), request["kind"]).numpy().tolist()


print(json.dumps({"tensorflow": tf.__version__, "python": sys.version.split()[0]}), flush=True)
for line in sys.stdin:
    print(json.dumps(answer(**json.loads(line))), flush=True)

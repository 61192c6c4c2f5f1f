#!/usr/bin/env bash
# cv2.resize of bytes to exactly half the height and half the width, by INTER_LINEAR, its default, is the mean of four
# pixels. With 1, 3 or 4 channels a mean of x.5 is rounded up; with 2, 5 or more it is rounded to the even number. So an
# eighth of random pixels differ by 1 between a channel alone and the same channel in a picture of two. For any other
# size, each channel is what it is alone. Who repeats the arithmetic elsewhere needs the number of channels.
#
# Seen on Linux x86_64, Python 3.13, opencv-python-headless 4.10.0.84 and 5.0.0.93, numpy 2.5.5; the output is the text
# after the last command below.
#
# Usage: findings/opencv_halves_by_channels.sh   (needs python3.13 and the package index; less than a minute)
set -euo pipefail
python=${PYTHON:-python3.13}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat >"$work/halve.py" <<'PROGRAM'
import cv2
import numpy as np

print("opencv", cv2.__version__)
rng = np.random.default_rng(0)
for channels in (1, 2, 3, 4, 5, 8):
    image = rng.integers(0, 256, (200, 300, channels), dtype=np.uint8)
    exact = image.reshape(100, 2, 150, 2, channels).mean((1, 3))
    halved = cv2.resize(image, (150, 100)).reshape(exact.shape)
    other = cv2.resize(image, (151, 101)).reshape(101, 151, channels)
    alone = [cv2.resize(np.ascontiguousarray(image[..., c]), (151, 101)) for c in range(channels)]
    up, even = np.floor(exact + 0.5), np.rint(exact)
    rule = "up" if (halved == up).all() else "to even" if (halved == even).all() else "neither"
    print(
        f"{channels} channels: halves are rounded {rule}; {(halved != up).mean():.3f} differ from rounding up;",
        f"another size as alone: {np.array_equal(other, np.stack(alone, axis=2))}",
    )
PROGRAM
for version in 4.10.0.84 5.0.0.93; do
  "$python" -m venv "$work/env$version"
  "$work/env$version/bin/pip" install -q "opencv-python-headless==$version" numpy==2.5.5
  "$work/env$version/bin/python" "$work/halve.py"
done | tee "$work/out"
diff "$work/out" - <<'SEEN'
opencv 4.10.0
1 channels: halves are rounded up; 0.000 differ from rounding up; another size as alone: True
2 channels: halves are rounded to even; 0.125 differ from rounding up; another size as alone: True
3 channels: halves are rounded up; 0.000 differ from rounding up; another size as alone: True
4 channels: halves are rounded up; 0.000 differ from rounding up; another size as alone: True
5 channels: halves are rounded to even; 0.124 differ from rounding up; another size as alone: True
8 channels: halves are rounded to even; 0.124 differ from rounding up; another size as alone: True
opencv 5.0.0
1 channels: halves are rounded up; 0.000 differ from rounding up; another size as alone: True
2 channels: halves are rounded to even; 0.125 differ from rounding up; another size as alone: True
3 channels: halves are rounded up; 0.000 differ from rounding up; another size as alone: True
4 channels: halves are rounded up; 0.000 differ from rounding up; another size as alone: True
5 channels: halves are rounded to even; 0.124 differ from rounding up; another size as alone: True
8 channels: halves are rounded to even; 0.124 differ from rounding up; another size as alone: True
SEEN

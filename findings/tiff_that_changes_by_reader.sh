#!/usr/bin/env bash
# Valid TIFF files of scientific cameras and satellites that OpenCV 5.0.0 and Pillow 13.0.0 open without an error or a
# warning, and give other values than those in the file. OpenCV: 12-bit grey comes times 16; of two 16-bit bands comes
# one band of 8 bits; of four bands without a colour space comes one. Pillow: 32-bit unsigned values from 2^31 on become
# negative, signed 8-bit values lose their sign, colours with 16 bits a channel lose the lower 8, and a fourth band of
# unspecified meaning is dropped. tifffile 2026.11.8 gives every value as it was written.
#
# Seen on Linux x86_64, Python 3.13; the output is the text after the last command below.
#
# Usage: findings/tiff_that_changes_by_reader.sh   (needs python3.13 and the package index; half a minute)
set -euo pipefail
python=${PYTHON:-python3.13}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/env"
"$work/env/bin/pip" install -q numpy==2.5.5 opencv-python-headless==5.0.0.93 pillow==13.0.0 tifffile==2026.11.8 \
  imagecodecs==2026.10.10

cat >"$work/read.py" <<'PROGRAM'
import io

import cv2
import numpy as np
import tifffile
from PIL import Image

rng = np.random.default_rng(0)
grey = rng.integers(0, 2**16, (64, 72), dtype=np.uint16)
bands = rng.integers(0, 2**16, (64, 72, 4), dtype=np.uint16)
CASES = {
    "12-bit grey": (grey >> 4, {"bitspersample": 12}),
    "16-bit, 2 bands": (bands[..., :2].copy(), {"photometric": "minisblack", "planarconfig": "contig"}),
    "16-bit, 4 bands": (bands, {"photometric": "minisblack", "planarconfig": "contig"}),
    "32-bit unsigned": (grey.astype(np.uint32) << 16, {}),
    "8-bit signed": ((grey >> 8).astype(np.uint8).view(np.int8), {}),
    "16-bit colours": (bands[..., :3].copy(), {"photometric": "rgb"}),
    "8-bit colours and infrared": ((bands >> 8).astype(np.uint8), {"photometric": "rgb", "extrasamples": ["unspecified"]}),
}


def described(read, values):
    if read is None:
        return "not read"
    kind = f"{read.dtype}{list(read.shape)}"
    if read.shape == values.shape and (read == values).all():
        return f"{kind}, equal"
    if read.shape == values.shape and (read == values.astype(np.int64) * 16).all():
        return f"{kind}, times 16"
    return f"{kind}, other values"


def by_opencv(data, values):
    read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if read is not None and read.ndim == 3:  # blue comes first
        read = read[..., [2, 1, 0, 3][: read.shape[2]]]
    return described(read, values)


def by_pillow(data, values):
    try:
        image = Image.open(io.BytesIO(data))
    except Image.UnidentifiedImageError:
        return "not read"
    return f"{image.mode} {described(np.asarray(image), values)}"


for name, (values, options) in CASES.items():
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    data = file.getvalue()
    print(f"{name}, {values.dtype}{list(values.shape)}")
    print("  OpenCV:  ", by_opencv(data, values))
    print("  Pillow:  ", by_pillow(data, values))
    print("  tifffile:", described(tifffile.imread(io.BytesIO(data)), values))
PROGRAM
OPENCV_LOG_LEVEL=SILENT "$work/env/bin/python" "$work/read.py" >"$work/out" 2>"$work/warnings"
cat "$work/out"
diff "$work/out" - <<'SEEN'
12-bit grey, uint16[64, 72]
  OpenCV:   uint16[64, 72], times 16
  Pillow:   I;16 uint16[64, 72], equal
  tifffile: uint16[64, 72], equal
16-bit, 2 bands, uint16[64, 72, 2]
  OpenCV:   uint8[64, 72], other values
  Pillow:   not read
  tifffile: uint16[64, 72, 2], equal
16-bit, 4 bands, uint16[64, 72, 4]
  OpenCV:   uint16[64, 72], other values
  Pillow:   not read
  tifffile: uint16[64, 72, 4], equal
32-bit unsigned, uint32[64, 72]
  OpenCV:   uint32[64, 72], equal
  Pillow:   I int32[64, 72], other values
  tifffile: uint32[64, 72], equal
8-bit signed, int8[64, 72]
  OpenCV:   int8[64, 72], equal
  Pillow:   L uint8[64, 72], other values
  tifffile: int8[64, 72], equal
16-bit colours, uint16[64, 72, 3]
  OpenCV:   uint16[64, 72, 3], equal
  Pillow:   RGB uint8[64, 72, 3], other values
  tifffile: uint16[64, 72, 3], equal
8-bit colours and infrared, uint8[64, 72, 4]
  OpenCV:   uint8[64, 72, 4], equal
  Pillow:   RGB uint8[64, 72, 3], other values
  tifffile: uint8[64, 72, 4], equal
SEEN

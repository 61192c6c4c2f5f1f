#!/usr/bin/env bash
# Two kinds of valid files of which Pillow gives other pixels than they hold, without an error.
#
# 1. A BMP of 8 bits a pixel whose palette is black and white alone, as segmentation masks are stored by tools that shorten
#    the palette: Pillow takes the palette for that of a picture of 1 bit a pixel, and reads the bytes as bits. OpenCV reads
#    it right. With three colours in the palette, Pillow does, too.
# 2. A grey PNG of 2 or 4 bits with one transparent grey (tRNS): the pixels are scaled to 0..255, the transparent grey is
#    not, so that convert("LA") makes another grey transparent (of 4 bits: grey 1 is the pixel 17, but the pixel 1, which
#    there is none of, would be transparent). Of 8 bits it is right, of 1 bit from Pillow 13 on.
#
# Seen on Linux x86_64, Python 3.13, pillow 12.0.0 and 13.0.0, opencv-python-headless 5.0.0.93, numpy 2.5.5; the output is
# the text after the last command below.
#
# Usage: findings/pillow_masks_and_transparent_greys.sh   (needs python3.13 and the package index; less than a minute)
set -euo pipefail
python=${PYTHON:-python3.13}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat >"$work/read.py" <<'PROGRAM'
import io
import struct
import zlib

import cv2
import numpy as np
import PIL
from PIL import Image

print("pillow", PIL.__version__)


def bmp(indices, palette):
    """Returns a BMP of 8 bits a pixel; the rows are from below, of a multiple of 4 bytes."""
    height, width = indices.shape
    colours = b"".join(bytes([grey, grey, grey, 0]) for grey in palette)
    start = 54 + len(colours)
    head = struct.pack("<2sIHHI", b"BM", start + indices.size, 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 0, indices.size, 0, 0, len(palette), 0)
    return head + info + colours + indices[::-1].tobytes()


def png(rows, bits, grey):
    """Returns a grey PNG of rows of packed pixels, in which one grey is transparent."""
    def chunk(kind, data):
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    width = 8 * len(rows[0]) // bits
    head = struct.pack(">IIBBBBB", width, len(rows), bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = ((b"IHDR", head), (b"tRNS", struct.pack(">H", grey)), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*pair) for pair in chunks)


mask = np.zeros((4, 8), np.uint8)
mask[1:3, 2:6] = 1
for palette in ((0, 255), (0, 255, 128)):
    data, true = bmp(mask, palette), np.array(palette, np.uint8)[mask]
    pillow = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    print(
        f"BMP, palette {palette}: {int((pillow != true).sum())} of 32 pixels are wrong by pillow,"
        f" {int((opencv != true).sum())} by opencv"
    )
for bits in (1, 2, 4, 8):
    every = {1: b"\x55", 2: b"\x1b", 4: b"\x01\x23", 8: b"\x00\x01\x02\x03"}[bits]  # the greys 0, 1, ...
    read = Image.open(io.BytesIO(png([every], bits, 1))).convert("LA")
    grey, alpha = np.moveaxis(np.asarray(read), 2, 0)
    seen = sorted({*grey[alpha == 0].tolist()})
    print(f"grey PNG of {bits} bits, grey 1 (pixel {255 // (2**bits - 1)}) is transparent: pixels {seen} are")
PROGRAM
for version in 12.0.0 13.0.0; do
  "$python" -m venv "$work/env$version"
  "$work/env$version/bin/pip" install -q "pillow==$version" opencv-python-headless==5.0.0.93 numpy==2.5.5
  "$work/env$version/bin/python" "$work/read.py"
done | tee "$work/out"
diff "$work/out" - <<'SEEN'
pillow 12.0.0
BMP, palette (0, 255): 8 of 32 pixels are wrong by pillow, 0 by opencv
BMP, palette (0, 255, 128): 0 of 32 pixels are wrong by pillow, 0 by opencv
grey PNG of 1 bits, grey 1 (pixel 255) is transparent: pixels [] are
grey PNG of 2 bits, grey 1 (pixel 85) is transparent: pixels [] are
grey PNG of 4 bits, grey 1 (pixel 17) is transparent: pixels [] are
grey PNG of 8 bits, grey 1 (pixel 1) is transparent: pixels [1] are
pillow 13.0.0
BMP, palette (0, 255): 8 of 32 pixels are wrong by pillow, 0 by opencv
BMP, palette (0, 255, 128): 0 of 32 pixels are wrong by pillow, 0 by opencv
grey PNG of 1 bits, grey 1 (pixel 255) is transparent: pixels [255] are
grey PNG of 2 bits, grey 1 (pixel 85) is transparent: pixels [] are
grey PNG of 4 bits, grey 1 (pixel 17) is transparent: pixels [] are
grey PNG of 8 bits, grey 1 (pixel 1) is transparent: pixels [1] are
SEEN

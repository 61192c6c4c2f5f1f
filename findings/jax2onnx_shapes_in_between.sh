#!/usr/bin/env bash
# jax2onnx 0.17.1 cancels the transpositions between convolutions, but leaves the shapes that it noted in between
# (value_info) in the order from before: NHWC, where the tensor is NCHW now. onnx.checker accepts the file without
# full_check and refuses it with it; onnxruntime loads it with a warning for each tensor ("Error merging shape info ...
# Falling back to lenient merge") and computes the right numbers. Without the notes, and with inferred ones, all agree.
#
# Seen on Linux x86_64, CPU, Python 3.13, jax2onnx 0.17.1, jax 0.11.2, flax 0.12.12, onnx 1.23.2, onnxruntime 1.32.0;
# the output is the text after the last command below.
#
# Usage: findings/jax2onnx_shapes_in_between.sh   (needs python3.13 and the package index; some 2 minutes)
set -euo pipefail
python=${PYTHON:-python3.13}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export JAX_PLATFORMS=cpu

"$python" -m venv "$work/env"
"$work/env/bin/pip" install -q jax2onnx==0.17.1 jax==0.11.2 jaxlib==0.11.2 onnx==1.23.2 flax==0.12.12 onnxruntime==1.32.0

cat >"$work/convert.py" <<'PROGRAM'
import sys

import jax
import jax2onnx
import numpy as np
import onnx
import onnxruntime
from flax import linen as nn


class Block(nn.Module):  # a residual block, as in ResNet-18
    features: int
    stride: int

    @nn.compact
    def __call__(self, x):
        def convolve(x, size, stride=1):
            x = nn.Conv(self.features, (size, size), strides=stride, padding=size // 2, use_bias=False)(x)
            return nn.BatchNorm(use_running_average=True)(x)

        y = convolve(nn.relu(convolve(x, 3, self.stride)), 3)
        return nn.relu(y + (x if x.shape == y.shape else convolve(x, 1, self.stride)))


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        for features, stride in ((8, 1), (16, 2), (16, 1)):
            x = Block(features, stride)(x)
        return nn.Dense(3)(x.mean((1, 2)))


def full_check(model):
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.shape_inference.InferenceError:
        return "refused"
    return "passed"


place, network = sys.argv[1], Network()
x = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
variables = jax.jit(network.init)(jax.random.key(0), x)
jax2onnx.to_onnx(
    lambda x: network.apply(variables, x),
    [jax.ShapeDtypeStruct(("b", 16, 16, 3), np.float32)],
    return_mode="file",
    output_path=place,
    input_names=["x"],
    output_names=["y"],
)
model = onnx.load(place)
onnx.checker.check_model(model)
print("full check:", full_check(model))
(y,) = onnxruntime.InferenceSession(place).run(["y"], {"x": x})
print("numbers are right:", np.allclose(y, network.apply(variables, x), atol=1e-4))
del model.graph.value_info[:]
print("full check without the notes:", full_check(onnx.shape_inference.infer_shapes(model, strict_mode=True)))
PROGRAM
"$work/env/bin/python" "$work/convert.py" "$work/model.onnx" >"$work/out" 2>"$work/warnings" || { cat "$work/warnings"; exit 1; }
echo "warnings at loading: $(grep -c 'Falling back to lenient merge' "$work/warnings")" >>"$work/out"
cat "$work/out"
diff "$work/out" - <<'SEEN'
full check: refused
numbers are right: True
full check without the notes: passed
warnings at loading: 7
SEEN

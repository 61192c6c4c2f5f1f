#!/usr/bin/env bash
# A program that jax.export wrote under jax 0.11.2 or 0.12.0.1 deserialises under jax 0.10.2 without an error, and fails
# when it is called; under jax 0.11.0 it runs. All of them write calling convention 10, so that number does not tell.
#
# Seen on Linux x86_64, CPU, Python 3.12 (read by -> / written by, "runs" or "call fails"):
#
#   written by   0.10.2  0.11.0  0.11.2  0.12.0.1   calling convention
#   0.10.2       runs    runs    runs    runs       10
#   0.11.0       runs    runs    runs    runs       10
#   0.11.2       call    runs    runs    runs       10
#   0.12.0.1     call    runs    runs    runs       10
#
# "call": deserialising succeeds, and the call raises "Failed to deserialize StableHLO" (the program has a symbolic batch
# size; its shape assertion is a vhlo.custom_call_v2, which the older jaxlib does not know).
#
# Usage: findings/jax_export_by_an_older_jax.sh   (needs python3.12 and the package index; some 2 minutes)
set -euo pipefail
python=${PYTHON:-python3.12}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export JAX_PLATFORMS=cpu
versions="0.10.2 0.11.0 0.11.2 0.12.0.1"

cat >"$work/write.py" <<'PROGRAM'
import sys
import jax
import jax.numpy as jnp
from jax import export

(batch,) = export.symbolic_shape("b")
exported = export.export(jax.jit(lambda x: jnp.tanh(x @ jnp.ones((8, 3)))))(
    jax.ShapeDtypeStruct((batch, 8), jnp.float32)
)
open(sys.argv[1], "wb").write(exported.serialize())
print(exported.calling_convention_version)
PROGRAM
cat >"$work/read.py" <<'PROGRAM'
import sys
import jax
import numpy as np
from jax import export

program = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
try:
    assert jax.jit(program.call)(np.zeros((7, 8), np.float32)).shape == (7, 3)
    print("runs")
except jax.errors.JaxRuntimeError as error:
    assert "Failed to deserialize StableHLO" in str(error), error
    print("call")
PROGRAM

for version in $versions; do
  "$python" -m venv "$work/$version"
  "$work/$version/bin/pip" install --quiet "jax==$version" "jaxlib==$version" flatbuffers
done
found=""
for written in $versions; do
  convention=$("$work/$written/bin/python" "$work/write.py" "$work/program")
  row="$written"
  for read in $versions; do
    row="$row $("$work/$read/bin/python" "$work/read.py" "$work/program" 2>/dev/null)"
  done
  echo "$row $convention"
  found="$found$row $convention;"
done
expected="0.10.2 runs runs runs runs 10;0.11.0 runs runs runs runs 10;"
expected="${expected}0.11.2 call runs runs runs 10;0.12.0.1 call runs runs runs 10;"
[ "$found" = "$expected" ] || { echo "this has changed: $found" >&2; exit 1; }

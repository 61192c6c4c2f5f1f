"""The speed of training: images per second, the time of a step, and the share of the devices' peak that it uses."""

import time
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcls.models.summary import layers

# the keys of `Work.speed`; unlike all other values in a line of the log, these differ from run to run
SPEEDS = ("images_per_second", "step_seconds", "mfu")

# FLOP/s of dense bfloat16 products from the makers' data sheets, by the beginning of the device kind, longer ones
# first. A device of TPU v2 and v3 is one core, so their values are for a core.
PEAKS = {
    "NVIDIA B200": 2250e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "TPU v6": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 61.5e12,
    "TPU v2": 22.5e12,
}


@dataclass(frozen=True)
class Work:
    """The work of a training step, and the peak speed of the devices.

    batch_size: images of a step, on all devices together.
    image_flops: `training_flops` of the model; 0 if not known.
    peak: FLOP/s of all devices together; None if not known.
    """

    batch_size: int
    image_flops: int
    peak: float | None

    def speed(self, images_per_second: float) -> dict[str, float]:
        """Returns `SPEEDS`: images_per_second, step_seconds and, where work and peak are known, mfu, from 0 to 1."""
        speed = {"images_per_second": images_per_second, "step_seconds": self.batch_size / images_per_second}
        if self.image_flops and self.peak:
            speed["mfu"] = images_per_second * self.image_flops / self.peak
        return speed


def measure_work(model: nn.Module, image_shape: tuple[int, ...], batch_size: int) -> Work:
    """Returns the work of a step. On a CPU this measures its peak, so call it while the CPU is idle."""
    return Work(batch_size, training_flops(model, image_shape), peak_flops())


def training_flops(model: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Returns the floating-point operations of an update for each image, in matrix products and convolutions.

    Each is computed three times: forward, for the gradient of its weights, and for the gradient of its input, which the
    first layer does not need. Recomputed and elementwise operations do not count, as is usual for model FLOPs
    (Chowdhery et al. 2022, "PaLM", appendix B).
    """
    forward = [layer.flops for layer in layers(model, image_shape) if layer.flops]
    return 3 * sum(forward) - forward[0] if forward else 0


def peak_flops() -> float | None:
    """Returns the FLOP/s that all devices together can reach, or None if they are not known.

    For GPUs and TPUs they come from `PEAKS`, whatever the type of the computation. For CPUs they are measured here and
    now, on a product of large float32 matrices.
    """
    devices = jax.devices()
    if devices[0].platform == "cpu":
        return jax.process_count() * _product_flops()
    kind = devices[0].device_kind
    return next((len(devices) * peak for name, peak in PEAKS.items() if kind.startswith(name)), None)


@cache
def _product_flops() -> float:
    side = 1024
    matrix = jnp.ones((side, side), jnp.float32)
    multiply = jax.jit(jnp.matmul)

    def seconds() -> float:
        began = time.perf_counter()
        jax.block_until_ready(multiply(matrix, matrix))
        return time.perf_counter() - began

    return 2 * side**3 / min(seconds() for _ in range(6))

"""How much of a GPU's arithmetic a training run uses."""

from collections.abc import Sequence

from flax import linen as nn

from flaxcls.models import summary

# dense bfloat16 operations/s, as NVIDIA publishes them, by the name that JAX gives the card
PEAKS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
}


def training_flops(model: nn.Module, image_shape: Sequence[int]) -> float:
    """Returns the floating-point operations of training on one image (h, w, c): three times those of its forward pass.

    That is the usual count of model FLOPs: a multiply-add is two, each product of matrices or convolution has two
    gradients of the same size, and nothing else counts, neither what need not be computed nor what is computed twice.
    """
    return 3.0 * sum(layer.flops for layer in summary.layers(model, image_shape))


def utilization(flops_per_second: float, device_kind: str) -> float | None:
    """Returns the share of the card's peak that so many operations a second are; None: its peak is not known here."""
    peak = PEAKS.get(device_kind)
    return None if peak is None else flops_per_second / peak

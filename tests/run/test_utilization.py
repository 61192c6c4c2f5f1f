"""Speed and model FLOPs utilisation, against arithmetic by hand."""

import json

import jax
import pytest
from flax import linen as nn

from flaxcls.models import CNN
from flaxcls.run import fit, utilization
from flaxcls.run.utilization import Work, peak_flops, training_flops

pytestmark = pytest.mark.usefixtures("shared_programs")


def test_the_work_of_an_image_is_that_of_its_products():
    model = CNN(num_classes=10, padding="valid")
    forward = [30**2 * 27 * 32, 13**2 * 288 * 64, 4**2 * 576 * 64, 1024 * 64, 64 * 10]
    # forward, and the gradients of weights and input, but for that of the images
    assert training_flops(model, (32, 32, 3)) == 2 * (3 * sum(forward) - forward[0])


class Scaled(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        return images.mean((1, 2)) * self.param("scale", nn.initializers.ones, (1, 3))


def test_a_model_without_products_has_no_utilisation():
    assert training_flops(Scaled(), (4, 4, 3)) == 0
    assert Work(64, 0, 1e12).speed(128.0) == {"images_per_second": 128.0, "step_seconds": 0.5}
    assert "mfu" not in Work(64, 1, None).speed(128.0)


def test_utilisation_is_the_work_done_over_what_the_devices_can_do():
    assert Work(64, 5_000_000, 2e9).speed(100.0) == {"images_per_second": 100.0, "step_seconds": 0.64, "mfu": 0.25}


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_the_peak_is_that_of_all_accelerators(monkeypatch, kind, peak):
    class Device:
        platform, device_kind = "gpu", kind

    monkeypatch.setattr(utilization.jax, "devices", lambda: [Device(), Device()])
    assert peak_flops() == (peak and 2 * peak)


def test_the_peak_of_cpus_is_measured_and_not_counted_for_each_virtual_device():
    assert len(jax.devices()) == 2
    assert peak_flops() == utilization._product_flops() > 1e8


def test_a_run_reports_them(stripes, small_config, quiet, tmp_path):
    fit(small_config, dataset=stripes, workdir=tmp_path / "run", console=quiet)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["split"] == "train"]
    flops = training_flops(CNN(num_classes=3, widths=(4,), dense=(8,), norm="batch"), (8, 8, 1))
    assert flops == 2 * (3 * (64 * 9 * 4 + 256 * 8 + 8 * 3) - 64 * 9 * 4)
    for line in trained:
        assert line["step_seconds"] == pytest.approx(32 / line["images_per_second"])
        assert line["mfu"] == pytest.approx(line["images_per_second"] * flops / peak_flops())

# mypy: disable-error-code="misc, untyped-decorator"
"""The speed run's recipe in PyTorch: its accuracy and time with the same images on the same GPU.

It has the network, the data and the Muon recipe of `experiments.cifar10_speedrun`, as users of PyTorch would write
them: convolutions in float16 and in the layout of tensor cores, chosen by cuDNN's trials, weights and statistics in
float32, SGD in one kernel. It runs operation by operation, and compiled: the network with `reduce-overhead`, which
makes CUDA graphs, and Muon's products. Trying kernels as well (`max-autotune`) took longer than 170 s. The timed stages
are those of `speedrun.warm`. The recipe's authors report 2.59 s on an A100 for their own code (Jordan 2024).
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from experiments.benchmarks.gpu.speedrun import Speedrun, repeated, with_mean
from experiments.benchmarks.measure import Row
from experiments.cifar10_speedrun import BIAS_RATE, DECAY, HEAD_RATE, MUON_RATE, WHITENING_SHARE
from flaxcls.config import Config
from flaxcls.muon import NEWTON_SCHULZ

MOST = 7  # runs, each of operation by operation and compiled
WIDTHS = (64, 256, 256)
LAYOUT = torch.channels_last

Orthogonalize = Callable[[torch.Tensor], torch.Tensor]


class Network(nn.Module):
    """The network of `flaxcls.models.airbench.Airbench`."""

    def __init__(self, widths: tuple[int, ...], logit_scale: float) -> None:
        """Builds the network; `reset` sets its parameters."""
        super().__init__()
        self.logit_scale = logit_scale
        self.register_buffer("whitening", torch.zeros(24, 3, 2, 2))
        self.bias = nn.Parameter(torch.zeros(24))
        channels = [width for width in widths for _ in range(2)]
        pairs = zip([24, *channels], channels, strict=False)
        self.convolutions = nn.ModuleList([nn.Conv2d(*pair, 3, padding=1, bias=False) for pair in pairs])
        # in PyTorch the momentum is the share of the new value
        self.norms = nn.ModuleList([nn.BatchNorm2d(width, eps=1e-12, momentum=0.4) for width in channels])
        self.head = nn.Linear(channels[-1], 10, bias=False)

    @torch.no_grad()
    def reset(self, images: torch.Tensor) -> None:
        """Draws all parameters anew; the whitening is computed from the normalised `images` f32[n 3 h w]."""
        self.whitening.copy_(whitening(images))
        self.bias.uniform_(-(12**-0.5), 12**-0.5).requires_grad_()
        for conv, norm in zip(self.convolutions, self.norms, strict=True):
            conv.reset_parameters()  # uniform within 1 / sqrt(fan_in)
            nn.init.dirac_(conv.weight[: min(conv.in_channels, conv.out_channels)])
            norm.reset_parameters()
            norm.weight.requires_grad_(False)
        self.head.reset_parameters()
        self.head.weight /= self.head.weight.std()

    def forward(self, x: torch.Tensor, whiten: bool) -> torch.Tensor:
        """Maps [b c h w] to logits f32[b 10]; the whitening's bias is trained if `whiten` is True."""
        x = functional.gelu(
            functional.conv2d(x, self.whitening.to(x.dtype), self.bias if whiten else self.bias.detach())
        )
        for number, (conv, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = conv(x)
            x = functional.gelu(norm(functional.max_pool2d(x, 2) if number % 2 == 0 else x))
        x = functional.max_pool2d(x, 3).flatten(1)
        return self.head(x).float() * self.logit_scale


def whitening(images: torch.Tensor) -> torch.Tensor:
    """Returns the filters [24 3 2 2] that whiten 2x2 patches of images [n 3 h w], and their negatives."""
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 4 * images.shape[1]).double()
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values + 5e-4).sqrt()).T.float().reshape(-1, images.shape[1], 2, 2)
    return torch.cat([filters, -filters])


def orthogonalized(update: torch.Tensor) -> torch.Tensor:
    """Returns a nearly orthogonal form of the update [a b], by three Newton-Schulz steps in bfloat16."""
    a, b, c = NEWTON_SCHULZ
    x = (update / update.norm().clamp(min=1e-30)).bfloat16()
    x = x.T if len(x) > x.shape[1] else x
    for _ in range(3):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if x.shape != update.shape else x


@torch.no_grad()
def muon(kernels: list[nn.Parameter], buffers: list[torch.Tensor], rate: float, orthogonalize: Orthogonalize) -> None:
    """Updates kernels [c_out c_in 3 3] as `flaxcls.muon.renormalized_muon` does."""
    for kernel, buffer in zip(kernels, buffers, strict=True):
        buffer.mul_(0.6).add_(kernel.grad)
        update = orthogonalize((kernel.grad + 0.6 * buffer).flatten(1)).reshape(kernel.shape)
        kernel.mul_(len(kernel) ** 0.5 / kernel.norm().clamp(min=1e-30)).add_(update, alpha=-rate)


def crops(images: torch.Tensor, margin: int) -> torch.Tensor:
    """Returns a random window of each image [n c h+2m w+2m]: [n c h w]."""
    size = images.shape[-1] - 2 * margin
    shifts = torch.randint(2 * margin + 1, (len(images), 2), device=images.device)
    windows = torch.empty_like(images[..., :size, :size])
    for row in range(2 * margin + 1):
        for column in range(2 * margin + 1):
            chosen = (shifts[:, 0] == row) & (shifts[:, 1] == column)
            windows[chosen] = images[chosen][..., row : row + size, column : column + size]
    return windows


def train(
    model: Network,
    call: nn.Module,
    orthogonalize: Orthogonalize,
    images: torch.Tensor,
    labels: torch.Tensor,
    config: Config,
) -> None:
    """Trains the network from new parameters.

    Args:
      model: the network.
      call: the network, or its compiled form.
      orthogonalize: `orthogonalized`, or its compiled form.
      images: [n 3 h w], normalised, on the device.
      labels: i64[n], on the device.
      config: sizes of the recipe.
    """
    batch, epochs = config.loop.batch_size, config.loop.epochs
    model.reset(images[np.linspace(0, len(images) - 1, config.model.init_images).round().astype(int)].float())
    each = len(images) // batch
    steps, first = each * epochs, round(WHITENING_SHARE * each * epochs)
    biases = [norm.bias for norm in model.norms]
    groups = [([model.bias], BIAS_RATE), (biases, BIAS_RATE), ([model.head.weight], HEAD_RATE)]
    sgd = torch.optim.SGD(
        [{"params": params, "lr": rate, "weight_decay": DECAY / rate} for params, rate in groups],
        momentum=0.85,
        nesterov=True,
        fused=True,
    )
    kernels = [conv.weight for conv in model.convolutions]
    buffers = [torch.zeros_like(kernel) for kernel in kernels]
    sides = torch.rand(len(images), device=images.device) < 0.5
    images = torch.where(sides[:, None, None, None], images.flip(-1), images)
    padded = functional.pad(images, [config.augment.crop_padding] * 4, "reflect")
    step = 0
    for epoch in range(epochs):
        inputs = crops(padded, config.augment.crop_padding)
        inputs = inputs.flip(-1) if epoch % 2 else inputs
        for index in torch.randperm(len(images), device=images.device)[: each * batch].split(batch):
            for (_, rate), group, over in zip(groups, sgd.param_groups, (first, steps, steps), strict=True):
                group["lr"] = rate * max(1 - step / over, 0)
            with torch.autocast(images.device.type, images.dtype):
                logits = call(inputs[index].contiguous(memory_format=LAYOUT), step < first)
            model.bias.requires_grad_(step < first)
            loss = functional.cross_entropy(logits, labels[index], label_smoothing=0.2, reduction="sum")
            loss.backward()
            sgd.step()
            muon(kernels, buffers, MUON_RATE * (1 - step / steps), orthogonalize)
            model.zero_grad(set_to_none=True)
            step += 1


@torch.no_grad()
def accuracy(model: Network, call: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch: int) -> float:
    """Returns the accuracy with the six views of the recipe: images, two diagonal shifts, and the mirror of each."""
    model.eval()
    right = 0
    with torch.autocast(images.device.type, images.dtype):
        for some, truth in zip(images.split(batch), labels.split(batch), strict=True):
            size, padded = some.shape[-1], functional.pad(some, [1] * 4, "reflect")
            places = (1, 2, 0)
            views = [padded[..., at : at + size, at : at + size].contiguous(memory_format=LAYOUT) for at in places]
            # a CUDA graph overwrites its last output with the next
            means = [(call(view, False).clone() + call(view.flip(-1), False)) / 2 for view in views]
            logits = (means[0] + (means[1] + means[2]) / 2) / 2
            right += int((logits.argmax(1) == truth).sum())
    model.train()
    return right / len(labels)


def measure(speedrun: Speedrun, data_dir: Path, runs: int, until: float) -> list[Row]:
    """Returns the rows of warm runs, operation by operation and compiled."""
    dataset = speedrun.load(data_dir)
    images, tested = (np.asarray(split.images[:]) for split in (dataset.train, dataset.test))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    statistics = torch.from_numpy(images.astype(np.float32) / 255)
    mean, std = (value.to(device) for value in (statistics.mean((0, 1, 2)), statistics.std((0, 1, 2))))

    def place(images: np.ndarray) -> torch.Tensor:
        normalized = (torch.from_numpy(images).to(device).float() / 255 - mean) / std
        return normalized.permute(0, 3, 1, 2).to(dtype).contiguous(memory_format=LAYOUT)

    def label(labels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(labels.astype(np.int64)).to(device)

    trained, labels, truth = place(images), label(dataset.train.labels), label(dataset.test.labels)
    batch = speedrun.config.loop.eval_batch_size
    rows = []
    for name, compiled in (("PyTorch", False), ("PyTorch, compiled", True)):
        network = dict(speedrun.network)
        model = Network(network.get("widths", WIDTHS), network.get("logit_scale", 1 / 256))
        model = model.to(device, memory_format=LAYOUT)
        call = torch.compile(model, mode="reduce-overhead") if compiled else model
        orthogonalize = torch.compile(orthogonalized) if compiled else orthogonalized
        results: list[tuple[float, float]] = []

        def run_once(
            seed: int,
            model: Network = model,
            call: nn.Module = call,
            orthogonalize: Orthogonalize = orthogonalize,
            results: list[tuple[float, float]] = results,
        ) -> None:
            torch.manual_seed(seed)
            _wait(device)
            began = time.perf_counter()
            train(model, call, orthogonalize, trained, labels, speedrun.config)
            score = accuracy(model, call, place(tested), truth, batch)
            results.append((time.perf_counter() - began, 100 * score))

        run_once(0)  # warms up and compiles
        results.clear()
        repeated(run_once, min(runs, MOST), until)
        versions = {"torch": torch.__version__}
        times, scores = ([values[part] for values in results] for part in (0, 1))
        rows += [
            Row(name, "the recipe in PyTorch: initialisation, training and evaluation", "s", times, versions=versions),
            Row(name, "the recipe in PyTorch: test accuracy", "%", scores, versions=versions),
        ]
    return [with_mean(row) for row in rows]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()

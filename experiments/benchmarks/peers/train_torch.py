"""PyTorch's side of `throughput` and `memory`, which start it with a Python that has PyTorch.

The usual loop: it picks batches from tensors in memory, in a new order each epoch. Metrics stay tensors until the end
of the epoch. It writes the start and the end of the training steps of each epoch as JSON, in seconds since 1970.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def network() -> nn.Module:
    """Returns the tutorial's network, with the tutorial's initialisation."""
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


def read(data: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns images f32[n c h w] in 0..1 and labels i64[n]."""
    with np.load(data) as arrays:
        images = np.ascontiguousarray(arrays[f"{split}_images"].transpose(0, 3, 1, 2))
        labels = arrays[f"{split}_labels"]
    return torch.from_numpy(np.divide(images, 255, dtype=np.float32)), torch.from_numpy(labels).long()


def main() -> None:
    """Trains, and writes JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()

    images, labels = read(args.data, "train")
    plain = network()
    model = torch.compile(plain) if args.compile else plain
    optimizer = torch.optim.Adam(plain.parameters(), 1e-3)
    training = []
    for epoch in range(args.epochs):
        began = time.time()
        loss_sum, right = torch.zeros(()), torch.zeros((), dtype=torch.long)
        for chosen in torch.randperm(len(labels)).split(args.batch_size):
            batch, target = images[chosen], labels[chosen]
            optimizer.zero_grad()
            logits = model(batch)
            loss = functional.cross_entropy(logits, target)
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(chosen)
            right += (logits.detach().argmax(1) == target).sum()
        training.append((began, time.time()))
        metrics = f"loss {loss_sum / len(labels):.4f}, accuracy {right / len(labels):.4f}, {time.time() - began:.1f} s"
        print(f"epoch {epoch + 1}: {metrics}", flush=True)
    validation_images, validation_labels = read(args.data, "validation")
    with torch.no_grad():
        logits = torch.cat([plain(batch) for batch in validation_images.split(500)])
    result = {
        "images": len(labels),
        "training": training,
        "validation_accuracy": (logits.argmax(1) == validation_labels).float().mean().item(),
        "parameters": sum(parameter.numel() for parameter in plain.parameters()),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    args.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()

"""The speed of several seeds in one program, `vmap` over `create_state` and `train_step`, beside one run after another.

Each repeat takes `--steps` steps of all seeds: by the one program, and by the program of a single seed for each seed in
turn. Both train the same states on the same batch of noise, which is on the device already. Two models are measured,
since what `vmap` gains depends on how busy one seed keeps the device: the tutorial's network, and a small dense one
whose step takes less time than its dispatch.

Command:   python -m experiments.benchmarks.seeds      (on the CPU with --steps 10 --repeats 5)
Hardware:  2 cores of an AMD EPYC (Zen 4), Python 3.13 with jax 0.12.0.1; one NVIDIA H200, Python 3.12 with jax 0.11.2;
           27 November 2026
Result:    README.md
"""

import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import tyro
from flax import linen as nn

from experiments.benchmarks.measure import Row, compare, in_turn, report
from flaxcls import create_state, train_step
from flaxcls.models.cnn import CNN


class Small(nn.Module):
    """Two dense layers."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps images [b h w c] to logits f32[b 10]."""
        return nn.Dense(10)(nn.relu(nn.Dense(32)(images.reshape(len(images), -1))))


MODELS: dict[str, tuple[nn.Module, tuple[int, int, int]]] = {
    "tutorial's network, 32x32": (CNN(10, padding="valid"), (32, 32, 3)),
    "dense network, 8x8": (Small(), (8, 8, 1)),
}


def rows_of(name: str, seeds: int, batch_size: int, steps: int, repeats: int) -> list[Row]:
    """Returns the milliseconds that a step of all seeds takes, of both ways."""
    model, shape = MODELS[name]
    tx = optax.adam(1e-3)
    rng = np.random.default_rng(0)
    batch = jax.device_put(
        {
            "image": rng.integers(0, 256, (batch_size, *shape), dtype=np.uint8),
            "label": rng.integers(0, 10, batch_size).astype(np.int32),
        }
    )
    keys = jax.random.split(jax.random.key(0), seeds)
    one = jax.jit(partial(train_step, model=model, tx=tx), donate_argnums=0)
    together = jax.jit(jax.vmap(partial(train_step, model=model, tx=tx), in_axes=(0, None, 0)), donate_argnums=0)
    states = [create_state(key, model, tx, image_shape=shape) for key in keys]
    stacked = jax.vmap(lambda key: create_state(key, model, tx, image_shape=shape))(keys)

    def separate_steps() -> Any:
        for seed, key in enumerate(keys):
            for _ in range(steps):
                states[seed], _ = one(states[seed], batch, key)
            jax.block_until_ready(states[seed])  # one run after the other
        return states

    def vmapped_steps() -> Any:
        nonlocal stacked
        for _ in range(steps):
            stacked, _ = together(stacked, batch, keys)
        return stacked

    ways = {"vmap": vmapped_steps, "separate": separate_steps}
    values: dict[str, list[float]] = {way: [] for way in ways}
    for call in ways.values():
        jax.block_until_ready(call())
    for way in in_turn([*ways], repeats):
        began = time.perf_counter()
        jax.block_until_ready(ways[way]())
        values[way].append(1e3 * (time.perf_counter() - began) / steps)
    libraries = {library: version(library) for library in ("jax", "jaxlib")}
    quantity = f"a step of {seeds} seeds, {name}, batch {batch_size}, {jax.default_backend()}"
    return compare(quantity, "ms", values, ours="vmap", versions=dict.fromkeys(ways, libraries))


def main(
    seeds: tuple[int, ...] = (4, 16),
    batch_size: int = 64,
    steps: int = 20,
    repeats: int = 7,
    out: Path = Path("build/seeds.json"),
) -> None:
    """Prints medians over the repeats, their spread, and the ratio of each pair within a repeat; less is better.

    Args:
      seeds: numbers of seeds.
      batch_size: images of a step, the same for each seed.
      steps: steps of each seed in a repeat.
      repeats: repeats.
      out: JSON file of the rows.
    """
    rows = [row for name in MODELS for count in seeds for row in rows_of(name, count, batch_size, steps, repeats)]
    report(rows, out, {"steps": steps, "repeats": repeats})


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.seeds")

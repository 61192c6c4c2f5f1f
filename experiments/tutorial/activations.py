"""Activations: their curves, their slopes, and how fast a network learns with them.

Command:   python -m experiments.tutorial.activations
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro

from experiments.tutorial.shared import Options, print_table, save, spread, start, train
from flaxcls.config import ActivationName, AugmentConfig, Config, LoopConfig, ModelConfig, OptimConfig, StopConfig
from flaxcls.models.layers import ACTIVATIONS

CONFIG = Config(
    augment=AugmentConfig(normalize=False, crop_padding=0),
    model=ModelConfig(widths=(16, 32, 32), dense=(64,), norm="none", dropout=0.0),
    optim=OptimConfig(
        name="adam", learning_rate=1e-3, schedule="constant", warmup_epochs=0.0, weight_decay=0.0, ema_decay=None
    ),
    loop=LoopConfig(epochs=10),
    stop=StopConfig(skip=0.99),
)
SHOWN: tuple[ActivationName, ...] = ("relu", "gelu", "tanh", "sigmoid")


def main(options: Options) -> None:
    """Trains with each activation, prints the table and draws the figure."""
    start(options)
    shown, epochs, seeds = (SHOWN[:1], 1, 1) if options.shortened else (SHOWN, CONFIG.loop.epochs, 3)
    x = jnp.linspace(-5, 5, 501)
    figure, (curves, slopes, training) = plt.subplots(1, 3, figsize=(11, 3.6))
    rows = []
    for name in shown:
        slope = jax.vmap(jax.grad(ACTIVATIONS[name]))
        curves.plot(x, ACTIVATIONS[name](x), label=name)
        slopes.plot(x, slope(x))
        config = replace(CONFIG, model=replace(CONFIG.model, activation=name), loop=replace(CONFIG.loop, epochs=epochs))
        runs = [train(replace(config, seed=seed)) for seed in range(seeds)]
        loss = np.mean([[line["loss"] for line in run.validation] for run in runs], axis=0)
        training.plot(range(1, epochs + 1), loss, marker="o", markersize=4)
        largest = float(slope(x).max())
        rows.append(
            (
                name,
                f"{largest:.2f}",
                f"{largest**10:.2g}",
                f"{float(slope(jnp.array([-4.0]))[0]):.4f}",
                spread([run.result.validation["loss"] for run in runs], ".3f"),
            )
        )
    headers = ("activation", "largest slope", "its 10th power", "slope at -4", "validation loss")
    print_table(headers, rows)
    curves.set(title="activation", xlabel="input", ylabel="output", ylim=(-1.5, 3))
    curves.legend(loc="upper left")
    slopes.set(title="its slope", xlabel="input", ylabel="derivative")
    training.set(title="a network on digits", xlabel="epoch", ylabel="validation loss", ylim=(0, None))
    save(figure, options, "activations.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

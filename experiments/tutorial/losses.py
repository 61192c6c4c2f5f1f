"""Cross-entropy and squared error: their values and their gradients, with two classes.

Command:   python -m experiments.tutorial.losses
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import tyro

from experiments.tutorial.shared import Options, print_table, save, start
from flaxcls.losses import cross_entropy, squared_error

SHOWN = {"cross-entropy": cross_entropy, "squared error": squared_error}


def main(options: Options) -> None:
    """Prints the table and draws the figure."""
    start(options)
    logit = jnp.linspace(-8, 8, 17 if options.shortened else 321)
    figure, (values, gradients) = plt.subplots(1, 2, figsize=(9, 3.8))
    columns = []
    points = jnp.array([-8.0, -4.0, -2.0, 0.0, 2.0, 4.0])
    for name, loss_fn in SHOWN.items():

        def loss(logit: jax.Array, loss_fn=loss_fn) -> jax.Array:  # type: ignore[no-untyped-def]
            """Returns the loss with a logit of 0 for the other class."""
            return loss_fn(jnp.stack([logit, jnp.zeros_like(logit)])[None], jnp.array([0]))[0]

        gradient = jax.vmap(jax.grad(loss))
        values.plot(logit, jax.vmap(loss)(logit), label=name)
        gradients.plot(logit, gradient(logit))
        columns += [jax.vmap(loss)(points), gradient(points)]
    rows = [
        (f"{float(point):g}", f"{float(jax.nn.sigmoid(point)):.4f}", *(f"{float(c[i]):.4f}" for c in columns))
        for i, point in enumerate(points)
    ]
    headers = ("logit", "p", "cross-entropy", "its gradient", "squared error", "its gradient")
    print_table(headers, rows)
    values.set(title="loss", xlabel="logit of the true class (the other's is 0)", ylabel="loss", ylim=(0, 8))
    values.legend()
    gradients.set(title="gradient", xlabel="logit of the true class (the other's is 0)", ylabel="d loss / d logit")
    for axis in (values, gradients):
        axis.set_xticks(range(-8, 9, 4))
    save(figure, options, "losses.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

"""One step of the CIFAR-10 speed run: its optimizer, its work, what it would be on a GPU, and that it learns."""

import re
from dataclasses import replace
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from sklearn.datasets import load_digits

from experiments.cifar10_speedrun import MUON, make_tx, parts, whitening_steps
from flaxcls import create_state, train_step
from flaxcls.data import channel_statistics, from_arrays
from flaxcls.errors import Interrupted
from flaxcls.losses import cross_entropy
from flaxcls.models.airbench import Airbench
from flaxcls.models.whitening import whitening_kernel
from flaxcls.run import fit
from flaxcls.run.plan import make_plan
from flaxcls.validation import validate
from tests.test_muon import as_matrix, one_step, relative_error

KEY = jax.random.key(0)
LOSS = partial(cross_entropy, label_smoothing=0.2)


def test_updates_are_those_of_the_summed_loss():
    """PyTorch's SGD as the recipe has it, in float64, with the gradients of the sum."""
    steps, batch_size = 16, 50
    recipe = {  # rate, steps until it is 0
        "whitening": (0.053, 6),
        "BatchNorm_3": (0.053, steps),
        "head": (0.67, steps),
    }
    shapes = {
        "whitening": {"bias": (24,)},
        "BatchNorm_3": {"bias": (5,)},
        "head": {"kernel": (6, 4)},
        "Conv_0": {"kernel": (3, 3, 4, 8)},
    }
    rng = np.random.default_rng(0)
    random = lambda: jax.tree.map(  # noqa: E731
        lambda shape: rng.normal(size=shape), shapes, is_leaf=lambda node: isinstance(node, tuple)
    )
    start = random()
    expected = {name: next(iter(layer.values())) for name, layer in start.items()}
    kernel, kernel_buffer = as_matrix(start["Conv_0"]["kernel"]), 0.0
    buffers = dict.fromkeys(recipe, 0.0)

    tx = make_tx(steps, batch_size)
    params = jax.tree.map(lambda x: jnp.array(x, jnp.float32), start)
    state = tx.init(params)
    update = jax.jit(lambda grads, state, params: tx.update(grads, state, params))
    for step in range(steps):
        of_sum = random()
        of_mean = jax.tree.map(lambda x: jnp.array(x / batch_size, jnp.float32), of_sum)
        updates, state = update(of_mean, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        for name, (rate, last) in recipe.items():
            (gradient,) = of_sum[name].values()
            gradient = gradient + 0.004 / rate * expected[name]
            buffers[name] = 0.85 * buffers[name] + gradient
            now = rate * max(1 - step / last, 0)
            expected[name] = expected[name] - now * (gradient + 0.85 * buffers[name])
            (ours,) = params[name].values()
            np.testing.assert_allclose(ours, expected[name], rtol=1e-4, atol=1e-4, err_msg=f"{name} at step {step}")
        gradient = as_matrix(of_sum["Conv_0"]["kernel"])
        kernel, kernel_buffer = one_step(kernel, kernel_buffer, gradient, 0.24 * (1 - step / steps), 0.6, 3)
        assert relative_error(as_matrix(np.asarray(params["Conv_0"]["kernel"])), kernel) < 0.02
    assert whitening_steps(steps) == 6
    assert whitening_steps(200) == 75


# Of each 3x3 convolution: side of the map, whether a pooling follows, channels in and out. Of what is not one:
# multiply-adds of an image.
CONVOLUTIONS = [
    (31, True, 24, 64),
    (15, False, 64, 64),
    (15, True, 64, 256),
    (7, False, 256, 256),
    (7, True, 256, 256),
    (3, False, 256, 256),
]
WHITENING, HEAD = 31**2 * 12 * 24, 256 * 10


def flops_of_a_step(batch_size, taps, frozen):
    """Returns the operations of the products of a step.

    Each is done three times: forward, for the gradient of its weights and for that of its input. The whitening has the
    first alone; with its bias frozen, the convolution after it needs no gradient of its input.
    taps: (side of a map, whether it is pooled) -> of the three rows of a kernel, those that count, summed over the rows
      of the output.
    """
    each = [taps(side, pooled) ** 2 * c_in * c_out for side, pooled, c_in, c_out in CONVOLUTIONS]
    image = 3 * (sum(each) + HEAD) + WHITENING - (each[0] if frozen else 0)
    rows_columns = [(c_out, 9 * c_in) for _, _, c_in, c_out in CONVOLUTIONS]
    muon = sum(3 * (2 * rows**2 * columns + rows**3) for rows, columns in rows_columns)
    return 2 * (batch_size * image + muon)


def abstract_step(batch_size, dtype, frozen=()):
    model, tx = Airbench(10, dtype=jnp.dtype(dtype)), make_tx(200, batch_size)
    state = jax.eval_shape(partial(create_state, model=model, tx=tx, image_shape=(32, 32, 3)), KEY)
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, 32, 32, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }
    step = jax.jit(partial(train_step, model=model, tx=tx, loss_fn=LOSS, frozen=frozen))
    return step.trace(state, batch, KEY)


def taps_of_the_recipe(side, pooled):
    return 3 * side


def taps_inside(side, pooled):
    """The output of a pooled map, whose side is odd, lacks the last row, which the pooling drops."""
    return 3 * (side - 1) - 1 if pooled else 3 * side - 2


@pytest.mark.parametrize("frozen", [(), ("whitening/bias",)])
def test_the_work_of_a_step_is_that_of_its_products(frozen):
    """XLA counts the taps inside of the map alone, and adds what is done element by element."""
    recipe = flops_of_a_step(2000, taps_of_the_recipe, frozen)
    assert 200 * recipe == pytest.approx((283 - 2 * bool(frozen) * 5.3) * 1e12, rel=0.01)
    counted = abstract_step(2000, "bfloat16", frozen).lower().cost_analysis()["flops"]
    assert counted == pytest.approx(flops_of_a_step(2000, taps_inside, frozen), rel=0.05)


def operands(text, operation):
    """Returns the types of the operands of each `operation` in a StableHLO module."""
    lines = [line for line in text.splitlines() if f"stablehlo.{operation}" in line]
    return [re.findall(r"tensor<(?:\d+x)*(\w+)>", line.rsplit(" : ", 1)[1].split("->")[0]) for line in lines]


def test_a_step_for_a_gpu_has_no_slow_operation():
    text = abstract_step(2000, "bfloat16").lower(lowering_platforms=("cuda",)).as_text()
    # seven forward, of which the first has no gradient and the others have two
    assert operands(text, "convolution") == [["bf16", "bf16"]] * (7 + 2 * 6)
    assert {kind for kinds in operands(text, "dot_general") for kind in kinds} == {"bf16"}
    for slow in ("select_and_scatter", "reduce_window", "custom_call", "infeed", "outfeed", "send", "recv", "while"):
        assert slow not in text
    exact = abstract_step(20, "float32").lower(lowering_platforms=("cuda",)).as_text()
    assert operands(exact, "convolution") == [["f32", "f32"]] * (7 + 2 * 6)


def test_frozen_whitening_saves_a_convolution():
    text = abstract_step(20, "bfloat16", ("whitening/bias",)).lower(lowering_platforms=("cuda",)).as_text()
    assert len(operands(text, "convolution")) == 7 + 2 * 6 - 1


def make_checks(count, seed):
    """Returns images f32[count 13 13 3] of rows, columns or a checkerboard under noise, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    row, column = np.ogrid[:13, :13]
    patterns = np.stack(np.broadcast_arrays(row // 2 % 2, column // 2 % 2, (row + column) // 2 % 2)) * 2.0 - 1
    signs = rng.choice([-1.0, 1.0], (count, 1, 1))
    images = (patterns[labels] * signs)[..., None] * 0.5 + rng.normal(size=(count, 13, 13, 3))
    return jnp.array(images, jnp.float32), jnp.array(labels, jnp.int32)


@pytest.mark.slow
def test_it_learns_in_both_phases():
    steps, batch_size = 16, 32
    images, labels = make_checks(steps * batch_size, 0)
    model = Airbench(3, whiten=True, widths=(8, 16), logit_scale=1 / 16, dtype=jnp.dtype("bfloat16"))
    tx = make_tx(steps, batch_size)
    create = jax.jit(partial(create_state, model=model, tx=tx, image_shape=(13, 13, 3)))
    state = create(KEY, images=images[:100])
    first, second = (
        jax.jit(partial(train_step, model=model, tx=tx, loss_fn=LOSS, frozen=frozen), donate_argnums=0)
        for frozen in ((), ("whitening/bias",))
    )
    kernel = np.array(state.model_state["constants"]["whitening"]["kernel"])
    losses, biases = [], []
    for number in range(steps):
        part = slice(number * batch_size, (number + 1) * batch_size)
        step = first if number < whitening_steps(steps) else second
        state, metrics = step(state, {"image": images[part], "label": labels[part]}, KEY)
        losses.append(float(metrics["loss"]))
        biases.append(np.array(state.params["whitening"]["bias"]))
    least = float(LOSS(jnp.log(jnp.array([[13.0, 1.0, 1.0]])), jnp.array([0]))[0])  # smoothing leaves 0.485 nats
    assert losses[0] > 0.8
    assert np.mean(losses[-4:]) < (losses[0] + 2 * least) / 3
    np.testing.assert_array_equal(state.model_state["constants"]["whitening"]["kernel"], kernel)
    moved = [not np.array_equal(before, after) for before, after in pairwise(biases)]
    assert moved == [True] * (whitening_steps(steps) - 1) + [False] * (steps - whitening_steps(steps))


def small_run():
    """The recipe at a fifth of the size, on the digits of 25x25 pixels in colours."""
    digits = load_digits()
    images = np.repeat(np.repeat(digits.images * 15.9, 3, axis=1), 3, axis=2).astype(np.uint8)
    images = np.pad(images, ((0, 0), (0, 1), (0, 1)))[..., None].repeat(3, axis=3)
    dataset = from_arrays(images[:720], digits.target[:720], validation_fraction=0, test_fraction=0.2, name="digits")
    config = replace(
        MUON,
        model=replace(MUON.model, dtype="float32", init_images=100),
        optim=replace(MUON.optim, freeze={"whitening/*": 1}),
        loop=replace(MUON.loop, epochs=3, batch_size=64, log_every=5, steps_per_dispatch=2),
    )
    return config, parts(config, dataset=dataset, widths=(8, 16, 16), logit_scale=1 / 16)


@pytest.mark.slow
def test_the_whole_run_learns_and_resumes_to_the_same_bits(tmp_path):
    config, given = small_run()
    quiet = {"console": Console(quiet=True)}
    whole = fit(config, **given, **quiet, workdir=tmp_path / "whole")
    assert whole.best_step == whole.steps == 28
    assert whole.test["accuracy"] > 0.5
    with pytest.raises(Interrupted):
        fit(config, **given, **quiet, workdir=tmp_path / "run", stop_after=11)
    assert fit(config, **given, **quiet, workdir=tmp_path / "run", resume=True).fingerprint == whole.fingerprint
    # the filters are those of the images as evaluation has them
    images = given["dataset"].train.images
    chosen = images[np.linspace(0, len(images) - 1, 100).round().astype(int)] / 255
    mean, std = (np.array(values) for values in channel_statistics(images))
    expected = whitening_kernel(jnp.array((chosen - mean) / std, jnp.float32), 2)
    kernel = whole.state.model_state["constants"]["whitening"]["kernel"]
    np.testing.assert_allclose(np.abs(kernel[..., :4]), np.abs(expected[..., :4]), rtol=0.02, atol=0.02)


def test_the_recipe_is_the_speed_runs():
    validate(MUON)
    assert make_plan(MUON.loop, examples=50_000).total_steps == 200

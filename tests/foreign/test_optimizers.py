"""Each optimizer of optax and its contrib: it trains, evaluates the right parameters, resumes, and loads."""

import inspect
from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from flaxcls import create_state, eval_step, train_step
from flaxcls.analysis import load_run
from flaxcls.contract import extra_arguments, find_eval_params, takes_named
from flaxcls.errors import InputError
from flaxcls.run import fit
from tests.foreign.modules import Network
from tests.foreign.runs import assert_resumes_and_loads
from tests.slow import all_slow_but, slow
from tests.test_step import KEY, make_batch, setup

pytestmark = pytest.mark.usefixtures("shared_programs")

ADVERSARY = optax.chain(contrib.normalize(), optax.sgd(0.05))
PLATEAU = optax.chain(optax.adam(1e-2), contrib.reduce_on_plateau())

# Made otherwise than by a learning rate alone.
MADE = {
    "contrib.schedule_free": lambda: contrib.schedule_free(optax.adam(1e-2), 1e-2),
    "contrib.sam": lambda: contrib.sam(optax.sgd(0.1), ADVERSARY),
    "contrib.sam, opaque": lambda: contrib.sam(optax.sgd(0.1), ADVERSARY, opaque_mode=True),
    "contrib.dpsgd": None,  # takes the gradients of single examples
    "contrib.momo": contrib.momo,
    "contrib.momo_adam": contrib.momo_adam,
    "contrib.dadapt_adamw": lambda: contrib.dadapt_adamw(1.0),
    "contrib.dog": lambda: contrib.dog(1.0, init_step=("heuristic", 1e-2)),
    "contrib.galore": None,  # refused: it keeps arrays of size zero, which no checkpoint holds
    "contrib.dowg": lambda: contrib.dowg(1.0),
    "contrib.prodigy": lambda: contrib.prodigy(1.0),
    "lbfgs": optax.lbfgs,
    "noisy_sgd": lambda: optax.noisy_sgd(1e-2, key=0),
    "optimistic_adam": None,  # deprecated in favour of optimistic_adam_v2
    "polyak_sgd": optax.polyak_sgd,
    "adadelta": lambda: optax.adadelta(1.0),
    "lookahead": None,  # refused: it wraps the parameters
    "a line search": lambda: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10)),
    "MultiSteps of a plateau": lambda: optax.MultiSteps(PLATEAU, 2),
    "MultiSteps of momo": lambda: optax.MultiSteps(contrib.momo(), 2).gradient_transformation(),
    "chain of sam": lambda: optax.chain(optax.clip(1.0), takes_named(MADE["contrib.sam, opaque"]())),
    "MultiSteps of sam": lambda: optax.MultiSteps(takes_named(MADE["contrib.sam, opaque"]()), 2),
    "chain of schedule_free": lambda: optax.chain(optax.clip(1.0), contrib.schedule_free_adamw(1e-2)),
}
PARTS = ("scale_by_", "split_real")  # of an optimizer


def optimizers():
    """Returns the functions that make each optimizer, or None, by name."""
    found = {}
    for module, place in ((optax, ""), (contrib, "contrib.")):
        for name, make in inspect.getmembers(module, inspect.isfunction):
            takes_a_rate = "learning_rate" in inspect.signature(make).parameters
            if takes_a_rate and not name.startswith(("_", *PARTS)):
                found[f"{place}{name}"] = partial(make, learning_rate=1e-2)
    return {**found, **MADE}


OPTIMIZERS = optimizers()
USABLE = [name for name, make in OPTIMIZERS.items() if make]
QUICK = ("contrib.momo", "contrib.schedule_free_adamw", "contrib.sam, opaque")


def test_the_table_has_all_of_optax():
    assert len(USABLE) > 45
    assert {"adam", "contrib.muon", "contrib.sophia", "contrib.prodigy", "lbfgs"} <= set(USABLE)


@pytest.mark.parametrize("name", all_slow_but(USABLE, *QUICK))
def test_it_trains_evaluates_resumes_and_loads(name, stripes, small_config, tmp_path, quiet):
    tx, model = OPTIMIZERS[name](), Network()
    state, step = setup(model, tx)
    before = eval_step(state, make_batch(), model=model).loss
    for _ in range(20):
        state, metrics = step(state, make_batch(), KEY)
    assert step._cache_size() == 1
    assert metrics["loss"] < before / 16
    assert eval_step(state, make_batch(), model=model).loss < before

    config = replace(small_config, optim=replace(small_config.optim, ema_decay=None))
    assert_resumes_and_loads(config, stripes, model, tx, tmp_path, quiet)


def test_schedule_free_is_evaluated_at_its_average():
    tx = contrib.schedule_free_adamw(1e-2)
    state, step = setup(Network(), tx)
    for _ in range(5):
        state, _ = step(state, make_batch(), KEY)
    expected = contrib.schedule_free_eval_params(state.opt_state, state.params)
    chex.assert_trees_all_close(state.eval_variables["params"], expected, rtol=1e-6, atol=1e-7)
    assert not np.allclose(state.params["Dense_0"]["kernel"], expected["Dense_0"]["kernel"])


def test_sam_is_evaluated_between_its_updates_where_it_was_before():
    state, step = setup(Network(), contrib.sam(optax.sgd(0.1), ADVERSARY))
    chex.assert_trees_all_equal(state.ema, state.params)
    perturbed, _ = step(state, make_batch(), KEY)
    chex.assert_trees_all_close(perturbed.ema, state.params, atol=1e-7)
    assert not np.allclose(perturbed.params["Dense_0"]["kernel"], state.params["Dense_0"]["kernel"])
    updated, _ = step(perturbed, make_batch(), KEY)
    chex.assert_trees_all_equal(updated.ema, updated.params)


def test_parameters_that_are_frozen_are_evaluated_to_the_bit():
    state, step = setup(Network(), contrib.schedule_free_sgd(0.1), frozen=("Dense_0/*",))
    new, _ = step(state, make_batch(), KEY)
    chex.assert_trees_all_equal(new.ema["Dense_0"], state.params["Dense_0"])


def test_eval_params_of_ones_own_are_kept_and_may_be_averaged():
    def halved(opt_state, params):
        return jax.tree.map(lambda x: x / 2, params)

    model, tx = Network(), optax.sgd(0.1)
    state = create_state(KEY, model, tx, image_shape=(8, 8, 1), ema=True)
    new, _ = train_step(state, make_batch(), KEY, model=model, tx=tx, eval_params=halved)
    chex.assert_trees_all_close(new.ema, halved(None, new.params), rtol=1e-6)
    averaged, _ = train_step(state, make_batch(), KEY, model=model, tx=tx, eval_params=halved, ema_decay=0.05)
    expected = jax.tree.map(lambda old, now: 0.05 * old + 0.95 * now / 2, state.ema, averaged.params)
    chex.assert_trees_all_close(averaged.ema, expected, rtol=1e-5, atol=1e-7)
    plain = state.replace(ema=None)
    sums = eval_step(plain, make_batch(), model=model, eval_params=halved)
    kept = eval_step(state.replace(ema=halved(None, state.params)), make_batch(), model=model)
    assert sums.loss == pytest.approx(float(kept.loss))
    with pytest.raises(ValueError, match="evaluation parameters, but the state has no `ema`"):
        train_step(plain, make_batch(), KEY, model=model, tx=tx, eval_params=halved)


def test_fit_takes_eval_params(stripes, small_config, tmp_path, quiet):
    config = replace(small_config, optim=replace(small_config.optim, ema_decay=None))
    result = fit(
        config,
        dataset=stripes,
        model=Network(),
        tx=optax.sgd(0.1),
        eval_params=lambda opt_state, params: jax.tree.map(jnp.zeros_like, params),
        workdir=tmp_path / "run",
        console=quiet,
    )
    assert result.test["loss"] == pytest.approx(np.log(3))
    assert not np.any(load_run(tmp_path / "run", model=Network()).variables["params"]["Dense_0"]["kernel"])


@pytest.mark.parametrize("other", [contrib.schedule_free_sgd(0.2), optax.sgd(0.1)], ids=["two", "one"])
def test_averages_of_groups_are_refused(other):
    labels = {"Dense_0": "a", "Dense_1": "b"}
    tx = optax.partition({"a": contrib.schedule_free_sgd(0.1), "b": other}, labels)
    with pytest.raises(ValueError, match="evaluation parameters for a part of the parameters alone"):
        create_state(KEY, Network(), tx, image_shape=(8, 8, 1))
    assert find_eval_params(optax.adam(0.1).init({"x": jnp.ones(2)})) is None


def test_wrapped_parameters_are_refused(stripes, small_config, tmp_path):
    tx = optax.lookahead(optax.sgd(0.1), 5, 0.5)
    with pytest.raises(ValueError, match=r"optax\.lookahead trains parameters in a wrapper of its own"):
        create_state(KEY, Network(), tx, image_shape=(8, 8, 1))
    with pytest.raises(InputError, match=r"optax\.lookahead trains"):
        fit(small_config, dataset=stripes, model=Network(), tx=tx, workdir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_arrays_of_size_zero_are_refused_before_anything_is_written(stripes, small_config, tmp_path):
    options = {"dataset": stripes, "model": Network(), "tx": contrib.galore(1e-2), "workdir": tmp_path / "run"}
    with pytest.raises(InputError, match=r"the optimizer keeps an array of the shape \[0, 0\] in .*projector"):
        fit(small_config, **options)
    assert list(tmp_path.iterdir()) == []


def test_an_optimizer_gets_the_arguments_that_it_names():
    given = {"value": 1, "grad": 2, "grad_fn": 3}
    assert extra_arguments(lambda grads, state, params=None: None, given) == {}
    assert extra_arguments(lambda grads, state, params=None, *, grad_fn=None: None, given) == {"grad_fn": 3}
    assert extra_arguments(lambda grads, state, params=None, **extra: None, given) == given


@pytest.mark.parametrize("accumulate", [slow(1), 2])
def test_a_line_search_sees_the_loss_of_the_batch(accumulate):
    """It gives the value at the new parameters, which the next step on the same batch finds again."""
    state, step = setup(Network(), optax.lbfgs(), accumulate=accumulate)
    for _ in range(3):
        state, _ = step(state, make_batch(), KEY)
    _, metrics = step(state, make_batch(), KEY)
    np.testing.assert_allclose(metrics["loss"], optax.tree.get(state.opt_state, "value"), rtol=1e-5)

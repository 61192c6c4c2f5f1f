from functools import partial

import jax
import numpy as np
import optax
import pytest

from flaxcls import create_state, eval_step
from flaxcls.data import Split
from flaxcls.data.batches import pad_batch
from flaxcls.metrics import MetricSums
from flaxcls.models import CNN
from flaxcls.run.evaluation import evaluate
from tests.conftest import make_stripes

MODEL = CNN(3, widths=(4,), dense=())


@pytest.mark.parametrize(("examples", "batch_size"), [(30, 10), (31, 10), (5, 8), (1, 4)])
def test_every_example_is_counted_once(examples, batch_size):
    state = create_state(jax.random.key(0), MODEL, optax.sgd(0.1), image_shape=(8, 8, 1))
    split = Split(*make_stripes(examples))
    counts = []

    def step(state, batch):
        sums = eval_step(state, batch, model=MODEL)
        counts.append(int(sums.count))
        return sums

    values = evaluate(step, state, split, batch_size=batch_size)
    whole = eval_step(state, {"image": split.images, "label": split.labels}, model=MODEL).compute()
    assert sum(counts) == examples
    assert values["accuracy"] == whole["accuracy"]
    assert values["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def test_it_is_given_up_where_the_run_is_to_stop():
    asked = iter([False, False, True])
    seen = []
    step = lambda state, batch: seen.append(batch) or MetricSums.empty()  # noqa: E731
    assert evaluate(step, None, Split(*make_stripes(30)), batch_size=10, stopping=lambda: next(asked)) is None
    assert len(seen) == 2


def test_all_batches_have_one_shape_so_that_one_program_serves():
    step = jax.jit(partial(eval_step, model=MODEL))
    state = create_state(jax.random.key(0), MODEL, optax.sgd(0.1), image_shape=(8, 8, 1))
    evaluate(step, state, Split(*make_stripes(25)), batch_size=10)
    assert step._cache_size() == 1


def test_padding_is_masked():
    batch = pad_batch(*make_stripes(3), 5)
    assert batch["mask"].tolist() == [True, True, True, False, False]
    assert batch["image"].shape == (5, 8, 8, 1)
    assert not np.any(batch["image"][3:])

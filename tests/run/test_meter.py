import jax.numpy as jnp
import pytest

from flaxcls.errors import DivergenceError
from flaxcls.run.meter import Meter


def make(record=None):
    lines = []
    meter = Meter(
        batch_size=4,
        logs=lambda step: step % 3 == 0,
        record=record or {},
        write=lambda step, values, speed: lines.append((step, values, speed > 0)),
    )
    return meter, lines


def metrics(loss, grad_norm=1.0):
    return {"loss": jnp.float32([loss]), "grad_norm": jnp.float32([grad_norm])}


def test_a_line_is_the_mean_since_the_line_before():
    meter, lines = make()
    for step in range(1, 8):
        meter.add(step, metrics(step), {})
    meter.read(3)
    meter.read(7)
    assert lines == [
        (3, {"loss": 2.0, "grad_norm": 1.0}, True),
        (6, {"loss": 5.0, "grad_norm": 1.0}, True),
    ]
    record = meter.as_record()
    assert record["sums"] == {"loss": 7.0, "grad_norm": 1.0}
    assert (record["steps"], record["images"]) == (1, 28)


def test_what_is_measured_at_a_step_alone_is_not_averaged():
    meter, lines = make()
    for step in range(1, 4):
        meter.add(step, metrics(1.0), {"learning_rate": jnp.float32([0.1 * step])})
    meter.read(3)
    assert lines[0][1]["learning_rate"] == pytest.approx(0.3)


def test_an_interval_cut_short_is_written_once():
    meter, lines = make()
    meter.write(0)
    meter.add(1, metrics(2.0), {})
    meter.read(1)
    meter.write(1)
    meter.write(1)
    assert lines == [(1, {"loss": 2.0, "grad_norm": 1.0}, True)]


def test_steps_after_the_one_asked_for_are_left_on_the_device():
    meter, lines = make()
    for step in range(1, 5):
        meter.add(step, metrics(step), {})
    meter.read(2)
    assert lines == []
    meter.read(3)
    assert len(lines) == 1
    assert meter.images == 12


def test_an_interval_goes_on_after_a_restart():
    whole, expected = make()
    for step in range(1, 4):
        whole.add(step, metrics(0.1 * step), {})
    whole.read(3)
    first, _ = make()
    first.add(1, metrics(0.1), {})
    first.add(2, metrics(0.2), {})
    first.read(2)
    second, lines = make(first.as_record())
    second.add(3, metrics(0.1 * 3), {})
    second.read(3)
    assert lines == expected


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (metrics(float("nan")), "the loss is nan at step 2"),
        (metrics(float("inf")), "the loss is inf at step 2"),
        (metrics(1.0, float("nan")), "the norm of the gradient is nan at step 2"),
    ],
)
def test_the_first_step_that_is_not_finite_is_named(bad, message):
    meter, lines = make()
    for step, values in enumerate([metrics(1.0), bad, metrics(float("nan"))], 1):
        meter.add(step, values, {})
    with pytest.raises(DivergenceError, match=message):
        meter.read(3)
    assert lines == []


def test_a_dispatch_of_several_steps_counts_as_so_many():
    meter, lines = make()
    meter.add(3, {"loss": jnp.float32([1, 2, 6]), "grad_norm": jnp.ones(3)}, {"learning_rate": jnp.float32([3, 2, 1])})
    meter.read(3)
    assert lines == [(3, {"loss": 3.0, "grad_norm": 1.0, "learning_rate": 1.0}, True)]
    assert meter.images == 12


def skipping(limit, record=None):
    lines, said = [], []
    meter = Meter(
        batch_size=4,
        logs=lambda step: step % 3 == 0,
        record=record or {},
        write=lambda step, values, speed: lines.append((step, values)),
        say=said.append,
        skip_limit=limit,
    )
    return meter, lines, said


def add(meter, step, loss, skipped=0):
    meter.add(step, {**metrics(loss), "skipped": jnp.float32([skipped])}, {})


def test_dropped_updates_are_told_counted_and_left_out_of_the_means():
    meter, lines, said = skipping(2)
    for step, (loss, skipped) in enumerate(
        [(1.0, 0), (float("nan"), 1), (3.0, 1), (5.0, 0), (7.0, 0), (float("inf"), 1)], 1
    ):
        add(meter, step, loss, skipped)
    meter.read(6)
    assert said == [
        "the loss is nan at step 2: the update is dropped, 1 in a row, 1 in all",
        "the parameters are not finite after step 3: the update is dropped, 2 in a row, 2 in all",
        "the loss is inf at step 6: the update is dropped, 1 in a row, 3 in all",
    ]
    assert lines == [
        (3, {"loss": 1.0, "grad_norm": 1.0, "skipped": 2}),
        (6, {"loss": 6.0, "grad_norm": 1.0, "skipped": 1}),
    ]
    assert meter.skipped == 3


def test_too_many_dropped_in_a_row_end_the_run_also_over_a_restart():
    meter, *_ = skipping(2)
    for step in (1, 2):
        add(meter, step, float("nan"), 1)
    meter.read(2)
    second, *_ = skipping(2, meter.as_record())
    add(second, 3, float("nan"), 1)
    with pytest.raises(
        DivergenceError, match=r"nan at step 3, and 3 updates in a row were dropped, more than loop\.nan_"
    ):
        second.read(3)


def test_where_all_updates_of_an_interval_were_dropped_the_next_line_counts_them():
    meter, lines, _ = skipping(9)
    for step in range(1, 7):
        add(meter, step, 2.0, skipped=step < 6)
    meter.read(6)
    assert lines == [(6, {"loss": 2.0, "grad_norm": 1.0, "skipped": 5})]

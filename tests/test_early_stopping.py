import math

import pytest

from flaxcls.early_stopping import EarlyStopping, update


def follow(stop, values):
    """Returns the steps (10, 20, ...) at which training would stop first, and the final value."""
    for number, value in enumerate(values, 1):
        stop = update(stop, value, 10 * number)
        if stop.stopped:
            return 10 * number, stop
    return None, stop


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_patience_is_exact(patience):
    stopped, stop = follow(EarlyStopping(patience=patience), [0.5, *[0.9] * 10])
    assert stopped == 10 * (1 + patience)
    assert (stop.best, stop.best_step) == (0.5, 10)


def test_an_improvement_starts_patience_anew():
    stopped, stop = follow(EarlyStopping(patience=2), [0.5, 0.6, 0.4, 0.6, 0.6, 0.1])
    assert stopped == 50
    assert stop.best_step == 30


def test_without_patience_it_never_stops():
    stopped, stop = follow(EarlyStopping(), [0.5] + [1.0] * 100)
    assert stopped is None
    assert stop.bad == 100


@pytest.mark.parametrize(("mode", "best_step"), [("min", 20), ("max", 30)])
def test_mode(mode, best_step):
    assert follow(EarlyStopping(mode=mode), [0.5, 0.2, 0.8, 0.4])[1].best_step == best_step


def test_a_tie_is_no_improvement():
    assert follow(EarlyStopping(mode="max"), [0.5, 0.5])[1].best_step == 10


def test_min_delta_must_be_exceeded():
    stop = EarlyStopping(min_delta=0.125)
    assert follow(stop, [1.0, 0.875])[1].best_step == 10
    assert follow(stop, [1.0, 0.8])[1].best_step == 20


def test_skipped_evaluations_count_for_nothing():
    stopped, stop = follow(EarlyStopping(patience=2, skip=3), [0.1, 0.9, 0.9, 0.5, 0.6, 0.6])
    assert stopped == 60
    assert (stop.best, stop.best_step) == (0.5, 40)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("position", ["first", "middle", "last"])
def test_a_value_that_is_not_finite_is_always_bad(bad, mode, position):
    values = {"first": [bad, 0.5, 0.5], "middle": [0.5, bad, 0.5], "last": [0.5, 0.5, bad]}[position]
    _, stop = follow(EarlyStopping(mode=mode), values)
    assert stop.best == 0.5
    assert stop.best_step == (20 if position == "first" else 10)
    assert stop.bad == (1 if position == "first" else 2)


def test_only_bad_values_use_patience_up():
    stopped, stop = follow(EarlyStopping(patience=3), [math.nan] * 5)
    assert stopped == 30
    assert stop.best_step is None


def test_it_is_immutable():
    stop = EarlyStopping()
    assert update(stop, 1.0, 1) is not stop
    assert stop == EarlyStopping()
    with pytest.raises(AttributeError):
        stop.bad = 1

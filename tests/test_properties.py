"""Promises that hold for all inputs, tried on many: early stopping, the order of the data, the configuration."""

import dataclasses
import math
import types
import typing

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import flaxcls.data.stream
from flaxcls.config import Config
from flaxcls.config_json import differences, from_json, to_json
from flaxcls.data import batch_indices
from flaxcls.early_stopping import EarlyStopping, update
from flaxcls.validation import choices

settings.register_profile("flaxcls", deadline=None, derandomize=True)
settings.load_profile("flaxcls")


def plain_early_stopping(values, *, patience, mode, min_delta, skip):
    """Returns (best step, number of evaluations until it stops or None), steps counted from 1, in plain words."""
    best_step, since = None, 0
    for number, value in enumerate(values, 1):
        if number <= skip:
            continue
        counted = [v for v in values[skip : number - 1] if math.isfinite(v)]
        reference = values[best_step - 1] if best_step else None
        better = math.isfinite(value) and (
            not counted or (reference - value > min_delta if mode == "min" else value - reference > min_delta)
        )
        best_step, since = (number, 0) if better else (best_step, since + 1)
        if patience is not None and since >= patience:
            return best_step, number
    return best_step, None


@given(
    st.lists(st.floats(width=16) | st.sampled_from([0.25, 0.5, 0.75]), max_size=30),
    st.none() | st.integers(1, 5),
    st.sampled_from(["min", "max"]),
    st.sampled_from([0.0, 0.125, 0.25]),
    st.integers(0, 6),
    st.integers(0, 30),
)
def test_early_stopping_is_the_plain_reference_also_over_a_restart(values, patience, mode, min_delta, skip, restart):
    stop, stopped = EarlyStopping(patience=patience, mode=mode, min_delta=min_delta, skip=skip), None
    for number, value in enumerate(values, 1):
        if number == restart:
            stop = EarlyStopping(**dataclasses.asdict(stop))
        stop = update(stop, value, number)
        if stop.stopped:
            stopped = number
            break
    expected = plain_early_stopping(values, patience=patience, mode=mode, min_delta=min_delta, skip=skip)
    assert (stop.best_step, stopped) == expected
    assert stop.best == (values[stop.best_step - 1] if stop.best_step else None)


@given(
    seed=st.integers(0, 2**32 - 1),
    rollbacks=st.integers(0, 9),
    count=st.integers(1, 200),
    batch_size=st.integers(1, 70),
    hosts=st.integers(1, 8),
    start=st.integers(0, 40),
)
def test_each_epoch_holds_every_example_once_for_any_batch_hosts_and_start(
    seed, rollbacks, count, batch_size, hosts, start
):
    """A run that starts at batch `start`, on so many hosts that each take their part of every batch."""
    seed, batch_size = seed + rollbacks * 2**32, batch_size * hosts
    epochs = (start * batch_size // count, start * batch_size // count + 2)
    flaxcls.data.stream.permutation.cache_clear()  # as in a new process
    steps = range(start, epochs[1] * count // batch_size + 1)
    parts = [
        [batch_indices(seed, step, count=count, batch_size=batch_size).reshape(hosts, -1)[host] for step in steps]
        for host in range(hosts)
    ]
    stream = np.stack(parts, axis=1).reshape(-1)  # what all hosts together see, from example start * batch_size on
    assert len(stream) == len(steps) * batch_size
    skipped = start * batch_size - epochs[0] * count  # of the epoch that `start` falls into
    whole = stream[count - skipped :] if skipped else stream
    assert len(whole) >= count
    assert sorted(whole[:count]) == list(range(count))
    first = batch_indices(seed, 0, count=count, batch_size=start * batch_size) if start else np.zeros(0, int)
    before = first[epochs[0] * count :]
    assert sorted([*before, *stream[: count - skipped]]) == list(range(count))


def of_type(hint):
    """Returns a strategy of values of a type that the configuration uses."""
    if dataclasses.is_dataclass(hint):
        return st.builds(hint, **{name: of_type(part) for name, part in typing.get_type_hints(hint).items()})
    if names := choices(hint):
        return st.sampled_from(names)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(of_type(arg) for arg in args))
    if origin is tuple:
        return st.lists(of_type(args[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(of_type(args[0]), of_type(args[1]), max_size=3)
    return {
        int: st.integers(),
        float: st.floats(allow_nan=False),
        bool: st.booleans(),
        str: st.text(max_size=5),
        type(None): st.none(),
    }[hint]


@settings(max_examples=50)
@given(of_type(Config), of_type(Config))
def test_any_configuration_is_read_back_equal_and_differences_are_those_there_are(one, other):
    assert from_json(to_json(one)) == one
    assert differences(one, from_json(to_json(one))) == []
    assert (differences(one, other) == []) == (to_json(one) == to_json(other))


def test_the_reference_is_not_the_code_itself():
    assert plain_early_stopping([3, 2, 2, 2, 1], patience=2, mode="min", min_delta=0, skip=0) == (2, 4)
    assert plain_early_stopping([math.nan, 1, 0], patience=None, mode="max", min_delta=0, skip=1) == (2, None)
    assert plain_early_stopping([1, 2], patience=1, mode="max", min_delta=1, skip=0) == (1, 2)

import dataclasses
from itertools import pairwise

import pytest

from flaxcls.config import LoopConfig
from flaxcls.run.plan import make_plan


def make(examples, *, freeze=None, **loop):
    return make_plan(LoopConfig(**loop), examples=examples, warmup_epochs=1.5, freeze=freeze)


def ends_of(plan):
    ends = [0]
    while ends[-1] < plan.total_steps:
        ends.append(plan.dispatch_end(ends[-1]))
    return ends


@pytest.mark.parametrize(("examples", "batch_size"), [(100, 10), (101, 10), (99, 10), (7, 7), (1295, 64), (45000, 64)])
def test_the_validation_split_is_evaluated_once_an_epoch(examples, batch_size):
    plan = make(examples, epochs=5, batch_size=batch_size)
    steps = [step for step in range(1, plan.total_steps + 1) if plan.evaluates(step)]
    assert steps == [-(-epoch * examples // batch_size) for epoch in range(1, 6)]
    assert steps[-1] == plan.total_steps
    assert [plan.epochs_done(step) for step in steps] == [1, 2, 3, 4, 5]


def test_epochs_become_steps():
    plan = make(100, epochs=3, batch_size=8)
    assert plan.total_steps == 38  # 37.5
    assert plan.warmup_steps == 19  # 18.75


def test_no_step_too_many_where_floats_round_up():
    assert make(50000, epochs=30, batch_size=48).total_steps == 31250


def test_evaluation_every_other_epoch_and_at_the_end():
    plan = make(20, epochs=5, batch_size=10, eval_every=2)
    assert [step for step in range(1, 11) if plan.evaluates(step)] == [4, 8, 10]


@pytest.mark.parametrize(("skip", "evaluations"), [(0.0, 0), (0.5, 1), (0.67, 2), (0.99, 2)])
def test_skipped_evaluations_are_a_share_that_leaves_one(skip, evaluations):
    plan = make_plan(LoopConfig(epochs=5, eval_every=2), examples=1000, skip=skip)
    assert plan.skipped_evaluations == evaluations


def test_checkpoints_at_evaluations_and_every_so_many_steps():
    plan = make(20, epochs=3, batch_size=4, save_every=4)
    assert [step for step in range(1, 16) if plan.saves(step)] == [4, 5, 8, 10, 12, 15]
    assert not dataclasses.replace(plan, save_steps=None).saves(4)


def test_lines_of_metrics():
    plan = make(20, epochs=3, batch_size=4, log_every=7)
    assert [step for step in range(1, 16) if plan.logs(step)] == [7, 14, 15]


def test_with_several_steps_a_dispatch_all_waits_for_its_end():
    plan = make(
        100, epochs=3, batch_size=8, steps_per_dispatch=5, save_every=12, log_every=4
    )  # 38 steps, 12.5 an epoch
    ends = ends_of(plan)
    assert ends == [0, 5, 10, 15, 20, 25, 30, 35, 38]
    assert [step for step in ends[1:] if plan.evaluates(step)] == [15, 25, 38]
    assert [step for step in ends[1:] if plan.saves(step)] == [15, 25, 38]
    assert [step for step in ends[1:] if plan.logs(step)] == [5, 10, 15, 20, 25, 30, 35, 38]
    often = make(100, epochs=3, batch_size=8, steps_per_dispatch=5, save_every=6)
    assert [step for step in ends[1:] if often.saves(step)] == [10, 15, 20, 25, 30, 38]


def test_a_dispatch_ends_where_parameters_are_frozen():
    plan = make(100, epochs=3, batch_size=8, steps_per_dispatch=5, freeze={"head/*": 2, "Conv_*": 0, "*/bias": 1})
    assert ends_of(plan) == [0, 5, 10, 12, 15, 20, 25, 30, 35, 38]  # 12.5 steps an epoch, rounded to even
    frozen = {step: plan.frozen(step) for step in ends_of(plan)[:-1]}
    assert {step for step in frozen if frozen[step] == ("Conv_*",)} == {0, 5, 10}
    assert {step for step in frozen if frozen[step] == ("Conv_*", "*/bias")} == {12, 15, 20}
    assert {step for step in frozen if frozen[step] == ("head/*", "Conv_*", "*/bias")} == {25, 30, 35}


@pytest.mark.parametrize("steps", [1, 3, 7, 50])
@pytest.mark.parametrize("freeze", [{}, {"a": 0, "b": 1}, {"a": 1, "b": 2, "c": 4}])
def test_nothing_is_missed_or_done_twice_whatever_ends_a_dispatch(steps, freeze):
    plan = make(
        53, epochs=5, batch_size=4, steps_per_dispatch=steps, freeze=freeze, eval_every=2, save_every=5, log_every=6
    )
    ends = ends_of(plan)
    for happens, number in (
        (plan.logs, lambda step: step // 6),
        (plan.evaluates, lambda step: step * 4 // 53 // 2),
        (plan.saves, lambda step: (step // 5, step * 4 // 53 // 2)),
    ):
        expected = [end for before, end in pairwise(ends) if number(end) != number(before)]
        assert [end for end in ends[1:] if happens(end)] == sorted({*expected, plan.total_steps})

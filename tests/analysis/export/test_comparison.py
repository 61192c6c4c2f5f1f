import jax
import numpy as np
import pytest
from jax import export

from flaxcls.analysis.export import comparison
from flaxcls.analysis.export.comparison import compare
from flaxcls.data import Split


def program(shift):
    """An export that finds the class of an image in its only pixel, plus a shift."""

    def serve(images):
        logits = 3 * jax.nn.one_hot(images[:, 0, 0, 0].astype(np.int32) + shift * (images[:, 0, 0, 0] == 1), 3)
        return logits, jax.nn.softmax(logits)

    (batch,) = export.symbolic_shape("b")
    spec = jax.ShapeDtypeStruct((batch, 1, 1, 1), np.uint8)
    return bytes(export.export(jax.jit(serve))(spec).serialize())


def test_accuracy_and_size_of_two_exports():
    pixels = np.array([0, 1, 2, 0, 1, 2, 0], np.uint8)
    split = Split(pixels.reshape(-1, 1, 1, 1), np.array([0, 1, 2, 0, 1, 2, 1], np.int32))
    plain, smaller = program(0), program(1)  # which takes both ones for twos
    found = compare(plain, smaller, split, batch_size=3, repetitions=5)
    assert found.examples == 7
    assert found.accuracy == pytest.approx((6 / 7, 4 / 7))
    assert found.accuracy_lost == pytest.approx(2 / 7)
    assert found.changed == 2
    assert found.largest_difference == pytest.approx((np.exp(3) - 1) / (np.exp(3) + 2), rel=1e-5)
    assert found.bytes == (len(plain), len(smaller))
    assert found.batch_size == 3
    for median, (shortest, longest) in zip(found.milliseconds, found.milliseconds_range, strict=True):
        assert 0 < shortest <= median <= longest
    assert 0 <= found.faster_in <= found.repetitions == 5


def test_time_won_worked_by_hand(monkeypatch):
    times = np.array([[10.0, 20.0, 10.0], [5.0, 15.0, 11.0]])  # shares saved: 1/2, 1/4, -1/10
    monkeypatch.setattr(comparison, "_time_in_turns", lambda programs, images, repetitions: times)
    split = Split(np.zeros((4, 1, 1, 1), np.uint8), np.zeros(4, np.int32))
    found = compare(program(0), program(0), split, repetitions=3)
    assert found.milliseconds == (10, 11)
    assert found.milliseconds_range == ((10, 20), (5, 15))
    assert found.latency_won == pytest.approx(0.25)
    assert found.faster_in == 2
    assert found.chance == 1.0

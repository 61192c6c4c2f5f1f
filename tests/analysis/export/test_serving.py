import numpy as np
import pytest

from flaxcls.analysis.export.serving import restore, store


@pytest.fixture
def variables():
    rng = np.random.default_rng(0)
    return {
        "params": {"Conv_0": {"kernel": rng.normal(size=(3, 3, 4, 5)).astype("f4"), "bias": np.ones(5, "f4") / 3}},
        "batch_stats": {"mean": np.full(5, 1 / 3, "f4")},
        "count": np.ones((2, 2), "i4"),
    }


def test_float32_is_kept_as_it_is(variables):
    restored = restore(store(variables, "float32"))
    np.testing.assert_array_equal(restored["params"]["Conv_0"]["kernel"], variables["params"]["Conv_0"]["kernel"])


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_only_kernels_are_stored_smaller(variables, dtype):
    stored = store(variables, dtype)
    assert stored["params"]["Conv_0"]["kernel"].values.dtype == dtype
    assert stored["params"]["Conv_0"]["bias"].values.dtype == np.float32
    assert stored["batch_stats"]["mean"].values.dtype == np.float32
    assert stored["count"].values.dtype == np.int32
    restored = restore(stored)
    assert restored["params"]["Conv_0"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(restored["batch_stats"]["mean"], variables["batch_stats"]["mean"])


def test_int8_has_a_scale_for_each_output():
    kernel = np.array([[0.5, 100.0, 0.0], [-1.0, 50.0, 0.0]], "f4")  # [inputs outputs]
    stored = store({"kernel": kernel}, "int8")["kernel"]
    np.testing.assert_allclose(stored.scale, [1 / 127, 100 / 127, 1], rtol=1e-6)
    np.testing.assert_array_equal(stored.values, [[64, 127, 0], [-127, 64, 0]])  # 63.5 is rounded to even
    np.testing.assert_allclose(restore({"kernel": stored})["kernel"], kernel, atol=100 / 127 / 2)


def test_int8_is_off_by_half_a_step_at_most(variables):
    kernel = variables["params"]["Conv_0"]["kernel"]
    restored = restore(store(variables, "int8"))["params"]["Conv_0"]["kernel"]
    step = np.abs(kernel).max(axis=(0, 1, 2), keepdims=True) / 127
    assert (np.abs(restored - kernel) <= step * 0.5001).all()
    assert np.abs(restored - kernel).max() > 0

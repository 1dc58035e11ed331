"""The buffer keeps the newest finite values in order, and can be saved and restored."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_optim import LossBuffer
from resilient_optim.loss_buffer import Window

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)


@given(st.integers(1, 9), st.lists(finite, max_size=40))
def test_window_holds_the_newest_values_in_order(capacity, values):
    window = Window(capacity)
    for count, value in enumerate(values, start=1):
        window.append(value)
        assert window.values.tolist() == values[max(0, count - capacity) : count]
        assert len(window) == min(count, capacity)


@given(st.integers(1, 9), st.integers(1, 9), st.lists(finite, max_size=20))
def test_restore_keeps_as_many_of_the_newest_as_fit(capacity, other, values):
    window, restored = Window(capacity), Window(other)
    for value in values:
        window.append(value)
    assert window.padded().shape == (capacity,)
    restored.restore(window.padded())
    kept = values[-capacity:] if values else []
    assert restored.values.tolist() == kept[-other:]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_value_is_refused_and_nothing_changes(bad):
    buffer = LossBuffer(4)
    buffer.append(1.0, 2.0)
    with pytest.raises(ValueError, match="finite"):
        buffer.append(bad)
    assert buffer.losses.values.tolist() == [1.0]
    assert buffer.log_norms.values.tolist() == [math.log(2.0)]


def test_a_zero_norm_has_no_logarithm_and_is_not_recorded():
    buffer = LossBuffer(4)
    buffer.append(1.0, 0.0)
    buffer.append(1.0, None)
    assert len(buffer.losses) == 2
    assert len(buffer.log_norms) == 0


def test_clear_forgets_everything():
    window = Window(3)
    window.append(1.0)
    window.clear()
    assert len(window) == 0
    assert np.isnan(window.padded()).all()

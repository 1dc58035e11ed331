"""RCA's promises for every input, on inputs that hypothesis invents."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_optim.rca import RCA

FLAT_WITHIN = 256
"""A flat curve with white noise is stopped within this many values."""

seeds = st.integers(0, 100_000)
# Dyadic values with few bits: v -> a*v + b is exact for a power of two a.
dyadic = st.integers(-(2**14), 2**14).map(lambda n: n / 1024)


@st.composite
def histories(draw, size=80):
    """Trends, rhythms, walks, jumps and noise, of dyadic values."""
    rng = np.random.default_rng(draw(seeds))
    n = draw(st.integers(1, size))
    t = np.arange(n)
    values = draw(st.sampled_from([0.0, 0.1, 1.0])) * rng.normal(size=n)
    values += draw(st.sampled_from([0.0, 2.0])) * np.exp(-t / draw(st.integers(2, 60)))
    values += draw(st.sampled_from([0.0, 0.5])) * np.cos(2 * np.pi * t / draw(st.integers(2, 12)))
    if draw(st.booleans()):
        values += 0.1 * rng.normal(size=n).cumsum()
    if draw(st.booleans()):
        values[draw(st.integers(0, n - 1)) :] += 5.0
    return np.round(values * 1024) / 1024


@given(histories(), st.integers(-20, 20), dyadic)
@settings(max_examples=50)
def test_scale_and_shift_change_no_state_and_no_recommendation(values, exponent, shift):
    factor, here, there = 2.0**exponent, RCA(), RCA()
    for value in values.tolist():
        a, b = here.update(value), there.update(factor * (value + shift))
        assert (a.state, a.recommendation) == (b.state, b.recommendation)
        assert a.beta == pytest.approx(b.beta, abs=1e-6)
        assert b.gain == pytest.approx(factor * a.gain, rel=1e-6, abs=1e-9 * factor)


@given(histories(), st.sampled_from(["default", "paper"]))
@settings(max_examples=40)
def test_every_reading_is_in_range(values, preset):
    monitor = RCA(preset)
    for step, value in enumerate(values.tolist(), 1):
        reading = monitor.update(value)
        assert reading.step == step
        assert reading.value == value
        assert 0.0 <= reading.beta <= 1.0
        assert 0.0 <= reading.confidence <= 1.0
        if preset == "default":
            assert 0.0 <= reading.omega <= math.pi + 1e-12
            assert 0.0 <= reading.p_improving <= 1.0
            assert 0.0 <= reading.gain_low <= reading.gain_high
            assert reading.gain >= 0.0
            assert reading.recommendation != "stop" or reading.state != "shifted"


@st.composite
def falling_curves(draw):
    """A strictly falling curve, and from its 12th value on the gain over the next half."""
    n = draw(st.integers(14, 70))
    t = np.arange(2.0 * n)
    kind = draw(st.sampled_from(["exponential", "power law", "line"]))
    if kind == "exponential":
        curve = np.exp(-t * draw(st.floats(0.001, 0.05)))
    elif kind == "power law":
        curve = (1 + t / draw(st.floats(1, 30))) ** -draw(st.floats(0.1, 1.0))
    else:
        curve = -t
    ahead = np.array([curve[i] - curve[i + (i + 1) // 2] for i in range(n)])
    worth = ahead > 3 * 0.01 * (curve[0] - curve[:n])
    n = n if worth[12:].all() else 12 + int(worth[12:].argmin())
    return curve[:n], float(ahead[11:n].min())


@given(falling_curves(), st.floats(0.0, 1.0), seeds)
@settings(max_examples=60)
def test_an_improving_curve_is_not_stopped(curve_and_gain, noise, seed):
    # The stated level: noise of one value up to the gain over the horizon, itself three times
    # what is worth having.
    curve, gain = curve_and_gain
    monitor = RCA()
    for value in curve + noise * gain * np.random.default_rng(seed).normal(size=len(curve)):
        assert monitor.update(value).recommendation != "stop"


@given(seeds, st.sampled_from(["normal", "uniform", "heavy", "coarse"]))
@settings(max_examples=40)
def test_a_flat_curve_is_stopped(seed, kind):
    rng = np.random.default_rng(seed)
    draw = {
        "normal": rng.normal,
        "uniform": rng.uniform,
        "heavy": lambda size: rng.standard_t(4, size=size),
        "coarse": lambda size: rng.integers(0, 3, size=size).astype(float),
    }[kind]
    monitor = RCA()
    assert any(monitor.update(value).recommendation == "stop" for value in draw(size=FLAT_WITHIN))


@given(histories(), st.sampled_from(["default", "paper"]), st.floats(0, 1))
@settings(max_examples=40)
def test_a_resumed_monitor_continues_identically(values, preset, where):
    straight, first, resumed = RCA(preset), RCA(preset), RCA(preset)
    cut = int(where * len(values))
    for value in values[:cut].tolist():
        first.update(value)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for i, value in enumerate(values.tolist()):
        expected = straight.update(value)
        if i >= cut:
            assert repr(resumed.update(value)) == repr(expected)  # NaN equals NaN
    assert repr(resumed.state_dict()) == repr(straight.state_dict())


def test_a_long_run_resumes_identically_in_the_middle_of_a_block():
    values = np.random.default_rng(0).normal(size=1200)
    straight, first, resumed = RCA(), RCA(), RCA()
    for value in values[:1001]:
        first.update(value)
    assert first.state_dict()["record"]["partial"][1] > 0
    resumed.load_state_dict(first.state_dict())
    for i, value in enumerate(values):
        expected = straight.update(value)
        if i > 1000:
            assert resumed.update(value) == expected


@given(histories(), st.sampled_from(["default", "paper"]), st.data())
@settings(max_examples=40)
def test_what_is_not_finite_changes_nothing_but_the_count(values, preset, data):
    clean, holed, skipped = RCA(preset), RCA(preset), 0
    for value in values.tolist():
        if data.draw(st.booleans()):
            bad = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
            before = holed.reading
            reading = holed.update(bad)
            skipped += 1
            assert repr(reading.value) == repr(bad)
            if before is not None and preset == "default":
                assert reading._replace(step=0, value=0) == before._replace(step=0, value=0)
        expected = clean.update(value)
        got = holed.update(value)
        assert repr(got) == repr(expected._replace(step=expected.step + skipped))

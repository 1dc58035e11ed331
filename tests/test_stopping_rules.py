"""Stopping rules on hand-made curves, and that none of them looks ahead."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_demo.stopping.curves import Curve
from nanogpt_demo.stopping.rules import (
    METHODS,
    ORACLE,
    Method,
    keras,
    layer_variation,
    lightning,
    oracle,
    patience,
    rca,
    recommendations,
    slope,
)

FALL = [float(10 - i) for i in range(8)]
NAN = math.nan


def curve(
    val: Sequence[float],
    layers: Sequence[Sequence[float]] | None = None,
    train: Sequence[float] | None = None,
) -> Curve:
    rows = np.array(layers if layers is not None else [[1.0]] * len(val), np.float64)
    loss = np.array(val, np.float64)
    seen = loss if train is None else np.array(train, np.float64)
    return Curve("c", "cnn", "constant", "dev", 11.0, loss, seen, rows)


@pytest.mark.parametrize(
    ("epochs", "val", "stop"),
    [
        (1, [5, 4, 4, 3], 3),
        (2, [5, 4, 4, 3, 3, 3], 6),
        (3, [5, 4, 6, 6, 3, 9, 9, 9, 0], 8),
        (3, FALL, 8),
        (2, [NAN, NAN, 1], 2),
        (2, [3, NAN, 2, NAN, NAN, 1], 5),
        (1, [-1, -2, -2, -3], 3),
    ],
)
def test_patience(epochs: int, val: list[float], stop: int) -> None:
    assert patience(epochs)(curve(val)) == stop


def test_patience_may_ask_for_a_share() -> None:
    slow = [100 * 0.9994**i for i in range(20)]
    assert patience(2)(curve(slow)) == 20
    assert patience(2, 0.001)(curve(slow)) == 20  # two epochs together are 0.1 % better
    assert patience(1, 0.001)(curve(slow)) == 2
    assert patience(1, 0.001)(curve([-value for value in reversed(slow)])) == 2


@pytest.mark.parametrize(("train", "stop"), [(0.24, 3), (0.25, 9), (-1.0, 5), (NAN, 5)])
def test_patience_that_knows_the_training_loss(train: float, stop: int) -> None:
    assert patience(4, told=True)(curve([1.0] * 12, train=[train] * 12)) == stop
    assert patience(4, told=True)(curve(FALL, train=[train] * 8)) == 8


def test_the_training_loss_of_today_is_compared_with_the_best_validation_loss_so_far() -> None:
    rising = [1.0] + [8.0] * 11  # a quarter of the best is 0.25, of today's value 2
    assert patience(4, told=True)(curve(rising, train=[1.0] * 12)) == 9
    assert patience(4, told=True)(curve(rising, train=[1.0] * 5 + [0.2] * 7)) == 6


@pytest.mark.parametrize(("train", "stop"), [(0.1, 12), (0.9, 25), (-1.0, 13)])
def test_rca_that_knows_the_training_loss(train: float, stop: int) -> None:
    flat = curve([1.0] * 40, train=[train] * 40)
    assert rca(told=True)(flat) == stop
    assert rca()(flat) == 13


def test_lightning_is_patience_3_that_stops_at_nan() -> None:
    assert lightning(curve([5, 4, 6, 6, 6, 1])) == 5
    assert lightning(curve([5, 4, NAN, 3, 2])) == 3
    assert lightning(curve(FALL)) == 8


@pytest.mark.parametrize(
    ("arguments", "val", "stop"),
    [
        ((), [5, 4, 4, 3], 3),
        ((), [NAN, 4, 3, 5], 4),  # the first epoch never stops
        ((1,), [5, 4, 4, 3], 3),  # as patience 0: the count begins with the epoch itself
        ((2,), [5, 4, 4, 3, 4, 4], 6),
        ((0, 3), [1, 2, 3, 5, 4, 6], 6),  # the best of what came before is not known
        ((), FALL, 8),
    ],
)
def test_keras(arguments: tuple[int, ...], val: list[float], stop: int) -> None:
    assert keras(*arguments)(curve(val)) == stop


def test_slope_test_ends_a_flat_curve_and_no_falling_one() -> None:
    noise = np.random.default_rng(0).standard_normal(60)
    assert slope(0.05, 10)(curve(100 - np.arange(60) + 0.1 * noise)) == 60
    flat = np.concatenate([np.linspace(50, 1, 20), np.ones(40)]) + 0.01 * noise
    assert 20 < slope(0.05, 10)(curve(flat)) < 45
    assert slope(0.05, 10)(curve(np.ones(60))) == 10


def test_layers_have_to_be_settled_all_of_them_and_in_a_row() -> None:
    one = [[1.0, 0.001 * i] for i in range(12)]  # to two decimals: 0.00 five times, then 0.01
    assert layer_variation(2, 5)(curve([0] * 12, one)) == 5
    assert layer_variation(2, 6)(curve([0] * 12, one)) == 11
    assert layer_variation(2, 8)(curve([0] * 12, one)) == 12
    assert layer_variation(3, 2)(curve([0] * 12, one)) == 12
    assert layer_variation(2, 2)(curve([0] * 3, [[NAN], [NAN], [1.0]])) == 3


def test_rca_stops_where_it_first_says_so() -> None:
    rng = np.random.default_rng(1)
    val = np.concatenate([np.linspace(5, 1, 25), np.ones(60)]) + 0.01 * rng.standard_normal(85)
    said = recommendations(curve(val), "default", False, ())
    assert said[-1] == "stop" and "stop" not in said[:-1]
    assert rca()(curve(val)) == len(said) < 85
    assert rca(also=("continue",))(curve(val)) == said.index("continue") + 1
    assert rca(min_gain=0.1)(curve(val)) <= rca(min_gain=0.001)(curve(val))
    assert rca("paper")(curve(val)) < 85


def test_the_oracle_knows() -> None:
    assert oracle(curve([5, NAN, 2, 3, 2])) == 3


def test_methods_have_names_of_their_own_and_the_expected_defaults() -> None:
    assert len({method.name for method in METHODS}) == len(METHODS)
    assert [method.name for method in METHODS if method.default] == [
        "patience 3", "patience 5", "patience 10", "patience, training loss told 12", "lightning",
        "keras", "layer variation 2", "slope test 0.05", "rca as published", "rca 12",
        "rca, training loss told 12", "rca, reduce_lr stops 12", "oracle",
    ]  # fmt: skip


LOSSES = st.floats(-10, 10) | st.just(NAN)
DEFAULTS = [method for method in METHODS if method.default and method.family != ORACLE]


@pytest.mark.parametrize("method", DEFAULTS, ids=lambda method: method.name)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_no_rule_looks_ahead(method: Method, data: st.DataObject) -> None:
    """Whatever follows: what has been seen decides, and the answer to less is no other."""
    val = data.draw(st.lists(LOSSES, min_size=2, max_size=45))
    layers = [[round(data.draw(st.floats(0, 0.05)), 3)] for _ in val]
    train = [data.draw(st.floats(0, 1)) for _ in val]
    whole = curve(val, layers, train)
    stop = method.rule(whole)
    assert 1 <= stop <= len(val)
    seen = data.draw(st.integers(1, len(val)))
    assert method.rule(whole.upto(seen)) == min(seen, stop)

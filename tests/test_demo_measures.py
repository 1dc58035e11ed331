"""The demo's measures, against values worked out by hand."""

import math

import pytest

from nanogpt_demo import measures
from nanogpt_demo.measures import Mean


def test_smoothing_is_a_trailing_mean_of_what_there_is():
    assert measures.smooth([4.0, 2.0, 0.0, 6.0], window=3).tolist() == [4.0, 3.0, 2.0, 8 / 3]
    assert measures.smooth([], window=3).tolist() == []
    assert measures.smooth([5.0], window=3).tolist() == [5.0]


def test_one_bad_value_spoils_only_the_means_that_hold_it():
    smooth = measures.smooth([1.0, math.nan, 1.0, 1.0, 1.0], window=2)
    assert [math.isnan(v) for v in smooth] == [False, True, True, False, False]


def test_spike_score_counts_one_sided_outliers_after_a_full_window():
    window = [1.0, 3.0] * 2  # mean 2, standard deviation 1
    assert measures.spike_score([*window, 9.01], window=4, std=7.0) == 20.0
    assert measures.spike_score([*window, 8.99], window=4, std=7.0) == 0.0
    assert measures.spike_score([*window, -50.0], window=4, std=7.0) == 0.0
    assert measures.spike_score([1.0, 1.0, 99.0], window=4, std=7.0) == 0.0


def test_spike_score_of_non_finite_values():
    window = [1.0, 3.0] * 2
    assert measures.spike_score([*window, math.nan], window=4) == 20.0
    after = [*window, math.inf, 2.0, 2.0, 2.0]  # windows with an infinity judge nothing
    assert measures.spike_score(after, window=4) == 12.5


def test_gap_is_the_worst_level_after_minus_the_level_before():
    losses = [9.0, 2.0, 2.0, 4.0, 6.0, 5.0]
    assert measures.gap(losses, event=3, window=2) == 5.5 - 2.0
    assert measures.gap(losses, event=0, window=2) is None
    assert measures.gap(losses, event=6, window=2) is None


def test_recovery_does_not_count_the_good_steps_before_the_event():
    losses = [1.0] * 5 + [4.0, 4.0, 2.0, 1.04, 1.04, 1.0]
    assert measures.recovery_steps(losses, 5, reference_level=1.0, window=2) == 5
    assert measures.recovery_steps(losses, 5, reference_level=0.9, window=2) is None


def test_recovery_needs_a_full_window():
    assert measures.recovery_steps([1.0] * 10, 5, reference_level=1.0, window=2) == 2
    assert measures.recovery_steps([1.0] * 6, 5, reference_level=1.0, window=2) is None


def test_final_level_stays_on_its_side_of_the_event():
    assert measures.final_level([9.0, 9.0, 1.0, 3.0], event=2, window=3) == 2.0


def test_mean_and_standard_error():
    assert measures.mean_se([1.0, 2.0, 3.0]) == Mean(2.0, pytest.approx(1 / math.sqrt(3)), 3)
    assert measures.mean_se([5.0]) == Mean(5.0, None, 1)
    with pytest.raises(ValueError, match="values must be non-empty"):
        measures.mean_se([])


def test_paired_difference_cancels_what_the_seeds_share():
    assert measures.paired([1.0, 11.0, 21.0], [2.0, 12.0, 22.0]) == Mean(-1.0, 0.0, 3)
    with pytest.raises(ValueError, match="a and b must be equally long, got 1 and 2"):
        measures.paired([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("difference", "word"),
    [
        (Mean(-2.1, 1.0, 3), "better"),
        (Mean(2.1, 1.0, 3), "worse"),
        (Mean(-1.0, 1.0, 3), "tied"),
        (Mean(1.5, 1.0, 3), "unclear"),
        (Mean(0.0, 0.0, 3), "tied"),
        (Mean(-9.0, None, 1), "unclear"),
        (None, "unclear"),
    ],
)
def test_verdict(difference, word):
    assert measures.verdict(difference) == word

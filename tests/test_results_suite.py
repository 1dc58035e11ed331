"""The committed results of suite and detectors: complete, consistent, from clean code."""

import json
import math
from collections import defaultdict
from pathlib import Path

import pytest

from nanogpt_demo import detectors
from nanogpt_demo.suite.cells import CELLS, SEEDS, Plan
from nanogpt_demo.suite.command import key_of
from nanogpt_demo.suite.peers import IDEAS
from nanogpt_demo.suite.run import LATE, SuiteSpec
from nanogpt_demo.suite.summary import summarise

RESULTS = Path(__file__).resolve().parent.parent / "results"
FIELDS = {
    *SuiteSpec.__dataclass_fields__,
    "steps", "val", "val_start", "survived", "touched", "touched_late", "seconds", "commit",
}  # fmt: skip


@pytest.fixture(scope="module")
def suite():
    return json.loads((RESULTS / "suite.json").read_text("utf-8"))


def held_out(suite, method):
    """The cell records of a method on the held-out split, by cell and seed."""
    return {
        (r["workload"], r["optimizer"], r["scenario"], r["seed"]): r
        for r in suite["records"]
        if r["kind"] == "cell" and r["split"] == "held-out" and r["method"] == method
    }


def test_every_record_is_complete_and_from_committed_code(suite):
    for record in suite["records"]:
        assert record.keys() >= FIELDS
        assert record["corpus"] == "tinyshakespeare"
        assert record["commit"] and "dirty" not in record["commit"]
        assert record["split"] in SEEDS and record["seed"] in SEEDS[record["split"]]
    keys = [key_of(record) for record in suite["records"]]
    assert len(keys) == len(set(keys))


def test_every_held_out_cell_has_every_method_on_ten_seeds(suite):
    planned = {spec.key for spec in Plan("held-out", "tinyshakespeare").cells()}
    missing = planned - {key_of(record) for record in suite["records"]}
    methods = sorted({key.split("-held-out")[0] for key in missing})[:3]
    assert not missing, f"{len(missing)} runs, such as {methods}: make suite does these alone"
    assert len(SEEDS["held-out"]) >= 10
    assert 24 <= sum(map(len, CELLS.values())) <= 30


def test_methods_are_compared_on_the_same_start(suite):
    starts = defaultdict(set)
    for r in suite["records"]:
        place = r["workload"], r["scenario"], r["strength"], r["seed"]
        starts[place].add(r["val_start"])
    assert all(len(found) == 1 for found in starts.values())
    assert all(math.isfinite(value) for (value,) in starts.values())


def test_the_summary_follows_from_the_records(suite):
    assert json.loads(json.dumps(summarise(suite["records"]))) == suite["summary"]


def test_ars_survives_what_the_bare_optimizer_survives_and_every_non_finite_run(suite):
    ours, bare = held_out(suite, "ars"), held_out(suite, "bare")
    assert all(record["survived"] for key, record in ours.items() if bare[key]["survived"])
    assert all(record["survived"] for key, record in ours.items() if "nonfinite" in key[2])


def test_no_peer_loses_less_in_its_worst_cell(suite):
    """As the pages say; and that it has the best profile score."""
    split = suite["summary"]["held-out"]
    worst = {name: numbers["regret_max"] for name, numbers in split["methods"].items()}
    assert worst["ars"] < min(value for name, value in worst.items() if not name.startswith("ars"))
    scores = {name: found["score"] for name, found in split["profile"]["common"].items()}
    assert max(scores, key=scores.get) == "ars"


def test_healthy_runs_are_hardly_touched_after_start_up(suite):
    late = [r["touched_late"] for key, r in held_out(suite, "ars").items() if key[2] == "none"]
    assert len(late) == len(SEEDS["held-out"]) * len(CELLS)
    assert sum(late) / len(late) <= 0.005
    assert LATE == 105


def test_ideas_are_tried_on_the_development_split_only_beside_the_default():
    document = json.loads((RESULTS / "ideas.json").read_text("utf-8"))
    planned = {spec.key for spec in Plan("dev", "tinyshakespeare").ideas()}
    assert {key_of(record) for record in document["records"]} <= planned
    assert all(r["commit"] and "dirty" not in r["commit"] for r in document["records"])
    assert json.loads(json.dumps(summarise(document["records"]))) == document["summary"]
    assert set(document["summary"]["dev"]["ablation"]) == set(IDEAS)
    usual = [r for r in document["records"] if r["method"] == "ars" and r["kind"] == "cell"]
    assert len(usual) == 120 and all(record["survived"] for record in usual)


def test_what_was_kept_of_the_ideas_is_what_brought_something():
    """The opening of sign steps is gone because it cost; no other idea is known to be better."""
    document = json.loads((RESULTS / "ideas.json").read_text("utf-8"))
    ideas = document["summary"]["dev"]["ablation"]
    before = ideas["ars opening for signs too"]
    assert before["cost"]["mean"] > 2 * before["cost"]["se"] and not before["verdicts"]["better"]


def test_the_detector_study_is_from_committed_code():
    document = json.loads((RESULTS / "detectors.json").read_text("utf-8"))
    assert document["commit"] and "dirty" not in document["commit"]
    assert detectors.detectors_table(document).count("\n\n") == 2


@pytest.mark.parametrize("name", ["suite", "suite_lr", "detectors"])
def test_the_pictures_are_there(name):
    assert (RESULTS / f"{name}.png").read_bytes().startswith(b"\x89PNG")

"""The committed results of the overhead benchmark: complete, consistent, from clean code."""

import json
from pathlib import Path

import pytest

from nanogpt_demo.bench.cases import CASES
from nanogpt_demo.bench.measure import IN_STATE
from nanogpt_demo.bench.methods import variants_for
from nanogpt_demo.bench.summary import (
    JITTERED,
    JITTERED_LIMIT,
    NOISE_ALONE,
    PROMISED,
    rows,
    summarise,
    unclear,
)

MISSED = {("jittered", case, "adamw-fused") for case in ("20x1M", "gpt2-124m")}
"""What README says is missed, beyond the scatter: two more passes over the gradients."""

CHEAPEST = "adds less than the cheapest of the peers"

PATH = Path(__file__).resolve().parent.parent / "results" / "overhead.json"


@pytest.fixture(scope="module")
def overhead():
    return json.loads(PATH.read_text("utf-8"))


def check_that_all_is_there(document, cases, without=()):
    """Every case has every base and every method, once; gives the timed records."""
    planned = {
        (case.name, base, variant.method, variant.state)
        for case in cases
        for base in case.bases
        for variant in variants_for(base)
        if variant.method not in without
    }
    timed = [record for record in document["records"] if record["kind"] == "time"]
    found = [tuple(r[name] for name in ("case", "base", "method", "state")) for r in timed]
    assert len(found) == len(set(found)) and set(found) == planned
    return timed


def test_every_case_has_every_base_and_every_method(overhead):
    check_that_all_is_there(overhead, CASES)


def test_every_record_is_in_its_state_and_from_committed_code(overhead):
    for record in overhead["records"]:
        assert record["commit"] and "dirty" not in record["commit"]
        assert record["device"] == "cpu"
        if record["kind"] == "time":
            assert record["in_state"] >= IN_STATE
            assert record["rounds"] >= 21


def test_the_summary_follows_from_the_records(overhead):
    assert json.loads(json.dumps(summarise(overhead["records"]))) == overhead["summary"]


def test_ars_keeps_its_promises(overhead):
    checks = overhead["summary"]["checks"]
    assert {(check["case"], check["base"]) for check in checks} >= set(PROMISED)
    missed = [check for check in checks if not check["holds"]]
    decided = [check for check in missed if not unclear(check)]
    assert {(c["check"].split(" ≤ ")[0], c["case"], c["base"]) for c in decided} == MISSED
    # Where the norm is measured at the price of the peers' own pass, noise decides.
    for check in checks:
        if CHEAPEST in check["check"]:
            assert check["value"] <= 1.1 * check["limit"]


def test_the_limit_of_a_jittered_step_is_missed_without_any_decision(overhead):
    """README says so: the passes over the gradients alone take more than the limit."""
    for place in PROMISED:
        row = rows(overhead["records"])[place]
        assert row[NOISE_ALONE]["ratio_to_bare"] > JITTERED_LIMIT
        assert row[JITTERED]["ratio_to_bare"] < 1.05 * row[NOISE_ALONE]["ratio_to_bare"]


def test_a_quiet_run_pays_with_kilobytes(overhead):
    """The noise table, 8 MiB, exists only once noise is used; nothing is ever a copy of weights."""
    sizes = overhead["summary"]["bytes"]
    assert sum(sizes["ars, quiet"].values()) < 10_000
    assert all(parts["other"] == 0 for parts in sizes.values())

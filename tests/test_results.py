"""The committed results are complete, consistent and what the code makes of the records."""

import copy
import json
import math
from pathlib import Path

import pytest

from nanogpt_demo.store import record_key
from nanogpt_demo.summary import fill_recovery, summarise

RESULTS = Path(__file__).resolve().parent.parent / "results"
FIELDS = {
    "size", "method", "seed", "steps", "shift_at", "lr", "corpus_sha256", "commit",
    "val", "val_start", "survived", "recovery_steps", "spike_score", "weight_norm_100_at",
    "touched",
}  # fmt: skip
TINY_SHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@pytest.fixture(scope="module")
def document():
    return json.loads((RESULTS / "stress.json").read_text("utf-8"))


def test_every_record_is_complete_and_from_committed_code(document):
    for record in document["records"]:
        assert record.keys() >= FIELDS
        assert record["corpus_sha256"] == TINY_SHAKESPEARE
        assert record["commit"] and "dirty" not in record["commit"]
    keys = [record_key(record) for record in document["records"]]
    assert len(keys) == len(set(keys))


def test_every_record_has_its_trace(document):
    for record in document["records"]:
        trace = document["traces"][record_key(record)]
        assert len(trace["loss"]) == record["steps"]
        after = trace["loss"][record["shift_at"] :]
        # The trace keeps four significant digits.
        assert sum(after) / len(after) == pytest.approx(record["mean_after"], rel=1e-3)
    assert len(document["traces"]) == len(document["records"])


def test_recovery_and_summary_follow_from_records_and_traces(document):
    records = copy.deepcopy(document["records"])
    fill_recovery(records, document["traces"])
    assert [r["recovery_steps"] for r in records] == [
        r["recovery_steps"] for r in document["records"]
    ]
    assert json.loads(json.dumps(summarise(records))) == document["summary"]


def test_methods_are_compared_on_the_same_start(document):
    """Equal seeds mean equal weights and data: the loss before training is the same.

    To the bit in the rows of one commit; others may be of a machine that rounds differently.
    """
    starts = {}
    for record in document["records"]:
        key = record["size"], record["seed"], record["corpus_sha256"]
        starts.setdefault(key, {}).setdefault(record["commit"], set()).add(record["val_start"])
    for by_commit in starts.values():
        assert all(len(values) == 1 for values in by_commit.values())
        found = set().union(*by_commit.values())
        assert all(map(math.isfinite, found)) and max(found) - min(found) < 1e-6


def test_the_picture_is_there():
    assert (RESULTS / "stress.png").read_bytes().startswith(b"\x89PNG")


def test_the_default_does_what_the_page_says(document):
    """Ahead of AdamW and the recipe at `quick`; level with the recipe at the others, others far."""
    for name, group in document["summary"].items():
        verdicts = {method: pair["verdict"] for method, pair in group["ars_minus"].items()}
        if group["size"] == "quick":
            assert verdicts["adamw"] == verdicts["adamw+warmup+clip"] == "better", name
            assert group["ars_minus"]["adamw+clip"]["mean"] < 0.0, name
        else:
            assert verdicts.get("adamw", "better") == verdicts["adamw+clip"] == "better", name
            assert verdicts["adamw+warmup+clip"] == "tied", name

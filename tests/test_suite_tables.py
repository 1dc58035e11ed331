"""The tables and pictures of the suite, made from invented runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanogpt_demo.store import dumps
from nanogpt_demo.suite import tables
from nanogpt_demo.suite.picture import headline, suite_pictures
from nanogpt_demo.suite.summary import reported, summarise
from tests.test_suite_summary import runs, synthetic


def test_nothing_to_report():
    assert summarise([]) == {}
    with pytest.raises(ValueError, match="run some cells first"):
        reported({})


def test_pictures_and_tables(tmp_path: Path):
    records = synthetic(seeds=2)
    document = {"records": records, "summary": summarise(records)}
    dumps(document)  # no NaN, no infinity
    split = document["summary"]["held-out"]
    suite_pictures(document, tmp_path)
    assert all((tmp_path / f).stat().st_size > 10_000 for f in ("suite.png", "suite_lr.png"))
    found = split["counts"]["all"]["best peer"]
    assert f"worse in {found['worse']}" in headline(split)
    ranks = tables.suite_ranks(document)
    assert all(f"| {method} |" in ranks for method in ("bare", "**ars**", "stable-adamw"))
    assert tables.suite_cells(document).count("\n") == 1 + len(split["cells"])
    assert "died" in tables.suite_cells(document)
    assert tables.suite_losses(document).count("- ") >= found["worse"]
    assert "| ars no start-up | +" in tables.suite_ablation(document)
    assert "| lr 0.0003 |" in tables.suite_lr(document)
    assert "gpt/adamw/none" in tables.suite_controls(document)


def test_the_table_of_ideas_leaves_out_where_an_idea_does_nothing():
    records = runs("ars", [2.0, 2.1, 2.2]) + runs("ars", [1.0, 1.0, 1.0], scenario="none")
    records += runs("ars x", [2.5, 2.6, 2.7], kind="ablation")
    records += runs("ars x", [1.0, 1.0, 1.0], kind="ablation", scenario="none")
    records += runs("ars y", [1.0, 1.0, 1.0], kind="ablation", scenario="none")
    table = tables.suite_ideas({"summary": summarise(records)})
    worst = "gpt/adamw/reversed +26.3 (worse)"
    assert f"| 1 of 2 cells | 0 / 0 / 0 / 1 | {worst} | {worst} |" in table
    assert "| ars y | +0.000 | 0 of 1 cells | 0 / 0 / 0 / 0 | - | - |" in table


def test_a_suite_that_has_only_begun(tmp_path: Path):
    document = {"summary": summarise(runs("bare", [1.0], split="dev"))}
    suite_pictures(document, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["suite.png"]
    assert "| bare |" in tables.suite_ranks(document)
    assert "None of the 1 cells" in tables.suite_losses(document)
    assert tables.suite_ablation(document) == tables.suite_lr(document) == ""


def test_small_errors_keep_their_digits():
    assert tables.plus_minus(0.01234, 0.00021) == "0.0123 ± 0.0002"
    assert tables.plus_minus(1.5, 0.02, "+") == "+1.500 ± 0.020"
    assert tables.plus_minus(1.5, 0.0) == "1.500 ± 0.000"

"""The numbers of the front page are those of the committed result files."""

import json
from pathlib import Path

import pytest

from nanogpt_demo import headline, readme

RESULTS = Path(__file__).resolve().parent.parent / "results"
RECIPE = "adamw+warmup+clip"


def load(name):
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def rows():
    sources, make = readme.BLOCKS["headline"]
    lines = make(*map(load, sources.split())).splitlines()[2:]
    return [line.strip("| ").split(" | ") for line in lines]


def row(rows, name):
    (found,) = (text for label, text in rows if label.startswith(f"[{name}]"))
    return found


def test_every_line_leads_to_a_section_of_the_results(rows):
    page = (RESULTS / "README.md").read_text("utf-8")
    for label, _ in rows:
        target, section = label.split("](")[1].split(")")[0].split("#")
        assert target == "results/README.md" and f"\n## {section}\n" in page


def test_stress_tells_of_the_two_large_sizes(rows):
    groups = {g["size"]: g for g in load("stress")["summary"].values()}
    for size, methods in (("paper", ("ars", "adamw", RECIPE)), ("wide", ("ars", RECIPE))):
        for method in methods:
            told = f"{groups[size]['methods'][method]['val']:.3f} ± "
            assert told in row(rows, "stress test")
        assert f"({groups[size]['ars_minus'][RECIPE]['verdict']})" in row(rows, "stress test")
    assert row(rows, "stress test").count("final loss") == 2


def test_the_best_peer_of_the_suite_is_named_with_its_rank(rows):
    ranks = load("suite")["summary"]["held-out"]["ranks"]["common"]["mean"]
    text = row(rows, "suite")
    peers = {name: rank for name, rank in ranks.items() if not name.startswith("ars")}
    best = min(peers, key=peers.get)
    for name in ("ars", "ars+clip", best):
        assert f"mean rank {ranks[name]:.2f}" in text
    assert f"{best} (the best peer)" in text and f"{len(ranks)} methods" in text


def test_what_a_wrong_learning_rate_costs_is_told_of_both_sweeps(rows):
    runs = [r for r in load("suite")["records"] if r["kind"] == "lr-sweep"]
    for pair in {(r["workload"], r["optimizer"]) for r in runs}:
        vals = {}
        for run in runs:
            if (run["workload"], run["optimizer"]) == pair:
                capped = min(run["val"], run["val_start"]) if run["survived"] else run["val_start"]
                vals.setdefault(run["method"], {}).setdefault(run["lr"], []).append(capped)
        means = {m: [sum(v) / len(v) for v in rates.values()] for m, rates in vals.items()}
        best = min(min(values) for values in means.values())
        text = row(rows, "learning rates").split("/".join(pair))[1].split(";")[0]
        for method, label in (("ars", "**ars**"), ("bare", "bare")):
            cost = sum(value - best for value in means[method]) / len(means[method])
            assert f"{label} {cost:.2f}" in text


def test_faults_are_counted_from_the_runs(rows):
    runs = [r for r in load("faults")["records"] if r["split"] == "held-out"]

    def of(kind, method):
        return [r for r in runs if r["kind"] == kind and r["method"] == method]

    text = row(rows, "faults")
    for method in ("ars", "bare", "arc"):
        assert f"{method} {sum(bool(r['healthy']) for r in of('transient', method))}" in text
    endless = of("persistent", "ars")
    stopped = [r for r in endless if r["outcome"].startswith("stopped")]
    text = row(rows, "faults that never end")
    assert f"stops {len(stopped)} of {len(endless)} runs" in text
    assert f"{sum(bool(r['cause_right']) for r in endless)} with the right cause" in text
    for fault in {r["fault"] for r in endless} - {r["fault"] for r in stopped}:
        assert f"`{fault}`" in text
    clean = of("control", "ars")
    rollbacks = sum(r["rollbacks"] for r in clean)
    assert f"{rollbacks} rollbacks" in row(rows, "clean runs")
    assert f"{len(clean)} short runs" in row(rows, "clean runs")


def test_the_losses_are_the_worse_cells():
    cells = load("suite")["summary"]["held-out"]["cells"]
    worse = [name for name, cell in cells.items() if cell["verdict_best"] == "worse"]
    text = headline.where_it_loses(load("suite"))
    assert text.startswith(f"In {len(worse)} of {len(cells)} cells")
    assert all(f"{name} (" in text for name in worse) and text.count(" %, ") == len(worse)
    shares = [float(part.split(" %")[0]) for part in text.split(" (")[2:]]
    assert shares == sorted(shares, reverse=True)


def test_nothing_is_listed_where_nothing_is_lost():
    suite = load("suite")
    for cell in suite["summary"]["held-out"]["cells"].values():
        for pair in cell["ars_minus"].values():
            pair["verdict"] = "tied"
    text = headline.where_it_loses(suite)
    assert text.startswith("In 0 of") and text.endswith("two standard errors.")


def test_costs_are_the_ratios_of_the_benchmark():
    overhead = load("overhead")
    text = headline.cost(overhead, load("snapshots"))
    quiet = overhead["summary"]["ratios"]["20x1M, adamw-fused"]["ars, quiet"]
    assert f", {quiet:.3f} ± " in text and len(text.splitlines()) <= 6
    jittered = overhead["summary"]["ratios"]["20x1M, adamw-fused"]["ars, jittered"]
    assert ("more than the limit" in text) == (jittered > 1.6)

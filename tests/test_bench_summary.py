"""What the benchmark's records are summed up to: checks, their errors, tables."""

import numpy as np
import pytest

from nanogpt_demo.bench import summary


def record(method, state, ratio, case="20x1M", base="adamw-fused"):
    return {
        "kind": "time", "case": case, "base": base, "method": method, "state": state, "ms": 10.0,
        "ratio_to_bare": ratio, "ratio_to_bare_q1": ratio, "ratio_to_bare_q3": ratio,
        "added": ratio - 1, "added_q1": ratio - 1, "added_q3": ratio - 1, "rounds": 25,
    }  # fmt: skip


def a_row(**changed):
    ratios = {
        "bare any": 1.0, "clip any": 1.5, "zclip quiet": 1.4, "arc quiet": 1.6,
        "stabilityguard quiet": 2.0, "ars no norm guard quiet": 1.0, "ars quiet": 1.3,
        "ars bounded": 1.42, "ars damped": 1.43, "ars jittered": 1.6, "ars-paper damped": 1.2,
    } | changed  # fmt: skip
    return [record(*name.rsplit(" ", 1), ratio) for name, ratio in ratios.items()]


def held(records):
    return [check["holds"] for check in summary.summarise(records)["checks"]]


def test_checks_hold_at_their_limits_and_not_beyond():
    assert held(a_row()) == [True] * 6
    assert held(a_row(**{"ars no norm guard quiet": 1.011})) == [False] + [True] * 5
    assert held(a_row(**{"clip any": 1.29})) == [True, False] + [True] * 4
    assert held(a_row(**{"ars bounded": 1.431})) == [True] * 2 + [False] + [True] * 3
    assert held(a_row(**{"ars damped": 1.431})) == [True] * 3 + [False] + [True] * 2
    assert held(a_row(**{"ars jittered": 1.601})) == [True] * 4 + [False, True]
    assert held(a_row(**{"zclip quiet": 1.3})) == [True] * 5 + [False]


def test_limits_are_meant_for_two_rows_and_the_peers_for_all():
    elsewhere = [r | {"base": "lion"} for r in a_row()]
    found = summary.summarise(elsewhere)
    (only,) = found["checks"]
    assert only["check"].endswith("(zclip)") and only["value"] == pytest.approx(0.3)
    assert only["limit"] == pytest.approx(0.4)
    assert found["ratios"]["20x1M, lion"]["ars, jittered"] == 1.6


def test_bytes_are_the_largest_found():
    kept = {"kind": "memory", "method": "ars", "state": "jittered", "part": "table"}
    records = [kept | {"bytes": size} for size in (3, 7, 5)]
    assert summary.summarise(records)["bytes"] == {"ars, jittered": {"table": 7}}


def test_tables_show_milliseconds_once_and_ratios_else():
    records = [*a_row(), *(r | {"base": "sgd-fused"} for r in a_row() if r["method"] != "arc")]
    with pytest.raises(KeyError):
        summary.summarise(records)  # a row without a peer is not complete
    table = summary.overhead_table({"records": records})
    assert "**20x1M**" in table and "| bare | 10 ms | 10 ms |" in table
    assert "| clip | 1.500 (1.500 to 1.500) |" in table
    assert "| arc | 1.600 (1.600 to 1.600) |  |" in table
    promises = summary.overhead_checks({"summary": summary.summarise(a_row(**{"clip any": 1.2}))})
    assert "| 20x1M, adamw-fused | 1.300 | 1.200 | +0.100 ± 0.000 | **no** |" in promises


def test_a_check_within_two_standard_errors_of_its_limit_says_so():
    spread = 0.1 * 5 / summary.QUARTILES_TO_ERROR  # of 25 rounds: a standard error of 0.1
    records = [
        r | {"ratio_to_bare_q1": r["ratio_to_bare"] - spread / 2}
        | {"ratio_to_bare_q3": r["ratio_to_bare"] + spread / 2}
        for r in a_row(**{"ars jittered": 1.79, "clip any": 1.7})
    ]  # fmt: skip
    checks = summary.summarise(records)["checks"]
    assert [round(check["error"], 4) for check in checks[:5]] == [0.1, 0.1414, 0.1487, 0.1487, 0.1]
    table = summary.overhead_checks({"summary": {"checks": checks}}).splitlines()[2:]
    assert [line.endswith(", within noise |") for line in table] == [
        True,
        False,
        True,
        True,
        True,
        False,
    ]
    assert "| 1.790 | 1.600 | +0.190 ± 0.100 | **no**, within noise |" in table[4]
    assert "| 1.300 | 1.700 | -0.400 ± 0.141 | yes |" in table[1]


def test_the_standard_error_of_a_median_is_that_of_normal_values():
    rng = np.random.default_rng(0)
    rounds = rng.normal(size=(4000, 81))
    low, high = np.percentile(rounds, [25, 75], axis=1)
    record = {"x": 0.0, "x_q1": float(low.mean()), "x_q3": float(high.mean()), "rounds": 81}
    _, error = summary._median(record, "x")
    assert error == pytest.approx(np.median(rounds, axis=1).std(), rel=0.05)

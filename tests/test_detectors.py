"""The detector study: its rules by hand, the shipped rules against the policy, the command."""

import argparse
import io
import json

import numpy as np
import pytest
from rich.console import Console

from nanogpt_demo import detector_rules as rules
from nanogpt_demo import detector_windows as windows
from nanogpt_demo import detectors
from nanogpt_demo.detector_signals import ALTERNATIVES, NULLS, oscillation, white
from nanogpt_demo.detector_study import Case, evidence, false_alarms, measure, share, tuned
from nanogpt_demo.store import Store
from resilient_optim import DefaultConfig, statistics
from tests.policy_run import Run


def rng(seed=0):
    return np.random.default_rng(seed)


def scores(*values):
    return np.array([values], dtype=float)


def steps_of(alarms):
    return np.flatnonzero(alarms[0]).tolist()


# -- rules of sustained change ----------------------------------------------------------------


def test_cusum_by_hand():
    seen = scores(1, 1, -3, 2, 1, 1, 1)  # sums above the slack: .5 1 0 1.5 2 2.5 3
    assert steps_of(rules.cusum(seen, 2.2)) == [5]
    assert steps_of(rules.cusum(seen, 3.0)) == []


def test_cusum_starts_afresh_after_a_rest_of_sixteen():
    assert steps_of(rules.cusum(np.ones((1, 60)), 1.2)) == [2, 21, 40, 59]


def test_an_outlier_is_no_new_level_to_the_clipped_sum():
    seen = np.zeros((1, 30))
    seen[0, 10] = 50.0
    assert steps_of(rules.cusum(seen, 10.0)) == [10]
    assert steps_of(rules.clipped_cusum(seen, 10.0)) == []


def test_leaky_count_by_hand():
    assert steps_of(rules.leaky_count(scores(4, 4, 0, 4, 4, 4), 3.0, 4)) == [5]  # 1 2 1.67 2.67 ...
    assert steps_of(rules.leaky_count(scores(4, 4, 4, 4), 3.0, 4)) == [3]
    assert steps_of(rules.leaky_count(scores(4, 0, 0, 0, 4, 0, 0, 0, 4), 3.0, 2)) == []


def test_page_hinkley_by_hand():
    losses, scale = scores(0, 0, 3, 3), np.ones((1, 4))
    # 3 - mean(0, 0) - .5 = 2.5; then 3 - mean(0, 0, 3) - .5 = 1.5 more.
    assert steps_of(rules.page_hinkley(losses, scale, 2.4)) == [2]
    assert steps_of(rules.page_hinkley(losses, scale, 3.9)) == [3]
    assert steps_of(rules.page_hinkley(losses, scale, 4.1)) == []


def test_two_windows_by_hand():
    losses = np.r_[np.zeros(60), np.full(10, 2.0)][None]
    found = rules.two_window_scores(losses, np.full((1, 70), 0.5))
    assert found[0, 62:67].tolist() == [0.0, 2.0, 4.0, 4.0, 4.0]  # from 4 of 8 on


# -- the rules of others ----------------------------------------------------------------------


def test_window_scores_and_ratios_leave_the_judged_loss_out():
    losses = white(rng(), 2, 140)
    past = losses[1, 2:130]
    expected = (losses[1, 130] - past.mean()) / past.std()
    assert rules.window_scores(losses)[1, 130] == pytest.approx(expected)
    assert rules.ratios(losses)[1, 130] == pytest.approx(losses[1, 130] / losses[1, 30:130].mean())
    assert not rules.window_scores(losses)[:, :128].any()


# -- the shipped rules ------------------------------------------------------------------------


def test_the_shipped_rules_are_the_policys():
    """Until the policy first leaves a step out or forgets, feedback-free scores are its own."""
    case = Case("null", "white", "", white(rng(3), 8, 2000), 128)
    seen, known = evidence(case), rules.summaries(case.traces)
    for row, losses in enumerate(case.traces):
        own = Run().see_all(losses)
        assert all(d.action != "skip" and not d.new_level for d in own)
        assert seen.surprise[row].tolist() == [d.z for d in own]
        np.testing.assert_array_equal(known.rho[row], [d.rho for d in own])
    flags = rules.run_policy(case.traces)
    np.testing.assert_array_equal(flags.surprised, seen.surprise > DefaultConfig().z_threshold)
    np.testing.assert_array_equal(flags.resonant, known.rho < -0.75)
    assert flags.surprised.any()


def test_the_leaky_count_is_the_policys_streak():
    """A low threshold, so that the streak is exercised; gates never close enough to skip."""
    config = DefaultConfig(start_up=0, z_threshold=0.6, phi_min=0.0)
    losses = white(rng(5), 20, 600)
    known = rules.summaries(losses)
    ours = rules.leaky_count(rules.surprises(losses, known), 0.6, config.patience)
    theirs = rules.run_policy(losses, config).new_level
    assert theirs.any(axis=1).sum() > 10
    np.testing.assert_array_equal(ours.argmax(axis=1), theirs.argmax(axis=1))  # the first of each


def test_the_policy_is_run_as_ars_runs_it():
    losses = np.r_[white(rng(), 1, 200)[0], white(rng(1), 1, 100)[0] + 3.0]
    assert list(rules.decisions(losses)) == Run().see_all(losses)


# -- windows ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "g"), [(5, 0.68377), (10, 0.44495), (50, 0.13135)])
def test_fishers_g_has_the_published_critical_values(m, g):
    assert windows.fisher_threshold(0.05, m) == pytest.approx(g, abs=2e-5)
    assert windows.fisher_p(g, m) == pytest.approx(0.05, abs=1e-5)


def test_fishers_g_of_white_noise_exceeds_its_exact_threshold_as_often_as_promised():
    found = windows.fisher_g(white(rng(), 20_000, 64))
    size = (found > windows.fisher_threshold(0.01)).mean()
    assert size == pytest.approx(0.01, abs=4 * np.sqrt(0.01 / 20_000))


def test_anticorrelation_is_the_librarys():
    noise = white(rng(), 3, 64)
    expected = [-statistics.difference_autocorrelation(window) for window in noise]
    assert windows.anticorrelation(noise).tolist() == expected


@pytest.mark.parametrize("period", [2, 3, 4, 6])
@pytest.mark.parametrize("statistic", [windows.half_step_g, windows.whitened_g])
def test_a_rhythm_raises_g(period, statistic):
    rhythm = statistic(oscillation(rng(), 200, 64, period, 2.0))
    assert np.median(rhythm) > statistic(white(rng(), 2000, 64)).max()


def test_spectral_order_is_between_a_flat_spectrum_and_a_line():
    line = np.cos(2 * np.pi * 9 * np.arange(64) / 63)[None]
    assert windows.spectral_order(line)[0] == pytest.approx(0.0, abs=0.05)
    noise = windows.spectral_order(white(rng(), 100, 64))
    assert -1.0 < noise.min() and noise.max() < -0.7


def test_slope_test_has_its_nominal_size_and_sign():
    noise = white(rng(), 10_000, 64)
    for effective in (False, True):
        size = (windows.slope_scores(noise, effective) > 1.645).mean()
        assert size == pytest.approx(0.05, abs=0.01)
    assert (windows.slope_scores(noise[:50] - 0.1 * np.arange(64), True) > 5).all()


# -- measuring --------------------------------------------------------------------------------


def test_measures_by_hand():
    alarms = np.zeros((2, 100), dtype=bool)
    alarms[0, 60] = alarms[0, 10] = True
    null = Case("null", "x", "", np.zeros((2, 100)), 50)
    assert measure(null, "p", "r", "s", alarms)["rate_per_1000"] == 10.0
    found = measure(null._replace(event=50), "p", "r", "s", alarms)
    assert (found["power"], found["median_delay"]) == (0.5, None)
    alarms[1, 50] = True
    assert measure(null._replace(event=50), "p", "r", "s", alarms)["median_delay"] == 6.0
    assert false_alarms(alarms[:1])["se"] is None
    assert share(np.array([True, False, False, False]))["se"] == pytest.approx(0.2165)


def test_tuning_meets_the_rate():
    null = evidence(Case("null", "white", "", white(rng(), 30, 500), 128))
    threshold = tuned(lambda e, h: rules.cusum(e.signed, h), null, rate=5.0)
    rate = 1000 * rules.cusum(null.signed, threshold)[:, 128:].mean()
    assert rate == pytest.approx(5.0, abs=0.5)


@pytest.mark.parametrize("signal", [*NULLS, *ALTERNATIVES], ids=lambda s: s.name + s.parameter)
def test_signals_are_reproducible_and_finite(signal):
    traces = signal.make(rng(), 3, 328)
    assert traces.shape == (3, 328) and np.isfinite(traces).all()
    assert np.array_equal(traces, signal.make(rng(), 3, 328))


# -- the command ------------------------------------------------------------------------------


def record(seed):
    fields = {"size": "quick", "method": "adamw", "steps": 330, "shift_at": 200, "lr": 3e-3}
    text = {"corpus": "text", "corpus_sha256": "0" * 64, "shift": "reverse"}
    return {**fields, **text, "seed": seed}


def test_the_command_writes_numbers_table_and_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(detectors, "STEPS", 100)
    records = [record(1), record(2)]
    losses = white(rng(), 2, 330)
    losses[:, 200:] += 3.0
    traces = {
        detectors.record_key(r): {"loss": row.tolist()}
        for r, row in zip(records, losses, strict=True)
    }
    Store(tmp_path, "stress").change(lambda d: d.update(records=records, traces=traces, summary={}))
    parser = argparse.ArgumentParser()
    detectors.add_arguments(parser)
    options = parser.parse_args(
        ["--traces", "2", "--out", str(tmp_path), "--recorded", str(tmp_path)]
    )
    told = io.StringIO()
    assert detectors.main(options, "the command", Console(file=told, width=300)) == 0
    document = json.loads((tmp_path / "detectors.json").read_text())
    assert document["command"] == "the command" and document["seed"] == 0
    named = [tuple(r[k] for k in ("family", "signal", "parameter", "purpose", "rule", "setting"))
             for r in document["records"]]  # fmt: skip
    assert len(named) == len(set(named))
    shift = [r for r in document["records"] if (r["parameter"], r["rule"]) == ("shift", "policy")]
    assert {r["purpose"]: r["median_delay"] for r in shift} == {
        "surprise": 1.0,
        "new level": DefaultConfig().patience,
    }
    assert detectors.detectors_table(document) in told.getvalue()
    assert (tmp_path / "detectors.png").read_bytes().startswith(b"\x89PNG")


def test_too_few_traces_are_refused(tmp_path):
    options = argparse.Namespace(traces=1, seed=0, out=tmp_path, recorded=tmp_path)
    with pytest.raises(ValueError, match="traces must be"):
        detectors.main(options, "", Console())

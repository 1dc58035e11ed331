"""What the default policy does about gradient norms that are out of line."""

import math

import numpy as np
import pytest

from resilient_optim.decision import DAMP, SKIP
from resilient_optim.policy_state import OUTLIERS_MAX
from tests.policy_run import CALM, Run


def run_with_norms(**settings):
    run = Run(**settings)
    run.see_all(CALM[:160], np.exp(np.random.default_rng(1).normal(size=160) * 0.1))
    return run


def test_an_outlier_gradient_is_scaled_back_to_the_reference():
    run = run_with_norms()
    reference = math.exp(run.state.log_norm)
    decision = run.see(2.0, 1000.0)
    assert (decision.action, decision.reason) == (DAMP, "outlier gradient")
    assert decision.grad_scale * 1000.0 == pytest.approx(reference)
    assert decision.update_scale == 1.0
    assert decision.abnormal_norm
    assert math.log(1000.0) not in run.buffer.log_norms.values


def test_what_is_an_outlier_is_set_by_the_noise_of_the_norms():
    run = run_with_norms(norm_z=6.0)
    edge = math.exp(run.state.log_norm + 6.0 * run.state.log_norm_sigma)
    assert not run.see(2.0, 0.99 * edge).touched
    assert run.see(2.0, 1.01 * edge).touched


def test_events_in_short_order_put_the_run_on_alert():
    above = 1.5  # above the reference, far from an outlier
    lone, pair, off = run_with_norms(), run_with_norms(), run_with_norms(alert_threshold=math.inf)
    assert not lone.see(2.0, above).touched
    lone.see(2.0, 1000.0)
    assert not lone.see(2.0, above).touched
    for run in (pair, off):
        run.see(2.0, 1000.0)
        run.see(2.0, 1000.0)
    held = pair.see(2.0, above)
    assert held.grad_scale * above == pytest.approx(math.exp(pair.state.log_norm), rel=0.01)
    assert held.abnormal_norm
    assert not off.see(2.0, above).touched
    calm = [pair.see(2.0, above).touched for _ in range(40)]
    assert calm[0]
    assert not calm[-1]


def test_outlier_gradients_that_stay_become_the_new_normal():
    run = run_with_norms()
    early = [run.see(CALM[i % 160], 100.0) for i in range(OUTLIERS_MAX)]
    held = [decision.grad_scale for decision in early if decision.action != SKIP]
    assert len(held) >= OUTLIERS_MAX - run.config.patience
    assert max(held) < 0.02  # still near the old reference, a hundredth of what comes
    later = [run.see(CALM[i % 160], 100.0).grad_scale for i in range(250)]
    assert later[-1] == 1.0


def test_far_outliers_in_a_row_are_left_out_until_they_are_how_things_are():
    run = run_with_norms(patience=5)
    recorded = run.buffer.losses.values.tolist()[-20:]
    decisions = [run.see(2.0, 100.0) for _ in range(8)]
    assert [d.action for d in decisions] == [DAMP, *[SKIP] * 4, *[DAMP] * 3]
    assert {d.reason for d in decisions} == {"outlier gradient"}
    left_out = decisions[1]
    assert (left_out.phi, left_out.update_scale, left_out.grad_scale) == (0.0, 0.0, 1.0)
    assert run.buffer.losses.values.tolist()[-24:] == [*recorded, 2.0, 2.0, 2.0, 2.0]
    assert math.log(100.0) not in run.buffer.log_norms.values


def test_a_lone_far_outlier_is_bounded_as_often_as_it_comes():
    run = run_with_norms()
    actions = [run.see(2.0, 100.0 if i % 2 else 1.0).action for i in range(40)]
    assert SKIP not in actions


def test_outliers_that_a_change_of_the_data_explains_are_bounded():
    run = run_with_norms()
    reference = math.exp(run.state.log_norm)
    decisions = [run.see(2.0, 4.5 * reference) for _ in range(20)]
    assert {d.action for d in decisions} == {DAMP}


@pytest.mark.parametrize(("loss", "levels"), [(9.0, 1), (2.0, 0)])
def test_far_outliers_count_as_surprises(loss, levels):
    """Where the loss is higher after them, it takes one step to see that it stays: a trial's."""
    run = run_with_norms()
    run.see_all([2.0] * 20, [100.0] * 20)
    assert run.state.streak < run.config.patience
    run = run_with_norms()
    patience = run.config.patience
    run.see_all([2.0] * patience, [100.0] * patience)
    assert run.state.streak == patience - 1
    assert sum(run.see(loss, 1.0).new_level for _ in range(5)) == levels


def test_a_run_that_was_not_followed_from_its_beginning_takes_no_single_norm_for_the_reference():
    """A resumed run whose first norm happens to be tiny must not be held to it."""
    run = Run(start_up=0)
    norms = np.exp(np.random.default_rng(1).normal(size=160) * 0.1)
    norms[0] = 1e-4
    assert not any(d.touched for d in run.see_all(CALM[:160], norms))
    assert math.exp(run.state.log_norm) == pytest.approx(1.0, rel=0.2)

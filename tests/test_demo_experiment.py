"""One run of the demo: paired, undisturbed by evaluation, resumable, and never crashed by NaN."""

import json
import math

import numpy as np
import pytest
import torch

from nanogpt_demo import experiment, spec
from nanogpt_demo.corpus import encode
from nanogpt_demo.experiment import Batches, run
from nanogpt_demo.methods import METHODS, build_method, warmup_factor
from nanogpt_demo.spec import RunSpec, Size

TEXT = encode("text", "".join(chr(97 + i * i % 26) for i in range(8000)))
TINY = Size(1, 2, 8, 8, 4, eval_batches=2, steps=8, shift_at=4, lr=3e-3)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(spec.SIZES, "tiny", TINY)


def tiny(method="adamw", seed=1, **changes) -> RunSpec:
    return RunSpec.of_size("tiny", method, seed, **changes)


def without_time(record):
    return {name: value for name, value in record.items() if name != "seconds"}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_repeats_itself(method):
    record, trace = run(tiny(method), TEXT)
    again, same = run(tiny(method), TEXT)
    assert without_time(record) == without_time(again)
    assert trace == same
    assert len(trace["loss"]) == 8
    assert set(trace) == ({"loss", "phi", "psi", "chi"} if "ars" in method else {"loss"})
    json.dumps([record, trace], allow_nan=False)


@pytest.mark.parametrize("method", METHODS)
def test_methods_start_alike(method):
    record, trace = run(tiny(method), TEXT)
    plain, plain_trace = run(tiny("adamw"), TEXT)
    assert trace["loss"][0] == plain_trace["loss"][0]
    assert record["val_start"] == plain["val_start"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_does_what_a_cpu_does(method):
    record, trace = run(tiny(method), TEXT)
    again, same = run(tiny(method), TEXT, device=torch.device("cuda"))
    assert (again["val"], again["touched"]) == (pytest.approx(record["val"]), record["touched"])
    assert set(trace) == set(same)
    for name, values in trace.items():
        assert same[name] == pytest.approx(values, rel=2e-3), name  # of four digits


def test_batches_depend_on_seed_and_step_alone():
    one, other = Batches(tiny("adamw"), TEXT), Batches(tiny("ars"), TEXT)
    other.train(7), other.evaluation()  # neither order nor evaluation matters
    for step in (0, 3, 4, 7):
        assert all(
            torch.equal(a, b) for a, b in zip(one.train(step), other.train(step), strict=True)
        )
    assert not torch.equal(one.train(0)[0], Batches(tiny(seed=2), TEXT).train(0)[0])
    x, y = one.train(0)
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert x.shape == (4, 8)


def test_evaluation_is_the_same_for_all_seeds_and_of_the_final_text():
    one, other = (Batches(tiny(seed=seed), TEXT).evaluation() for seed in (1, 2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, other, strict=True))
    never = Batches(tiny(shift_at=8), TEXT).evaluation()
    assert not torch.equal(never[0][0], Batches(tiny(), TEXT).evaluation()[0][0])


def test_the_text_is_shifted_from_the_event_on():
    early, late = Batches(tiny(shift_at=0), TEXT), Batches(tiny(shift_at=8), TEXT)
    middle = Batches(tiny(), TEXT)
    assert torch.equal(middle.train(3)[0], late.train(3)[0])
    assert torch.equal(middle.train(4)[0], early.train(4)[0])
    assert not torch.equal(early.train(4)[0], late.train(4)[0])


def test_no_global_generator_is_used():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    run(tiny(), TEXT)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(method, tmp_path):
    path = tmp_path / "run.pt"

    def interrupt(step, loss):
        if step == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(tiny(method), TEXT, interrupt, path, checkpoint_seconds=0.0)
    steps = []
    record, trace = run(tiny(method), TEXT, lambda step, loss: steps.append(step), path)
    whole, whole_trace = run(tiny(method), TEXT)
    assert steps == [5, 6, 7]
    assert trace == whole_trace
    assert without_time(record) == without_time(whole)
    assert not path.exists()


def test_a_checkpoint_of_another_run_is_ignored(tmp_path):
    path = tmp_path / "run.pt"

    def interrupt(step, loss):
        if step == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(tiny(), TEXT, interrupt, path, commit="old", checkpoint_seconds=0.0)
    steps = []
    run(tiny(), TEXT, lambda step, loss: steps.append(step), path, commit="new")
    assert steps[0] == 0


def test_a_diverging_run_is_recorded_not_crashed():
    record, trace = run(tiny(lr=1e30), TEXT)
    assert record["survived"] is False
    assert record["val"] is None
    assert None in trace["loss"]
    assert record["weight_norm_100_at"] == 0
    json.dumps([record, trace], allow_nan=False)


def test_touched_is_the_share_of_changed_steps():
    assert run(tiny("adamw"), TEXT)[0]["touched"] == 0.0
    assert run(tiny("adamw+warmup+clip"), TEXT)[0]["touched"] == 1.0


def test_warmup_reaches_the_full_rate_at_step_50():
    assert warmup_factor(0) == 0.02
    assert warmup_factor(24) == 0.5
    assert warmup_factor(49) == warmup_factor(1000) == 1.0
    model = torch.nn.Linear(2, 1)
    method = build_method("adamw+warmup+clip", model, lr=1.0, seed=1)
    seen = []
    for _ in range(51):
        seen.append(method.optimizer.param_groups[0]["lr"])
        method.zero_grad()
        model(torch.zeros(1, 2)).sum().mul(0.1).backward()
        method.step(torch.tensor(0.0))
    assert seen == pytest.approx([warmup_factor(i) for i in range(51)])


def test_clipping_bounds_the_gradient():
    model = torch.nn.Linear(2, 1)
    method = build_method("adamw+clip", model, lr=0.1, seed=1)
    model(torch.full((1, 2), 100.0)).sum().backward()
    method.step(torch.tensor(0.0))
    norms = [float(p.grad.norm()) for p in model.parameters()]
    assert math.hypot(*norms) == pytest.approx(1.0)
    assert method.touched


def test_weight_norm_is_that_of_all_parameters_together():
    assert experiment.weight_norm([torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]) == 5.0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": 2.5}, TypeError, "steps must be an integer, got 2.5"),
        ({"shift_at": 9}, ValueError, "shift_at must be at most steps=8, got 9"),
        ({"shift_at": -1}, ValueError, "shift_at must be at least 0, got -1"),
        ({"lr": 0.0}, ValueError, "lr must be finite and above 0, got 0.0"),
        ({"lr": math.nan}, ValueError, "lr must be finite and above 0, got nan"),
        ({"lr": "high"}, TypeError, "lr must be a number, got 'high'"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"method": "sgd"}, ValueError, r"method must be a known name, got 'sgd'; .*adamw\+clip"),
        ({"shift": "upside"}, ValueError, "shift must be a known name"),
    ],
)
def test_bad_specs_are_refused(changes, error, message):
    fields = {"method": "adamw", "seed": 1} | changes
    with pytest.raises(error, match=message):
        tiny(**fields)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="size must be a known name, got 'huge'; .*quick, paper"):
        RunSpec.of_size("huge", "adamw", 1)
    with pytest.raises(ValueError, match="method must be a known name, got 'sgd'"):
        build_method("sgd", torch.nn.Linear(1, 1), 0.1, 1)

"""The peers of the suite: what they do, what they say they did, and that they leave nothing."""

from __future__ import annotations

import copy
import math
import threading

import pytest
import torch
from torch import Tensor, nn

from nanogpt_demo.suite import peers
from nanogpt_demo.suite.optimizers import OPTIMIZERS
from nanogpt_demo.suite.peers_packages import PLATEAU_EPOCH, ArcGuarded, Plateau
from nanogpt_demo.suite.peers_reimplemented import AdaGC, SkipStep

LR = {"adamw": 3e-3, "sgd": 3e-2, "lion": 1e-3}
PACKAGES = {
    "zclip": "zclip",
    "arc": "arc",
    "stabilityguard": "stabilityguard",
    "stableadamw": "optimi",
    "spam": "pytorch_optimizer",
    "adabelief": "pytorch_optimizer",
}
CELLS = [(n, o) for n in peers.ALL for o in OPTIMIZERS if peers.applicable(n, o)]


def need(name: str, optimizer: str) -> None:
    package = PACKAGES.get(name.split("+")[0])
    for module in (package, "pytorch_optimizer" if optimizer == "lion" else None):
        if module is not None:
            pytest.importorskip(module)


def tiny_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))


def batch(step: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(step))
    return x, x.sum(dim=1, keepdim=True).sin()


def backward(model: nn.Module, step: int) -> Tensor:
    x, y = batch(step)
    model.zero_grad(set_to_none=True)
    loss = (model(x) - y).square().mean()
    loss.backward()
    return loss.detach()


def train(name: str, optimizer: str, steps: int) -> tuple[nn.Module, peers.Method, list[bool]]:
    model = tiny_model()
    method = peers.build(name, model, optimizer, LR[optimizer], seed=0)
    touched = []
    for step in range(steps):
        method.step(backward(model, step))
        touched.append(method.touched)
    getattr(method, "close", lambda: None)()
    return model, method, touched


def final_loss(model: nn.Module) -> float:
    with torch.no_grad():
        x, y = batch(999)
        return float((model(x) - y).square().mean())


@pytest.mark.parametrize(("name", "optimizer"), CELLS)
def test_every_peer_trains_silently(
    name: str, optimizer: str, capfd: pytest.CaptureFixture[str]
) -> None:
    need(name, optimizer)
    model, _, _ = train(name, optimizer, 60)
    assert final_loss(model) < 0.9 * final_loss(tiny_model())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_bare_and_clip_are_torch_to_the_bit(optimizer: str, max_norm: float | None) -> None:
    need("bare", optimizer)
    reference = tiny_model()
    base = OPTIMIZERS[optimizer](reference.parameters(), LR[optimizer])
    expected = []
    for step in range(40):
        backward(reference, step)
        if max_norm is not None:
            norm = nn.utils.clip_grad_norm_(reference.parameters(), max_norm)
            expected.append(float(norm) > max_norm)
        base.step()
    model, _, touched = train("bare" if max_norm is None else "clip", optimizer, 40)
    assert touched == (expected or [False] * 40)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", [n for n in peers._guards() if "+" not in n and n != "plateau"])
def test_a_step_reported_untouched_is_the_bare_step(name: str) -> None:  # plateau has its own
    need(name, "adamw")
    model = tiny_model()
    method = peers.build(name, model, "adamw", LR["adamw"], seed=0)
    seen = set()
    for step in range(130):
        loss = backward(model, step)
        if step % 40 == 39:
            for p in model.parameters():
                p.grad.mul_(1e4)
            loss = loss * 1e4
        twin = copy.deepcopy(model)
        bare = OPTIMIZERS["adamw"](twin.parameters(), LR["adamw"])
        bare.load_state_dict(copy.deepcopy(method.optimizer.state_dict()))
        for group in bare.param_groups:
            group["lr"] = LR["adamw"]  # what the schedule says, whatever the method made of it
        for copied, p in zip(twin.parameters(), model.parameters(), strict=True):
            copied.grad = p.grad.clone()
        bare.step()
        method.step(loss)
        pairs = zip(twin.parameters(), model.parameters(), strict=True)
        same = all(torch.equal(a, b) for a, b in pairs)
        # A clip by a hair may change the gradient and yet not AdamW's rounded step.
        assert same or method.touched
        seen.add(method.touched)
    getattr(method, "close", lambda: None)()
    assert seen == {False, True}


def vector_model() -> tuple[nn.Module, torch.optim.SGD]:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    return model, torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)


def set_gradients(model: nn.Linear, weight: float, bias: float) -> None:
    model.weight.grad = torch.tensor([[0.6 * weight, 0.8 * weight]])  # of norm `weight`
    model.bias.grad = torch.tensor([bias])


def test_adagc_by_hand() -> None:
    model, base = vector_model()
    method = AdaGC(model, base)
    loss = torch.tensor(1.0)
    set_gradients(model, 3.0, 4.0)  # global norm 5: everything times 1/5
    method.step(loss)
    assert method.touched
    assert torch.allclose(model.bias.grad, torch.tensor([0.8]))
    assert torch.allclose(method._levels, torch.tensor([0.6, 0.8]))
    set_gradients(model, 0.3, 0.9)  # below 1: untouched; levels are minima
    method.step(loss)
    assert not method.touched
    assert torch.allclose(method._levels, torch.tensor([0.3, 0.8]))
    for _ in range(AdaGC.WARMUP - 2):
        set_gradients(model, 0.5, 0.8)
        method.step(loss)
    set_gradients(model, 30.0, 0.7)  # only the weight stands out
    method.step(loss)
    assert method.touched
    assert torch.allclose(model.weight.grad, 1.05 * 0.3 * torch.tensor([[0.6, 0.8]]))
    assert torch.allclose(model.bias.grad, torch.tensor([0.7]))
    expected = [0.98 * 0.3 + 0.02 * 1.05 * 0.3, 0.98 * 0.8 + 0.02 * 0.7]
    assert torch.allclose(method._levels, torch.tensor(expected))
    set_gradients(model, 0.2, 0.7)
    method.step(loss)
    assert not method.touched


def skip_step_after(count: int, max_norm: float | None = None) -> SkipStep:
    model, base = vector_model()
    method = SkipStep(model, base, max_norm)
    for step in range(count):
        feed(method, 1.0 + 0.1 * (step % 2), 0.1)
    return method


def feed(method: SkipStep, loss: float, weight: float) -> None:
    weights, bias = method._parameters
    weights.grad = torch.tensor([[0.6 * weight, 0.8 * weight]])
    bias.grad = torch.tensor([0.0])
    method.step(torch.tensor(loss))


@pytest.mark.parametrize(
    ("loss", "weight", "skipped"),
    # Losses alternate between 1.0 and 1.1: mean about 1.05, sample std about 0.0504.
    [(1.34, 0.1, False), (1.37, 0.1, True), (0.1, 0.1, False), (1.0, 9.0, True)],
)
def test_skip_step_by_hand(loss: float, weight: float, skipped: bool) -> None:
    method = skip_step_after(63)
    before = [p.clone() for p in method._parameters]
    feed(method, loss, weight)
    assert method.touched == skipped
    same = all(torch.equal(a, b) for a, b in zip(before, method._parameters, strict=True))
    assert same == skipped


def test_skip_step_looks_only_from_the_64th_step_on() -> None:
    method = skip_step_after(62)
    feed(method, 100.0, 0.1)
    assert not method.touched


def test_skip_step_multiplies_nan_by_zero() -> None:
    method = skip_step_after(80)
    feed(method, math.nan, math.nan)
    weights, bias = method._parameters
    assert method.touched
    assert weights.isnan().all() and bias.isfinite().all()
    assert method.optimizer.state[weights]["momentum_buffer"].isnan().all()


def test_skip_step_spares_the_weights_of_lion() -> None:
    lion = pytest.importorskip("pytorch_optimizer").Lion
    model, _ = vector_model()
    method = SkipStep(model, lion(model.parameters(), lr=0.1))
    for _ in range(80):
        feed(method, 1.0, 0.1)
    feed(method, math.nan, math.nan)
    weights = method._parameters[0]
    assert method.touched
    assert weights.isfinite().all()
    assert method.optimizer.state[weights]["exp_avg"].isnan().all()


def test_skip_step_judges_the_norm_before_clipping() -> None:
    method = skip_step_after(80, max_norm=1.0)
    feed(method, 1.0, 50.0)
    assert float(method._norms[-1]) == pytest.approx(50.0)
    assert method.touched


def test_plateau_is_touched_once_the_rate_is_reduced() -> None:
    model, base = vector_model()
    method = Plateau(model, base)
    touched = []
    for _ in range(12 * PLATEAU_EPOCH + 1):
        set_gradients(model, 0.0, 0.0)
        method.step(torch.tensor(1.0))
        touched.append(method.touched)
    assert touched == [False] * (12 * PLATEAU_EPOCH) + [True]
    assert base.param_groups[0]["lr"] == pytest.approx(0.1)


def test_arc_survives_nan_keeps_the_schedule_and_ends_its_thread() -> None:
    pytest.importorskip("arc")
    model = tiny_model()
    threads = threading.active_count()
    method = ArcGuarded(model, OPTIMIZERS["adamw"](model.parameters(), 1e-3))
    for step in range(60):
        method.step(backward(model, step))
        assert not method.touched
    method.optimizer.param_groups[0]["lr"] *= 4.0
    backward(model, 60)
    for p in model.parameters():
        p.grad.fill_(torch.nan)
    method.step(torch.tensor(torch.nan))
    assert method.touched
    assert method.optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 4e-3)
    assert all(p.isfinite().all() for p in model.parameters())
    method.step(backward(model, 61))
    assert method.touched  # at half the rate
    for step in range(62, 162):  # until it calls the run unrecoverable: no warning, no error
        backward(model, step)
        method.step(torch.tensor(torch.nan))
    assert method._arc.unrecoverable
    method.close()
    assert threading.active_count() == threads


def test_stabilityguard_skips_nan_and_takes_its_hooks_off() -> None:
    pytest.importorskip("stabilityguard")
    model = tiny_model()
    method = peers.build("stabilityguard", model, "adamw", 1e-3, seed=0)
    assert any(m._backward_hooks for m in model.modules())
    loss = backward(model, 0)
    model[0].weight.grad[0, 0] = torch.nan
    before = [p.clone() for p in model.parameters()]
    method.step(loss)
    assert method.touched
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    method.close()  # type: ignore[attr-defined]
    assert not any(m._backward_hooks for m in model.modules())


@pytest.mark.parametrize("name", ["stableadamw", "spam", "adabelief"])
def test_replacements_are_never_the_bare_optimizer(name: str) -> None:
    need(name, "adamw")
    assert all(train(name, "adamw", 3)[2])
    assert peers.PEERS[name].optimizers == ("adamw",)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="must be a known name, got 'clap'; choose from bare"):
        peers.build("clap", tiny_model(), "adamw", 1e-3, seed=0)
    with pytest.raises(ValueError, match="choose from adamw$"):
        peers.build("spam", tiny_model(), "sgd", 1e-3, seed=0)

"""A checkpoint of another run is refused as a whole, and what would be missed is told of."""

import logging
from collections import Counter

import pytest
import torch
from torch import nn

from resilient_optim import ARS, Snapshots, memory
from tests.helpers import bits

WARNED = "resilient_optim"


class Kept:
    """Attached to a run; may refuse what it is given, after having taken it."""

    def __init__(self, value=0, refuses=()):
        self.value, self.refuses, self.loads = value, refuses, Counter()

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]
        self.loads[self.value] += 1
        if self.value in self.refuses:
            raise KeyError("epoch")


def stack(*sizes):
    layers = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.Tanh())][:-1])


def one_group(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def group_for_each(model):
    return torch.optim.AdamW([{"params": [p]} for p in model.parameters()], lr=0.01)


class Lookahead(torch.optim.Optimizer):
    """An optimizer with another in it."""

    def __init__(self, model):
        self.optimizer = one_group(model)
        super().__init__(self.optimizer.param_groups, {})

    def step(self, closure=None):
        return self.optimizer.step(closure)


class Refusing(torch.optim.AdamW):
    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        raise RuntimeError("not this one")


def run(directory, model, make=one_group, named=True, **attached):
    optimizer = ARS(
        make(model),
        model=model if named else None,
        snapshot=Snapshots(every=8, directory=str(directory)),
    )
    optimizer.attach(**attached)
    return optimizer


def trained(directory, model, make=one_group, steps=20, scheduler=None, **attached):
    """Train until there is a checkpoint of step 8."""
    optimizer = run(directory, model, make, **attached)
    scheduler = None if scheduler is None else scheduler(optimizer)
    if scheduler is not None:
        optimizer.attach(scheduler=scheduler)
    for _ in range(steps):
        x = torch.randn(16, 8)
        loss = (model(x) - x[:, :1]).square().mean()
        loss.backward()
        optimizer.step(loss)
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()
    optimizer._breaker.checkpoints._writer.submit(int).result()
    return optimizer


def everything(model, optimizer):
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    state = bits(list(optimizer.base.state.values()))
    return bits(model), state, bits(groups), bits([optimizer._breaker.checkpoints.steps])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints of a run with something attached."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run")
    trained(path, stack(8, 32, 1), first=Kept(1), second=Kept(2))
    return path


OTHERS = {
    "shape": (
        stack(8, 32, 2), one_group, True,
        "got one whose parameter 2.weight has shape (1, 32) where this one has (2, 32); give "
        "another directory, or build the model as it was",
    ),
    "shape, without model=": (
        stack(8, 32, 2), one_group, False,
        "got one whose parameter 2 has shape (1, 32) where this one has (2, 32)",
    ),
    "shape of the first": (
        stack(8, 16, 1), one_group, True,
        "got one whose parameter 0.weight has shape (32, 8) where this one has (16, 8)",
    ),
    "layers": (
        stack(8, 32, 32, 1), one_group, True, "got one of 4 parameters where this run has 6",
    ),
    "groups": (
        stack(8, 32, 1), group_for_each, True, "got one of 1 param groups where this run has 4",
    ),
    "optimizers": (
        stack(8, 32, 1), Lookahead, True,
        "got one of 1 optimizers, one in the other where this run has 2",
    ),
}  # fmt: skip


def test_a_checkpoint_of_another_version_is_refused_before_anything_changes(folder, monkeypatch):
    torch.manual_seed(3)
    model = stack(8, 32, 1)
    optimizer = run(folder, model, first=Kept(10), second=Kept(20))
    before = everything(model, optimizer), torch.get_rng_state().tolist()
    monkeypatch.setattr(memory, "VERSION", memory.VERSION + 1.0)
    with pytest.raises(ValueError, match="ARS state must be of version"):
        optimizer.resume()
    assert (everything(model, optimizer), torch.get_rng_state().tolist()) == before


@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_model_is_refused_before_anything_changes(folder, other):
    model, make, named, words = OTHERS[other]
    first, second = Kept(10), Kept(20)
    optimizer = run(folder, model, make, named, first=first, second=second)
    before = everything(model, optimizer), torch.get_rng_state().tolist()
    with pytest.raises(ValueError) as info:
        optimizer.resume()
    assert str(info.value).startswith("directory must hold checkpoints of this model, ")
    assert words in str(info.value)
    assert (everything(model, optimizer), torch.get_rng_state().tolist()) == before
    assert (first.value, second.value, first.loads, second.loads) == (10, 20, {}, {})


def test_a_base_optimizer_of_another_kind_of_groups_is_none_of_that(folder):
    """Names are no part of the check: the same shapes are the same model."""
    model = stack(8, 32, 1)
    assert run(folder, model, first=Kept(), second=Kept(), named=False).resume() == 8


@pytest.mark.parametrize("steps", [0, 3], ids=["a new run", "a run under way"])
def test_if_what_is_attached_fails_to_load_nothing_is_loaded(folder, tmp_path, steps):
    model, first, second = stack(8, 32, 1), Kept(10), Kept(20, refuses=[2])
    optimizer = run(folder, model, first=first, second=second)
    for _ in range(steps):
        model(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()
    before = everything(model, optimizer), torch.get_rng_state().tolist()
    with pytest.raises(ValueError, match=r"second must be able to load its state from .*KeyError"):
        optimizer.resume()
    assert (everything(model, optimizer), torch.get_rng_state().tolist()) == before
    assert (first.value, second.value) == (10, 20)
    second.refuses = ()
    assert optimizer.resume() == 8
    assert (first.value, second.value) == (1, 2)


def test_what_is_attached_is_loaded_once(folder):
    """Loading may be more than copying: a loader that skips batches."""
    first = Kept(10)
    run(folder, stack(8, 32, 1), first=first, second=Kept()).resume()
    assert first.loads == {1: 1}


def test_if_the_base_optimizer_refuses_nothing_is_loaded(folder):
    model = stack(8, 32, 1)
    optimizer = run(folder, model, lambda m: Refusing(m.parameters()), first=Kept(), second=Kept())
    before = everything(model, optimizer)
    with pytest.raises(ValueError, match=r"the base optimizer must be able to .* not this one"):
        optimizer.resume()
    assert everything(model, optimizer) == before


# -- what is not attached -----------------------------------------------------------------------


def one_cycle(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=100)


def plateau(optimizer):
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)


def resumed(folder, caplog, make=None, **attached):
    optimizer = run(folder, stack(8, 32, 1), **attached)
    if make is not None:
        make(optimizer)
    with caplog.at_level(logging.WARNING, WARNED):
        optimizer.resume()
    return caplog.text


LRS = "The learning rates are a scheduler's, and none is attached"


def test_a_scheduler_that_is_not_attached_is_told_of(folder, caplog):
    said = resumed(folder, caplog, one_cycle, first=Kept(), second=Kept())
    assert LRS in said and "optimizer.attach(scheduler=scheduler) before resume()" in said
    assert said.count("WARNING") == 1


def test_it_is_told_at_the_first_start_when_it_can_still_be_helped(tmp_path, caplog):
    assert LRS in resumed(tmp_path / "new", caplog, one_cycle)


def test_an_attached_scheduler_is_none_to_be_told_of(tmp_path, caplog):
    trained(tmp_path, stack(8, 32, 1), scheduler=one_cycle)
    optimizer = run(tmp_path, stack(8, 32, 1))
    optimizer.attach(lr=one_cycle(optimizer), scheduler=one_cycle(optimizer))
    optimizer._breaker.checkpoints.attached.pop("lr")  # under another name than the attribute
    with caplog.at_level(logging.WARNING, WARNED):
        assert optimizer.resume() == 8
    assert caplog.text == ""


@pytest.mark.parametrize("make", [None, plateau], ids=["none", "plateau"])
def test_learning_rates_that_no_scheduler_began_with_are_none_to_be_told_of(folder, caplog, make):
    assert resumed(folder, caplog, make, first=Kept(), second=Kept()) == ""


def test_a_scheduler_made_after_resume_is_none_to_be_told_of(tmp_path, caplog):
    """The checkpoint holds `initial_lr`, which torch wants for a `last_epoch` other than -1."""
    trained(tmp_path, stack(8, 32, 1), scheduler=one_cycle)
    assert LRS not in resumed(tmp_path, caplog)


def test_what_the_checkpoint_holds_and_nobody_takes_is_named(folder, caplog):
    said = resumed(folder, caplog, second=Kept())
    assert "holds the state of first, which nothing is attached for: it is not resumed" in said
    assert "optimizer.attach(first=first) before resume()" in said
    caplog.clear()
    assert "the state of first, second, which" in resumed(folder, caplog)
    assert "optimizer.attach(first=first, second=second)" in caplog.text

"""ARS stands in for its base optimizer: hooks, groups, attributes, construction errors."""

import pytest
import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer

from resilient_optim import ARS
from tests.helpers import CASES, Layers, bits, train


def small(**options):
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    return p, ARS(torch.optim.Adam([p], lr=0.1, **options))


@pytest.mark.parametrize("register_on", ["wrapper", "base"])
def test_step_hooks_fire_once_whoever_registered_them(register_on):
    _, optimizer = small()
    target = optimizer if register_on == "wrapper" else optimizer.base
    fired = []
    target.register_step_pre_hook(lambda opt, args, kwargs: fired.append("pre"))
    target.register_step_post_hook(lambda opt, args, kwargs: fired.append("post"))
    optimizer.step(1.0)
    assert fired == ["pre", "post"]


def test_step_hooks_do_not_fire_for_a_skipped_step():
    _, optimizer = small()
    fired = []
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: fired.append("pre"))
    optimizer.register_step_post_hook(lambda opt, args, kwargs: fired.append("post"))
    optimizer.step(float("nan"))
    assert fired == []


def test_global_hooks_fire_once():
    fired = []
    handles = [
        torch_optimizer.register_optimizer_step_pre_hook(
            lambda opt, args, kwargs: fired.append(type(opt).__name__)
        ),
        torch_optimizer.register_optimizer_step_post_hook(
            lambda opt, args, kwargs: fired.append(type(opt).__name__)
        ),
    ]
    try:
        small()[1].step(1.0)
    finally:
        for handle in handles:
            handle.remove()
    assert fired == ["Adam", "Adam"]


@pytest.mark.parametrize("register_on", ["wrapper", "base"])
def test_state_hooks_fire_once_whoever_registered_them(register_on):
    _, optimizer = small()
    target = optimizer if register_on == "wrapper" else optimizer.base
    fired = []
    target.register_state_dict_pre_hook(lambda opt: fired.append("save pre"))
    target.register_state_dict_post_hook(lambda opt, state: fired.append("save post"))
    target.register_load_state_dict_pre_hook(lambda opt, state: fired.append("load pre"))
    target.register_load_state_dict_post_hook(lambda opt: fired.append("load post"))
    state = optimizer.state_dict()
    assert fired == ["save pre", "save post"]
    optimizer.load_state_dict(state)
    assert fired[2:] == ["load pre", "load post"]


def test_removed_hook_fires_no_more():
    _, optimizer = small()
    fired = []
    handle = optimizer.register_step_post_hook(lambda opt, args, kwargs: fired.append(0))
    handle.remove()
    optimizer.step(1.0)
    assert fired == []


def test_lr_set_by_a_pre_hook_of_an_undamped_step_stays():
    """A hook is a user's way to schedule; it must see and keep live groups."""
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = ARS(torch.optim.SGD([p], lr=0.5), start_up=0)

    def halve(opt, args, kwargs):
        opt.param_groups[0]["lr"] /= 2

    optimizer.register_step_pre_hook(halve)
    optimizer.step(1.0)
    assert p.tolist() == [0.75, 0.75]
    assert optimizer.param_groups[0]["lr"] == 0.25


class Bare(torch.optim.Optimizer):
    """Like some published optimizers: never calls the parent's constructor, so has no hooks."""

    def __init__(self, params):
        self.param_groups = [{"params": list(params)}]
        self.state, self.defaults, self.mode = {}, {}, "train"

    def zero_grad(self, set_to_none=True):
        for p in self.param_groups[0]["params"]:
            p.grad = None

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p -= p.grad

    def state_dict(self):
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self.param_groups]
        return {"param_groups": groups}

    def load_state_dict(self, state_dict):
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update(saved)

    def train(self):
        self.mode = "train"

    def eval(self):
        self.mode = "eval"


def test_base_without_hooks_or_learning_rate_trains():
    p = nn.Parameter(torch.ones(2))
    optimizer = ARS(Bare([p]), start_up=0)
    p.grad = torch.full((2,), 0.5)
    optimizer.step(1.0)
    assert p.tolist() == [0.5, 0.5]
    restored = ARS(Bare([p]), start_up=0)
    restored.load_state_dict(optimizer.state_dict())
    assert restored.counters["observed"] == 1


def test_base_without_hooks_says_so_when_one_is_registered():
    optimizer = ARS(Bare([nn.Parameter(torch.ones(2))]))
    with pytest.raises(AttributeError, match="Bare runs no optimizer_step_pre_hooks; register"):
        optimizer.register_step_pre_hook(lambda opt, args, kwargs: None)


def test_base_without_learning_rate_is_damped_through_its_gradients():
    p = nn.Parameter(torch.ones(2))
    optimizer = ARS(Bare([p]), start_up=10)
    p.grad = torch.full((2,), 0.5)
    optimizer.step(1.0)
    assert 0.0 < optimizer.last.phi < 1.0
    torch.testing.assert_close(1.0 - p, torch.full((2,), 0.5 * optimizer.last.phi))


def test_train_and_eval_of_a_schedule_free_base_are_reached():
    base = Bare([nn.Parameter(torch.ones(2))])
    optimizer = ARS(base)
    optimizer.eval()
    assert base.mode == optimizer.mode == "eval"
    optimizer.train()
    assert base.mode == optimizer.mode == "train"


def test_unknown_attribute_is_an_error_that_names_it():
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = small()[1].no_such_thing


def test_is_an_optimizer():
    assert isinstance(small()[1], torch.optim.Optimizer)


@pytest.mark.parametrize("side", ["wrapper", "base"])
def test_learning_rate_set_on_either_side_is_used(side):
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = ARS(torch.optim.SGD([p], lr=0.1), start_up=0)
    target = optimizer if side == "wrapper" else optimizer.base
    optimizer.load_state_dict(optimizer.state_dict())  # replaces the list of groups
    target.param_groups[0]["lr"] = 0.5
    optimizer.step(1.0)
    assert p.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("name", ["param_groups", "state", "defaults"])
def test_assigned_attributes_are_the_bases(name):
    _, optimizer = small()
    value = [] if name == "param_groups" else {}
    setattr(optimizer, name, value)
    assert getattr(optimizer.base, name) is value
    assert getattr(optimizer, name) is value


@pytest.mark.parametrize("side", ["wrapper", "base"])
def test_group_added_after_wrapping_trains_and_is_saved(side):
    p, optimizer = small()
    q = nn.Parameter(torch.ones(3))
    target = optimizer if side == "wrapper" else optimizer.base
    target.add_param_group({"params": [q], "lr": 0.5})
    p.grad, q.grad = torch.ones(2), torch.ones(3)
    optimizer.step(1.0)
    assert (q != 1.0).all()
    groups = optimizer.state_dict()["param_groups"]
    assert len(groups) == 2
    # Equal but for the group's own learning rates, which come last.
    assert bits(groups[0]["ars"][:-2]) == bits(groups[1]["ars"][:-2])


def test_added_group_holds_the_state_at_once():
    """torch.distributed.checkpoint's flat mode looks for the keys of the live groups."""
    _, optimizer = small()
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    first, second = optimizer.param_groups
    assert bits(first["ars"]) == bits(second["ars"])


def test_gradient_of_an_added_group_can_skip_the_step():
    p, optimizer = small()
    q = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [q]})
    q.grad = torch.full((3,), float("nan"))
    optimizer.step(1.0)
    assert p.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_is_the_bases(set_to_none):
    p, optimizer = small()
    optimizer.zero_grad(set_to_none=set_to_none)
    assert (p.grad is None) if set_to_none else (p.grad.tolist() == [0.0, 0.0])


def test_frozen_parameters_and_missing_gradients_are_fine():
    model = Layers()
    first, last = model.parameters()
    first.requires_grad_(False)
    before = bits(first)
    optimizer = ARS(torch.optim.AdamW(model.parameters(), lr=0.1))
    train(model, optimizer, range(3))
    assert bits(first) == before
    assert optimizer.counters["observed"] == 3


def test_step_without_any_gradient_is_observed_and_harmless():
    model = Layers()
    before = bits(model)
    optimizer = ARS(torch.optim.AdamW(model.parameters(), lr=0.1))
    optimizer.step(1.0)
    assert bits(model) == before
    assert optimizer.last.grad_norm == 0.0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda base: ARS([]), TypeError, "optimizer must be a torch.optim.Optimizer, got list;"),
        (lambda base: ARS(base, "no"), ValueError, r"preset must be one of .*, got 'no'"),
        (lambda base: ARS(base, seed=1.5), TypeError, "seed must be an integer, got 1.5"),
        (lambda base: ARS(base, alhpa=1), TypeError, "alhpa must be a setting of .*alpha"),
        (lambda base: ARS(base, alpha=-1.0), ValueError, r"alpha must be .*, got -1.0"),
        (lambda base: ARS(base, window_size=2), ValueError, "window_size must be .*, got 2"),
    ],
)
def test_bad_arguments_are_named_and_leave_the_base_alone(make, error, message):
    base = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    before = bits(base.state_dict())
    with pytest.raises(error, match=message):
        make(base)
    assert bits(base.state_dict()) == before


def test_wrapping_twice_is_an_error():
    _, optimizer = small()
    with pytest.raises(ValueError, match="must not be an ARS already"):
        ARS(optimizer)


def test_repr_names_the_base_and_the_settings():
    text = repr(ARS(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1), alpha=0.25))
    assert text.startswith("ARS(SGD")
    assert "alpha=0.25" in text


@pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case.name)
def test_the_bases_own_state_holds_nothing_of_ars(case):
    bare_model, bare = case.build()
    model, optimizer = case.build_wrapped()
    train(bare_model, bare, range(2))
    train(model, optimizer, range(2))
    assert [s.keys() for s in optimizer.state.values()] == [s.keys() for s in bare.state.values()]


def test_global_random_numbers_are_left_alone():
    torch.manual_seed(1)
    model = Layers()
    expected = torch.get_rng_state()
    optimizer = ARS(torch.optim.Adam(model.parameters()))
    train(model, optimizer, range(3))
    assert torch.equal(torch.get_rng_state(), expected)

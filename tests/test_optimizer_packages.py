"""What ARS promises, around every optimizer of the packages people install beside torch."""

import copy
import inspect
import math
import random
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from resilient_optim import ARS
from tests.helpers import CALM, Layers, bits, evaluate, optimizer_bits, scripted

pytorch_optimizer = pytest.importorskip("pytorch_optimizer")
optimi = pytest.importorskip("optimi")
schedulefree = pytest.importorskip("schedulefree")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True:UserWarning"),
]

STEPS = 12
VALUE, EVALUATION, SECOND_EVALUATION = "value", "evaluation", "second evaluation"

# Why some do not fit a training loop; `test_exclusions_are_still_needed` has the evidence.
EXCLUDED = {
    # (both also ask for transformers)
    "AdaLOMO": ((NotImplementedError, ImportWarning), "steps inside a backward() of its own"),
    "LOMO": ((NotImplementedError, ImportWarning), "steps inside a backward() of its own"),
    "DeMo": ((ImportError, ValueError), "needs einops, and a process group"),
    "DistributedMuon": (ValueError, "needs a process group"),
}
ON_MATRICES = ("AdaGO", "AdaMuon", "DistributedMuon", "Muon", "MuonClip", "NorMuon")
SECOND_ORDER = ("AdaHessian", "SophiaH")
CLOSURES = {
    "AliG": VALUE,
    **dict.fromkeys(("EmoFact", "EmoLynx", "EmoNavi"), VALUE),
    "LBFGS": EVALUATION,
    "BSAM": SECOND_EVALUATION,  # wants gradients in place, too
}
OPTIONS = {
    "BSAM": {"num_data": 8},
    "Ranger21": {"num_iterations": 100},
    "SaRA": {"threshold": 0.3, "lr": 0.01},  # trains only the weights below
}

# Their state leads the weights on: a damped step is braked there, and moves as the steps before do.
LED_BY_STATE = ("DAdaptAdam", "DAdaptAdan", "DAdaptSGD", "MADGRAD", "ScheduleFree")


@dataclass(frozen=True)
class Case:
    """An optimizer of a package, made for a model as the package wants it."""

    name: str
    make: Callable[[torch.nn.Module], torch.optim.Optimizer]
    closure: str = ""
    create_graph: bool = False

    def build(self, **settings):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # psgd's choice of when to balance
        model = Layers()
        base = self.make(model)
        return model, ARS(base, **settings) if settings else base

    def evaluate(self, model, optimizer, index):
        if not self.create_graph:
            return evaluate(model, optimizer, index)
        optimizer.zero_grad()
        loss = model.loss(index)
        loss.backward(create_graph=True)
        return loss

    def step(self, model, optimizer, index, factor=1.0):
        if self.closure == SECOND_EVALUATION:
            self.evaluate(model, optimizer, index)
        if self.closure in (EVALUATION, SECOND_EVALUATION):
            optimizer.step(lambda: self.evaluate(model, optimizer, index).detach() * factor)
            return
        loss = self.evaluate(model, optimizer, index).detach() * factor
        if self.closure == VALUE:
            optimizer.step(lambda: loss.item())
        elif isinstance(optimizer, ARS):
            optimizer.step(loss)
        else:
            optimizer.step()

    def train(self, model, optimizer, batches):
        for index in batches:
            self.step(model, optimizer, index)


def peer_case(kind):
    name = kind.__name__

    def make(model):
        params = model.parameters()
        if name in ON_MATRICES:
            params = [{"params": list(params), "use_muon": True}]
        wants_model = next(iter(inspect.signature(kind).parameters)) == "model"
        return kind(model if wants_model else params, **OPTIONS.get(name, {}))

    return Case(f"po.{name}", make, CLOSURES.get(name, ""), name in SECOND_ORDER)


def optimi_case(kind):
    options = {"triton": False} if "triton" in inspect.signature(kind).parameters else {}
    return Case(f"optimi.{kind.__name__}", lambda m: kind(m.parameters(), lr=0.01, **options))


def schedulefree_case(kind):
    def make(model):
        optimizer = kind(model.parameters(), lr=0.02)
        getattr(optimizer, "train", lambda: None)()  # the Closure variants have no modes
        return optimizer

    closure = EVALUATION if kind.__name__.endswith("Closure") else ""
    return Case(f"schedulefree.{kind.__name__}", make, closure)


def optimizers_in(namespace):
    kinds = [kind for kind in vars(namespace).values() if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, torch.optim.Optimizer)]


PEERS = {
    kind.__name__: kind
    for kind in map(pytorch_optimizer.load_optimizer, pytorch_optimizer.get_supported_optimizers())
}
CASES = [
    *(peer_case(kind) for name, kind in PEERS.items() if name not in EXCLUDED),
    *map(optimi_case, optimizers_in(optimi)),
    *map(schedulefree_case, optimizers_in(schedulefree)),
]


def each_of(cases):
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


every_case = each_of(CASES)
LED = [case for case in CASES if any(name in case.name for name in LED_BY_STATE)]


def state_bits(optimizer):
    """`optimizer_bits` without the addresses of objects that some keep in their state."""
    return {k: re.sub(r"0x[0-9a-f]+", "", v) for k, v in optimizer_bits(optimizer).items()}


def test_nothing_is_missing():
    assert len(PEERS) > 120 and EXCLUDED.keys() <= PEERS.keys()
    names = {case.name for case in CASES}
    assert {"po.Prodigy", "po.SOAP", "po.Muon", "po.ScheduleFreeAdamW", "po.Kron"} <= names
    assert {"optimi.StableAdamW", "optimi.Lion", "optimi.SGD", "optimi.AdamW"} <= names
    free = {f"schedulefree.{n}ScheduleFree" for n in ("AdamW", "SGD", "RAdam")}
    assert free <= names


@pytest.mark.parametrize("name", EXCLUDED)
def test_exclusions_are_still_needed(name):
    case = peer_case(PEERS[name])
    error, _ = EXCLUDED[name]
    with pytest.raises(error):
        case.train(*case.build(), range(2))


@every_case
def test_quiet_run_is_the_bare_run(case):
    start = bits(case.build()[0])
    model, bare = case.build()
    case.train(model, bare, range(STEPS))
    bare_bits = bits(model), state_bits(bare)
    wrapped_model, wrapped = case.build(**CALM)
    case.train(wrapped_model, wrapped, range(STEPS))
    assert all(bare_bits[0][key] != value for key, value in start.items())
    assert wrapped.counters["observed"] == STEPS and wrapped.counters["touched"] == 0
    assert (bits(wrapped_model), state_bits(wrapped)) == bare_bits


@every_case
def test_skipped_step_changes_nothing_and_the_run_goes_on_as_without_it(case):
    model, bare = case.build()
    case.train(model, bare, range(8))
    expected = bits(model), state_bits(bare)
    # This one's own steps make weights grow a hundredfold on some CPUs: they would be rolled back.
    model, optimizer = case.build(**CALM, snapshot=case.name != "po.LBFGS")
    case.train(model, optimizer, range(5))
    before = bits(model), state_bits(optimizer)
    case.step(model, optimizer, 99, factor=math.nan)
    assert optimizer.counters["skipped"] == 1
    assert (bits(model), state_bits(optimizer)) == before
    case.train(model, optimizer, range(5, 8))
    # What objects in a state hold (ScalableShampoo's) shows only in what they do next.
    assert (bits(model), state_bits(optimizer)) == expected


@every_case
def test_restored_run_is_the_uninterrupted_run(case):
    model, optimizer = case.build(start_up=0)
    case.train(model, optimizer, range(4))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    random_state = torch.get_rng_state(), np.random.get_state()
    case.train(model, optimizer, range(4, 8))
    expected = bits(model), state_bits(optimizer), repr(optimizer.last)
    model, resumed = case.build(start_up=0)
    model.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    torch.set_rng_state(random_state[0])
    np.random.set_state(random_state[1])
    case.train(model, resumed, range(4, 8))
    assert (bits(model), state_bits(resumed), repr(resumed.last)) == expected
    assert resumed.counters["observed"] == 8


@each_of([case for case in CASES if case.closure in ("", VALUE) and case not in LED])
def test_damped_step_moves_a_part_of_the_bare_step(case):
    moves = []
    for damp in (False, True):
        model, optimizer = case.build()
        for group in optimizer.param_groups:
            group.update({key: 0.0 for key in group if key == "weight_decay"})
        case.train(model, optimizer, range(STEPS))
        torch.manual_seed(1)  # a throw of Magma's dice that lets the step through
        start = torch.cat([p.detach().flatten() for p in model.parameters()])
        if damp:
            optimizer = scripted(optimizer, phi=0.25, update_scale=0.25)
        case.step(model, optimizer, STEPS)
        moves.append(torch.cat([p.detach().flatten() for p in model.parameters()]) - start)
    assert optimizer.counters["damped"] == 1
    assert 0.0 < moves[1].norm() < 0.6 * moves[0].norm()


def losses_after_bad_steps(case, scale):
    """The mean loss of ten steps after three uphill ones, which are damped to `scale`."""
    model, optimizer = case.build()
    case.train(model, optimizer, range(60))
    braked = scripted(optimizer, phi=scale, update_scale=scale)
    for index in range(60, 63):
        loss = case.evaluate(model, optimizer, index)
        for p in model.parameters():
            p.grad.mul_(-10.0)
        braked.step(loss)
    losses = []
    for index in range(63, 73):
        losses.append(model.loss(index).item())
        case.step(model, optimizer, index)
    return sum(losses) / len(losses)


@each_of([case for case in LED if not case.closure])
def test_damped_step_is_braked_in_the_state_that_leads_the_weights(case):
    """By its learning rate: if a part of the move were taken back, the state would lead on."""
    free, braked = (losses_after_bad_steps(case, scale) for scale in (1.0, 0.1))
    assert braked < free


def test_gradients_with_a_graph_are_measured_without_a_warning():
    p = torch.nn.Parameter(torch.ones(2))
    p.square().sum().backward(create_graph=True)
    optimizer = ARS(torch.optim.SGD([p], lr=0.1))
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else torch warns once per process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step(1.0)
    finally:
        torch.set_warn_always(always)
        p.grad = None

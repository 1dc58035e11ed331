"""Small real training problems, every optimizer of torch, and comparison bit for bit."""

import copy
import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from resilient_optim import ARS
from resilient_optim.decision import DAMP, Decision

# torch warns once, wherever that happens to be, unless somebody chose.
torch.sparse.check_sparse_tensor_invariants.enable()

STATE_KEY = "ars"
CALM = {"start_up": 0, "z_threshold": 50.0, "norm_z": 50.0, "lr_jump": 100.0}
"""Settings under which every rule is evaluated from the first step and none fires."""


def bits(value: Any, path: str = "") -> dict[str, str]:
    """Every leaf of a nested value by its path, exactly: floats and tensors as their bytes."""
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    elif isinstance(value, Tensor):
        dense = value.detach().to_dense() if value.is_sparse else value.detach()
        flat = dense.cpu().resolve_conj().contiguous().reshape(-1)
        raw = flat.view(torch.uint8).numpy().tobytes().hex()
        return {path: f"{value.dtype} {tuple(value.shape)} {raw}"}
    else:
        return {path: value.hex() if isinstance(value, float) else repr(value)}
    return {k: v for key, item in items for k, v in bits(item, f"{path}/{key}").items()}


def optimizer_bits(optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """The optimizer's state and settings, without what ARS keeps in the groups."""
    return {k: v for k, v in bits(optimizer.state_dict()).items() if not k.endswith(STATE_KEY)}


def gradient_bits(model: nn.Module) -> list[dict[str, str]]:
    return [bits(p.grad) for p in model.parameters()]


class Layers(nn.Module):
    """Two bias-free layers: matrices only, so that Muon takes part."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Sequential(
            nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False)
        )

    def loss(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        x = torch.randn(8, 5, generator=generator)
        return (self.stack(x) - x[:, :2]).square().mean()


class Lookup(nn.Module):
    """Two embeddings with sparse gradients, some rows of which come up twice."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Embedding(7, 3, sparse=True)
        self.right = nn.Embedding(5, 3, sparse=True)

    def loss(self, index: int) -> Tensor:
        rows = torch.tensor([index % 5, (index + 1) % 5, index % 5])
        return (self.left(rows) * self.right(rows) - 1.0).square().mean()


@dataclass(frozen=True)
class Case:
    """One way to build a torch optimizer, with the model it can train."""

    name: str
    kind: type[torch.optim.Optimizer]
    options: dict[str, Any] = field(default_factory=dict)
    model: type[nn.Module] = Layers
    takes_closure: bool = False

    def build(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = self.model()
        # A tensor among the options (lr) must not be shared between two optimizers.
        return model, self.kind(model.parameters(), **copy.deepcopy(self.options))

    def build_wrapped(self, **settings: Any) -> tuple[nn.Module, ARS]:
        model, base = self.build()
        return model, ARS(base, **settings)


def torch_cases() -> list[Case]:
    """Every optimizer class in torch.optim, found there so that a new one is included."""
    found = [kind for kind in vars(torch.optim).values() if isinstance(kind, type)]
    kinds = [k for k in found if issubclass(k, torch.optim.Optimizer)]
    special: dict[str, dict[str, Any]] = {
        "SparseAdam": {"model": Lookup},
        "LBFGS": {"takes_closure": True, "options": {"lr": 0.1, "max_iter": 4}},
    }
    return [
        Case(kind.__name__, kind, **special.get(kind.__name__, {}))
        for kind in kinds
        if kind is not torch.optim.Optimizer
    ]


def variant_cases() -> list[Case]:
    """The other implementations: fused, foreach, learning rate as a tensor, sparse, complex..."""
    optim = torch.optim
    momentum = {"lr": 0.05, "momentum": 0.9}
    return [
        *(
            Case(f"{kind.__name__}-fused", kind, {"fused": True})
            for kind in (optim.Adam, optim.AdamW, optim.SGD, optim.Adagrad)
        ),
        *(
            Case(f"{kind.__name__}-foreach", kind, {"foreach": True})
            for kind in (optim.Adam, optim.AdamW, optim.SGD, optim.RMSprop, optim.NAdam)
        ),
        Case("Adam-lr-tensor", optim.Adam, {"lr": torch.tensor(0.01), "foreach": False}),
        Case("AdamW-fused-lr-tensor", optim.AdamW, {"lr": torch.tensor(0.01), "fused": True}),
        Case("SGD-fused-momentum", optim.SGD, {**momentum, "fused": True}),
        Case("SGD-nesterov", optim.SGD, {**momentum, "nesterov": True}),
        Case("SGD-sparse", optim.SGD, {"lr": 0.1}, model=Lookup),
        Case("Adagrad-sparse", optim.Adagrad, {"lr": 0.1}, model=Lookup),
        Case("AdamW-amsgrad-maximize", optim.AdamW, {"amsgrad": True, "maximize": True}),
        Case(
            "LBFGS-strong-wolfe",
            optim.LBFGS,
            {"max_iter": 4, "line_search_fn": "strong_wolfe"},
            takes_closure=True,
        ),
    ]


CASES = torch_cases() + variant_cases()


def evaluate(model: nn.Module, optimizer: torch.optim.Optimizer, index: int) -> Tensor:
    """Forward and backward on batch `index`; the loss, with its gradients in place."""
    optimizer.zero_grad()
    loss: Tensor = model.loss(index)  # type: ignore[operator]
    loss.backward()
    return loss


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: range,
    takes_closure: bool = False,
) -> None:
    """A training loop as a user writes it; a loss is passed only to ARS."""
    for index in batches:
        closure = functools.partial(evaluate, model, optimizer, index)
        if takes_closure:
            optimizer.step(closure)
        elif isinstance(optimizer, ARS):
            optimizer.step(closure())
        else:
            closure()
            optimizer.step()


class Scripted:
    """A policy that always decides the same, to test how ARS carries a decision out."""

    measures_norm = False

    def __init__(self, config: Any, **verdict: Any) -> None:
        self.history, self.state = config.history, config.first_state(True)
        self.verdict = {"action": DAMP, "reason": "scripted", **verdict}

    def first_state(self, young: bool) -> Any:
        return self.state

    def decide(self, state: Any, buffer: Any, seen: Any) -> tuple[Decision, Any]:
        return Decision(seen.step, loss=seen.loss, **self.verdict), state


def scripted(base: torch.optim.Optimizer, seed: int = 0, **verdict: Any) -> ARS:
    """ARS around `base` that decides `verdict` at every step."""
    optimizer = ARS(base, seed=seed)
    optimizer.config = Scripted(optimizer.config, **verdict)  # type: ignore[assignment]
    return optimizer

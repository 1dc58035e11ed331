"""The base optimizers that every peer of the suite may drive."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

BETAS = (0.9, 0.99)
WEIGHT_DECAY = 0.1


def _adamw(parameters: Iterable[Tensor], lr: float) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)


def _sgd(parameters: Iterable[Tensor], lr: float) -> Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def _lion(parameters: Iterable[Tensor], lr: float) -> Optimizer:
    from pytorch_optimizer import Lion  # only here: the other optimizers do without the package

    return Lion(parameters, lr=lr, betas=BETAS, weight_decay=WEIGHT_DECAY, weight_decouple=True)


OPTIMIZERS: dict[str, Callable[[Iterable[Tensor], float], Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "lion": _lion,
}

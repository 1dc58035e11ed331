"""A small real training run that tests can disturb: a noisy MLP regression on a linear teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from resilient_optim import ARS

OPTIMIZERS: dict[str, Callable] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=3e-3, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=3e-2, momentum=0.9),
}


@dataclass
class Task:
    """Data and model of one seed; `batch(step)` is a pure function of the step."""

    seed: int
    batch_size: int = 32
    width: int = 8

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.teacher = torch.randn(self.width, 1, generator=generator)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self.model = torch.nn.Sequential(
                torch.nn.Linear(self.width, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
            )
        self.held_out = self.batch(-1, size=512)

    def batch(self, step: int, size: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + step + 1)
        x = torch.randn(size or self.batch_size, self.width, generator=generator)
        noise = 0.3 * torch.randn(len(x), 1, generator=generator)
        return x, x @ self.teacher + noise

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (self.model(x) - y).square().mean()

    @torch.no_grad()
    def validation(self) -> float:
        return float(self.loss(*self.held_out))

    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def train(task: Task, optimizer, first: int, last: int, disturb=None) -> list[float]:
    """Train for steps first..last-1; `disturb(step, y)` may change the targets of a batch."""
    losses = []
    for step in range(first, last):
        x, y = task.batch(step)
        if disturb is not None:
            y = disturb(step, y)
        loss = task.loss(x, y)
        optimizer.zero_grad()
        loss.backward()
        if isinstance(optimizer, ARS):
            optimizer.step(loss)
        else:
            optimizer.step()
        losses.append(float(loss.detach()))
    return losses

"""What is stepped: sets of tensors with ready gradients, and a real training step of the GPT."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from nanogpt_demo.model import GPTConfig, build
from nanogpt_demo.spec import SIZES
from nanogpt_demo.suite.optimizers import BETAS, OPTIMIZERS, WEIGHT_DECAY

LR = 1e-6
"""Too small to change a model in the time of a measurement; what a step costs does not depend on
it."""

GRAD_NORM = 0.5
"""Of the ready gradients, all tensors together: below every usual bound."""

BATCHES = 4

VOCAB = 65  # distinct characters of the demo's text
SEED = 0

Shape = tuple[int, ...]


def _adamw(**kind: bool) -> Callable[[Iterable[Tensor]], Optimizer]:
    return lambda params: AdamW(params, lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY, **kind)


def _sgd(**kind: bool) -> Callable[[Iterable[Tensor]], Optimizer]:
    return lambda params: SGD(params, lr=LR, momentum=0.9, **kind)


BASES: dict[str, Callable[[Iterable[Tensor]], Optimizer]] = {
    "adamw-fused": _adamw(fused=True),
    "adamw-foreach": _adamw(foreach=True),
    "sgd-fused": _sgd(fused=True),
    "sgd-foreach": _sgd(foreach=True),
    "lion": lambda params: OPTIMIZERS["lion"](params, LR),
}


class Workload(Protocol):
    """Something to step.

    Attributes:
        trains: making the gradients is part of the step that is timed.
    """

    trains: bool

    def model(self) -> nn.Module:
        """A model to attach a method to; may be the same for all methods."""

    def gradients(self, model: nn.Module) -> None:
        """Give the model the gradients of the next step."""

    def share(self, optimizer: Optimizer, model: nn.Module) -> None:
        """Let the optimizer use what may be used in common."""


class TensorSet:
    """Parameters with fixed gradients, one set for all methods, moments included.

    The methods take turns on the same memory: so no method is faster for the place of its pages,
    and eleven of them fit where eleven copies would not. Methods change gradients in place, hence
    each step starts from a fresh copy of the same values.

    Args:
        shapes: of the parameters.
        device: where they are.
    """

    trains = False

    def __init__(self, shapes: Sequence[Shape], device: torch.device) -> None:
        """Draw parameters and gradients."""
        generator = torch.Generator().manual_seed(SEED)

        def draw() -> list[Tensor]:
            return [torch.randn(shape, generator=generator).to(device) for shape in shapes]

        self._model = nn.Module()
        for index, values in enumerate(draw()):
            self._model.register_parameter(f"p{index}", nn.Parameter(values))
        self._values = draw()
        norm = float(torch.stack(torch._foreach_norm(self._values)).norm())
        torch._foreach_mul_(self._values, GRAD_NORM / norm)
        self._grads = [values.clone() for values in self._values]
        self._moments: dict[Tensor, object] = {}

    def model(self) -> nn.Module:
        """The one model."""
        return self._model

    def gradients(self, model: nn.Module) -> None:
        """Restore the gradients."""
        torch._foreach_copy_(self._grads, self._values)
        for parameter, grad in zip(model.parameters(), self._grads, strict=True):
            parameter.grad = grad

    def share(self, optimizer: Optimizer, model: nn.Module) -> None:
        """Let all optimizers of a kind work on the moments of the first."""
        if not self._moments:
            self.gradients(model)
            optimizer.step()
            self._moments.update(optimizer.state)
        optimizer.state.update(self._moments)


class TrainingStep:
    """Forward and backward pass of a GPT, a model for each method.

    For each its own, because some peers hang hooks on the modules. A few batches take turns: a
    norm that never changed would make an outlier of its last digit. The loss that a method is
    given is not the model's, see `methods`.

    Args:
        config: of the model.
        batch: sequences of a step.
        device: where the model is.
        autocast: the passes are computed in bfloat16 wherever torch sees fit.
    """

    trains = True

    def __init__(
        self, config: GPTConfig, batch: int, device: torch.device, autocast: bool = False
    ) -> None:
        """Draw the batches: random tokens, which cost what others do."""
        self._device, self._config, self._autocast = device, config, autocast
        generator = torch.Generator().manual_seed(SEED)
        shape = BATCHES, batch, config.block_size + 1
        tokens = torch.randint(config.vocab_size, shape, generator=generator)
        self._batches = cycle(tokens.to(device))

    def model(self) -> nn.Module:
        """A new model, always with the same weights."""
        return build(self._config, SEED).to(self._device)

    def gradients(self, model: nn.Module) -> None:
        """Forward and backward pass."""
        model.zero_grad(set_to_none=True)
        tokens = next(self._batches)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            loss = model(tokens[:, :-1], tokens[:, 1:])[1]
        loss.backward()

    def share(self, optimizer: Optimizer, model: nn.Module) -> None:
        """Nothing: every method has its own model."""


def gpt2_shapes() -> list[Shape]:
    """The parameters of GPT-2 small: 148 tensors, 124.4 million numbers; embeddings are tied."""
    width = 768
    block: list[Shape] = [
        (width,), (width,),  # norm before the attention
        (width, 3 * width), (3 * width,), (width, width), (width,),  # query-key-value, projection
        (width,), (width,),  # norm before the MLP
        (width, 4 * width), (4 * width,), (4 * width, width), (width,),
    ]  # fmt: skip
    return [(50257, width), (1024, width), *(12 * block), (width,), (width,)]


@dataclass(frozen=True)
class Case:
    """A workload and how long it is measured.

    Attributes:
        name: of the case.
        make: builds the workload on a device.
        bases: keys of ``BASES``.
        rounds: how many rounds are measured; in each, every method has its turn.
        steps: of a turn. Where a step is short it is eight, the period of ARS's bookkeeping; on a
            GPU the steps of a training turn are queued without waiting for any.
    """

    name: str
    make: Callable[[torch.device], Workload]
    bases: tuple[str, ...]
    rounds: int
    steps: int = 1


def tensors(name: str, shapes: Sequence[Shape], bases: Sequence[str], rounds: int, steps: int = 1
) -> Case:  # fmt: skip
    """A case of a set of tensors."""
    return Case(name, lambda device: TensorSet(shapes, device), tuple(bases), rounds, steps)


LARGE: list[Shape] = [(1_000_000,)] * 20
TINY: list[Shape] = [(64 * (1 + index % 16),) for index in range(200)]  # 64 to 1024 elements
FUSED = ["adamw-fused", "sgd-fused"]


def _demo_step(device: torch.device) -> TrainingStep:
    size = SIZES["paper"]
    return TrainingStep(size.config(VOCAB), size.batch, device)


def _gpt2_step(device: torch.device) -> TrainingStep:
    return TrainingStep(GPTConfig(50257, 12, 12, 768, 1024), 8, device, autocast=True)


CASES = (
    tensors("20x1M", LARGE, list(BASES), rounds=81),
    tensors("200-tiny", TINY, list(BASES), rounds=101, steps=8),
    # A foreach AdamW step takes a second there on two cores: fused optimizers only.
    tensors("gpt2-124m", gpt2_shapes(), FUSED, rounds=41),
    Case("gpt-step", _demo_step, ("adamw-fused",), rounds=21),
)

GPU_CASES = (
    tensors("20x1M", LARGE, list(BASES), rounds=81),
    tensors("200-tiny", TINY, list(BASES), rounds=31, steps=8),
    tensors("gpt2-124m", gpt2_shapes(), list(BASES), rounds=41),
    Case("gpt-step", _demo_step, ("adamw-fused",), rounds=31, steps=8),
    # GPT-2 small on 8 sequences of 1024 tokens; it would take minutes a step on a CPU.
    Case("gpt2-step", _gpt2_step, ("adamw-fused",), rounds=21, steps=4),
)

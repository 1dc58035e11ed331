"""The peers of which no package exists that fits any optimizer: rebuilt from their papers.

What is rebuilt is the rule alone; the base optimizer stays torch's own, so that a step on which the
rule does nothing is the bare optimizer's to the bit.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nanogpt_demo.methods import Recipe


class AdaGC(Recipe):
    """Per-tensor clipping against each tensor's own past norms (arXiv 2502.11034, algorithm 1).

    For the first 100 steps all gradients are clipped together to the global norm 1.0
    (lambda_abs), and each tensor's level is the smallest norm it has had since. After that a
    tensor is clipped to 1.05 (lambda_rel) times its level, which follows its clipped norms as an
    exponential moving average with decay 0.98 (beta).

    Formula and warm-up agree with two descriptions and two independent ports of the paper
    (pytorch_optimizer 4.1.0, NoteDance's for Keras), the four defaults with both ports; the paper's
    own text could not be read in full. Both ports are a whole Adam, hence this one, which clips for
    any optimizer as the paper does for Lion and Muon.
    Non-finite gradients are not treated in the paper and not here: a NaN makes the tensor's level
    NaN (in the warm-up every tensor's), and with it all that tensor's later gradients.
    """

    LAMBDA_ABS = 1.0
    LAMBDA_REL = 1.05
    BETA = 0.98
    WARMUP = 100

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, max_norm: float | None = None
    ) -> None:
        """Start with no level at all, so that the first norm becomes it."""
        super().__init__(model, optimizer, max_norm)
        self._steps = 0
        self._levels = torch.full(
            (len(self._parameters),), torch.inf, device=self._parameters[0].device
        )

    @torch.no_grad()
    def _update(self, loss: Tensor) -> None:
        seen = [i for i, p in enumerate(self._parameters) if p.grad is not None]
        grads = [p.grad for p in self._parameters if p.grad is not None]
        norms, levels = torch.stack(torch._foreach_norm(grads)), self._levels[seen]
        tiny = torch.finfo(norms.dtype).tiny  # 0 over 0 must be 0: the gradient is 0 already
        self._steps += 1
        if self._steps <= self.WARMUP:
            share = (self.LAMBDA_ABS / norms.norm().clamp(min=tiny)).clamp(max=1.0)
            levels = torch.minimum(levels, share * norms)
            shares = share.expand(len(grads))
        else:
            shares = (self.LAMBDA_REL * levels / norms.clamp(min=tiny)).clamp(max=1.0)
            levels = levels.lerp(shares * norms, 1 - self.BETA)
        self._levels[seen] = levels
        if not bool((shares == 1.0).all()):  # not on a NaN either
            self.touched = True
            torch._foreach_mul_(grads, list(shares))
        self.optimizer.step()


class SkipStep(Recipe):
    """OLMo-core's skip-step rule, with its settings, round any optimizer.

    A step counts if neither its loss nor its gradient norm (before clipping) exceeds the mean of
    the last 128 by more than 6 standard deviations, once 64 are known; the window takes every value
    in, those of skipped steps and NaN too, and NaN exceeds everything. Read from OLMo-core's
    `SkipStepOptimizer`, `SkipStepAdamW` and `SkipStepLion` (the one-sided version; an earlier one
    compared absolute deviations). There the norm comes from the gradient clipper and is not looked
    at without one; here it always is.

    Their optimizers do not leave a skipped step out: they multiply it by 0, weight decay and the
    increments of the moments and of the step counter included. For finite gradients that is the
    same as leaving it out, which is what is done here. For the others it is not: 0 * NaN and
    0 * Inf are NaN, so such elements become NaN in the moments and the weights, here as there.
    (Lion's weights are spared: it steps by the sign, and the sign of NaN is 0.) For SGD, which has
    no skip-step version in OLMo-core, momentum and weights are treated as AdamW's.
    """

    WINDOW = 128
    SIGMAS = 6

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, max_norm: float | None = None
    ) -> None:
        """Start with empty windows."""
        super().__init__(model, optimizer, max_norm)
        # One more than the window: the last value is compared with those before it.
        self._losses: deque[Tensor] = deque(maxlen=self.WINDOW + 1)
        self._norms: deque[Tensor] = deque(maxlen=self.WINDOW + 1)

    def step(self, loss: Tensor) -> None:
        """Take loss and norm down before anything is clipped, then step or skip."""
        self._losses.append(loss)
        self._norms.append(
            nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        )
        super().step(loss)

    def _update(self, loss: Tensor) -> None:
        if self._in_range(self._losses) and self._in_range(self._norms):
            self.optimizer.step()
        else:
            self.touched = True
            self._add_nothing()

    def _in_range(self, values: deque[Tensor]) -> bool:
        if len(values) < self.WINDOW // 2:
            return True
        window = torch.stack(list(values))
        std, mean = torch.std_mean(window[:-1])
        return bool(window[-1] - mean <= self.SIGMAS * std)

    @torch.no_grad()
    def _add_nothing(self) -> None:
        """Add 0 times the gradient to the moments, and through them to the weights."""
        by_sign = type(self.optimizer).__name__ == "Lion"  # not imported for this
        for parameter in self._parameters:
            if parameter.grad is None:
                continue
            nothing = 0 * parameter.grad
            parameter.add_(nothing.sign() if by_sign else nothing)
            for value in self.optimizer.state[parameter].values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.add_(nothing)

"""Carries a Decision out on a base optimizer; the only place that changes tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .decision import Decision
from .delegation import inside
from .kernels import Noise, NoiseSource, ShardNoise, global_norm, norms, scale_and_jitter_
from .shards import is_sharded, norms_by_share, shard_index

ParamGroups = list[dict[str, Any]]

LR_COMES_LATE = (torch.optim.ASGD, torch.optim.Rprop)
"""Optimizers that do not read the learning rate in the step it is for: ASGD steps with that of the
step before, Rprop with step sizes of its own."""

LR_IS_NOT_THE_STEP = {"A2Grad", "AdaFactor", "AdaMod", "AdamG", "AliG", "ApolloDQN", "FTRL"}
"""Names of optimizers of pytorch_optimizer whose step does not shrink with the learning rate: it is
one of several bounds, enters an average, is not read, or (FTRL) is what past steps were taken with.
"""

FUSED_MIN_SCALE = 1e-30
"""Below this the inverse of a scale leaves the comfortable range of float32."""


@torch.no_grad()  # gradients may have a graph, of create_graph=True
def gradient_norm(groups: ParamGroups, each: bool = False) -> tuple[float, Tensor | None]:
    """L2 norm over all gradients, each shared tensor once; 0.0 if there are none.

    Sharded gradients (DTensor) give the norm of the whole model on every rank.

    Args:
        groups: live param groups.
        each: also give the norm of each gradient, of shape (distinct gradients,), if none is
            sharded; many small ones are faster measured together.

    Returns:
        The norm, and None or the norm of each.
    """
    grads = [_summed(grad) for grad in _distinct_gradients(groups)]
    # The first test is the faster, and enough for nearly all.
    sharded = [grad for grad in grads if type(grad) is not Tensor and is_sharded(grad)]
    if sharded:
        plain = [grad for grad in grads if not is_sharded(grad)]
        norm: Any = torch.nn.utils.get_total_norm(sharded)
        return math.hypot(float(norm.full_tensor()), float(global_norm(plain))), None
    if not each:
        return float(global_norm(grads)), None
    of_each = norms(grads)
    return float(torch.linalg.vector_norm(of_each)), of_each


@contextmanager
def carried_out(
    optimizer: Optimizer,
    decision: Decision,
    noise: Noise,
    by_lr_only: bool,
    of_each: Tensor | None = None,
) -> Iterator[None]:
    """While the base optimizer steps: its gradients and learning rates are as the decision says.

    Gradients stay scaled and jittered afterwards, as they do after `clip_grad_norm_`; learning
    rates are put back however the step ends.

    Args:
        optimizer: the base optimizer.
        decision: what to do; must not be a skip.
        noise: source of the jitter.
        by_lr_only: never touch gradients (an optimizer that evaluates its closure again, such as
            LBFGS, would compare scaled gradients with unscaled ones).
        of_each: norm of each gradient as `gradient_norm` found it, to spare jitter a second pass.
    """
    grad_scale, groups = decision.grad_scale, optimizer.param_groups
    scales = decision.group_scales(len(groups))
    if by_lr_only:
        scales, grad_scale = [scale * grad_scale for scale in scales], 1.0
    chi = 0.0 if by_lr_only else decision.chi
    with ExitStack() as stack:
        if any(scale != 1.0 for scale in scales):
            brake = _scaled_lr if _obeys_lr(optimizer) else _scaled_move
            stack.enter_context(brake(groups, scales))
        if grad_scale != 1.0 or chi != 0.0:
            grads = writable_gradients(groups, coalesce=chi != 0.0)
            if chi == 0.0 and _can_scale_in_its_step(optimizer, grads, grad_scale):
                stack.enter_context(_fused_grad_scale(optimizer, grads[0].device, grad_scale))
            else:
                _change_(grads, _distinct_gradients(groups), decision, noise, of_each)
        yield


@torch.no_grad()
def _change_(
    grads: list[Tensor],
    wholes: list[Tensor],
    decision: Decision,
    noise: Noise,
    of_each: Tensor | None,
) -> None:
    """Scale and jitter gradients in place.

    Args:
        grads: what `writable_gradients` gave.
        wholes: the gradients that it belongs to, of which `grads` may be this rank's shards.
        decision: what to do.
        noise: source of the jitter.
        of_each: norm of each gradient if it is known.
    """
    # In the published order noise is added first and scaled with the gradient.
    relative = not decision.as_published
    jitter = decision.chi if relative else decision.chi * decision.grad_scale
    source: NoiseSource = noise
    if jitter != 0.0 and any(is_sharded(grad) for grad in wholes):
        source = ShardNoise(noise, [shard_index(grad) for grad in wholes])
        of_each = norms_by_share(wholes, grads) if relative else None
    scale_and_jitter_(grads, decision.grad_scale, jitter, source, decision.step, relative, of_each)


def writable_gradients(groups: ParamGroups, coalesce: bool = False) -> list[Tensor]:
    """The gradients as dense tensors that may be changed in place, each shared one once.

    A sparse gradient gives its values, a sharded one its local shard. A gradient that cannot be
    written to in place (expanded, with a stride of 0, or lazily conjugated or negated) is first
    replaced by a copy.

    Args:
        groups: live param groups.
        coalesce: replace uncoalesced sparse gradients by coalesced ones, so that noise added to
            duplicate rows does not add up.
    """
    grads = _distinct_gradients(groups)
    if all(
        grad.layout is torch.strided and type(grad) is Tensor and grad.is_contiguous()
        for grad in grads
    ) and not any(grad.is_neg() or grad.is_conj() for grad in grads):
        return grads  # as nearly always; there is nothing to replace
    # Originals are kept beside their replacements: the id of a freed tensor may be used again.
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    for group in groups:
        for p in group["params"]:
            if p.grad is None:
                continue
            if id(p.grad) not in seen:
                seen[id(p.grad)] = p.grad, _writable(p.grad, coalesce)
            original, writable = seen[id(p.grad)]
            if writable is not original:
                p.grad = writable
    return [_values(writable) for _, writable in seen.values()]


def local_gradient(p: Tensor) -> Tensor:
    """A parameter's gradient as a dense tensor, this rank's shard of it; empty if it has none."""
    return torch.zeros(0, device=p.device) if p.grad is None else _values(p.grad).detach()


def _writable(grad: Tensor, coalesce: bool) -> Tensor:
    if grad.is_sparse:
        return grad.coalesce() if coalesce else grad
    if grad.is_conj() or grad.is_neg() or _is_expanded(grad):
        return grad.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return grad


def _distinct_gradients(groups: ParamGroups) -> list[Tensor]:
    grads = [grad for group in groups for p in group["params"] if (grad := p.grad) is not None]
    return list({id(grad): grad for grad in grads}.values())


def _summed(grad: Tensor) -> Tensor:
    """A gradient as a tensor whose norm is the gradient's: duplicate sparse rows summed."""
    return grad.coalesce().values() if grad.is_sparse else grad


def _values(grad: Tensor) -> Tensor:
    if grad.is_sparse:
        return grad._values()
    to_local = getattr(grad, "to_local", None)
    return to_local() if to_local is not None else grad


def _is_expanded(grad: Tensor) -> bool:
    return not grad.is_contiguous() and any(
        stride == 0 and size > 1 for stride, size in zip(grad.stride(), grad.shape, strict=True)
    )


def _obeys_lr(optimizer: Optimizer) -> bool:
    """Whether a smaller learning rate in the groups makes this very step smaller.

    Where it does it is the better brake: what an optimizer keeps of its way (schedule-free's and
    MADGRAD's sums, D-Adaptation's distance) is braked with it, and leads no weights astray later.
    """
    inner = inside(optimizer)
    if any(group.get("lr") is None for group in inner.param_groups):
        return False
    names = {kind.__name__ for kind in type(inner).__mro__}
    return not isinstance(inner, LR_COMES_LATE) and names.isdisjoint(LR_IS_NOT_THE_STEP)


@contextmanager
def _scaled_lr(groups: ParamGroups, scales: Sequence[float]) -> Iterator[None]:
    """Multiply each group's learning rate for the duration: the only brake that holds Adam.

    Adam-like updates do not change when all gradients are scaled alike.
    """
    before = [group.get("lr") for group in groups]
    try:
        for group, scale, lr in zip(groups, scales, before, strict=True):
            if lr is not None:
                group["lr"] = lr * scale
        yield
    finally:
        for group, lr in zip(groups, before, strict=True):
            if lr is not None:
                group["lr"] = lr


@contextmanager
def _scaled_move(groups: ParamGroups, scales: Sequence[float]) -> Iterator[None]:
    """Let the optimizer move the parameters, then take back all but a part of the move.

    For optimizers without a learning rate to go by, at the price of a copy of the parameters. What
    they keep in their state has moved in full.
    """
    moved = [
        (p, p.detach().clone(), scale)
        for group, scale in zip(groups, scales, strict=True)
        for p in group["params"]
        if p.grad is not None
    ]
    yield
    with torch.no_grad():
        for p, start, scale in moved:
            p.copy_(start.lerp_(p, scale))


def _can_scale_in_its_step(optimizer: Any, grads: list[Tensor], scale: float) -> bool:
    """Whether a fused optimizer's own pass may scale the gradients, at no extra cost.

    It scales once for each parameter, so not where parameters share a gradient; it reads and
    writes gradients in the parameter's layout; and it divides by a float32, so not by the inverse
    of nearly nothing.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False) or scale < FUSED_MIN_SCALE:
        return False
    if not all(group.get("fused") for group in optimizer.param_groups):
        return False  # an unfused checkpoint was loaded: the attribute above does not notice
    params = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    same_layout = all(p.grad.stride() == p.stride() for p in params)
    return 0 < len(grads) == len(params) and same_layout


@contextmanager
def _fused_grad_scale(optimizer: Any, device: torch.device, scale: float) -> Iterator[None]:
    optimizer.grad_scale = torch.full((), 1.0 / scale, dtype=torch.float32, device=device)
    optimizer.found_inf = None
    try:
        yield
    finally:
        del optimizer.grad_scale, optimizer.found_inf

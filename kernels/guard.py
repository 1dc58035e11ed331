"""The whole observation and decision of a step in one small launch, on device memory (Triton).

This is `resilient_optim.policy` once more, so that a step on a GPU never waits for the host. The
policy in plain Python is the readable reference; tests hold every decision taken here against it.
All numbers are float64, as they are there. A single program does it: a window has a few dozen
values.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from resilient_optim.memory import COUNTERS

from . import guard_rules as rules
from . import window as windows
from .guard_rules import INFINITY, LOSSES, VERDICT
from .launch import launch

SETTINGS = (
    "alpha", "phi_min", "jitter_scale", "rho_threshold", "z_threshold", "patience", "start_up",
    "norm_z", "alert_threshold", "lr_jump", "max_norm", "momentum_gain",
)  # fmt: skip
"""The settings of `DefaultConfig`, in the order of the numbers by which `guard_rules.decide` loads
them."""

TELLS = (*VERDICT, *COUNTERS, "skips_in_a_row")
"""What the kernel tells: the verdict, then the counters, see `Memory`."""

REASONS = (
    "quiet", "start-up", "outlier gradient", "learning-rate jump", "resonance", "new level",
    "surprise", "non-finite gradient", "non-finite loss", "non-finite learning rate",
)  # fmt: skip
"""Reasons by their code, which `guard_rules.reason_code` gives as a number."""

BAD_NORM = tl.constexpr(REASONS.index("non-finite gradient"))
BAD_LOSS = tl.constexpr(REASONS.index("non-finite loss"))
BAD_LR = tl.constexpr(REASONS.index("non-finite learning rate"))
LR_JUMP = tl.constexpr(SETTINGS.index("lr_jump"))


class Guard(NamedTuple):
    """The arrays in device memory that the guard lives in; float64 unless another type is given.

    Attributes:
        state: the packed memory without the learning rates, see `Memory.pack`.
        first_lrs: of each param group, NaN where unknown; shape (groups,).
        proven_lrs: likewise.
        settings: the numbers named in `SETTINGS`.
        lrs: in: learning rate of each param group.
        told: out: `TELLS` between two equal numbers that count the steps.
        skip: out: float32 scalar, 1 if the step is to be left out, else 0.
        step_lrs: out: float32, learning rate of each param group for this step.
        step: out: int64 scalar, number of the step.
    """

    state: Tensor
    first_lrs: Tensor
    proven_lrs: Tensor
    settings: Tensor
    lrs: Tensor
    told: Tensor
    skip: Tensor
    step_lrs: Tensor
    step: Tensor


def judge_(
    guard: Guard,
    loss: Tensor,
    sums: Tensor,
    numels: Tensor,
    phi: Tensor,
    sigma: Tensor,
    window_size: int,
    measures_norm: bool,
    norm: Tensor | None = None,
) -> None:
    """Decide on a step and remember it, in one launch; see `DefaultConfig.decide`.

    Args:
        guard: state, settings and learning rates go in, the decision comes out.
        loss: float64 of one element.
        sums: sum of squares of each gradient, float64 of shape (n,).
        numels: its number of elements, int64.
        phi: out: factor on each gradient, float32 of shape (n,).
        sigma: out: standard deviation of the noise to add to it, float32 of shape (n,).
        window_size: capacity of the windows in the state.
        measures_norm: whether the gradient norm is looked at.
        norm: the gradient norm, float64, if it is not that of the sums: ranks have agreed on it.
    """
    groups = len(guard.lrs)
    arguments = (
        *guard[:4], loss, guard.state if norm is None else norm, sums, numels, *guard[4:],
        phi, sigma, len(sums), groups,
    )  # fmt: skip
    launch(
        guard_kernel, 1, arguments, _constants(window_size, groups, measures_norm, norm is not None)
    )


@lru_cache
def _constants(size: int, groups: int, measures_norm: bool, is_given: bool) -> dict[str, Any]:
    """Of `guard_kernel`, in the order of its parameters."""
    sizes = {"BLOCK": size, "GROUPS": groups, "TELLS": len(TELLS), "TENSORS": 1024}
    blocks = {name: max(2, triton.next_power_of_2(size)) for name, size in sizes.items()}
    return {"SIZE": size, "MEASURES_NORM": measures_norm, "NORM_IS_GIVEN": is_given, **blocks}


def signatures() -> dict[str, tuple[Any, dict[str, str], dict[str, Any], dict[Any, Any]]]:
    """What `triton.compiler.ASTSource` needs: function, signature, constants and attributes."""
    types = {"numels": "*i64", "step_out": "*i64"}
    types |= dict.fromkeys(["skip_out", "lr_out", "phi_out", "sigma_out"], "*fp32")
    types |= dict.fromkeys(["n_tensors", "n_groups"], "i32")
    constants = _constants(64, 2, True, False)
    signature = {
        name: "constexpr" if name in constants else types.get(name, "*fp64")
        for name in guard_kernel.arg_names
    }
    return {"guard": (guard_kernel, signature, constants, {})}


@triton.jit
def _gradient_norm(norm_in, sums, n_tensors, TENSORS: tl.constexpr, GIVEN: tl.constexpr):
    if GIVEN:
        return tl.load(norm_in).to(tl.float64)
    block = tl.arange(0, TENSORS)
    total = tl.zeros((TENSORS,), tl.float64)
    for start in range(0, n_tensors, TENSORS):
        total += tl.load(sums + start + block, mask=start + block < n_tensors, other=0.0)
    return tl.sqrt(tl.sum(total))


@triton.jit
def _learning_rates(lrs, first_lrs, proven_lrs, group, n_groups):
    """`Memory.see_lrs`: ratios to what is proven; whether the run warms up, and all are finite."""
    member = group < n_groups
    lr = tl.load(lrs + group, mask=member, other=0.0)
    first = tl.load(first_lrs + group, mask=member, other=0.0)
    finite = tl.min(tl.where(member, (tl.abs(lr) < INFINITY).to(tl.int32), 1)) == 1
    first = tl.where((first == first) | (finite == 0), first, lr)  # a group that is new
    proven = tl.load(proven_lrs + group, mask=member, other=0.0)
    proven = tl.where(proven == proven, proven, 0.0)
    tl.store(first_lrs + group, first, mask=member)
    known = member & (proven > 0.0)
    ratios = tl.where(known, lr / tl.where(known, proven, 1.0), 1.0)
    warms_up = tl.min(tl.where(member, (lr > rules.WARMUP_RISE * first).to(tl.int32), 1)) == 1
    return lr, proven, ratios, warms_up, finite


@triton.jit
def _count(counter, happened):
    tl.store(counter, tl.load(counter) + tl.where(happened, 1.0, 0.0))


@triton.jit
def _remember(
    state, index, n_losses, n_norms, loss, norm, skip, nonfinite, phi, chi, update_scale,
    grad_scale, new_level, abnormal_norm, SIZE: tl.constexpr, MEASURES_NORM: tl.constexpr,
):  # fmt: skip
    """`Memory.remember`: count the step, and record what may be learned from."""
    taken = skip == 0
    changed = (update_scale != 1.0) | (grad_scale != 1.0) | (chi != 0.0)
    _count(state + rules.OBSERVED, taken | skip)
    _count(state + rules.TOUCHED, skip | changed)
    _count(state + rules.SKIPPED, skip)
    _count(state + rules.NONFINITE, nonfinite)
    _count(state + rules.DAMPED, taken & (phi < 1.0))
    _count(state + rules.BOUNDED, taken & (grad_scale != 1.0))
    _count(state + rules.JITTERED, taken & (chi != 0.0))
    _count(state + rules.NEW_LEVELS, new_level)
    tl.store(state + rules.SKIPS, tl.where(skip, tl.load(state + rules.SKIPS) + 1.0, 0.0))
    newest = tl.load(state + LOSSES + n_losses - 1, mask=n_losses > 0, other=float("nan"))
    stands_still = (loss == newest) & (norm == 0.0) & MEASURES_NORM
    tl.debug_barrier()  # no warp clears it before all have read
    if taken & new_level:
        windows.clear(state + LOSSES, index, SIZE)
    if taken & (stands_still == 0):
        windows.append(state + LOSSES, index, tl.where(new_level, 0, n_losses), SIZE, loss)
        if (norm > 0.0) & (abnormal_norm == 0):
            windows.append(state + LOSSES + SIZE, index, n_norms, SIZE, tl.log(norm))


@triton.jit(do_not_specialize=list(range(17)))  # compiled once, before the first step is queued
def guard_kernel(
    state, first_lrs, proven_lrs, settings, loss_in, norm_in, sums, numels, lrs, told, skip_out,
    lr_out, step_out, phi_out, sigma_out, n_tensors, n_groups,
    SIZE: tl.constexpr, MEASURES_NORM: tl.constexpr, NORM_IS_GIVEN: tl.constexpr,
    BLOCK: tl.constexpr, GROUPS: tl.constexpr, TELLS: tl.constexpr, TENSORS: tl.constexpr,
):  # fmt: skip
    """`DefaultConfig.decide` and `Memory.remember` in one; see `judge_`.

    Blocks are powers of two: at least SIZE, n_groups, the length of `TELLS`, and any.
    """
    index, group, block = tl.arange(0, BLOCK), tl.arange(0, GROUPS), tl.arange(0, TENSORS)
    n_losses = windows.count(state + LOSSES, index, SIZE)
    n_norms = windows.count(state + LOSSES + SIZE, index, SIZE)
    step = tl.load(state + rules.OBSERVED)
    if step.to(tl.int64) % rules.SUMMARY_EVERY == 0:
        rules.summarise(state, index, n_losses, n_norms, SIZE)

    loss = tl.load(loss_in).to(tl.float64)
    norm = tl.full((), 0.0, tl.float64)
    if MEASURES_NORM:
        norm = _gradient_norm(norm_in, sums, n_tensors, TENSORS, NORM_IS_GIVEN)
    lr, proven, lr_ratios, own_warmup, finite_lr = _learning_rates(
        lrs, first_lrs, proven_lrs, group, n_groups
    )
    in_groups = group < n_groups
    lr_ratio = tl.max(tl.where(in_groups, lr_ratios, -INFINITY))
    bad_loss = (tl.abs(loss) < INFINITY) == 0
    bad_norm = (norm < INFINITY) == 0
    nonfinite = bad_loss | bad_norm | (finite_lr == 0)
    largest_lr = tl.max(tl.where(in_groups, lr, -INFINITY))
    smallest_lr = tl.min(tl.where(in_groups, lr, INFINITY))
    common_lr = tl.where(largest_lr == smallest_lr, largest_lr, 0.0)
    reason, z, rho, psi, phi, chi, lr_scale, grad_scale, skip, new_level, abnormal_norm = (
        rules.decide(
            state, settings, index, n_losses, loss, norm, common_lr, lr_ratio, own_warmup,
            nonfinite,
        )
    )  # fmt: skip
    bad = tl.where(bad_loss, BAD_LOSS, tl.where(bad_norm, BAD_NORM, BAD_LR))
    reason = tl.where(nonfinite, bad, reason)
    update_scale = phi * lr_scale
    _remember(
        state, index, n_losses, n_norms, loss, norm, skip, nonfinite, phi, chi, update_scale,
        grad_scale, new_level, abnormal_norm, SIZE, MEASURES_NORM,
    )  # fmt: skip
    taken = skip == 0
    # Where anything has jumped, only that is braked.
    brakes = rules.lr_brake(lr_ratios, tl.load(settings + LR_JUMP))
    scales = phi * tl.where(lr_scale < 1.0, brakes, 1.0)
    proven = tl.where(taken, tl.maximum(proven, scales * lr), proven)
    tl.store(proven_lrs + group, proven, mask=in_groups)

    # What the optimizer and the gate kernel go by.
    tl.store(skip_out, tl.where(skip, 1.0, 0.0))
    tl.store(lr_out + group, lr * tl.where(taken, scales, 1.0), mask=in_groups)
    for start in range(0, n_tensors, TENSORS):
        here = start + block < n_tensors
        mean_square = tl.load(sums + start + block, mask=here, other=0.0) / tl.maximum(
            tl.load(numels + start + block, mask=here, other=1), 1
        )
        factor = tl.where(taken, grad_scale, 1.0)
        noise = tl.where(taken, chi * grad_scale, 0.0) * tl.sqrt(mean_square)
        tl.store(phi_out + start + block, tl.zeros((TENSORS,), tl.float64) + factor, mask=here)
        tl.store(sigma_out + start + block, tl.where(noise > 0.0, noise, 0.0), mask=here)

    # What the host reads when it has arrived: `TELLS` between two equal numbers.
    tl.store(step_out, step.to(tl.int64))
    tl.store(told, step + 1.0)
    tl.store(told + rules.TOLD_STEP, step)
    tl.store(told + rules.TOLD_REASON, reason.to(tl.float64))
    tl.store(told + rules.TOLD_LOSS, loss)
    tl.store(told + rules.TOLD_GRAD_NORM, norm)
    tl.store(told + rules.TOLD_Z, z)
    tl.store(told + rules.TOLD_RHO, rho)
    tl.store(told + rules.TOLD_PSI, psi)
    tl.store(told + rules.TOLD_PHI, phi)
    tl.store(told + rules.TOLD_CHI, chi)
    tl.store(told + rules.TOLD_UPDATE_SCALE, update_scale)
    tl.store(told + rules.TOLD_GRAD_SCALE, grad_scale)
    tl.store(told + rules.TOLD_NEW_LEVEL, tl.where(new_level, 1.0, 0.0))
    tl.store(told + rules.TOLD_ABNORMAL_NORM, tl.where(abnormal_norm, 1.0, 0.0))
    tl.store(told + rules.TOLD_SKIP, tl.where(skip, 1.0, 0.0))
    tl.debug_barrier()  # the counters are written
    count = tl.arange(0, TELLS)
    counting = count < LOSSES - rules.OBSERVED
    counts = tl.load(state + rules.OBSERVED + count, mask=counting, other=0.0)
    tl.store(told + rules.TOLD_COUNTERS + count, counts, mask=counting)
    tl.store(told + rules.TOLD_COUNTERS + (LOSSES - rules.OBSERVED), step + 1.0)

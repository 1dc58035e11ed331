"""ARS: wraps any torch optimizer and decides, step by step, how far its update may be trusted."""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import actuation, distributed
from .decision import QUIET, SKIP, Decision, Observation
from .delegation import DelegatingOptimizer, has_stepped
from .kernels import Noise
from .loss_buffer import LossBuffer
from .memory import STATE_KEY, Memory, check_version
from .presets import Config, make_config
from .step_input import Closure, as_float, replay

logger = logging.getLogger(__name__)

LOUD_AFTER = 10
"""Consecutive skipped steps after which a warning is logged (and again at every tenfold)."""


class ARS(DelegatingOptimizer):
    """Adaptive Resonance Suppression around any torch optimizer.

    A healthy run, once past its first steps, is bit for bit the run you had. A non-finite loss or
    gradient skips the step (parameters, moments and step counters stay as they are), an outlier
    gradient is scaled back, a surprising loss has its update damped or left out, a surprise that
    stays is accepted as the new level, and an oscillating loss gets noise that breaks its rhythm.

    Example:
        >>> import torch
        >>> from resilient_optim import ARS
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = ARS(torch.optim.AdamW(model.parameters(), lr=3e-3))
        >>> for _ in range(3):
        ...     loss = model(torch.randn(8, 4)).square().mean()
        ...     loss.backward()
        ...     _ = optimizer.step(loss)
        ...     optimizer.zero_grad()
        >>> optimizer.last.action, optimizer.counters["observed"]
        ('damp', 3)

    Args:
        optimizer: the base optimizer; every attribute that ARS does not define is its own.
        preset: "default", or "paper" for the published formulas.
        seed: of the jitter noise; equal on all ranks that hold the same gradients.
        process_group: ranks that decide together, on the mean of their losses and on any one's
            non-finite value. None: all ranks of `torch.distributed` if it is initialised. False:
            this process alone.
        **overrides: settings of the preset, see `DefaultConfig` and `PaperConfig`.

    Raises:
        TypeError: `optimizer` is no torch optimizer, or a setting is unknown or of a wrong type.
        ValueError: unknown preset, a setting out of range, or an optimizer that is wrapped already.

    Attributes:
        last: the latest `Decision`, None before the first.
        counters: how often ARS did what, see `metrics`.
        loss_buffer: the recent losses and gradient norms.
        config: the settings in force.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        preset: str = "default",
        *,
        seed: int = 0,
        process_group: Any = None,
        **overrides: Any,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}; "
                "wrap it as ARS(torch.optim.AdamW(model.parameters()))"
            )
        if isinstance(optimizer, ARS):
            raise ValueError("optimizer must not be an ARS already, got ARS; wrap the base once")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed must be an integer, got {seed!r}")
        self.config: Config = make_config(preset, overrides)
        super().__init__(optimizer)
        self.process_group = process_group
        self.last: Decision | None = None
        self._noise = Noise(seed)
        self._pending: float | None = None
        # A base that has stepped before belongs to a run that is not young any more.
        self._memory = self._new_memory(young=not has_stepped(optimizer))
        self._by_lr_only = isinstance(optimizer, torch.optim.LBFGS)
        self._publish_state()

    # -- one step ---------------------------------------------------------------------------

    def step(self, loss: Any = None, closure: Closure | None = None) -> Any:  # type: ignore[override]
        """Judge the loss, then let the base optimizer step as far as it is trusted.

        Args:
            loss: the loss whose gradients are in place: a float or a one-element tensor on any
                device, not multiplied by a loss scale, averaged over what this step learned from
                (with gradient accumulation: over the micro-batches). A callable is taken as the
                closure. None: the value given to `report`; without any the step is the base's own.
            closure: evaluates the model and returns the loss, as for any torch optimizer. It is
                called once here; an optimizer that needs more evaluations calls it again.

        Returns:
            What the closure returned, else `loss`.

        Raises:
            TypeError: `loss` is not a number, or a tensor of more than one element.
        """
        if closure is None and callable(loss):
            loss, closure = None, loss
        value = None if loss is None else as_float(loss)
        result: Any = loss
        if closure is not None:
            with torch.enable_grad():
                result = closure()
            # Some frameworks pass a closure that returns nothing beside the loss.
            if result is not None:
                value = as_float(result)
        if value is None:
            value = self._pending
        self._pending = None
        if value is None:
            self._step_unobserved(closure, result)
            return result
        decision = self._decide(value)
        if decision.action != SKIP:
            if decision.reason != QUIET and decision.touched:
                with actuation.carried_out(self.base, decision, self._noise, self._by_lr_only):
                    self._step_base(closure, result)
            else:
                self._step_base(closure, result)
        return result

    def report(self, loss: float | Tensor) -> None:
        """Give the loss for the next `step()` that brings none (a framework makes that call).

        Raises:
            TypeError: `loss` is not a number, or a tensor of more than one element.
        """
        self._pending = as_float(loss)

    def _step_unobserved(self, closure: Closure | None, result: Any) -> None:
        self.counters["unobserved"] += 1
        # Not at the first: torch.distributed.checkpoint makes one such step to create the state.
        if self.counters["unobserved"] == 2:
            logger.warning(
                "ARS.step() was called without a loss: ARS does nothing in such a step. Call "
                "step(loss), or report(loss) before it."
            )
        self._step_base(closure, result)

    def _step_base(self, closure: Closure | None, result: Any) -> None:
        if closure is None:
            self.base.step()
        else:
            self.base.step(replay(closure, result))

    def _decide(self, loss: float) -> Decision:
        groups, memory = self.base.param_groups, self._memory
        norm = actuation.gradient_norm(groups) if self.config.measures_norm else None
        if self.process_group is not False:
            loss, norm = distributed.agree(loss, norm, self.process_group)
        own_warmup = memory.policy.young_steps >= 0 and self._raises_its_own_lr(groups)
        seen = Observation(memory.counters["observed"], loss, norm, own_warmup)
        decision, memory.policy = self.config.decide(memory.policy, memory.buffer, seen)
        self.last = decision
        self._remember(decision)
        return decision

    def _remember(self, decision: Decision) -> None:
        """Count the step and record what may be learned from: never a skipped step's values."""
        memory, counters = self._memory, self._memory.counters
        counters["observed"] += 1
        if decision.action == SKIP:
            counters["touched"] += 1
            counters["skipped"] += 1
            counters["nonfinite"] += decision.reason.startswith("non-finite")
            memory.skips_in_a_row += 1
            self._warn_of_skips(decision)
            return
        memory.skips_in_a_row = 0
        norm = decision.grad_norm
        if decision.reason != QUIET:
            counters["touched"] += decision.touched
            counters["damped"] += decision.phi < 1.0
            counters["bounded"] += decision.grad_scale != 1.0 and decision.noise_is_relative
            counters["jittered"] += decision.chi != 0.0
            counters["new_levels"] += decision.new_level
            if decision.new_level:
                memory.buffer.losses.clear()
            if norm is not None:
                norm *= decision.grad_scale
        memory.buffer.append(decision.loss, norm)

    def _warn_of_skips(self, decision: Decision) -> None:
        skips = self._memory.skips_in_a_row
        while skips > LOUD_AFTER and skips % 10 == 0:
            skips //= 10
        if skips == LOUD_AFTER:
            logger.warning(
                "ARS skipped %d steps in a row, the last at step %d: %s (loss %g, gradient norm "
                "%s). The model does not learn meanwhile; look at the data and the learning rate.",
                self._memory.skips_in_a_row, decision.step, decision.reason, decision.loss,
                decision.grad_norm,
            )  # fmt: skip

    def _raises_its_own_lr(self, groups: actuation.ParamGroups) -> bool:
        """Whether the learning rate has risen, or starts below the peak that a scheduler noted."""
        lr = max(float(group.get("lr") or 0.0) for group in groups)
        before, self._memory.last_lr = self._memory.last_lr, lr
        if math.isnan(before):
            return any(
                float(group.get("lr") or 0.0) < group.get("initial_lr", 0.0) for group in groups
            )
        return lr > before

    # -- what it tells ----------------------------------------------------------------------

    @property
    def counters(self) -> Counter[str]:
        """How often ARS did what; `metrics` explains each."""
        return self._memory.counters

    @property
    def loss_buffer(self) -> LossBuffer:
        """The recent losses and gradient norms."""
        return self._memory.buffer

    def metrics(self) -> dict[str, float]:
        """The latest decision and the counters as a flat dict of floats, for any logger.

        Keys: ars/loss, ars/grad_norm (if measured), ars/z, ars/rho (once there is enough history),
        ars/psi, ars/phi, ars/chi, and the counts of steps: ars/observed, ars/unobserved (no loss),
        ars/touched (not identical to the base optimizer's), ars/skipped, ars/nonfinite (skipped
        for that), ars/damped, ars/bounded (gradient scaled back), ars/jittered, ars/new_levels.
        """
        out: dict[str, float] = {}
        if self.last is not None:
            for name in ("loss", "grad_norm", "z", "rho", "psi", "phi", "chi"):
                value = getattr(self.last, name)
                if value is not None and value == value:
                    out[f"ars/{name}"] = float(value)
        out.update((f"ars/{name}", float(count)) for name, count in self.counters.items())
        return out

    def __repr__(self) -> str:
        return f"ARS({type(self.base).__name__}, {self.config})"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group to the base optimizer."""
        self.base.add_param_group(param_group)
        self._publish_state()

    # -- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict; ARS's own state is one float64 tensor in each group."""
        self._publish_state()
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of ARS, or one of the bare base optimizer.

        The latter belongs to a run that is under way: ARS starts with an empty buffer and without
        a start-up phase.

        Raises:
            ValueError: the state was written by another version of ARS; nothing is loaded then.
        """
        check_version(state_dict["param_groups"])
        self.base.load_state_dict(state_dict)
        packed = self.base.param_groups[0].get(STATE_KEY)
        if packed is None:
            self._memory = self._new_memory(young=False)
        else:
            self._memory = Memory.unpack(packed.cpu().numpy(), self.config.history)
        self.last = self._pending = None
        self._publish_state()

    def _new_memory(self, young: bool) -> Memory:
        return Memory(LossBuffer(self.config.history), self.config.first_state(young))

    def _publish_state(self) -> None:
        """Write the memory into the param groups; a new tensor, since old ones may be saved."""
        packed = torch.from_numpy(self._memory.pack())
        for group in self.base.param_groups:
            group[STATE_KEY] = packed.clone()

    def __getstate__(self) -> dict[str, Any]:
        # Without what a scheduler left (a patched `step`); process groups cannot be pickled.
        state = {name: value for name, value in self.__dict__.items() if name in _PICKLED}
        return state | {"process_group": False if self.process_group is False else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


_PICKLED = {"base", "config", "last", "_noise", "_pending", "_memory", "_by_lr_only"}

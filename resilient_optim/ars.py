"""ARS: wraps any torch optimizer and decides, step by step, how far its update may be trusted."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import actuation, distributed
from .decision import QUIET, SKIP, Decision, Observation
from .delegation import DelegatingOptimizer, has_stepped, steps_by_sign
from .kernels import Noise
from .loss_buffer import LossBuffer
from .memory import STATE_KEY, Memory, check_version
from .policy_state import PolicyState
from .presets import Config, make_config
from .step_input import Closure, as_float, replay

logger = logging.getLogger(__name__)
LOUD_AFTER = 10
"""Consecutive skipped steps after which a warning is logged (and again at every tenfold)."""


class ARS(DelegatingOptimizer):
    """Adaptive Resonance Suppression around any torch optimizer.

    A healthy run, once past its first 105 steps, is bit for bit the run you had. A non-finite loss
    or gradient skips the step (parameters, moments and step counters stay as they are), an outlier
    gradient is scaled back, a surprising loss has its update damped or left out, a surprise that
    stays is accepted as the new level, a jump of the learning rate is approached step by step.

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
            One that has stepped before belongs to a run under way, which has no start-up phase;
            where that does not show (SGD without momentum keeps no state) pass `start_up=0`.
        seed: of the jitter noise; equal on all ranks that hold the same gradients.
        process_group: ranks that decide together, on the mean of their losses and on any one's
            non-finite value. None: all ranks of `torch.distributed` if it is initialised. False:
            this process alone. All ranks must bring a loss to a step, or none of them.
        **overrides: settings of the preset, see `DefaultConfig` and `PaperConfig`.

    Raises:
        TypeError: `optimizer` is no torch optimizer, or a setting is unknown or of a wrong type.
        ValueError: unknown preset, a setting out of range, an optimizer that is wrapped already, or
            one that carries the state of another version of ARS.

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
        if process_group is not False and isinstance(process_group, (bool, int, str)):
            raise TypeError(
                f"process_group must be a ProcessGroup, None or False, got {process_group!r}; "
                "None takes all ranks, False none"
            )
        check_version(optimizer.param_groups)
        self.config: Config = make_config(preset, overrides)
        super().__init__(optimizer, process_group)
        self.last: Decision | None = None
        self._noise = Noise(seed)
        self._pending: float | None = None
        self._memory = self._new_memory(young=not has_stepped(optimizer))
        saved = self._saved_memory()
        if saved is not None and saved.counters["observed"]:
            self._memory = saved
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
        reported, self._pending = self._pending, None
        value = reported if loss is None else as_float(loss)
        result: Any = loss
        if closure is not None:
            with torch.enable_grad():
                result = closure()
            # Some frameworks pass a closure that returns nothing beside the loss.
            if result is not None:
                value = as_float(result)
        if value is None:
            self._step_unobserved(closure, result)
            return result
        decision, policy = self._decide(value)
        self.last = decision
        if decision.reason == QUIET:
            self._step_base(closure, result)
        elif decision.action != SKIP:
            with actuation.carried_out(self.base, decision, self._noise, self._by_lr_only):
                self._step_base(closure, result)
        # Only now: a step that raised has not happened.
        self._memory.policy = policy
        self._remember(decision)
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

    def _decide(self, loss: float) -> tuple[Decision, PolicyState]:
        groups, memory = self.base.param_groups, self._memory
        norm = actuation.gradient_norm(groups) if self.config.measures_norm else None
        if self.process_group is not False:
            loss, norm = distributed.agree(loss, norm, self.process_group)
        memory.see_lrs(groups)
        warms_up = not memory.policy.open and (memory.notices_warmup() or steps_by_sign(self.base))
        seen = Observation(memory.counters["observed"], loss, norm, warms_up, memory.lr_ratio)
        return self.config.decide(memory.policy, memory.buffer, seen)

    def _remember(self, decision: Decision) -> None:
        """Count the step and record what may be learned from: never a skipped step's values."""
        memory, counters = self._memory, self.counters
        counters["observed"] += 1
        if decision.action == SKIP:
            counters["touched"] += 1
            counters["skipped"] += 1
            counters["nonfinite"] += decision.reason.startswith("non-finite")
            memory.skips_in_a_row += 1
            self._warn_of_skips(decision)
            return
        memory.skips_in_a_row = 0
        memory.prove_lrs(decision.update_scale)
        norm = decision.grad_norm
        if decision.reason != QUIET:
            counters["touched"] += decision.touched
            counters["damped"] += decision.phi < 1.0
            counters["bounded"] += decision.grad_scale != 1.0 and not decision.as_published
            counters["jittered"] += decision.chi != 0.0
            counters["new_levels"] += decision.new_level
            if decision.new_level:
                memory.buffer.losses.clear()
            norm = None if decision.abnormal_norm else norm
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
        super().add_param_group(param_group)
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
        self._memory = self._saved_memory() or self._new_memory(young=False)
        self.last = self._pending = None
        self._publish_state()

    def _saved_memory(self) -> Memory | None:
        """The memory in the base's param groups, if it is in all of them."""
        packed = [group.get(STATE_KEY) for group in self.base.param_groups]
        found = [tensor.cpu().numpy() for tensor in packed if tensor is not None]
        if not found or len(found) < len(packed):
            return None
        memory = Memory.unpack(found, self.config.history)
        memory.policy = self.config.resumed(memory.policy)
        return memory

    def _new_memory(self, young: bool) -> Memory:
        return Memory(LossBuffer(self.config.history), self.config.first_state(young))

    def _publish_state(self) -> None:
        """Write the memory into the param groups; new tensors, for old ones may have been saved."""
        groups = self.base.param_groups
        for group, packed in zip(groups, self._memory.pack(len(groups)), strict=True):
            group[STATE_KEY] = torch.from_numpy(packed)

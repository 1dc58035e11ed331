"""ARS: wraps any torch optimizer and decides, step by step, how far its update may be trusted."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import _checks, actuation, distributed
from .alarms import SkipAlarm, StandstillAlarm, WiringAlarm, lrs_at_hand
from .backend import decides_on_device
from .breaker_setup import make_breaker
from .budgets import Budgets
from .decision import QUIET, SKIP, Decision, Observation
from .delegation import has_stepped, keep_out_of_graphs, steps_by_sign
from .device_guard import DeviceGuard
from .events import EventLog
from .kernels import Noise
from .memory import check_version
from .policy_state import PolicyState
from .presets import Config, make_config
from .remembering import RememberingOptimizer
from .rollback import Outcome
from .snapshot_ring import Snapshots
from .step_input import Closure, as_loss, replay

logger = logging.getLogger(__name__)


class ARS(RememberingOptimizer):
    """Adaptive Resonance Suppression around any torch optimizer.

    After start-up nearly every step of a healthy run is the base optimizer's, bit for bit. A loss
    or gradient that is not finite skips the step (parameters, moments and step counters stay as
    they are), an outlier gradient is scaled back, a surprising loss has its update damped or left
    out, or is accepted as the new level if it stays; a learning rate that jumps is approached.

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
        optimizer: the base optimizer; every attribute that ARS does not define is its own. One that
            has stepped before belongs to a run under way, which has no start-up phase; where that
            does not show (SGD without momentum keeps no state) pass `start_up=0`.
        preset: "default", or "paper" for the published formulas.
        seed: of the jitter noise; equal on all ranks that hold the same gradients.
        backend: "torch": decide on the host, which has to wait for a GPU in every step. "triton":
            decide on the GPU, without waiting; needs the default preset and a base optimizer that
            can leave a step out there (Adam, AdamW or SGD with fused=True). "auto": the second
            where it can be had, else the first.
        process_group: ranks that decide together, on the mean of their losses and on any one's
            non-finite value. None: all ranks of `torch.distributed` if it is initialised. False:
            this process alone. All ranks must build it, and bring a loss to a step, or none.
        model: whose buffers are kept in snapshots, and whose parameter names a diagnosis gives.
        snapshot: when good states are kept to return to, see `Snapshots`. True: with its defaults.
            "auto": likewise, but not with preset "paper", nor where three copies would take more
            than an eighth of the free host memory. False: never.
        budgets: how many skips and rollbacks are put up with, see `Budgets`.
        on_event: called with each `Decision` that is not "quiet", after it was carried out.
        event_log: file that each decision is appended to as a line of JSON, see `EventLog`.
        **overrides: settings of the preset, see `DefaultConfig` and `PaperConfig`.

    Raises:
        TypeError: `optimizer` is no torch optimizer, or a setting is unknown or of a wrong type.
        ValueError: unknown preset, a setting out of range, an optimizer that is an ARS or carries
            the state of another version of it, an event log that another ARS here writes to.
        RuntimeError: backend "triton" cannot be had here; the message says what was found.

    Attributes:
        config: the settings in force.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        preset: str = "default",
        *,
        seed: int = 0,
        backend: str = "auto",
        process_group: Any = None,
        model: torch.nn.Module | None = None,
        snapshot: Snapshots | bool | str = "auto",
        budgets: Budgets | None = None,
        on_event: Callable[[Decision], None] | None = None,
        event_log: str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> None:
        _check_arguments(optimizer, seed, process_group, on_event)
        self.config: Config = make_config(preset, overrides, optimizer, process_group)
        super().__init__(optimizer, process_group)
        directory = snapshot.directory if isinstance(snapshot, Snapshots) else None
        on_device = decides_on_device(backend, optimizer, self.config, directory)
        keep_out_of_graphs(type(self))
        self._last: Decision | None = None
        self._seed = seed
        self._noise = Noise(seed)
        self._pending: list[float | Tensor] = []
        self._skip_alarm = SkipAlarm()
        self._still_alarm = StandstillAlarm()
        self._wiring_alarm = WiringAlarm()
        self._memory = self._new_memory(young=not has_stepped(optimizer, process_group))
        saved = self._saved_memory()
        if saved is not None and saved.counters["observed"]:
            self._memory = saved
        self._by_lr_only = isinstance(optimizer, torch.optim.LBFGS)
        self._breaker = make_breaker(optimizer, model, snapshot, budgets, preset, process_group)
        self._breaker.run.state = self._memory.breaker
        self._on_event = on_event
        self._log = (
            None if event_log is None else EventLog(event_log, {"config": asdict(self.config)})
        )
        self._seen = self._memory.counters["observed"] - 1
        self._backend = backend
        self._device: DeviceGuard | None = None
        if on_device:
            self._device = DeviceGuard(optimizer, self.config, self._memory, seed)
        self._find_parts()
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
            TrainingDiverged: a budget is spent: the run is over. It says what was seen and tried.
        """
        if self._breaker.checkpoints is not None:
            self._breaker.checkpoints.begin_step()
        if closure is None and callable(loss):
            loss, closure = None, loss
        reported = self._pending[-1] if self._pending else None
        self._pending.clear()
        value = reported if loss is None else as_loss(loss)
        result: Any = loss
        if closure is not None:
            with torch.enable_grad():
                result = closure()
            # Some frameworks pass a closure that returns nothing beside the loss.
            if result is not None:
                value = as_loss(result)
        take = partial(self._step_base, closure, result)
        self._wiring_alarm.hear(value is not None, self.base.param_groups)
        if value is None:
            self._memory.counters["unobserved"] += 1
            self._breaker.way_back.abort()
            self._breaker.run.fingerprint.forget()
            take()
        elif self._device is not None:
            self._step_on_device(self._device, value, take)
        else:
            self._step_on_host(float(value), take)
        return result

    def _step_on_host(self, loss: float, take: Callable[[], None]) -> None:
        norm, of_each = None, None
        if self.config.measures_norm:
            each = self.config.jitter_scale > 0.0
            norm, of_each = actuation.gradient_norm(self.base.param_groups, each)
        changed = self._breaker.run.fingerprint.changed()
        if self.process_group is not False:
            loss, norm, changed = distributed.agree(loss, norm, self.process_group, changed)
        if self._breaker.way_back.probe is not None:
            self._take_over(self._tried_on(loss, norm))
            return
        decision, policy = self._decide(loss, norm)
        outcome = self._heard_out(self._breaker.review, decision, policy, self._memory, changed)
        if outcome is not None:
            self._take_over(outcome)
            return
        self._last = decision
        if decision.reason == QUIET:
            take()
        elif decision.action != SKIP:
            with actuation.carried_out(self.base, decision, self._noise, self._by_lr_only, of_each):
                take()
        # Only now: a step that raised has not happened.
        self._memory.policy = policy
        self._memory.remember(decision)
        if decision.action == SKIP:
            self._skip_alarm.hear(self._memory.skips_in_a_row, decision)
        else:
            self._breaker.after(decision, self._memory)
            self._still_alarm.hear(decision, self._memory.lrs, self._memory.proven_lrs)
        self._tell(decision)

    def _decide(self, loss: float, norm: float | None) -> tuple[Decision, PolicyState]:
        memory = self._memory
        memory.see_lrs(self.base.param_groups)
        warms_up = not memory.policy.open and (memory.notices_warmup() or steps_by_sign(self.base))
        seen = Observation(
            memory.counters["observed"], loss, norm, warms_up, memory.lr_ratio, memory.lr_ratios,
            0.0 if memory.policy.open else memory.common_lr,
        )  # fmt: skip
        return self.config.decide(memory.policy, memory.buffer, seen)

    def _tried_on(self, loss: float, norm: float | None) -> Outcome:
        seen = Decision(self._memory.counters["observed"], SKIP, "probe", loss, norm)
        return self._heard_out(self._breaker.way_back.go_on, seen, self._memory)

    def _take_over(self, outcome: Outcome) -> None:
        """A step that the circuit breaker has not let happen."""
        decision, memory = outcome
        self._last, self._memory = decision, memory
        memory.remember(decision)
        self._seen = max(self._seen, decision.step)
        self._skip_alarm.hear(memory.skips_in_a_row, decision)
        if self._device is not None:
            self._device.load(memory, decision)
        self._tell(decision)

    def _step_on_device(
        self, device: DeviceGuard, loss: float | Tensor, take: Callable[[], None]
    ) -> None:
        """As on the host, but that a decision is reviewed when it has arrived: steps later."""
        breaker = self._breaker
        if device.is_being_captured():  # nothing may wait, and replays will not come by here
            device.refuse_capture(trying=breaker.way_back.probe is not None)
            device.step(self.base, loss, self.process_group, take)
            return
        device.look()
        arrived, outcome = device.latest, None
        self._skip_alarm.hear(device.skips_in_a_row, arrived)
        if breaker.way_back.probe is not None:
            self._memory = self._known()
            outcome = self._tried_on(float(loss), None)
        elif arrived is not None and arrived.step > self._seen:
            steps, self._seen = arrived.step - self._seen, arrived.step
            self._tell(arrived)
            # Words arrive at other moments on other ranks: there is no acting together on them.
            alone = distributed.ranks(self.process_group) == 1 or self.process_group is False
            trouble = alone and (arrived.action == SKIP or arrived.new_level)
            breaker.pass_over(steps - trouble)
            if trouble:
                self._memory = now = self._known()
                outcome = self._heard_out(breaker.review, arrived, now.policy, now, False)
            if arrived.action != SKIP:
                lrs = lrs_at_hand(self.base.param_groups)
                self._still_alarm.hear(arrived, lrs, self._memory.proven_lrs, steps)
        if outcome is not None:
            self._take_over(outcome)
            return
        breaker.keeper.begin_on_device(arrived)
        device.step(self.base, loss, self.process_group, take)
        breaker.keeper.after_on_device(arrived, device.queued)

    def _step_base(self, closure: Closure | None, result: Any) -> None:
        if closure is None:
            self.base.step()
        else:
            self.base.step(replay(closure, result, self.base.param_groups))


def _check_arguments(optimizer: Any, seed: Any, process_group: Any, on_event: Any) -> None:
    """Refuse what cannot be wrapped or used, before anything is changed."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}; "
            "wrap it as ARS(torch.optim.AdamW(model.parameters()))"
        )
    if isinstance(optimizer, ARS):
        raise ValueError("optimizer must not be an ARS already, got ARS; wrap the base once")
    _checks.integer("seed", seed)
    if process_group is not False and isinstance(process_group, (bool, int, str)):
        raise TypeError(
            f"process_group must be a ProcessGroup, None or False, got {process_group!r}; "
            "None takes all ranks, False none"
        )
    if on_event is not None and not callable(on_event):
        raise TypeError(f"on_event must be a function or None, got {on_event!r}; such as print")
    check_version(optimizer.param_groups)

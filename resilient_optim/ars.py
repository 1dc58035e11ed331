"""ARS: wraps any torch optimizer and decides, step by step, how far its update may be trusted."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import _checks, actuation, distributed
from .alarms import SkipAlarm, warn_of_unobserved
from .backend import decides_on_device
from .decision import QUIET, SKIP, Decision, Observation
from .delegation import (
    DelegatingOptimizer,
    has_stepped,
    keep_out_of_graphs,
    steps_by_sign,
)
from .device_guard import DeviceGuard
from .kernels import Noise
from .loss_buffer import LossBuffer
from .memory import STATE_KEY, Memory, check_version
from .policy_state import PolicyState
from .presets import Config, make_config
from .rca import RCA, Reading
from .step_input import Closure, as_loss, replay


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
            this process alone. All ranks must bring a loss to a step, or none of them.
        **overrides: settings of the preset, see `DefaultConfig` and `PaperConfig`.

    Raises:
        TypeError: `optimizer` is no torch optimizer, or a setting is unknown or of a wrong type.
        ValueError: unknown preset, a setting out of range, an optimizer that is wrapped already, or
            one that carries the state of another version of ARS.
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
        **overrides: Any,
    ) -> None:
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
        check_version(optimizer.param_groups)
        self.config: Config = make_config(preset, overrides)
        super().__init__(optimizer, process_group)
        on_device = decides_on_device(backend, optimizer, self.config)
        keep_out_of_graphs(type(self))
        self._last: Decision | None = None
        self._noise = Noise(seed)
        self._pending: float | Tensor | None = None
        self._skip_alarm = SkipAlarm()
        self._memory = self._new_memory(young=not has_stepped(optimizer))
        saved = self._saved_memory()
        if saved is not None and saved.counters["observed"]:
            self._memory = saved
        self._by_lr_only = isinstance(optimizer, torch.optim.LBFGS)
        self._device: DeviceGuard | None = None
        if on_device:
            self._device = DeviceGuard(optimizer, self.config, self._memory, seed)
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
        value = reported if loss is None else as_loss(loss)
        result: Any = loss
        if closure is not None:
            with torch.enable_grad():
                result = closure()
            # Some frameworks pass a closure that returns nothing beside the loss.
            if result is not None:
                value = as_loss(result)
        if value is None:
            self._memory.counters["unobserved"] += 1
            warn_of_unobserved(self._memory.counters["unobserved"])
            self._step_base(closure, result)
        elif self._device is not None:
            self._device.look()
            self._skip_alarm.hear(self._device.skips_in_a_row, self._device.latest)
            take = partial(self._step_base, closure, result)
            self._device.step(self.base, value, self.process_group, take)
        else:
            self._step_on_host(float(value), closure, result)
        return result

    def _step_on_host(self, loss: float, closure: Closure | None, result: Any) -> None:
        norm, of_each = None, None
        if self.config.measures_norm:
            each = self.config.jitter_scale > 0.0
            norm, of_each = actuation.gradient_norm(self.base.param_groups, each)
        decision, policy = self._decide(loss, norm)
        self._last = decision
        if decision.reason == QUIET:
            self._step_base(closure, result)
        elif decision.action != SKIP:
            with actuation.carried_out(self.base, decision, self._noise, self._by_lr_only, of_each):
                self._step_base(closure, result)
        # Only now: a step that raised has not happened.
        self._memory.policy = policy
        self._memory.remember(decision)
        if decision.action == SKIP:
            self._skip_alarm.hear(self._memory.skips_in_a_row, decision)

    def report(self, loss: float | Tensor) -> None:
        """Give the loss, as to `step`, for the next step that brings none (a framework's)."""
        value = as_loss(loss)
        # A copy, as the caller may go on using the tensor.
        self._pending = value.clone() if isinstance(value, Tensor) else value

    def _step_base(self, closure: Closure | None, result: Any) -> None:
        if closure is None:
            self.base.step()
        else:
            self.base.step(replay(closure, result))

    def _decide(self, loss: float, norm: float | None) -> tuple[Decision, PolicyState]:
        memory = self._memory
        if self.process_group is not False:
            loss, norm = distributed.agree(loss, norm, self.process_group)
        memory.see_lrs(self.base.param_groups)
        warms_up = not memory.policy.open and (memory.notices_warmup() or steps_by_sign(self.base))
        seen = Observation(memory.counters["observed"], loss, norm, warms_up, memory.lr_ratio)
        return self.config.decide(memory.policy, memory.buffer, seen)

    # -- what it tells ----------------------------------------------------------------------

    @property
    def last(self) -> Decision | None:
        """The latest decision, None before the first; on a GPU the latest that has arrived."""
        if self._device is None:
            return self._last
        self._device.look()
        return self._device.latest

    @property
    def counters(self) -> Counter[str]:
        """How often ARS did what, see `metrics`; on a GPU as of `last`."""
        if self._device is None:
            return self._memory.counters
        self._device.look()
        self._device.counters["unobserved"] = self._memory.counters["unobserved"]
        return self._device.counters

    @property
    def loss_buffer(self) -> LossBuffer:
        """The recent losses and gradient norms; waits for a GPU that decides."""
        return self._known().buffer

    @property
    def monitor(self) -> Reading:
        """What RCA makes of the loss buffer: does the run still improve? Waits as `loss_buffer`."""
        memory = self._known()
        return RCA().read(memory.buffer.losses.values, shifted=memory.at_new_level)

    def metrics(self) -> dict[str, float]:
        """The latest decision and the counters as a flat dict of floats, for any logger.

        Keys: ars/loss, grad_norm (if measured), z, rho (once there is enough history), psi, phi and
        chi, and the counts of steps: ars/observed, unobserved (no loss), touched (not the base
        optimizer's), skipped, nonfinite (skipped for that), damped, bounded, jittered, new_levels.
        """
        values = {} if self.last is None else self.last.values()
        return {f"ars/{name}": float(x) for name, x in (values | self.counters).items()}

    def __repr__(self) -> str:
        return f"ARS({type(self.base).__name__}, {self.config})"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group to the base optimizer."""
        super().add_param_group(param_group)
        self._memory = self._known()
        if self._device is not None:
            self._device = DeviceGuard(self.base, self.config, self._memory, self._noise.seed)
        self._publish_state()

    # -- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict; ARS's own state is one float64 tensor in each group."""
        self._publish_state()
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of ARS, or one of the bare base optimizer.

        The latter is of a run under way: ARS starts with an empty buffer, without start-up phase.

        Raises:
            ValueError: the state was written by another version of ARS; nothing is loaded then.
        """
        check_version(state_dict["param_groups"])
        self.base.load_state_dict(state_dict)
        self._memory = self._saved_memory() or self._new_memory(young=False)
        self._last = self._pending = None
        if self._device is not None:
            self._device.load(self._memory)
            self._device.has_stepped = has_stepped(self.base)
        self._publish_state()

    def _saved_memory(self) -> Memory | None:
        memory = Memory.saved_in(self.base.param_groups, self.config.history)
        if memory is not None:
            memory.policy = self.config.resumed(memory.policy)
        return memory

    def _new_memory(self, young: bool) -> Memory:
        return Memory(LossBuffer(self.config.history), self.config.first_state(young))

    def _known(self) -> Memory:
        """The memory, wherever it is kept."""
        if self._device is None:
            return self._memory
        memory = self._device.memory()
        memory.counters["unobserved"] = self._memory.counters["unobserved"]
        return memory

    def _publish_state(self) -> None:
        """Write the memory into the param groups; new tensors, for old ones may have been saved."""
        groups = self.base.param_groups
        self._memory = self._known()
        for group, packed in zip(groups, self._memory.pack(len(groups)), strict=True):
            group[STATE_KEY] = torch.from_numpy(packed)

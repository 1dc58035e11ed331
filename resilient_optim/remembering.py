"""What an ARS knows of its run: told to the user, saved with the optimizer, found again."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from .alarms import StandstillAlarm
from .backend import decides_on_device
from .breaker import Breaker
from .decision import QUIET, Decision
from .delegation import DelegatingOptimizer, groups_in
from .device_guard import DeviceGuard
from .diagnosis import TrainingDiverged
from .events import EventLog
from .loss_buffer import LossBuffer
from .memory import STATE_KEY, Memory, check_version
from .presets import Config
from .rca import RCA, Reading
from .resume import Checkpoints
from .step_input import as_loss

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class RememberingOptimizer(DelegatingOptimizer):
    """The base optimizer with a memory in its param groups, see `Memory`.

    Attributes:
        config: the settings in force.
    """

    config: Config
    _backend: str
    _breaker: Breaker
    _device: DeviceGuard | None
    _memory: Memory
    _last: Decision | None
    _pending: list[float | Tensor]
    _still_alarm: StandstillAlarm
    _log: EventLog | None
    _on_event: Callable[[Decision], None] | None
    _seed: int
    _seen: int

    # -- what it is told --------------------------------------------------------------------

    def report(self, loss: float | Tensor) -> None:
        """Give the loss for the next step that brings none, as a framework's does.

        Args:
            loss: as to `step`.

        Raises:
            TypeError: `loss` is not a number, or a tensor of more than one element.
        """
        value = as_loss(loss)
        # A copy, as the caller may go on using the tensor; into a list, as Lightning calls this on
        # an object of its own that shares our attributes.
        self._pending[:] = [value.clone() if isinstance(value, Tensor) else value]

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
        losses = memory.buffer.losses.with_last(self._still_alarm.same_losses)
        return RCA().read(losses, shifted=memory.at_new_level)

    def metrics(self) -> dict[str, float]:
        """The latest decision and the counters as a flat dict of floats, for any logger.

        Returns:
            Under the keys ars/loss, ars/grad_norm (if measured), ars/z, ars/rho (once there is
            enough history), ars/psi, ars/phi and ars/chi: fields of the latest `Decision`. Under
            ars/observed, unobserved (no loss), touched (not the base optimizer's), skipped,
            nonfinite (skipped for that), damped, bounded, jittered, new_levels and rollbacks: how
            many steps that happened to. No decision yet: only the counts.
        """
        values = {} if self.last is None else self.last.values()
        return {f"ars/{name}": float(x) for name, x in (values | self.counters).items()}

    def flush(self) -> None:
        """Write what the event log still holds in memory; does nothing without a log.

        The end of the program does it, and so does reading the log in this process (`read_events`,
        `report.html`). It is for a file copied elsewhere meanwhile, or a run that may be killed.
        """
        if self._log is not None:
            self._log.flush()

    def _tell(self, decision: Decision, **more: str) -> None:
        if self._log is not None:
            self._log.write(decision, **more)
        if self._on_event is not None and decision.reason != QUIET:
            self._on_event(decision)

    def _heard_out(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the circuit breaker does; if it ends the run, whoever listens hears of it first."""
        try:
            return act(*args, **kwargs)
        except TrainingDiverged as error:
            self._last = error.decision
            try:
                self._tell(error.decision, diagnosis=str(error), cause=error.cause)
            except Exception:
                logger.exception("on_event failed on the way to TrainingDiverged")
            raise error from None

    def __repr__(self) -> str:
        return f"ARS({type(self.base).__name__}, {self.config})"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group to the base optimizer; a RuntimeError as of `load_state_dict`."""
        self._breaker.way_back.abort()
        super().add_param_group(param_group)
        self._memory = self._known()
        self._breaker.forget()
        if self._device is not None:
            self._device = DeviceGuard(self.base, self.config, self._memory, self._seed)
        self._settle_backend()

    # -- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict, with what ARS remembers in it.

        Returns:
            What the base optimizer returns; ARS's own state is one float64 tensor in each param
            group, so that whatever saves optimizers saves it.
        """
        self._publish_state()
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of ARS, or one of the bare base optimizer.

        The latter is of a run under way: ARS starts with an empty buffer, without start-up phase.

        Args:
            state_dict: what `state_dict` of either returned.

        Raises:
            ValueError: the state was written by another version of ARS; nothing is loaded then.
            RuntimeError: backend "triton" cannot be had with it; the host decides from then on.
        """
        check_version(groups_in(state_dict))
        self.base.load_state_dict(state_dict)
        self._adopt(self._saved_memory() or self._new_memory(young=False))

    def _adopt(self, memory: Memory) -> None:
        self._memory = memory
        self._last = None
        self._seen = memory.counters["observed"] - 1
        self._pending.clear()
        self._breaker.forget()
        self._breaker.run.state = self._memory.breaker
        if self._device is not None:
            self._device.load(self._memory)
        self._settle_backend()

    def _settle_backend(self) -> None:
        """Go on on the device only if that still can be: what came in may not be fused."""
        device, self._device = self._device, None
        self._find_parts()
        self._publish_state()
        if device is not None and decides_on_device(self._backend, self.base, self.config):
            self._device = device
            self._find_parts()

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
        self._memory.breaker = self._breaker.run.state
        for group, packed in zip(groups, self._memory.pack(len(groups)), strict=True):
            group[STATE_KEY] = torch.from_numpy(packed)

    # -- going on after a kill --------------------------------------------------------------

    def attach(self, **things: Any) -> None:
        """Keep more of the run in the checkpoints of `Snapshots(directory=...)`.

        Args:
            **things: anything with `state_dict` and `load_state_dict`: the LR scheduler, the
                GradScaler, a moving average of the weights, a counter of iterations.

        Raises:
            TypeError: one of them has no such methods.
            ValueError: there is no directory to keep checkpoints in.
        """
        self._checkpoints().attach(**things)

    def resume(self) -> int:
        """Put the whole run back to its newest checkpoint on disk.

        That is parameters, buffers of `model`, optimizer, ARS, whatever is attached, and all random
        generators. Call it when everything has been built, before the first step.

        Returns:
            Calls of `step()` that the run has behind it, 0 if there is no checkpoint: the iteration
            to go on with, unless a GradScaler left some of them out.

        Raises:
            ValueError: there is no directory, parameters are sharded, the checkpoint is of another
                model or fails to load, or what is attached was not when it was written; nothing is
                changed then.
        """
        notes = self._checkpoints().resume(self.process_group)
        if notes is None:
            return 0
        self._adopt(Memory.unpack(notes["memory"], self.config.history))
        self._breaker.keeper.keep_present(self._memory)
        return int(notes["steps"])

    def accept_weights(self) -> None:
        """Say that you have changed the weights yourself, and that the new ones are to stay.

        A layer made anew, pruning, weights loaded or averaged: without this word ARS takes a loss
        that is the worse for it for a sign of corruption, and rolls back. What loss and gradient
        norm are usual has to be seen anew, and snapshots start anew.
        """
        self._breaker.forget()
        self._breaker.run.state = self._breaker.run.state._replace(
            first=math.nan, best=math.nan, high_since=-1, data_since=-1
        )
        self._memory = self._known()
        self._memory.forget_levels()
        if self._device is not None:
            self._device.load(self._memory, self._device.latest)

    def accept_level(self) -> None:
        """Say that the loss has another meaning from the next step on.

        Another task, a new term in the objective, a sum in place of a mean: without this word a
        higher loss is a surprise until it has lasted, and larger gradients are held back for some
        hundred steps. As after `accept_weights`, what is usual has to be seen anew.
        """
        self._breaker.way_back.abort()  # of a trial: the loss it waits for will not come
        self.accept_weights()

    def _find_parts(self) -> None:
        self._breaker.run.process_group = self.process_group
        self._breaker.run.live.extra = [] if self._device is None else self._device.tensors

    def _checkpoints(self) -> Checkpoints:
        if self._breaker.checkpoints is None:
            raise ValueError(
                "snapshot must have a directory, got none; pass snapshot=Snapshots(directory=...)"
            )
        return self._breaker.checkpoints

"""ARS: wraps any torch optimizer and decides, step by step, how far its update may be trusted."""

from __future__ import annotations

import logging
import math
import numbers
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from . import actuation, distributed
from .decision import QUIET, SKIP, Decision, Observation
from .kernels import Noise
from .loss_buffer import LossBuffer
from .policy import PolicyState
from .presets import Config, make_config

logger = logging.getLogger(__name__)

STATE_KEY = "ars"
"""Key of ARS's state in every param group, the one place that all checkpoint formats keep."""

STATE_VERSION = 1.0

COUNTERS = (
    "observed",
    "unobserved",
    "touched",
    "skipped",
    "nonfinite",
    "damped",
    "bounded",
    "jittered",
    "new_levels",
)

LOUD_AFTER = 10
"""Consecutive skipped steps after which a warning is logged (and again at every tenfold)."""

_HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)

Loss = float | Tensor
Closure = Callable[[], Any]


class ARS(Optimizer):
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

    # Says to GradScaler: hand over unscaled gradients. Noise and norms need them.
    _step_supports_amp_scaling = False

    def __init__(
        self,
        optimizer: Optimizer,
        preset: str = "default",
        *,
        seed: int = 0,
        process_group: Any = None,
        **overrides: Any,
    ) -> None:
        # The parent's constructor is not called: groups, state, defaults and hooks are the base's.
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
        self.base = optimizer
        self.process_group = process_group
        self.loss_buffer = LossBuffer(self.config.history)
        self.last: Decision | None = None
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._noise = Noise(seed)
        self._policy = self.config.first_state(young=not has_stepped(optimizer))
        self._pending: float | None = None
        self._skips_in_a_row = 0
        self._last_lr = math.nan
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

    def report(self, loss: Loss) -> None:
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
            self.base.step(_replay(closure, result))

    def _decide(self, loss: float) -> Decision:
        groups = self.base.param_groups
        norm = actuation.gradient_norm(groups) if self.config.measures_norm else None
        if self.process_group is not False:
            loss, norm = distributed.agree(loss, norm, self.process_group)
        young = self._policy.young_steps >= 0
        seen = Observation(
            self.counters["observed"], loss, norm, young and self._raises_its_own_lr(groups)
        )
        decision, self._policy = self.config.decide(self._policy, self.loss_buffer, seen)
        self._remember(decision)
        return decision

    def _remember(self, decision: Decision) -> None:
        """Count the step and record what may be learned from: never a skipped step's values."""
        self.last = decision
        counters = self.counters
        counters["observed"] += 1
        if decision.reason == QUIET:
            self._skips_in_a_row = 0
            self.loss_buffer.append(decision.loss, decision.grad_norm)
            return
        counters["touched"] += decision.touched
        counters["bounded"] += decision.grad_scale != 1.0 and decision.noise_is_relative
        counters["jittered"] += decision.chi != 0.0
        counters["new_levels"] += decision.new_level
        if decision.action == SKIP:
            counters["skipped"] += 1
            counters["nonfinite"] += decision.reason.startswith("non-finite")
            self._skips_in_a_row += 1
            self._warn_of_skips(decision)
            return
        self._skips_in_a_row = 0
        counters["damped"] += decision.phi < 1.0
        if decision.new_level:
            self.loss_buffer.losses.clear()
        norm = decision.grad_norm
        self.loss_buffer.append(decision.loss, None if norm is None else norm * decision.grad_scale)

    def _warn_of_skips(self, decision: Decision) -> None:
        skips = self._skips_in_a_row
        while skips > LOUD_AFTER and skips % 10 == 0:
            skips //= 10
        if skips == LOUD_AFTER:
            logger.warning(
                "ARS skipped %d steps in a row, the last at step %d: %s (loss %g, gradient norm "
                "%s). The model does not learn meanwhile; look at the data and the learning rate.",
                self._skips_in_a_row, decision.step, decision.reason, decision.loss,
                decision.grad_norm,
            )  # fmt: skip

    def _raises_its_own_lr(self, groups: actuation.ParamGroups) -> bool:
        """Whether the learning rate has risen, or starts below the peak that a scheduler noted."""
        lr = max(float(group.get("lr") or 0.0) for group in groups)
        before, self._last_lr = self._last_lr, lr
        if math.isnan(before):
            return any(
                float(group.get("lr") or 0.0) < group.get("initial_lr", 0.0) for group in groups
            )
        return lr > before

    # -- what it tells ----------------------------------------------------------------------

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

    # -- being the base optimizer -----------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's param groups, live."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        self.base.param_groups = value

    @property
    def state(self) -> Any:
        """The base optimizer's state, live."""
        return self.base.state

    @state.setter
    def state(self, value: Any) -> None:
        self.base.state = value

    @property
    def defaults(self) -> dict[str, Any]:
        """The base optimizer's defaults, live."""
        return self.base.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self.base.defaults = value

    def __getattr__(self, name: str) -> Any:
        # Only reached for what ARS lacks. Dunders and an empty __dict__: copy and pickle ask early.
        if name.startswith("__") or "base" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name in _HOOKS:
            raise AttributeError(
                f"{type(self.base).__name__} runs no {name.strip('_')}; register the hook on the "
                "optimizer inside it"
            )
        return getattr(self.base, name)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, as the base optimizer does."""
        self.base.zero_grad(set_to_none)

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
            ValueError: the state was written by a newer version of ARS.
        """
        _check_version(state_dict["param_groups"])
        self.base.load_state_dict(state_dict)
        packed = self.base.param_groups[0].get(STATE_KEY)
        if packed is None:
            self._reset(self.config.first_state(young=False))
        else:
            self._unpack(packed.cpu().numpy())
        self._publish_state()

    def _publish_state(self) -> None:
        packed = torch.from_numpy(self._pack())
        for group in self.base.param_groups:
            group[STATE_KEY] = packed.clone()

    def _pack(self) -> np.ndarray:
        """State as float64: version, sizes, policy, counters, others, then both windows, padded."""
        head = [STATE_VERSION, self.config.history, len(PolicyState._fields), len(COUNTERS)]
        scalars = [*self._policy, *(self.counters[name] for name in COUNTERS)]
        buffer = self.loss_buffer
        return np.concatenate(
            [
                np.array([*head, *scalars, self._skips_in_a_row, self._last_lr]),
                buffer.losses.padded(),
                buffer.log_norms.padded(),
            ]
        )

    def _unpack(self, packed: np.ndarray) -> None:
        history, n_policy, n_counters = (int(n) for n in packed[1:4])
        rest = packed[4:]
        young, healthy, warms_up, *others = rest[:n_policy].tolist()
        self._reset(PolicyState(int(young), int(healthy), bool(warms_up), *others))
        for name, count in zip(COUNTERS, rest[n_policy : n_policy + n_counters], strict=True):
            self.counters[name] = int(count)
        self._skips_in_a_row = int(rest[n_policy + n_counters])
        self._last_lr = float(rest[n_policy + n_counters + 1])
        windows = rest[n_policy + n_counters + 2 :]
        self.loss_buffer.losses.restore(windows[:history])
        self.loss_buffer.log_norms.restore(windows[history:])

    def _reset(self, policy: PolicyState) -> None:
        self._policy = policy
        self.counters = Counter(dict.fromkeys(COUNTERS, 0))
        self.loss_buffer = LossBuffer(self.config.history)
        self.last = self._pending = None
        self._last_lr = math.nan
        self._skips_in_a_row = 0

    def __getstate__(self) -> dict[str, Any]:
        # Not the whole __dict__: a scheduler leaves its patched `step` there.
        return {
            "base": self.base,
            "config": self.config,
            "noise": self._noise,
            "process_group": False if self.process_group is False else None,
            "packed": self._pack(),
            "last": self.last,
            "pending": self._pending,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.base = state["base"]
        self.config = state["config"]
        self.process_group = state["process_group"]
        self._noise = state["noise"]
        self._by_lr_only = isinstance(self.base, torch.optim.LBFGS)
        self._unpack(state["packed"])
        self.last = state["last"]
        self._pending = state["pending"]


def as_float(loss: Any) -> float:
    """A loss as a Python float, detached.

    Raises:
        TypeError: not a real number or a one-element real tensor.
    """
    if type(loss) is float:
        return loss
    if isinstance(loss, Tensor):
        if loss.numel() == 1 and not loss.is_complex():
            return float(loss.detach())
        got = f"a {loss.dtype} tensor of shape {tuple(loss.shape)}"
    elif not isinstance(loss, bool) and isinstance(loss, numbers.Real):
        return float(loss)
    else:
        got = f"{type(loss).__name__} {loss!r}"
    raise TypeError(
        f"loss must be a float, a one-element real tensor or a closure, got {got}; "
        "pass the mean over the batch, loss.mean()"
    )


def has_stepped(optimizer: Optimizer) -> bool:
    """Whether an optimizer belongs to a run that is under way: it holds the state of past steps.

    Some, such as Adagrad, create their state before the first step, with a step count of 0.
    """
    for state in optimizer.state.values():
        step = state.get("step") if isinstance(state, dict) else None
        if state and (step is None or float(step) > 0):
            return True
    return False


def _check_version(groups: list[dict[str, Any]]) -> None:
    """Refuse a state this version cannot read, before anything is loaded."""
    packed = groups[0].get(STATE_KEY) if groups else None
    if packed is not None and packed[0] != STATE_VERSION:
        raise ValueError(
            f"ARS state must be of version {STATE_VERSION:g}, got {float(packed[0]):g}; "
            "load it with the version of resilient_optim that wrote it"
        )


def _replay(closure: Closure, result: Any) -> Closure:
    """A closure whose first call returns what was evaluated already."""
    known = [result]

    def replayed() -> Any:
        return known.pop() if known else closure()

    return replayed


def _hooks_of_base(name: str) -> property:
    """Hooks registered on the wrapper are the base's: they fire once, when the base steps."""
    return property(lambda self: getattr(self.base, name))


for _name in _HOOKS:
    setattr(ARS, _name, _hooks_of_base(_name))

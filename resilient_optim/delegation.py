"""An optimizer that is another optimizer to the outside: groups, state, hooks, everything.

Copied references would go stale (`load_state_dict` replaces the groups), hooks registered twice
would fire twice, and an attribute that is missing here must be found there.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import distributed

_HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


_SHARED = ("process_group", "_on_event")
"""What copies have in common: a group of processes, and whom the caller has told to listen."""

_kept_out: set[type] = set()


class DelegatingOptimizer(Optimizer):
    """Shows the groups, state, defaults and hooks of the optimizer in `base` as its own.

    The parent's constructor is not called: it would make groups and hooks of its own.

    Args:
        base: the optimizer to be.
        process_group: shared by copies, and not to be pickled.
    """

    # Says to GradScaler: hand over unscaled gradients. Noise and norms need them.
    _step_supports_amp_scaling = False

    def __init__(self, base: Optimizer, process_group: Any) -> None:
        self.base = base
        self.process_group = process_group

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
        """Reset the gradients, as the base optimizer does.

        Args:
            set_to_none: to None, not to zeros.
        """
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group to the base optimizer.

        Args:
            param_group: its parameters under "params", and what differs from the defaults.
        """
        self.base.add_param_group(param_group)

    def __deepcopy__(self, memo: dict[int, Any]) -> DelegatingOptimizer:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self._own_state(), memo))
        for name in _SHARED:
            twin.__dict__[name] = self.__dict__.get(name)
        twin._find_parts()
        return twin

    def __getstate__(self) -> dict[str, Any]:
        if self.process_group not in (None, False):
            raise TypeError(
                f"process_group must be None or False to be pickled, got {self.process_group!r}; "
                "save the state_dict() instead"
            )
        return self._own_state() | {"process_group": self.process_group, "_on_event": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._find_parts()

    def _find_parts(self) -> None:
        """Connect again, in a copy, what belongs together."""

    def _own_state(self) -> dict[str, Any]:
        # A scheduler leaves a patched `step` here, bound to this very object.
        left_out = ("step", *_SHARED)
        return {k: v for k, v in self.__dict__.items() if k not in left_out}


def _hooks_of_base(name: str) -> property:
    """Hooks registered on the wrapper are the base's: they fire once, when the base steps."""
    return property(lambda self: getattr(self.base, name))


for _name in _HOOKS:
    setattr(DelegatingOptimizer, _name, _hooks_of_base(_name))


def keep_out_of_graphs(kind: type[DelegatingOptimizer]) -> None:
    """Have `torch.compile` run `step` as it is: traced, each value of a loss would be a new graph.

    Done when the first instance is made: torch's compiler takes a second to load, and by then the
    base optimizer's constructor has loaded it. A base whose own step is compiled stays so.
    """
    if kind not in _kept_out:
        _kept_out.add(kind)
        kind.step = torch.compiler.disable(kind.step)  # type: ignore


def without_momentum(base: Any) -> list[tuple[dict[str, Any], Any]]:
    """Parameters that SGD is about to give a momentum, each with its param group."""
    if not isinstance(base, torch.optim.SGD):
        return []
    return [
        (group, p)
        for group in base.param_groups
        if group["momentum"] != 0
        for p in group["params"]
        if p.grad is not None and base.state.get(p, {}).get("momentum_buffer") is None
    ]


def steps_by_sign(optimizer: Optimizer) -> bool:
    """Whether an optimizer takes steps of one size: its only memory is an average of its gradients.

    So it is with Lion. Its first updates are no larger than any other, whatever the gradients are,
    whereas those of SGD are as large as the gradients, and those of an optimizer that divides by a
    second moment, of which it knows next to nothing at first, the largest that it ever takes. False
    while there is no state to tell by, and for a state of other names.
    """
    kept = {
        name
        for state in optimizer.state.values()
        for name, value in (state.items() if isinstance(state, dict) else ())
        if isinstance(value, Tensor) and value.numel() > 1
    }
    return kept == {"exp_avg"}


def inside(optimizer: Optimizer) -> Optimizer:
    """The optimizer that does the work: the one in `optim` of torch's distributed wrappers.

    ZeroRedundancyOptimizer steps a part of the parameters with it on each rank, and has no state.
    """
    inner = getattr(optimizer, "optim", None)
    return inner if isinstance(inner, Optimizer) else optimizer


def has_stepped(optimizer: Optimizer, process_group: Any = False) -> bool:
    """Whether an optimizer belongs to a run that is under way: it holds the state of past steps.

    Some, such as Adagrad, create their state before the first step, with a step count of 0.

    Args:
        optimizer: the base optimizer.
        process_group: whose ranks have to find the same; False for this process alone. They are
            asked only about an optimizer that shares out its state: some may be left with none.
    """
    inner = inside(optimizer)
    found = any(_is_of_past_steps(state) for state in inner.state.values())
    return found if inner is optimizer else distributed.any_rank(found, process_group)


def _is_of_past_steps(state: Any) -> bool:
    step = state.get("step") if isinstance(state, dict) else None
    return bool(state) and (step is None or float(step) > 0)


def groups_in(state_dict: dict[str, Any]) -> list[dict[str, Any]]:
    """The param groups in a state dict, or in those that it is made of; none if there are none.

    A wrapper, such as Lookahead, may save the optimizer in it as a state dict of its own.
    """
    if "param_groups" in state_dict:
        groups: list[dict[str, Any]] = state_dict["param_groups"]
        return groups
    parts = [part for part in state_dict.values() if isinstance(part, dict)]
    return [group for part in parts for group in groups_in(part)]

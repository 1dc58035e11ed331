"""A copy of what training has made so far, in host memory, and the way back to it.

Copies go into the same memory again and again: fresh memory for each would cost three times as
much. On a GPU they are queued behind the step they follow, into pinned memory, and nobody waits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import host_copy
from .lr_cuts import LR_KEYS
from .memory import COUNTERS, HEADER, STATE_KEY
from .policy_state import PolicyState
from .snapshot_norms import Norms, health_of, norms_of
from .state_tree import Homes, local, merged, pairs, with_tensors, without_tensors

SCHEDULED = (*LR_KEYS, "betas", "momentum", "weight_decay", "train_mode")
"""Entries of a param group that belong to schedules and to the caller, not to what was learned: a
rollback leaves them as they are at present."""

LEVEL = HEADER + PolicyState._fields.index("level")
OBSERVED = HEADER + len(PolicyState._fields) + COUNTERS.index("observed")
"""Where the level and the count of steps are in the memory of a guard on a GPU."""


class Live:
    """The parameters, buffers and optimizer state of a run, as they are at any moment.

    Args:
        base: the base optimizer.
        model: whose buffers belong to the run; None for none.

    Attributes:
        extra: more tensors that belong to it, in place: the memory of a guard on a GPU.
    """

    def __init__(self, base: Optimizer, model: nn.Module | None = None) -> None:
        self.base = base
        self.model = model
        self.extra: list[Tensor] = []

    def optimizers(self) -> list[Optimizer]:
        """The base optimizer and those inside it (Lookahead, ZeRO) with states of their own."""
        found: list[Optimizer] = [self.base]
        for name in ("optimizer", "base_optimizer", "optim"):
            inner = self.base.__dict__.get(name)
            known = [id(optimizer.state) for optimizer in found]
            if isinstance(inner, Optimizer) and id(inner.state) not in known:
                found.append(inner)
        return found

    def params(self) -> list[Tensor]:
        """All parameters in the order of the param groups; of a sharded one this rank's shard."""
        return [local(p) for group in self.base.param_groups for p in group["params"]]

    def buffers(self) -> list[Tensor]:
        """The model's buffers."""
        return [] if self.model is None else [local(b) for b in self.model.buffers()]

    def state_tensors(self) -> list[Tensor]:
        """What the optimizer remembers of each parameter, as far as it is floating point."""
        found: list[Tensor] = []
        without_tensors([list(o.state.values()) for o in self.optimizers()], found)
        return remembered(found)

    def remembers_long(self) -> bool:
        """Whether the optimizer keeps averages in which an outlier stays for many steps."""
        names = {n for s in self.base.state.values() if isinstance(s, dict) for n in s}
        return bool(names & {"exp_avg", "exp_avg_sq", "square_avg", "exp_inf", "sum"})

    def mend_buffers(self, tree: dict[str, Any]) -> bool:
        """Put back the buffers that are not finite; a batch that is left out still wrote to them.

        Args:
            tree: of `Snapshot.tree`, for the same model.

        Returns:
            Whether there were any.
        """
        mended = False
        for live, saved in zip(self.buffers(), tree["buffers"], strict=False):
            if live.shape == saved.shape and not bool(live.isfinite().all()):
                live.copy_(saved)
                mended = True
        return mended

    def names(self) -> list[str]:
        """A name for each parameter: the model's, else its place in the param groups."""
        known = {} if self.model is None else {p: n for n, p in self.model.named_parameters()}
        return [
            known.get(p, f"parameter {i} of group {g}, shape {tuple(p.shape)}")
            for g, group in enumerate(self.base.param_groups)
            for i, p in enumerate(group["params"])
        ]

    def tree(self) -> dict[str, Any]:
        """Everything as nested plain containers with the live tensors in them."""
        groups = self.base.param_groups
        places = {id(p): i for i, p in enumerate(p for g in groups for p in g["params"])}
        return {
            "params": self.params(),
            "buffers": self.buffers(),
            "extra": self.extra,
            "state": [pairs(optimizer.state, places) for optimizer in self.optimizers()],
            "groups": [
                {k: v for k, v in group.items() if k not in ("params", STATE_KEY)}
                for group in groups
            ],
        }

    def adopt_state(self, tree: dict[str, Any]) -> None:
        """Have the base optimizer make its state from a tree, as it does from a checkpoint."""
        groups, start = [], 0
        for group in self.base.param_groups:
            numbers = list(range(start, start := start + len(group["params"])))
            groups.append({**group, "params": numbers})
        state = {k: v for k, v in tree["state"][0]}
        self.base.load_state_dict({"state": state, "param_groups": groups})

    def put_back(self, tree: dict[str, Any], scheduled: bool) -> None:
        """Return to what `tree` says, in place.

        Args:
            tree: of `Snapshot.tree`, or read from a file, for the same parameters.
            scheduled: also put back the entries named in `SCHEDULED`.
        """
        params = [p for group in self.base.param_groups for p in group["params"]]
        homes: Homes = tree.get("homes", {})
        with torch.no_grad():
            for live, saved in zip(self.params(), tree["params"], strict=True):
                live.copy_(saved)
            for live, saved in zip(self.buffers(), tree["buffers"], strict=False):
                if live.shape == saved.shape:  # some caches are made anew at another size
                    live.copy_(saved)
            for live, saved in zip(self.extra, tree["extra"], strict=True):
                live.copy_(saved)
            for optimizer, entries in zip(self.optimizers(), tree["state"], strict=True):
                state: dict[Any, Any] = optimizer.state
                saved_state = {k if isinstance(k, str) else params[k]: v for k, v in entries}
                names = [key for key in state if isinstance(key, str)]
                for key in [key for key in (*params, *names) if key not in saved_state]:
                    state.pop(key, None)
                for key, saved in saved_state.items():
                    like = key if isinstance(key, Tensor) else params[0]
                    state[key] = merged(state.get(key), saved, like.device, homes)
        for group, saved in zip(self.base.param_groups, tree["groups"], strict=True):
            kept = saved if scheduled else {k: v for k, v in saved.items() if k not in SCHEDULED}
            for key in [k for k in group if k not in (*saved, "params", STATE_KEY, *SCHEDULED)]:
                del group[key]  # a counter that the optimizer has made since
            for key, value in kept.items():
                group[key] = merged(group.get(key), value, None, homes)


class Snapshot:
    """One copy, and the memory that it is in.

    Attributes:
        shapes: of the parameters.
        notes: anything else to keep along, plain data.
        busy: done once nobody reads the copy any more.
    """

    def __init__(self) -> None:
        self._step = -1
        self._level = math.inf
        self.shapes: list[torch.Size] = []
        self.notes: dict[str, Any] = {}
        self.busy: Future[None] | None = None
        self._health: Tensor = torch.zeros(0)
        self._norms: Norms | None = None
        self._on_device = False  # with the memory of a guard that decides on a GPU
        self._tree: Any = None
        self._copies: list[Tensor] = []
        self._homes: list[torch.device] = []
        self._began: list[torch.cuda.Event] = []
        self._arrived: list[torch.cuda.Event] = []

    def take(self, live: Live, step: int, level: float, notes: dict[str, Any]) -> bool:
        """Copy everything; the tensors of a GPU are on their way when this returns.

        Returns:
            Whether the memory for it was there already.
        """
        if self.busy is not None:
            self.busy.result()
        found: list[Tensor] = []
        self._step = -1  # until it is whole
        self._tree, within = {}, {}
        for name, part in live.tree().items():
            first = len(found)
            self._tree[name] = without_tensors(part, found)
            within[name] = found[first:]
        at_hand = host_copy.fits(self._copies, found)
        self._on_device = bool(live.extra)
        if not at_hand:
            self._copies = [host_copy.memory_for(tensor) for tensor in found]
        self._homes = [tensor.device for tensor in found]
        self._began = host_copy.marks(found)
        if found:
            torch._foreach_copy_(self._copies, found, non_blocking=True)
        self.shapes = [p.shape for p in within["params"]]
        health = health_of(within["params"], remembered(within["state"]))
        self._health = host_copy.memory_for(health).copy_(health, non_blocking=True)
        self._norms = None
        self._arrived = host_copy.marks(found)
        self._step, self._level, self.notes = step, level, notes
        return at_hand

    def tree(self) -> dict[str, Any]:
        """The copy as nested containers; its tensors are this snapshot's own memory.

        What `Live.tree` has, and under "homes" the device that each tensor was copied from.
        """
        self._wait()
        homes = dict(zip(self._copies, self._homes, strict=True))
        return {**with_tensors(self._tree, self._copies), "homes": homes}

    @property
    def norms(self) -> Norms:
        """The L2 norm of each parameter; taken of the copy when asked for, which is in trouble."""
        if self._norms is None:
            self._wait()
            self._norms = norms_of(self._copies[: len(self.shapes)]).numpy()
        return self._norms

    @property
    def is_finite(self) -> bool:
        """Whether parameters and optimizer state are."""
        self._wait()
        return bool(np.isfinite(self._health.numpy()).all())

    @property
    def step(self) -> int:
        """Number of observed steps that the state has behind it; -1 while there is no copy."""
        return int(self._of_guard(OBSERVED)) if self._step >= 0 and self._on_device else self._step

    @property
    def level(self) -> float:
        """Level of the loss at that time, infinite if it was not known."""
        return self._of_guard(LEVEL) if self._on_device else self._level

    def _of_guard(self, place: int) -> float:
        """A number in the memory of the guard on a GPU."""
        self._wait()
        state: Tensor = with_tensors(self._tree["extra"], self._copies)[0]
        return float(state.numpy()[place])

    @property
    def is_on_gpu(self) -> bool:
        """Whether it was copied from a GPU."""
        return bool(self._arrived)

    @property
    def gpu_seconds(self) -> float | None:
        """How long it kept the GPUs busy; None if there is none, or they are not done yet."""
        return host_copy.seconds_between(self._began, self._arrived)

    @property
    def nbytes(self) -> int:
        """Size of the copies in bytes."""
        return sum(tensor.nbytes for tensor in self._copies)

    def _wait(self) -> None:
        # For that copy alone, many steps ago by now: not for what has been queued since.
        for event in self._arrived:
            event.synchronize()


def remembered(state: Iterable[Tensor]) -> list[Tensor]:
    """Of the tensors of an optimizer's state those that say something of single weights."""
    return [tensor for tensor in state if tensor.is_floating_point() and tensor.dim()]


def nbytes_of(live: Live) -> int:
    """Bytes of host memory that one snapshot of a run takes, as it is now."""
    found: list[Tensor] = []
    without_tensors(live.tree(), found)
    return sum(host_copy.nbytes_for(tensor) for tensor in found)

"""A run whose good states are on disk: written in the background, found again after a kill."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from . import distributed, durable
from .checkpointing import cpu_copy
from .memory import STATE_KEY, check_version
from .snapshot import SCHEDULED, Live, Snapshot

log = logging.getLogger(__name__)


class Checkpoints:
    """Writes the good states of a run, and goes on from the newest.

    A state is that of the end of a step. What the loop does after it (schedulers, a GradScaler) is
    noted when the next one begins, so that the file holds a whole iteration.

    Args:
        directory: for the files.
        live: the run.

    Attributes:
        attached: what else belongs to the run, by name: anything with `state_dict` and
            `load_state_dict`.
        steps: calls of `step()` so far.
    """

    def __init__(self, directory: str, live: Live) -> None:
        self.directory = Path(directory)
        self.live = live
        self.attached: dict[str, Any] = {}
        self.steps = 0
        self._incomplete: dict[str, Any] | None = None
        self._writer: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_incomplete": None, "_writer": None}

    def attach(self, **things: Any) -> None:
        """Keep these along; see `ARS.attach`."""
        for name, thing in things.items():
            if not hasattr(thing, "state_dict") or not hasattr(thing, "load_state_dict"):
                raise TypeError(
                    f"{name} must have state_dict() and load_state_dict(), got "
                    f"{type(thing).__name__}; such as an LRScheduler or a GradScaler"
                )
        self.attached |= things

    def begin_step(self) -> None:
        """Note what the loop has done since the last step."""
        if self._incomplete is not None:
            groups = self.live.base.param_groups
            self._incomplete["attached"] = cpu_copy(
                {name: thing.state_dict() for name, thing in self.attached.items()}
            )
            self._incomplete["scheduled"] = cpu_copy(
                [{k: group[k] for k in SCHEDULED if k in group} for group in groups]
            )
            self._incomplete = None
        self.steps += 1

    def note_rng(self, notes: dict[str, Any]) -> None:
        """Add to the notes of a snapshot, at the end of a step, what only a resumed run needs."""
        notes |= {"rng": durable.rng_state(), "steps": self.steps}
        self._incomplete = notes

    def write(self, snapshot: Snapshot) -> None:
        """Write a good state in the background."""
        if "scheduled" not in snapshot.notes:
            return
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="resilient_optim")
        snapshot.busy = self._writer.submit(self._write, snapshot)

    def _write(self, snapshot: Snapshot) -> None:
        notes = dict(snapshot.notes)
        notes["memory"] = [torch.from_numpy(array) for array in notes["memory"]]
        tree = snapshot.tree()
        del tree["homes"]  # another machine may have other devices
        content = {"tree": tree, "notes": notes}
        try:
            durable.write(content, self.directory, notes["steps"], _rank())
        except Exception as error:  # the run is worth more than its copy
            log.warning("ARS could not write a checkpoint to %s: %s", self.directory, error)

    def resume(self, process_group: Any) -> dict[str, Any] | None:
        """Put the run back to the newest whole state that all ranks have.

        Returns:
            Its notes, None if there is no such state.

        Raises:
            ValueError: it is not of this run; nothing is changed then.
        """
        groups = self.live.base.param_groups
        if any("initial_lr" in group for group in groups) and not any(
            hasattr(thing, "get_last_lr") for thing in self.attached.values()
        ):
            log.warning(
                "The learning rates are a scheduler's, and none is attached: it is in no "
                "checkpoint, and a resumed run has wrong learning rates. Call "
                "optimizer.attach(scheduler=scheduler) before resume()."
            )
        if any(hasattr(p, "placements") for g in groups for p in g["params"]):
            raise ValueError(
                "directory must be None for sharded parameters, got "
                f"{str(self.directory)!r}; use torch.distributed.checkpoint for those"
            )
        whole = {n: p for n, p in durable.found(self.directory, _rank()) if durable.is_whole(p)}
        common = distributed.in_common(set(whole), process_group)
        if not common:
            return None
        content = durable.read(whole[max(common)])
        tree, notes = content["tree"], content["notes"]
        check_version([{STATE_KEY: notes["memory"][0]}])
        self._check_attached(notes["attached"])
        check_is_of(self.live, tree)
        self._load(tree, notes)
        durable.set_rng_state(notes["rng"])
        self.steps = notes["steps"]
        notes["memory"] = [tensor.numpy() for tensor in notes["memory"]]
        log.info("resumed after %d steps from %s", self.steps, self.directory)
        result: dict[str, Any] = notes
        return result

    def _check_attached(self, saved: dict[str, Any]) -> None:
        missing = [name for name in self.attached if name not in saved]
        if missing:
            raise ValueError(
                f"{missing[0]} must be in the checkpoint to be resumed, got "
                f"{list(saved)} in it; attach what was attached when it was written"
            )
        left_out = [name for name in saved if name not in self.attached]
        if left_out:
            log.warning(
                "The checkpoint holds the state of %s, which nothing is attached for: it is not "
                "resumed. Call optimizer.attach(%s) before resume().",
                ", ".join(left_out),
                ", ".join(f"{name}={name}" for name in left_out),
            )

    def _load(self, tree: dict[str, Any], notes: dict[str, Any]) -> None:
        """Load all of a checkpoint or, if anything refuses it, nothing."""
        live, base = self.live, self.live.base
        before = Snapshot()
        before.take(live, 0, 0.0, {})
        keys = [set(group) for group in base.param_groups]
        attached = cpu_copy({name: thing.state_dict() for name, thing in self.attached.items()})
        begun: list[str] = []
        try:
            live.adopt_state(tree)
            live.put_back(tree, scheduled=True)
            for group, scheduled in zip(base.param_groups, notes["scheduled"], strict=True):
                group.update(scheduled)
            for name, thing in self.attached.items():
                begun.append(name)
                thing.load_state_dict(notes["attached"][name])
        except Exception as error:
            for name in begun:
                self.attached[name].load_state_dict(attached[name])
            live.put_back(before.tree(), scheduled=True)
            for group, known in zip(base.param_groups, keys, strict=True):
                for key in set(group) - known:
                    del group[key]
            culprit = begun[-1] if begun else "the base optimizer"
            raise ValueError(
                f"{culprit} must be able to load its state from {str(self.directory)!r}, got "
                f"{type(error).__name__}: {error}; build it as it was, or give another directory"
            ) from error


def check_is_of(live: Live, tree: dict[str, Any]) -> None:
    """Check that a tree is of the same param groups and parameters.

    Args:
        live: the run.
        tree: read from a file of a checkpoint.

    Raises:
        ValueError: it is not.
    """
    mine = [p for group in live.base.param_groups for p in group["params"]]
    counts = {
        "param groups": (len(tree["groups"]), len(live.base.param_groups)),
        "parameters": (len(tree["params"]), len(mine)),
        "optimizers, one in the other": (len(tree["state"]), len(live.optimizers())),
    }
    found = [f"of {a} {what} where this run has {b}" for what, (a, b) in counts.items() if a != b]
    names = {} if live.model is None else {p: n for n, p in live.model.named_parameters()}
    found += [
        f"whose parameter {names.get(p, number)} has shape {tuple(saved.shape)} where this one "
        f"has {tuple(p.shape)}"
        for number, (p, saved) in enumerate(zip(mine, tree["params"], strict=False))
        if p.shape != saved.shape
    ]
    if found:
        raise ValueError(
            f"directory must hold checkpoints of this model, got one {found[0]}; give another "
            "directory, or build the model as it was"
        )


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0

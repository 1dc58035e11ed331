"""From the arguments of `ARS` to a circuit breaker."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from .breaker import Breaker
from .budgets import Budgets
from .snapshot import Live
from .snapshot_ring import SnapshotRing, Snapshots
from .watched_run import WatchedRun

_SNAPSHOT_RULE = "'auto', True, False or Snapshots(...)"


def make_breaker(
    base: Optimizer,
    model: nn.Module | None,
    snapshot: Snapshots | bool | str,
    budgets: Budgets | None,
    preset: str,
    process_group: Any,
) -> Breaker:
    """The circuit breaker that the arguments of `ARS` ask for.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: `snapshot` is another string than "auto", or `model` another model.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module or None, got {type(model).__name__}")
    known = {id(p) for group in base.param_groups for p in group["params"]}
    own = [] if model is None else list(model.parameters())
    if own and known.isdisjoint(id(p) for p in own):
        raise ValueError(
            f"model must be the one that is trained, got a {type(model).__name__} of which the "
            "optimizer has no parameter; build the optimizer from model.parameters()"
        )
    budgets = Budgets() if budgets is None else budgets
    if not isinstance(budgets, Budgets):
        raise TypeError(f"budgets must be a Budgets, got {budgets!r}; as in Budgets(rollbacks=3)")
    if isinstance(snapshot, str) and snapshot != "auto":
        raise ValueError(f"snapshot must be {_SNAPSHOT_RULE}, got {snapshot!r}")
    if not isinstance(snapshot, Snapshots | bool | str):
        raise TypeError(f"snapshot must be {_SNAPSHOT_RULE}, got {snapshot!r}")
    live = Live(base, model)
    unasked = snapshot == "auto"
    ring = None
    if snapshot is not False and not (unasked and preset == "paper"):
        settings = snapshot if isinstance(snapshot, Snapshots) else Snapshots()
        ring = SnapshotRing(live, settings, unasked)
    return Breaker(WatchedRun(live, budgets, ring, process_group))

"""How much trouble is put up with before a run is given up."""

from __future__ import annotations

import math
from dataclasses import dataclass

from . import _checks


@dataclass(frozen=True)
class Budgets:
    """How much trouble is put up with before `TrainingDiverged` is raised.

    Attributes:
        skips_in_a_row: steps left out one after the other, since a rollback if one came; >= 1.
        skip_share: share of the last hundred steps or so that were left out, in (0, 1].
        rollbacks: how many, one of which is forgiven every hundred steps; >= 0.
        fruitless: how long the run may learn nothing at a new level of the loss that is about as
            high as the one it began with, and no better for the last good state, as a share of the
            steps before (64 of them at least). So do data that have turned into noise look; a loss
            given another meaning does, too, unless `accept_level()` says it. Infinite: for ever.
        stuck_steps: steps with the same gradient, to the bit, while the loss changes; >= 2.

    Raises:
        TypeError: If a setting is of a wrong type.
        ValueError: If one is out of range; only the last two may be infinite, for ever.
    """

    skips_in_a_row: int = 20
    skip_share: float = 0.75
    rollbacks: int = 5
    fruitless: float = 0.75
    stuck_steps: float = 50

    def __post_init__(self) -> None:
        _checks.integer("skips_in_a_row", self.skips_in_a_row, low=1)
        _checks.number("skip_share", self.skip_share, low=0.0, high=1.0, open_low=True)
        _checks.integer("rollbacks", self.rollbacks, low=0)
        if self.fruitless != math.inf:
            _checks.number("fruitless", self.fruitless, low=0.0, open_low=True)
        if self.stuck_steps != math.inf:
            _checks.number("stuck_steps", self.stuck_steps, low=2)

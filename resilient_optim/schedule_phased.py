"""PhaseSchedule: learning rate and weight decay, each after its own text of points and pieces."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from . import _checks
from .schedule_phases import parse_phases

Texts = str | Sequence[str | None] | None


class PhaseSchedule(LRScheduler):
    """Sets learning rate and weight decay to what two texts say; see `parse_phases`.

    A torch optimizer takes lr * weight_decay of each weight in a step, so whoever schedules the
    learning rate schedules the decay along with it. Here the two are apart: the text for the weight
    decay says which share of a weight one step takes (5e-5: a 20,000th), whatever the learning rate
    is at that time. For that the group's "weight_decay" is set to this share / lr. What it means:

    - AdamW and the others with decoupled decay, and SGD without momentum: with a zero gradient each
      step multiplies a weight by 1 - share, exactly.
    - SGD with momentum m: the decay is part of the gradient and goes through the momentum, too; in
      the long run a step takes share / (1 - m).
    - Adam, RMSprop and others that add the decay to the gradient and then normalise that: there is
      no such share, before or now. Use AdamW.
    - Learning rate 0: nothing decays.
    - A step that ARS damps decays a weight by as much less; one that it skips decays nothing.

    With `decoupled=False` the text gives torch's own weight_decay: a step takes lr times that.

    The values are absolute, the learning rate given to the optimizer does not matter. Cuts by
    `ResonantCallback`, which rescales `base_lrs`, act on the learning rates of the text.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.AdamW([torch.zeros(1)])
        >>> scheduler = PhaseSchedule(
        ...     optimizer,
        ...     lr="[8e-4,0] lin[1.25e-3,6] lin[1.25e-3,10] cos[1e-5,20] lin[6e-6,30]",
        ...     weight_decay="[2e-5,0] const[5e-5,10] lin[0,30]",  # times in epochs
        ...     steps_per_unit=391,
        ... )
        >>> scheduler.get_last_lr(), optimizer.param_groups[0]["weight_decay"]
        ([0.0008], 0.025)

    Args:
        optimizer: any torch optimizer, also ARS.
        lr: one text for all param groups, or a list with one text for each; None (instead of a text
            or of all) leaves the learning rate alone. Then step this scheduler after the one that
            sets it, or put it behind that one in a ChainedScheduler.
        weight_decay: likewise.
        decoupled: whether the weight decay is the share that a step takes, or torch's weight_decay.
        steps_per_unit: calls of `step()` in a unit of the texts' times; > 0. With 1 the times are
            steps (or epochs, if `step()` is called once an epoch); with the number of batches in an
            epoch they are epochs, and `step()` is called after each batch.
        last_epoch: number of the last step, for a run resumed without `state_dict`; -1 for a new
            one.

    Raises:
        TypeError: `optimizer` is no torch optimizer, or a setting is of a wrong type.
        ValueError: a text is no schedule, there are not as many as param groups, both schedules are
            missing, a group has no weight decay, or a setting is out of range. Nothing is changed
            then.

    Attributes:
        lr: the text for each param group.
        weight_decay: likewise.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr: Texts,
        weight_decay: Texts = None,
        *,
        decoupled: bool = True,
        steps_per_unit: float = 1.0,
        last_epoch: int = -1,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
        groups = optimizer.param_groups
        _checks.boolean("decoupled", decoupled)
        _checks.number("steps_per_unit", steps_per_unit, low=0.0, open_low=True)
        _checks.integer("last_epoch", last_epoch, low=-1)
        self.lr: list[str | None] = _one_each("lr", lr, len(groups))
        self.weight_decay: list[str | None] = _one_each("weight_decay", weight_decay, len(groups))
        if not any(self.lr) and not any(self.weight_decay):
            raise ValueError("lr must be a text unless weight_decay is one, got None for both")
        for number, (group, text) in enumerate(zip(groups, self.weight_decay, strict=True)):
            if text is not None and "weight_decay" not in group:
                raise ValueError(
                    f"weight_decay must be None for param group {number}, got {text!r}; "
                    f"{type(optimizer).__name__} has no weight decay"
                )
        self.decoupled = decoupled
        self.steps_per_unit = steps_per_unit
        lrs = [float(group.get("initial_lr", group["lr"])) for group in groups]
        self.full_lrs: list[float] = lrs
        super().__init__(optimizer, last_epoch)
        # As numbers: reading them at every step must not wait for a GPU.
        self.base_lrs = list(self.full_lrs)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each param group at the current step; for torch to call.

        Sets the weight decay on the way: torch has several paths to a new learning rate, and all
        lead through here.

        Returns:
            One for each group; that of a group without a text is the one it has.
        """
        lrs: list[float | Tensor] = []
        for number, text in enumerate(self.lr):
            if text is None:
                lr = self.optimizer.param_groups[number]["lr"]
                lrs.append(lr.clone() if isinstance(lr, Tensor) else lr)
            else:
                lrs.append(self._value(text) * self._cut(number))
        self.set_weight_decay(lrs)
        return lrs

    def set_weight_decay(self, lrs: Sequence[float | Tensor]) -> None:
        """Set the current step's weight decay, for groups that take it with these learning rates.

        Only for who changes the learning rates after this scheduler, as `ReWarm` does.

        Args:
            lrs: one for each param group.
        """
        for group, text, lr in zip(
            self.optimizer.param_groups, self.weight_decay, lrs, strict=True
        ):
            if text is not None:
                value = self._value(text)
                group["weight_decay"] = per_lr(value, float(lr)) if self.decoupled else value

    def _value(self, text: str) -> float:
        return parse_phases(text)(self.last_epoch / self.steps_per_unit)

    def _cut(self, number: int) -> float:
        """What is left of a group's learning rate after cuts, which rescale `base_lrs`."""
        full = self.full_lrs[number]
        return float(self.base_lrs[number]) / full if full > 0.0 else 1.0


def per_lr(share: float, lr: float) -> float:
    """The weight_decay of which a step of this learning rate takes `share`; 0 if none can."""
    return share / lr if lr > 0.0 else 0.0


def _one_each(name: str, texts: Texts, groups: int) -> list[str | None]:
    """A valid text or None for each param group."""
    if texts is None or isinstance(texts, str):
        texts = [texts] * groups
    elif not isinstance(texts, (list, tuple)):
        raise TypeError(
            f"{name} must be a text, a list of texts or None, got {type(texts).__name__} {texts!r}"
        )
    if len(texts) != groups:
        raise ValueError(
            f"{name} must have one text for each of the {groups} param groups, got {len(texts)}"
        )
    return [None if text is None else str(parse_phases(text, name)) for text in texts]

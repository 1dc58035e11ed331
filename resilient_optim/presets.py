"""The named sets of formulas and settings that `ARS(optimizer, preset=...)` knows."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch.optim import Optimizer

from .opening import momentum_gain, opening_steps
from .paper import PaperConfig
from .policy import DefaultConfig

Config = DefaultConfig | PaperConfig

PRESETS: dict[str, type[DefaultConfig] | type[PaperConfig]] = {
    "default": DefaultConfig,
    "paper": PaperConfig,
}


def make_config(
    preset: str, overrides: dict[str, Any], optimizer: Optimizer, process_group: Any = False
) -> Config:
    """The configuration of a preset with some settings changed.

    Args:
        preset: its name.
        overrides: settings by name.
        optimizer: the base optimizer, for which the default preset's opening is chosen.
        process_group: as to `opening_steps`.

    Raises:
        ValueError: there is no such preset, or a setting is out of range.
        TypeError: the preset has no such setting, or a setting has the wrong type.
    """
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {preset!r}")
    kind = PRESETS[preset]
    known = [field.name for field in fields(kind)]
    for name in overrides:
        if name not in known:
            raise TypeError(
                f"{name} must be a setting of preset {preset!r}, got {name}={overrides[name]!r}; "
                f"its settings are {', '.join(known)}"
            )
    if kind is DefaultConfig and "start_up" not in overrides:
        steps = opening_steps(optimizer, process_group)
        chosen = {"start_up": steps, "momentum_gain": momentum_gain(optimizer, process_group)}
        overrides = chosen | overrides
    return kind(**overrides)

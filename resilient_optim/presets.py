"""The named sets of formulas and settings that `ARS(optimizer, preset=...)` knows."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from .paper import PaperConfig
from .policy import DefaultConfig

Config = DefaultConfig | PaperConfig

PRESETS: dict[str, type[DefaultConfig] | type[PaperConfig]] = {
    "default": DefaultConfig,
    "paper": PaperConfig,
}


def make_config(preset: str, overrides: dict[str, Any]) -> Config:
    """The configuration of a preset with some settings changed.

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
    return kind(**overrides)

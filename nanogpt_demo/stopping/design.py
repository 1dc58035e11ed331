"""Which learning curves are recorded, and which of them may be looked at while choosing a rule.

Every configuration has two levels, such as two learning rates. One level belongs to ``dev``, the
other to ``held-out``, in turn, so that neither split has all the larger ones; the seeds differ as
well. No setting therefore occurs in both splits, and each split has every workload and every kind
of difficulty. This was fixed before any curve was recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

SEEDS = {"dev": (101, 102), "held-out": (3, 4)}


@dataclass(frozen=True)
class CurveSpec:
    """One training run, and with it one learning curve.

    Attributes:
        workload: a key of ``BASE``.
        config: a key of ``CONFIGURATIONS``: what is special about the run.
        split: "dev" (for choosing) or "held-out" (for reporting).
        seed: of initialisation, training set and batches.
        width: of the model.
        optimizer: "adamw" or "sgd" (with momentum 0.9).
        lr: peak learning rate.
        schedule: a key of ``SCHEDULES`` in `record`.
        batch: samples a step.
        weight_decay: as the optimizer takes it.
        pool: size of the training set, from which batches are drawn.
        label_noise: share of the training set with random targets, fixed for the whole run.
        foreign: share of the training set that comes from the shifted task, at first.
        foreign_after: that share after the training set has been changed.
        shift_at: share of the run after which the training set is changed; 0 for never.
        epochs: number of evaluations, which is the full budget.
        epoch_steps: training steps before each of them.
        corpus: what ``load_corpus`` takes.
    """

    workload: str
    config: str
    split: str
    seed: int
    width: int
    optimizer: str
    lr: float
    schedule: str
    batch: int
    weight_decay: float
    pool: int
    label_noise: float
    foreign: float
    foreign_after: float
    shift_at: float
    epochs: int
    epoch_steps: int
    corpus: str

    @property
    def steps(self) -> int:
        """Length of the run."""
        return self.epochs * self.epoch_steps

    @property
    def key(self) -> str:
        """Name of the run: other settings, other name."""
        return "-".join(str(value) for value in asdict(self).values())

    @property
    def name(self) -> str:
        """Short name of the run, unique within one design."""
        return f"{self.workload}/{self.config}/{self.split}/{self.seed}"


SPEC_FIELDS = tuple(CurveSpec.__dataclass_fields__)


def spec_of(record: Mapping[str, Any]) -> CurveSpec:
    """The run that a record is of."""
    return CurveSpec(**{name: record[name] for name in SPEC_FIELDS})


_TEXT = {"optimizer": "adamw", "batch": 8, "weight_decay": 0.01, "pool": 1500}
BASE: dict[str, dict[str, Any]] = {
    "cnn": {"width": 8, "optimizer": "sgd", "lr": 0.05, "batch": 32, "weight_decay": 1e-4,
            "pool": 1000, "epochs": 80, "epoch_steps": 25},
    "mlp": {"width": 64, "optimizer": "adamw", "lr": 1e-3, "batch": 32, "weight_decay": 0.01,
            "pool": 800, "epochs": 120, "epoch_steps": 20},
    "regression": {"width": 64, "optimizer": "adamw", "lr": 1e-3, "batch": 32,
                   "weight_decay": 0.01, "pool": 1000, "epochs": 120, "epoch_steps": 25},
    "gpt": {**_TEXT, "width": 32, "lr": 5e-3, "epochs": 80, "epoch_steps": 70},
    "lstm": {**_TEXT, "width": 48, "lr": 1e-2, "epochs": 100, "epoch_steps": 60},
}  # fmt: skip
"""By workload: a healthy run that is longer than it needs to be."""

SMALL = {"cnn": 150, "mlp": 150, "regression": 150, "gpt": 300, "lstm": 300}
"""A training set that these models learn by heart."""


def _scaled(workload: str, name: str, *factors: float) -> tuple[Any, ...]:
    base = BASE[workload][name]
    return tuple(type(base)(base * factor) for factor in factors)


def _configurations(workload: str) -> dict[str, dict[str, Any]]:
    """What each configuration changes; a tuple has the values of the two levels."""
    small = SMALL[workload]
    return {
        "constant": {"lr": _scaled(workload, "lr", 1.0, 0.5)},
        "high-lr": {"lr": _scaled(workload, "lr", 3.0, 5.0)},
        "low-lr": {"lr": _scaled(workload, "lr", 0.2, 0.3)},
        "cosine": {"schedule": "cosine", "lr": _scaled(workload, "lr", 1.0, 2.0)},
        "steps": {"schedule": "steps", "lr": _scaled(workload, "lr", 2.0, 1.0)},
        "size": {"width": _scaled(workload, "width", 0.5, 1.5), "schedule": "cosine"},
        "tiny-batch": {"batch": (2, 4), "weight_decay": 0.0},
        "label-noise": {"label_noise": (0.2, 0.4)},
        "overfit": {"pool": (small, 2 * small), "weight_decay": 0.0},
        # Weight decay outlasts what was learned by heart: such curves may descend twice.
        "double-descent": {
            "pool": 2 * small,
            "label_noise": 0.15,
            "width": _scaled(workload, "width", 1.5, 2.0),
            "weight_decay": (0.02, 0.01) if workload == "cnn" else (1.0, 0.5),
        },
        "cleaned": {"foreign": 0.5, "shift_at": (0.15, 0.25)},
        "polluted": {"foreign_after": 0.5, "shift_at": (0.4, 0.3)},
    }


CONFIGURATIONS = tuple(_configurations("cnn"))

ONE_SEED = ("gpt", "lstm")
"""Slow workloads, recorded with the first seed of each split only."""


def design(corpus: str, seeds: int | None = None) -> list[CurveSpec]:
    """List every curve; the workloads and splits take turns.

    Args:
        corpus: what the text workloads read.
        seeds: how many of each split's seeds (default: all).
    """
    return [
        _spec(workload, config, split, seed, corpus)
        for place in range(len(SEEDS["dev"][:seeds]))
        for config in CONFIGURATIONS
        for workload in BASE
        for split, found in SEEDS.items()
        for seed in (found[place],)
        if place == 0 or workload not in ONE_SEED
    ]


def _spec(workload: str, config: str, split: str, seed: int, corpus: str) -> CurveSpec:
    turn = (CONFIGURATIONS.index(config) + list(BASE).index(workload)) % 2
    level = turn if split == "dev" else 1 - turn
    changes = _configurations(workload)[config]
    settings = {
        "schedule": "constant",
        "label_noise": 0.0,
        "foreign": 0.0,
        "foreign_after": 0.0,
        "shift_at": 0.0,
        **BASE[workload],
        **{name: v[level] if isinstance(v, tuple) else v for name, v in changes.items()},
    }
    return CurveSpec(workload, config, split, seed, corpus=corpus, **settings)


def smoke(corpus: str) -> list[CurveSpec]:
    """List a few very short curves, to see whether everything works."""
    chosen = [spec for spec in design(corpus, 1) if spec.config in ("cosine", "cleaned")]
    return [replace(spec, epochs=8, epoch_steps=4, pool=64) for spec in chosen]

"""Which runs the suite consists of.

Not the full product of workloads, optimizers and scenarios but a designed part of it, in which each
level meets the others, with a control for every pair of workload and optimizer that is used. The
strengths and seeds of ``dev`` are for choosing the policy; those of ``held-out`` are reported and
were fixed before anything was tuned.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanogpt_demo.suite.peers import ABLATIONS, ALL, AT_ONCE, FIXED, IDEAS, PEERS, applicable
from nanogpt_demo.suite.profile import TRIED_ON
from nanogpt_demo.suite.run import SuiteSpec
from nanogpt_demo.suite.scenarios import SCENARIOS
from nanogpt_demo.summary import OURS

SEEDS = {"dev": (101, 102, 103, 104), "held-out": tuple(range(1, 11))}

LRS = {
    ("gpt", "adamw"): 3e-3,
    ("gpt", "lion"): 6e-4,
    ("gru", "adamw"): 1e-2,
    ("gru", "sgd"): 0.3,
    ("cnn", "sgd"): 0.1,
    ("cnn", "lion"): 1e-3,
    ("mlp", "adamw"): 1e-2,
    ("mlp", "sgd"): 0.05,
}
"""Learning rate of each pair: the best of a grid for the bare optimizer without events."""

STRENGTHS = {
    "none": (0.0, 0.0),
    "high-lr": (5.0, 10.0),
    "reversed": (0.8, 1.0),
    "corrupted-isolated": (0.1, 0.06),
    "corrupted-burst": (6, 8),
    "label-noise": (0.7, 0.9),
    "gradient-spikes": (100.0, 1000.0),
    "lr-spikes": (5.0, 10.0),
    "drift": (0.8, 1.0),
    "batch-drop": (0.25, 0.125),
    "nonfinite-loss": (0.02, 0.03),
    "nonfinite-gradient": (0.02, 0.03),
    "restarts": (3, 4),
}
"""Strength of each scenario, on the development split and on the held-out one."""

RHYTHMS = {"mlp": (2, 2), "gru": (12, 16)}
"""Length of one alternation in steps, which is the strength of "alternating"."""

CELLS: dict[tuple[str, str], tuple[str, ...]] = {
    ("gpt", "adamw"): (
        "none", "high-lr", "reversed", "corrupted-isolated", "lr-spikes", "restarts",
    ),
    ("gpt", "lion"): ("none", "gradient-spikes", "drift"),
    ("gru", "adamw"): ("none", "corrupted-burst", "alternating", "nonfinite-loss"),
    ("gru", "sgd"): ("none", "reversed", "batch-drop"),
    ("cnn", "sgd"): ("none", "high-lr", "corrupted-isolated", "label-noise"),
    ("cnn", "lion"): ("none", "reversed", "nonfinite-gradient"),
    ("mlp", "adamw"): ("none", "alternating", "label-noise", "gradient-spikes"),
    ("mlp", "sgd"): ("none", "corrupted-burst", "drift"),
}  # fmt: skip

Rates = dict[tuple[str, str], tuple[float, ...]]

SWEEP: Rates = {
    ("gpt", "adamw"): (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    ("cnn", "sgd"): (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0),
}
EXTRA_SEEDS = 2  # of the ablations and the sweep, which answer coarser questions
SWEEP_METHODS = ("bare", "clip", "warmup+clip", "ars")
IDEAS_SWEEP: Rates = {  # from the usual rate upwards
    ("gru", "sgd"): (0.3, 1.0, 3.0, 10.0),
    ("cnn", "sgd"): (0.1, 0.3, 1.0, 3.0),
    ("mlp", "sgd"): (0.05, 0.15, 0.5, 1.5),
}
SMOKE_METHODS = ("bare", "clip", "warmup+clip", "zclip+clip", "skip-step+clip", "ars")


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        split: a key of ``SEEDS``.
        seeds: which of them; None for all.
        corpus: what ``load_corpus`` takes.
    """

    split: str
    corpus: str
    seeds: tuple[int, ...] | None = None

    def _seeds(self) -> tuple[int, ...]:
        return self.seeds or SEEDS[self.split]

    def strength(self, workload: str, scenario: str) -> float:
        """Return how strong a scenario is on this split."""
        pair = RHYTHMS[workload] if scenario == "alternating" else STRENGTHS[scenario]
        return pair[self.split == "held-out"]

    def spec(
        self, pair: tuple[str, str], scenario: str, method: str, seed: int, kind: str = "cell"
    ) -> SuiteSpec:
        """Describe one run of a cell."""
        strength = self.strength(pair[0], scenario)
        lr = LRS[pair] * (strength if scenario == "high-lr" else 1.0)
        return SuiteSpec(*pair, scenario, strength, method, seed, lr, self.split, kind, self.corpus)

    def cells(self, methods: tuple[str, ...] = tuple(PEERS)) -> list[SuiteSpec]:
        """Return every cell under every method that applies, seed by seed."""
        return [
            self.spec(pair, scenario, method, seed)
            for seed in self._seeds()
            for pair, scenarios in CELLS.items()
            for scenario in scenarios
            for method in methods
            if applicable(method, pair[1])
        ]

    def extras(self) -> list[SuiteSpec]:
        """Return what a full suite has besides its cells."""
        return [*self.sweep(), *self.ablations()]

    def ablations(self) -> list[SuiteSpec]:
        """Return every cell under the default with one component changed."""
        return self._variants(tuple(ABLATIONS), self._seeds()[:EXTRA_SEEDS])

    def ideas(self, methods: tuple[str, ...] = tuple(IDEAS)) -> list[SuiteSpec]:
        """Return every cell under the default, and under that with what was tried on it."""
        tried = tuple(dict.fromkeys((TRIED_ON, *methods)))
        swept = (OURS, FIXED, AT_ONCE) if AT_ONCE in tried else ()
        return [
            *self.cells((OURS,)),
            *self._variants(tried, self._seeds()),
            *self._sweep(IDEAS_SWEEP, swept, self._seeds()),
        ]

    def _variants(self, methods: tuple[str, ...], seeds: tuple[int, ...]) -> list[SuiteSpec]:
        return [
            self.spec(pair, scenario, method, seed, "ablation")
            for seed in seeds
            for pair, scenarios in CELLS.items()
            for scenario in scenarios
            for method in methods
            if applicable(method, pair[1]) and scenario in (ALL[method].scenarios or SCENARIOS)
        ]

    def sweep(self) -> list[SuiteSpec]:
        """Return the runs without events over three decades of the learning rate."""
        return self._sweep(SWEEP, SWEEP_METHODS, self._seeds()[:EXTRA_SEEDS])

    def _sweep(
        self, rates: Rates, methods: tuple[str, ...], seeds: tuple[int, ...]
    ) -> list[SuiteSpec]:
        return [
            SuiteSpec(*pair, "none", 0.0, method, seed, lr, self.split, "lr-sweep", self.corpus)
            for seed in seeds
            for pair, lrs in rates.items()
            for lr in lrs
            for method in methods
        ]

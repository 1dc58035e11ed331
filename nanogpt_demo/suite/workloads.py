"""The four workloads of the suite: small enough for thousands of runs, different in kind.

Each has a task A and a shifted task B. Data are drawn from the random generator that is handed in,
so a batch is a pure function of the generator and every method sees the same batches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_demo._checks import require_choice
from nanogpt_demo.corpus import Corpus, load_corpus
from nanogpt_demo.model import GPT, GPTConfig
from nanogpt_demo.suite.models import GRULanguageModel, ResidualCNN, regression_mlp

Batch = tuple[Tensor, Tensor]
Rng = np.random.Generator

EVAL_STREAM = 7
TASK_SEED = 2026  # of what belongs to the task and not to a run: the teachers, the label shift


class Workload(Protocol):
    """A model, its data, and how the two are compared."""

    steps: int
    batch: int

    def model(self) -> nn.Module:
        """Build a freshly initialised model from torch's current random state."""

    def draw(self, rng: Rng, size: int, shifted: int) -> Batch:
        """Draw ``size`` samples, ``shifted`` of them from task B, the others from task A."""

    def corrupt(self, batch: Batch, rng: Rng) -> Batch:
        """Replace inputs and targets by noise that has nothing to say."""

    def mislabel(self, batch: Batch, rng: Rng, share: float) -> Batch:
        """Replace a share of the targets by random ones."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss, 0-d."""

    def evaluation(self, shifted: bool) -> list[Batch]:
        """Return clean held-out batches of task B, or of task A; the same for every run."""


class Text:
    """Next-character prediction; task B reads the text from its end to its beginning."""

    batch = 8
    block = 32

    def __init__(self, corpus: Corpus, steps: int, network: Callable[[int], nn.Module]) -> None:
        """Prepare both readings of the text."""
        self.steps = steps
        self._corpus = corpus
        self._network = network
        self._tasks = (corpus.train, corpus.train.flip(0))

    def model(self) -> nn.Module:
        """Build the language model."""
        return self._network(self._corpus.vocab_size)

    def draw(self, rng: Rng, size: int, shifted: int) -> Batch:
        """Cut sequences at random places."""
        plain, reverse = self._tasks
        offsets = rng.integers(0, len(plain) - self.block, size=(size, 1))
        index = torch.from_numpy(offsets + np.arange(self.block + 1))
        rows = torch.cat([reverse[index[:shifted]], plain[index[shifted:]]])
        return rows[:, :-1], rows[:, 1:]

    def corrupt(self, batch: Batch, rng: Rng) -> Batch:
        """Random characters throughout."""
        shape = (len(batch[0]), self.block + 1)
        rows = torch.from_numpy(rng.integers(0, self._corpus.vocab_size, size=shape))
        return rows[:, :-1], rows[:, 1:]

    def mislabel(self, batch: Batch, rng: Rng, share: float) -> Batch:
        """Random characters as targets of the right inputs."""
        return batch[0], _random_classes(batch[1], rng, share, self._corpus.vocab_size)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in nats a character."""
        loss: Tensor = model(*batch)[1]
        return loss

    def evaluation(self, shifted: bool) -> list[Batch]:
        """Fixed sequences of the validation text."""
        tokens = self._corpus.val.flip(0) if shifted else self._corpus.val
        rng = np.random.default_rng([EVAL_STREAM])
        offsets = rng.integers(0, len(tokens) - self.block, size=(64, 1))
        rows = tokens[torch.from_numpy(offsets + np.arange(self.block + 1))]
        return [(rows[:, :-1], rows[:, 1:])]


class Digits:
    """scikit-learn's 8x8 digits with noisy pixels; task B shows them upside down, renamed."""

    steps = 300
    batch = 32
    noise = 0.3
    train_share = 0.75

    def __init__(self) -> None:
        """Split once; the same split for every run."""
        from sklearn.datasets import load_digits  # only where it is used: a heavy import

        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(TASK_SEED).permutation(len(labels))
        x = torch.from_numpy(images[order]).float().reshape(-1, 1, 8, 8) / 8 - 1
        y = torch.from_numpy(labels[order]).long()
        cut = int(self.train_share * len(y))
        self._train, self._val = (x[:cut], y[:cut]), (x[cut:], y[cut:])

    def model(self) -> nn.Module:
        """Build a small residual network."""
        return ResidualCNN(classes=10)

    @staticmethod
    def _task_b(batch: Batch) -> Batch:
        return batch[0].flip(2), (batch[1] + 3) % 10

    def draw(self, rng: Rng, size: int, shifted: int) -> Batch:
        """Noisy images of the training split."""
        index = torch.from_numpy(rng.integers(0, len(self._train[1]), size=size))
        x, y = self._train[0][index], self._train[1][index]
        xb, yb = self._task_b((x[:shifted], y[:shifted]))
        x, y = torch.cat([xb, x[shifted:]]), torch.cat([yb, y[shifted:]])
        return x + self.noise * _normal(rng, x.shape), y

    def corrupt(self, batch: Batch, rng: Rng) -> Batch:
        """Images of nothing but noise, with random labels."""
        return _normal(rng, batch[0].shape), _random_classes(batch[1], rng, 1.0, 10)

    def mislabel(self, batch: Batch, rng: Rng, share: float) -> Batch:
        """Random labels."""
        return batch[0], _random_classes(batch[1], rng, share, 10)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in nats."""
        return F.cross_entropy(model(batch[0]), batch[1])

    def evaluation(self, shifted: bool) -> list[Batch]:
        """Return the validation images without noise."""
        return [self._task_b(self._val) if shifted else self._val]


class Regression:
    """A random tanh network is the teacher; task B has another teacher."""

    steps = 500
    batch = 32
    width = 16
    noise = 0.1

    def __init__(self) -> None:
        """Make the teachers."""
        rng = np.random.default_rng(TASK_SEED)
        self._teachers = [self._teacher(rng) for _ in range(2)]

    def _teacher(self, rng: Rng) -> Batch:
        inner = _normal(rng, (self.width, 2 * self.width)) * 2 / self.width**0.5
        return inner, _normal(rng, (2 * self.width, 1)) / self.width**0.5

    def model(self) -> nn.Module:
        """Build the student."""
        return regression_mlp(self.width)

    def _answer(self, x: Tensor, task: int) -> Tensor:
        inner, outer = self._teachers[task]
        return torch.tanh(x @ inner) @ outer

    def draw(self, rng: Rng, size: int, shifted: int) -> Batch:
        """Fresh inputs and noisy answers."""
        x = _normal(rng, (size, self.width))
        y = torch.cat([self._answer(x[:shifted], 1), self._answer(x[shifted:], 0)])
        return x, y + self.noise * _normal(rng, y.shape)

    def corrupt(self, batch: Batch, rng: Rng) -> Batch:
        """Inputs and answers off the scale, as from a broken sensor."""
        return 3 * _normal(rng, batch[0].shape), 10 * _normal(rng, batch[1].shape)

    def mislabel(self, batch: Batch, rng: Rng, share: float) -> Batch:
        """Answers of other inputs, as random and as large as the right ones."""
        wrong = torch.from_numpy(rng.permutation(len(batch[1])))
        replaced = torch.from_numpy(rng.random(len(batch[1])) < share)
        return batch[0], torch.where(replaced[:, None], batch[1][wrong], batch[1])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(model(batch[0]), batch[1])

    def evaluation(self, shifted: bool) -> list[Batch]:
        """Inputs with the teacher's exact answers."""
        x = _normal(np.random.default_rng([EVAL_STREAM]), (1024, self.width))
        return [(x, self._answer(x, int(shifted)))]


def _normal(rng: Rng, shape: tuple[int, ...] | torch.Size) -> Tensor:
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))


def _random_classes(targets: Tensor, rng: Rng, share: float, classes: int) -> Tensor:
    shape = tuple(targets.shape)
    wrong = torch.from_numpy(rng.integers(0, classes, size=shape))
    return torch.where(torch.from_numpy(rng.random(shape) < share), wrong, targets)


def _gpt(vocab_size: int) -> GPT:
    return GPT(GPTConfig(vocab_size, n_layer=2, n_head=2, n_embd=48, block_size=Text.block))


WORKLOADS = ("gpt", "gru", "cnn", "mlp")


@lru_cache(maxsize=8)
def load_workload(name: str, corpus: str) -> Workload:
    """Build a workload; the text ones read ``corpus``.

    Raises:
        ValueError: If the name is not one of ``WORKLOADS``, or the corpus cannot be had.
    """
    require_choice("workload", name, list(WORKLOADS))
    if name == "gpt":
        return Text(load_corpus(corpus), 400, _gpt)
    if name == "gru":
        return Text(load_corpus(corpus), 300, GRULanguageModel)
    return Digits() if name == "cnn" else Regression()

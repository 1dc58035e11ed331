"""The data sets, split into what is trained on, what RCA watches, and what is reported.

RCA chooses the epoch that is kept by the validation loss, so that an accuracy on the same samples
would flatter it: the accuracy that is reported is that on the test samples, which nothing has seen.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanogpt_demo._checks import require
from nanogpt_demo.converge.files import fetch
from nanogpt_demo.converge.formats import (
    CLASSES,
    Bytes,
    Labels,
    Sentences,
    read_cifar10,
    read_idx_pair,
    read_sst2,
)

SPLIT_SEED = 2026  # of the splits: they belong to the data set and not to a run
VALIDATION_SHARE = 0.1  # of the training samples, where there are test samples besides
DIGITS_SHARE = 0.2  # for validation, and as much for the test
MAX_WORDS = 64  # longer than any sentence of SST-2
MIN_COUNT = 2  # a word that occurs once in training teaches nothing about its next occurrence
PADDING, UNKNOWN = 0, 1  # word numbers
MIN_SAMPLES = 2  # batch normalisation needs two

Split = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Data:
    """A data set, ready to train on.

    Attributes:
        name: A key of ``LOADERS``.
        sha256: Hash of all samples, so that a result names exactly what it was made from.
        classes: Number of classes.
        words: Size of the vocabulary, or 0 for images.
        train: Inputs and labels to train on: images float32 (N, channels, height, width), with
            mean 0 and variance 1 in each channel, or word numbers int64 (N, words).
        val: The same for validation.
        test: The same for the accuracy that is reported.
    """

    name: str
    sha256: str
    classes: int
    words: int
    train: Split
    val: Split
    test: Split


def load(name: str, folder: Path, tell: Callable[[str], None]) -> Data:
    """Load a data set, downloading it if it is not there.

    Args:
        name: A key of ``LOADERS``.
        folder: Where data are kept.
        tell: Called with a line of text before each download.

    Raises:
        ValueError: If the data cannot be had, are damaged or too few.
    """
    data = LOADERS[name](name, folder, tell)
    fewest = min(len(labels) for _, labels in (data.train, data.val, data.test))
    rule = f"at least {MIN_SAMPLES} samples in each split"
    require(fewest >= MIN_SAMPLES, f"data set {name}", rule, fewest, "get the files again")
    return data


def _digits(name: str, folder: Path, tell: Callable[[str], None]) -> Data:
    """scikit-learn's 8x8 digits, which come with the package."""
    from sklearn.datasets import load_digits  # only where it is used: a heavy import

    images, labels = load_digits(return_X_y=True)
    x = images.astype(np.uint8).reshape(-1, 1, 8, 8)
    count = int(DIGITS_SHARE * len(x))
    rest, test = _hold_out(x, labels.astype(np.int64), count)
    return _images(name, *_hold_out(*rest, count), test)


def _mnist(name: str, folder: Path, tell: Callable[[str], None]) -> Data:
    """MNIST, or Fashion-MNIST, which comes in the same four files."""
    train_images, train_labels, test_images, test_labels = fetch(name, folder, tell)
    x, y = read_idx_pair(train_images, train_labels)
    test = read_idx_pair(test_images, test_labels)
    return _images(name, *_hold_out(x, y, int(VALIDATION_SHARE * len(x))), test)


def _cifar10(name: str, folder: Path, tell: Callable[[str], None]) -> Data:
    (x, y), test = read_cifar10(fetch(name, folder, tell)[0])
    return _images(name, *_hold_out(x, y, int(VALIDATION_SHARE * len(x))), test)


def _sst2(name: str, folder: Path, tell: Callable[[str], None]) -> Data:
    """SST-2; half of its development sentences are for validation, the others for the test.

    The training file holds phrases of its sentences, so that some held out from it would be known
    from others; and the test file has no labels.
    """
    (sentences, labels), (dev, dev_labels) = read_sst2(fetch(name, folder, tell)[0])
    number_of = vocabulary(sentences)
    train = encode(sentences, number_of), labels
    val, test = _hold_out(encode(dev, number_of), dev_labels, len(dev) // 2)
    splits = [train, val, test]
    sha256 = _hash(splits)
    tensors = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in splits]
    return Data(name, sha256, 2, len(number_of) + UNKNOWN + 1, *tensors)


LOADERS: dict[str, Callable[[str, Path, Callable[[str], None]], Data]] = {
    "digits": _digits,
    "mnist": _mnist,
    "fashion-mnist": _mnist,
    "cifar10": _cifar10,
    "sst2": _sst2,
}


def vocabulary(sentences: Sentences) -> dict[str, int]:
    """Number the words that occur at least ``MIN_COUNT`` times, the most frequent first."""
    counts = Counter(word for sentence in sentences for word in sentence)
    # Ties in alphabetical order: the numbers must not depend on the order of the sentences.
    words = sorted(counts, key=lambda word: (-counts[word], word))
    kept = (word for word in words if counts[word] >= MIN_COUNT)
    return {word: number for number, word in enumerate(kept, start=UNKNOWN + 1)}


def encode(sentences: Sentences, number_of: dict[str, int]) -> NDArray[np.int64]:
    """Turn sentences into word numbers, filled up with ``PADDING``.

    Returns:
        (N, ``MAX_WORDS``); the words beyond are left out.
    """
    rows = np.full((len(sentences), MAX_WORDS), PADDING, dtype=np.int64)
    for row, sentence in zip(rows, sentences, strict=True):
        numbers = [number_of.get(word, UNKNOWN) for word in sentence[:MAX_WORDS]]
        row[: len(numbers)] = numbers
    return rows


def _hold_out(
    x: NDArray[Any], y: Labels, count: int
) -> tuple[tuple[NDArray[Any], Labels], tuple[NDArray[Any], Labels]]:
    """Set ``count`` random samples apart; return the others, and these."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(y))
    kept, held = order[count:], order[:count]
    return (x[kept], y[kept]), (x[held], y[held])


def _images(
    name: str, train: tuple[Bytes, Labels], val: tuple[Bytes, Labels], test: tuple[Bytes, Labels]
) -> Data:
    """Scale the pixels by mean and deviation of the training images, channel by channel."""
    splits = [train, val, test]
    sha256 = _hash(splits)
    require(len(train[1]) > 0, f"data set {name}", "not empty", 0, "get the files again")
    axes = (0, 2, 3)
    mean = train[0].mean(axes, keepdims=True, dtype=np.float64).astype(np.float32)
    deviation = train[0].std(axes, keepdims=True, dtype=np.float32).clip(min=1.0)
    scaled = []
    for x, y in splits:
        pixels = x.astype(np.float32)
        pixels -= mean  # in place: CIFAR-10 is half a gigabyte
        pixels /= deviation
        scaled.append((torch.from_numpy(pixels), torch.from_numpy(y)))
    return Data(name, sha256, CLASSES, 0, *scaled)


def _hash(splits: list[tuple[NDArray[Any], Labels]]) -> str:
    found = hashlib.sha256()
    for x, y in splits:
        found.update(np.ascontiguousarray(x).tobytes() + y.tobytes())
    return found.hexdigest()

"""The models: convolutions for images, the mean of word vectors for sentences."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanogpt_demo.converge.datasets import PADDING, Data
from nanogpt_demo.suite.models import ResidualCNN

WIDTHS = {"mnist": (32, 64), "fashion-mnist": (32, 64), "cifar10": (64, 128, 256)}
"""Channels after each convolution, those of the published examples."""


def build(data: Data) -> nn.Module:
    """Build the model for a data set, from torch's current random state."""
    if data.words:
        return BagOfWords(data.words, data.classes)
    if data.name == "digits":
        return ResidualCNN(data.classes)
    return ConvNet(data.train[0].shape[1], WIDTHS[data.name], data.classes)


class ConvNet(nn.Module):
    """Convolutions that halve the image one by one, then two linear layers.

    Args:
        channels: Of the images.
        widths: Channels after each convolution.
        classes: How many to tell apart.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], classes: int) -> None:
        """Build the layers."""
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((channels, *widths), widths, strict=False):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Sequential(
            nn.Dropout(0.25),
            nn.Linear(16 * widths[-1], 128),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(128, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Classify images (batch, channels, height, width); returns logits (batch, classes)."""
        logits: Tensor = self.head(self.features(x))
        return logits


class BagOfWords(nn.Module):
    """The mean of the vectors of a sentence's words, then two linear layers.

    Args:
        words: Size of the vocabulary.
        classes: How many to tell apart.
        width: Of the vectors.
    """

    def __init__(self, words: int, classes: int, width: int = 64) -> None:
        """Build the layers."""
        super().__init__()
        self.embedding = nn.Embedding(words, width, padding_idx=PADDING)
        self.head = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Classify sentences (batch, words) of word numbers; returns logits (batch, classes)."""
        lengths = (x != PADDING).sum(dim=1, keepdim=True)
        mean = self.embedding(x).sum(dim=1) / lengths.clamp(min=1)  # the vector of PADDING is zero
        logits: Tensor = self.head(mean)
        return logits


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift images by up to 4 pixels, with edges of the mean colour, and mirror half of them.

    Args:
        images: (batch, channels, height, width), of mean 0.
        generator: Where the chance comes from.
    """
    margin = 4
    count, channels, height, width = images.shape
    padded = nn.functional.pad(images, (margin, margin, margin, margin))
    shifts = torch.randint(2 * margin + 1, (2, count, 1), generator=generator)
    rows = shifts[0] + torch.arange(height)
    columns = shifts[1] + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    samples = torch.arange(count)[:, None, None, None]
    planes = torch.arange(channels)[None, :, None, None]
    return padded[samples, planes, rows[:, None, :, None], columns[:, None, None, :]]

"""The suite's models besides the GPT: a recurrent language model, a residual CNN, an MLP."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class GRULanguageModel(nn.Module):
    """One GRU layer between an embedding and a linear read-out."""

    def __init__(self, vocab_size: int, width: int = 64) -> None:
        """Build the layers."""
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, idx: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Predict each next token.

        Args:
            idx: int64 (batch, time).
            targets: int64 (batch, time).

        Returns:
            Logits (batch, time, vocab) and their mean cross-entropy.
        """
        hidden, _ = self.recurrent(self.embedding(idx))
        logits: Tensor = self.head(hidden)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class ResidualCNN(nn.Module):
    """Two residual blocks with batch normalisation, for images of 8x8 pixels."""

    def __init__(self, classes: int, width: int = 12) -> None:
        """Build the layers."""
        super().__init__()
        self.stem = _conv(1, width)
        self.first = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width))
        self.widen = _conv(width, 2 * width, stride=2)
        self.second = nn.Sequential(
            _conv(2 * width, 2 * width), nn.ReLU(), _conv(2 * width, 2 * width)
        )
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images (batch, 1, 8, 8); returns logits (batch, classes)."""
        x = F.relu(self.stem(x))
        x = F.relu(x + self.first(x))
        x = F.relu(self.widen(x))
        x = F.relu(x + self.second(x))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution and batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs)
    )


def regression_mlp(inputs: int, width: int = 64) -> nn.Module:
    """Three layers from ``inputs`` numbers to one."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
    )

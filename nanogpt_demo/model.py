"""A GPT in one file: decoder-only transformer for next-character prediction.

Pre-norm blocks, causal attention through PyTorch's fused kernel, learned positions, no biases,
token embedding shared with the output layer.

References:
    Vaswani et al. (2017), "Attention Is All You Need", https://arxiv.org/abs/1706.03762
    Radford et al. (2019), "Language Models are Unsupervised Multitask Learners" (GPT-2: pre-norm
        blocks, initialisation), https://github.com/openai/gpt-2
    Press and Wolf (2017), "Using the Output Embedding to Improve Language Models" (weight tying),
        https://arxiv.org/abs/1608.05859
    Karpathy (2022), nanoGPT (the size and the bias-free variant), https://github.com/karpathy/nanoGPT
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_demo._checks import require, require_int

INIT_STD = 0.02  # GPT-2's standard deviation for every weight matrix


@dataclass(frozen=True)
class GPTConfig:
    """Shape of a GPT.

    Args:
        vocab_size: Number of distinct tokens, at least 1.
        n_layer: Number of transformer blocks, at least 1.
        n_head: Attention heads per block; must divide ``n_embd``.
        n_embd: Width of the residual stream.
        block_size: Longest context in tokens.
        dropout: Share of activations dropped in training, in [0, 1).

    Raises:
        TypeError: If a count is no integer.
        ValueError: If a value is out of range.
    """

    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check every field before a model is built from them."""
        for name in ("vocab_size", "n_layer", "n_head", "n_embd", "block_size"):
            require_int(name, getattr(self, name), 1, "give a positive count")
        require(
            self.n_embd % self.n_head == 0,
            "n_embd",
            f"a multiple of n_head={self.n_head}",
            self.n_embd,
            "each head gets n_embd / n_head channels",
        )
        require(0 <= self.dropout < 1, "dropout", "in [0, 1)", self.dropout, "0 switches it off")


class Attention(nn.Module):
    """Causal multi-head self-attention, (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig) -> None:
        """Build the joint query-key-value projection and the output projection."""
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix each position with those before it."""
        b, t, c = x.shape
        heads = self.qkv(x).view(b, t, 3, self.n_head, c // self.n_head)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, T, C / heads)
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        mixed: Tensor = self.proj(y.transpose(1, 2).reshape(b, t, c))
        return mixed


class MLP(nn.Module):
    """Position-wise feed-forward network, four times as wide inside, (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig) -> None:
        """Build both layers."""
        super().__init__()
        self.up = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network to every position on its own."""
        out: Tensor = self.proj(F.gelu(self.up(x)))
        return out


class Block(nn.Module):
    """One pre-norm transformer block, (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig) -> None:
        """Build attention and MLP, each behind its LayerNorm."""
        super().__init__()
        self.norm1 = nn.LayerNorm(config.n_embd, bias=False)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.n_embd, bias=False)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Add attention and MLP to the residual stream."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        x = x + self.dropout(self.mlp(self.norm2(x)))
        return x


class GPT(nn.Module):
    """Decoder-only transformer.

    Args:
        config: Its shape.

    Weights are drawn from torch's global generator: seed it inside ``torch.random.fork_rng``.
    """

    def __init__(self, config: GPTConfig) -> None:
        """Build and initialise the model."""
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions = nn.Embedding(config.block_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, bias=False)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.head.weight = self.tokens.weight
        self._initialise()

    def _initialise(self) -> None:
        """Initialise as GPT-2 does; 2 n_layer residual additions keep unit variance together."""
        residual_std = INIT_STD / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                std = residual_std if name.endswith("proj.weight") else INIT_STD
                nn.init.normal_(parameter, std=std)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Predict the next token at every position.

        Args:
            idx: Token numbers, int64 (B, T) with T at most ``block_size``.
            targets: The tokens that follow, int64 (B, T), or None.

        Returns:
            Logits (B, T, vocab_size), and the mean cross-entropy in nats per token (0-d), or None
            without targets.

        Raises:
            ValueError: If T exceeds ``block_size``.
        """
        t = idx.shape[1]
        size = self.config.block_size
        require(t <= size, "idx", f"at most block_size={size} tokens long", t, "crop the context")
        x = self.dropout(self.tokens(idx) + self.positions.weight[:t])  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def parameter_count(model: nn.Module) -> int:
    """Count the trainable numbers of ``model``; shared tensors count once."""
    return sum(p.numel() for p in model.parameters())


def build(config: GPTConfig, seed: int) -> GPT:
    """Build a GPT whose weights depend on ``seed`` alone; the global generator is left as it was.

    Args:
        config: Shape of the model.
        seed: Seed of the initialisation.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT(config)

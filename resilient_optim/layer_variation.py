"""LayerVariationStopper: has a network stopped learning? Asked of its layers, without validation.

After "When do Convolutional Neural Networks Stop Learning?" (Ahmad, Trahan and Islam, arXiv
2403.02473) and its published code (PaperUnderReviewDeepLearning/Optimization).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from . import _checks, distributed

WATCHED = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
"""The kinds of layers that are watched if none are named."""

UNUSED = -1.0
"""Stands for the mean of a layer that did not run in an epoch; a standard deviation is >= 0."""


class LayerVariationStopper:
    """Says stop when the outputs of all layers have kept their spread for some epochs.

    Theirs: alpha, the standard deviation of a layer's whole output in one training iteration; mu,
    its mean over an epoch, rounded to 2 decimals (`--precision_point` in their `arguments.py`);
    stop when mu of every layer is the same in 5 epochs in a row (`solver_cbs.py`; in the paper: the
    changes of mu, summed over the layers, are 0 over consecutive epochs). Chosen here: changes
    count by their size, so that two layers cannot cancel; linear layers are watched too; the output
    is the layer's own, before any pooling or activation (their code reads it after both); all
    ranks take the mean of their mu; the answer is that of the latest epoch, and may be taken back.

    The rounding is absolute, as theirs: a layer whose outputs are small beside 0.01 looks settled
    from the start, and one with large outputs hardly ever; set `decimals` accordingly.

    Each forward pass in train mode costs one standard deviation a layer. Nothing waits for the
    device before `end_epoch`. Of a compiled model watch the original, before compiling it.

    Example:
        >>> import torch
        >>> from resilient_optim.layer_variation import LayerVariationStopper
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
        >>> with LayerVariationStopper(model, stable_epochs=3) as stopper:
        ...     for epoch in range(100):
        ...         _ = model(torch.ones(16, 4))  # train here: this model learns nothing
        ...         if stopper.end_epoch():
        ...             break
        >>> epoch
        2

    Args:
        model: the model, or a part of it.
        layers: names of the modules to watch, as in `model.named_modules()`. None: all linear and
            convolutional layers.
        decimals: that mu is rounded to.
        stable_epochs: how many epochs in a row must have the same mu, at least 2.
        process_group: ranks that judge together. None: all ranks of `torch.distributed` if it is
            initialised. False: this process alone.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an argument is out of range, a layer has no such name, or there is no layer.

    Attributes:
        names: of the layers that are watched.
        means: the latest rounded mu of each layer, a row for each epoch, the latest last.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] | None = None,
        *,
        decimals: int = 2,
        stable_epochs: int = 5,
        process_group: Any = None,
    ) -> None:
        _checks.integer("decimals", decimals)
        _checks.integer("stable_epochs", stable_epochs, low=2)
        if process_group is not False and isinstance(process_group, (bool, int, str)):
            raise TypeError(
                f"process_group must be a ProcessGroup, None or False, got {process_group!r}; "
                "None takes all ranks, False none"
            )
        self.decimals = decimals
        self.stable_epochs = stable_epochs
        self.process_group = process_group
        chosen = _chosen(model, layers)
        self.names: list[str] = list(chosen)
        self.means: list[list[float]] = []
        self._sums: dict[str, Tensor] = {}
        self._counts = dict.fromkeys(self.names, 0)
        self._handles: list[RemovableHandle] = [
            module.register_forward_hook(self._hook(name)) for name, module in chosen.items()
        ]

    def _hook(self, name: str) -> Any:
        def observe(module: nn.Module, args: Any, output: Any) -> None:
            if not module.training:
                return
            while isinstance(output, (tuple, list)) and output:
                output = output[0]
            if not isinstance(output, Tensor) or output.numel() < 2:
                return
            with torch.no_grad():
                alpha = output.detach().float().std()
                # Doubles, for a long epoch; Apple's GPUs have none.
                alpha = alpha if alpha.device.type == "mps" else alpha.double()
                total = self._sums.get(name)
                self._sums[name] = alpha if total is None else total.to(alpha) + alpha
            self._counts[name] += 1

        return observe

    def end_epoch(self) -> bool:
        """Close the epoch: take the mean of each layer's spread over it.

        Returns:
            Whether training should stop, as `should_stop`.

        Raises:
            RuntimeError: no watched layer has run in train mode since the last call.
        """
        if not any(self._counts.values()):
            raise RuntimeError(
                "end_epoch() must follow forward passes of the watched layers in train mode, got "
                "none; call model.train() for training, end_epoch() once after it, before close()"
            )
        row = [float(self._sums[name]) / n if n else UNUSED for name, n in self._counts.items()]
        if self.process_group is not False and distributed.ranks(self.process_group) > 1:
            backend = torch.distributed.get_backend(self.process_group)
            device = "cuda" if "nccl" in backend else "cpu"
            values = torch.tensor(row, dtype=torch.float64, device=device)
            row = distributed.mean_or_nan(values, self.process_group).tolist()
        self.means.append([round(mu, self.decimals) if math.isfinite(mu) else mu for mu in row])
        del self.means[: -self.stable_epochs]
        self._sums.clear()
        self._counts = dict.fromkeys(self.names, 0)
        return self.should_stop()

    def should_stop(self) -> bool:
        """Whether the layers have settled, by the epochs closed so far.

        Returns:
            True if every layer had the same rounded mean in the last `stable_epochs` epochs.
        """
        enough = len(self.means) == self.stable_epochs
        pairs = zip(self.means, self.means[1:], strict=False)
        return enough and all(variation(before, after) == 0.0 for before, after in pairs)

    @property
    def latest_variation(self) -> float:
        """The change of mu in the last epoch, summed over the layers; NaN before the second.

        In the unit of the layers' outputs.
        """
        return variation(*self.means[-2:]) if len(self.means) > 1 else math.nan

    def close(self) -> None:
        """Remove the hooks from the model; what was seen can still be read."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> LayerVariationStopper:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, also in mid-epoch; waits for the device.

        Returns:
            Plain Python values.
        """
        return {
            "names": list(self.names),
            "means": [list(row) for row in self.means],
            "sums": {name: float(total) for name, total in self._sums.items()},
            "counts": dict(self._counts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another stopper was.

        Args:
            state: what its `state_dict` returned.

        Raises:
            ValueError: it is of other layers.
        """
        if state["names"] != self.names:
            raise ValueError(
                f"state must be of the layers {self.names}, got {state['names']}; "
                "watch the layers that were watched before"
            )
        self.means = [list(row) for row in state["means"]]
        self._sums = {
            name: torch.tensor(total, dtype=torch.float64) for name, total in state["sums"].items()
        }
        self._counts = dict(state["counts"])


def variation(before: Sequence[float], after: Sequence[float]) -> float:
    """The sum over layers of |mu after - mu before|; not finite if one of them is not."""
    return sum(abs(b - a) for a, b in zip(before, after, strict=True))


def _chosen(model: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Module]:
    """The modules to watch by their names."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    known: dict[str, nn.Module] = dict(model.named_modules())
    chosen: dict[str, nn.Module]
    if layers is None:
        chosen = {name: module for name, module in known.items() if isinstance(module, WATCHED)}
    else:
        if isinstance(layers, str):
            raise TypeError(f"layers must be a sequence of names, got {layers!r}; put it in a list")
        for name in layers:
            if name not in known:
                raise ValueError(
                    f"layers must be names from model.named_modules(), got {name!r}; this model "
                    f"has {', '.join(n for n in known if n)}"
                )
        chosen = {name: known[name] for name in layers}
    if not chosen:
        raise ValueError(
            "layers must not be empty, got none: the model has no linear or convolutional layer; "
            "name the modules to watch"
        )
    return chosen

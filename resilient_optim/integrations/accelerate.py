"""Accelerate: prepare an ARS as any optimizer, give `step` the mean loss of the micro-batches.

```python
import torch
from accelerate import Accelerator
from resilient_optim import ARS
from resilient_optim.integrations.accelerate import MeanLoss, unwrap

x, model = torch.randn(64, 8), torch.nn.Linear(8, 1)
data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
loader = torch.utils.data.DataLoader(data, batch_size=8)
optimizer = ARS(torch.optim.AdamW(model.parameters(), lr=3e-3))

accelerator = Accelerator(gradient_accumulation_steps=2)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
mean_loss = MeanLoss(accelerator)  # without accumulation: optimizer.step(loss) is enough
for inputs, targets in loader:
    with accelerator.accumulate(model):
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        accelerator.backward(loss)
        optimizer.step(mean_loss(loss))
        optimizer.zero_grad()
accelerator.log(unwrap(optimizer).metrics())
```

`accelerator.prepare` hides what ARS has beyond an optimizer: `unwrap` gives it back. Schedulers are
made on the ARS, and prepared with it. `save_state` and `load_state` keep what ARS remembers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..step_input import as_loss
from . import unwrap

__all__ = ["MeanLoss", "unwrap"]


class MeanLoss:
    """The mean of the micro-batch losses since the last optimizer step: what that step learns from.

    The loss of the last micro-batch alone is noisier, and noise is what ARS measures surprise by.
    Adds on the device, without waiting for it.

    Args:
        accelerator: the `Accelerator` whose `accumulate` is used; it knows when a step is taken.

    Raises:
        TypeError: `accelerator` has no `sync_gradients`.
    """

    def __init__(self, accelerator: Any) -> None:
        if not hasattr(accelerator, "sync_gradients"):
            raise TypeError(
                f"accelerator must be an accelerate.Accelerator, got {type(accelerator).__name__}; "
                "pass the one that prepared the optimizer"
            )
        self._accelerator = accelerator
        self._total: float | Tensor = 0.0
        self._count = 0

    def __call__(self, loss: float | Tensor) -> float | Tensor:
        """The mean with this loss; call it once per micro-batch, inside `accumulate`.

        Args:
            loss: of the micro-batch, as given to `accelerator.backward`.

        Returns:
            The mean over the micro-batches since the last optimizer step, this one included; on the
            device of the losses.

        Raises:
            TypeError: `loss` is not a number, or a tensor of more than one element.
        """
        self._total = self._total + as_loss(loss)
        self._count += 1
        mean = self._total / self._count
        if self._accelerator.sync_gradients:
            self._total, self._count = 0.0, 0
        return mean

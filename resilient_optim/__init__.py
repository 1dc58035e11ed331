"""Keep a training run alive by wrapping its optimizer in one line.

```python
optimizer = ARS(torch.optim.AdamW(model.parameters(), lr=3e-3))
loss.backward(); optimizer.step(loss); optimizer.zero_grad()
```

Modules of their own: `resilient_optim.schedules`, `resilient_optim.report`,
`resilient_optim.events` and `resilient_optim.integrations`. The user's guide lies beside this file:

.. include:: guide.md
"""

from .ars import ARS
from .budgets import Budgets
from .callback import ResonantCallback
from .decision import Decision
from .diagnosis import TrainingDiverged
from .layer_variation import LayerVariationStopper
from .loss_buffer import LossBuffer
from .paper import PaperConfig
from .policy import DefaultConfig
from .rca import RCA, RCAConfig, Reading
from .snapshot_ring import Snapshots

__version__ = "0.1.0"

__all__ = [
    "ARS",
    "RCA",
    "Budgets",
    "Decision",
    "DefaultConfig",
    "LayerVariationStopper",
    "LossBuffer",
    "PaperConfig",
    "RCAConfig",
    "Reading",
    "ResonantCallback",
    "Snapshots",
    "TrainingDiverged",
    "__version__",
]

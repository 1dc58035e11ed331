"""resilient_optim: keep a training run alive by wrapping its optimizer in one line.

optimizer = ARS(torch.optim.AdamW(model.parameters(), lr=3e-3))
loss.backward(); optimizer.step(loss); optimizer.zero_grad()
"""

from .ars import ARS
from .callback import ResonantCallback
from .decision import Decision
from .layer_variation import LayerVariationStopper
from .loss_buffer import LossBuffer
from .paper import PaperConfig
from .policy import DefaultConfig
from .rca import RCA, RCAConfig, Reading

__version__ = "0.1.0"

__all__ = [
    "ARS",
    "RCA",
    "Decision",
    "DefaultConfig",
    "LayerVariationStopper",
    "LossBuffer",
    "PaperConfig",
    "RCAConfig",
    "Reading",
    "ResonantCallback",
    "__version__",
]

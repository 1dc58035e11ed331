"""Operations on many gradient tensors at once; imported as `resilient_optim.kernels`.

Each operation has one readable definition in `reference.py` and a fast path tested against it;
`dispatch.py` chooses. Noise is a function of (seed, step, tensor) alone, see `noise.py`.
"""

from .dispatch import global_norm, scale_and_jitter_
from .noise import Noise

__all__ = ["Noise", "global_norm", "scale_and_jitter_"]

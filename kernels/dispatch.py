"""Chooses the implementation of each operation; the place where Triton kernels will be chosen.

So far there is one fast path, `foreach.py`, which serves every device.
"""

from __future__ import annotations

from .foreach import global_norm, scale_and_jitter_

__all__ = ["global_norm", "scale_and_jitter_"]

"""Shared settings: one thread (two test processes share two cores) and hypothesis profiles."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
# Its state is made once in a process: by whichever test comes first, which may ask for a GPU.
os.environ["ACCELERATE_USE_CPU"] = "true"

# Deadlines measure the machine's load, not the code. CI replays fixed examples: a red build is
# a change of the code, never of the dice; `HYPOTHESIS_PROFILE=explore` throws new ones.
settings.register_profile(
    "ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def kernels_run_here(monkeypatch):
    """Decisions by the kernels, `backend="triton"`, can be had: interpreted where no GPU is."""
    from tests.interpreter import ON_GPU, interpreted  # needs triton

    if not ON_GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    with interpreted():
        yield

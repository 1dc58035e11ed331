"""Launches: by name once for each kind of argument, then by what that has compiled."""

import pytest
import torch

pytest.importorskip("triton")

from resilient_optim.kernels import launch as module
from resilient_optim.kernels.launch import OPTIONS, launch


class Compiled:
    """Stands for `triton.compiler.CompiledKernel`."""

    def __init__(self, calls):
        self.calls = calls

    def __getitem__(self, grid):
        return lambda *arguments: self.calls.append(("compiled", grid, arguments))


class Kernel:
    """Stands for a function under `triton.jit`; the interpreter gives nothing back."""

    def __init__(self, calls, interpreted=False):
        self.calls, self.made = calls, None if interpreted else Compiled(calls)

    def __getitem__(self, grid):
        def run(*arguments, **keywords):
            self.calls.append(("by name", grid, arguments, keywords))
            return self.made

        return run


@pytest.fixture
def calls(monkeypatch):
    monkeypatch.setattr(module, "CompiledKernel", Compiled)
    monkeypatch.setattr(module, "_compiled", {})
    return []


CONSTANTS = {"BLOCK": 16, "WIDE": True}


def test_the_second_launch_goes_without_names(calls):
    kernel, x = Kernel(calls), torch.zeros(3)
    for value in (7, 8):
        launch(kernel, 5, (x, value), CONSTANTS)
    assert calls == [
        ("by name", (5,), (x, 7), {**CONSTANTS, **OPTIONS}),
        ("compiled", (5, 1, 1), (x, 8, 16, True)),
    ]


def test_what_is_compiled_differently_goes_by_name(calls):
    kernel, x = Kernel(calls), torch.zeros(3)
    launch(kernel, 1, (x, 7), CONSTANTS)
    launch(kernel, 1, (x, 7), {"BLOCK": 32, "WIDE": True})
    launch(Kernel(calls), 1, (x, 7), CONSTANTS)
    launch(kernel, 1, (torch.zeros(3, device="meta"), 7), CONSTANTS)
    assert [how for how, *_ in calls] == ["by name"] * 4


def test_what_is_interpreted_always_goes_by_name(calls):
    kernel = Kernel(calls, interpreted=True)
    for _ in range(2):
        launch(kernel, 1, (torch.zeros(3),), {})
    assert [how for how, *_ in calls] == ["by name"] * 2

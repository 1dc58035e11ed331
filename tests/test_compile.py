"""A compiled training step: ARS sees every loss, and no loss makes a graph of its own."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from resilient_optim import ARS
from tests.helpers import Layers, bits

STEPS = 30

# torch's compiler warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def train(wrap, base_step=None):
    """Train with a step that `wrap` may compile; the loss jumps once."""
    torch.manual_seed(0)
    model = Layers()
    base = torch.optim.AdamW(model.parameters(), lr=0.02)
    if base_step is not None:
        base.step = base_step(base.step)
    optimizer = ARS(base, start_up=4)

    def step(x, factor):
        loss = (model.stack(x) - x[:, :2]).square().mean() * factor
        loss.backward()
        optimizer.step(loss)
        optimizer.zero_grad()

    step = wrap(step)
    for index in range(STEPS):
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(index))
        step(x, torch.tensor(50.0 if index == 20 else 1.0))
    return model, optimizer


def test_a_compiled_step_is_the_eager_one_in_a_few_graphs():
    graphs = CompileCounter()
    expected, eager = train(lambda step: step)
    model, optimizer = train(lambda step: torch.compile(step, backend=graphs))
    assert optimizer.counters == eager.counters
    assert optimizer.counters["observed"] == STEPS
    assert optimizer.counters["skipped"] == 1 and optimizer.counters["touched"] > 3
    assert bits(model) == bits(expected)
    assert graphs.frame_count <= 3  # not one for each loss, Φ or gradient scale


def test_a_base_whose_step_is_compiled_stays_so():
    graphs = CompileCounter()
    expected, _ = train(lambda step: step)
    model, optimizer = train(
        lambda step: step, base_step=lambda step: torch.compile(step, backend=graphs)
    )
    assert optimizer.counters["observed"] == STEPS
    assert graphs.frame_count > 0
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_copy_and_a_subclass_work_as_well():
    class Louder(ARS):
        def step(self, loss=None, closure=None):
            return super().step(loss, closure)

    model = Layers()
    optimizer = Louder(torch.optim.SGD(model.parameters(), lr=0.1))
    again = copy.deepcopy(optimizer)
    assert optimizer.step(1.0) == again.step(1.0) == 1.0

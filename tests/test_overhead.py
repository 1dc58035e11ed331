"""A quiet step without norm guard costs at most 20 µs more than the bare optimizer's.

That is on a machine left to itself, where a bare SGD step takes about 14 µs. Where the bare step
is slower, because the machine is or because it is shared, the limit grows with it.
"""

import random
import time

import torch

from resilient_optim import ARS

LIMIT, BARE = 20e-6, 14e-6
CHUNK, ROUNDS, ATTEMPTS = 200, 15, 12


def a_parameter():
    weight = torch.nn.Parameter(torch.zeros(10))
    weight.grad = torch.zeros_like(weight)
    return weight


def best_time(steps):
    began = time.perf_counter()
    for step in steps:
        step()
    return (time.perf_counter() - began) / len(steps)


def test_overhead_of_a_quiet_step():
    """The best of many interleaved rounds: other processes can only make a round slower."""
    rng = random.Random(0)
    losses = [rng.gauss(2.0, 0.1) for _ in range(CHUNK)]
    bare = torch.optim.SGD([a_parameter()], lr=1e-3)
    wrapped = ARS(torch.optim.SGD([a_parameter()], lr=1e-3), norm_guard=False, start_up=0)
    bare_steps = [bare.step] * CHUNK
    wrapped_steps = [lambda loss=loss: wrapped.step(loss) for loss in losses]
    overhead = float("inf")
    for attempt in range(ATTEMPTS):
        time.sleep(0.2 * attempt)  # what shares the machine for a second must not decide
        bare_times = [best_time(bare_steps) for _ in range(ROUNDS)]
        wrapped_times = [best_time(wrapped_steps) for _ in range(ROUNDS)]
        slowdown = max(1.0, min(bare_times) / BARE)
        overhead = min(overhead, (min(wrapped_times) - min(bare_times)) / slowdown)
        if overhead <= LIMIT:
            break
    assert wrapped.counters["touched"] < 0.02 * wrapped.counters["observed"]
    assert overhead <= LIMIT, f"{overhead * 1e6:.1f} µs"

"""A few sampled weights tell whether somebody wrote to them between two steps."""

import pytest
import torch

from resilient_optim import ARS
from resilient_optim.fingerprint import SAMPLED, Fingerprint
from tests.training import OPTIMIZERS, Task, train


def tensors(*sizes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(n, generator=generator).to(dtype)) for n in sizes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("place", range(4))
def test_a_change_of_a_whole_tensor_is_seen_at_once_whichever_it_is(place, dtype):
    params = tensors(3, 1, 200, 7, dtype=dtype)
    for step in range(20):
        fingerprint = Fingerprint()
        fingerprint.remember(params, step)
        assert not fingerprint.changed()
        with torch.no_grad():
            params[place].mul_(1.5)
        assert fingerprint.changed()


def test_a_change_of_one_element_is_seen_as_soon_as_its_turn_comes():
    """Each element of a tensor comes up once in as many steps as the tensor has elements."""
    (p,) = tensors(50)
    seen = [0] * 50
    for element in range(50):
        fingerprint = Fingerprint()
        for step in range(50):
            fingerprint.remember([p], step)
            with torch.no_grad():
                p[element] += 1.0
            seen[element] += fingerprint.changed()
    assert seen == [1] * 50


def test_the_lowest_bit_counts_and_so_does_the_sign_of_zero():
    for before, after in ((1.0, 1.0 + 2**-23), (0.0, -0.0), (float("nan"), 1.0)):
        p = torch.nn.Parameter(torch.tensor([before]))
        fingerprint = Fingerprint()
        fingerprint.remember([p], 0)
        assert not fingerprint.changed(), "a NaN, too, is equal to itself"
        p.data[0] = after
        assert fingerprint.changed()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_steps_of_the_optimizer_are_no_change(name):
    task = Task(0)
    optimizer = ARS(OPTIMIZERS[name](task.model.parameters()), start_up=0)
    train(task, optimizer, 0, 1)
    fingerprint = optimizer._breaker.run.fingerprint
    assert fingerprint
    for step in range(1, 1000):
        train(task, optimizer, step, step + 1)
        assert not optimizer._breaker.run.fingerprint.changed(), step
    task.model[0].bias.data.add_(1e-3)
    assert optimizer._breaker.run.fingerprint.changed()


def clamped(weights):
    for p in weights:
        p.clamp_(-0.3, 0.3)


def normalised(weights):
    for p in weights:
        p.div_(p.norm().clamp(min=1.0))


@pytest.mark.parametrize("project", [clamped, normalised])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_run_whose_weights_are_projected_after_every_step_is_healthy(name, project):
    task = Task(2)
    optimizer = ARS(OPTIMIZERS[name](task.model.parameters()))
    for step in range(400):
        train(task, optimizer, step, step + 1)
        with torch.no_grad():
            project(list(task.model.parameters()))
    assert optimizer.counters["rollbacks"] == 0


def test_weights_that_were_moved_in_memory_are_not_taken_for_changed():
    params = tensors(4, 4)
    fingerprint = Fingerprint()
    fingerprint.remember(params, 0)
    params[0].data = torch.zeros(4)
    assert not fingerprint.changed()
    params[1].data.add_(1.0)
    assert fingerprint.changed(), "the others are still watched"
    fingerprint.remember(None, 1)
    params[0].data.add_(1.0)
    assert not fingerprint.changed()
    fingerprint.remember(params, 2)
    params[0].data.add_(1.0)
    assert fingerprint.changed(), "and the moved one from when it is told anew"


def test_of_many_tensors_each_is_looked_at_when_its_turn_comes():
    params = tensors(*[2] * 75)
    fingerprint = Fingerprint()
    looked_at = [0] * len(params)
    for step in range(75):
        fingerprint.remember(params if step == 0 else None, step)
        in_turn = []
        for i, p in enumerate(params):
            p.data.neg_()
            in_turn += [i] * fingerprint.changed()
            p.data.neg_()
        assert len(in_turn) == SAMPLED
        for i in in_turn:
            looked_at[i] += 1
    assert min(looked_at) == max(looked_at) == SAMPLED


@pytest.mark.parametrize("count, size", [(5, 6), (40, 6), (40, 5), (64, 6)])
def test_every_element_of_every_tensor_takes_its_turn(count, size):
    params = tensors(*[size] * count)
    fingerprint = Fingerprint()
    places = {p.data_ptr() + 4 * i for p in params for i in range(size)}
    for step in range(2 * count * size):
        fingerprint.remember(params if step == 0 else None, step)
        looked_at = zip(fingerprint._in_turn, fingerprint._sample, strict=True)
        places -= {view.place + 4 * i for view, (_, i) in looked_at}
    assert not places


def test_of_what_it_cannot_look_at_it_says_nothing():
    matrix = torch.nn.Parameter(torch.randn(4, 5).t())
    complex_, empty = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64)), torch.zeros(0)
    fingerprint = Fingerprint()
    fingerprint.remember([matrix, complex_, empty], 0)
    with torch.no_grad():
        matrix.zero_()
        complex_.zero_()
    assert not fingerprint and not fingerprint.changed()


def test_nothing_is_said_before_anything_is_known():
    fingerprint = Fingerprint()
    assert not fingerprint and not fingerprint.changed()
    fingerprint.remember(params := tensors(3), 0)
    assert fingerprint
    params[0].data.zero_()
    fingerprint.forget()
    assert not fingerprint and not fingerprint.changed()

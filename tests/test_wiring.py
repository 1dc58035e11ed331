"""A loop that is not wired as it should be is told so: what is passed in, and what is missing."""

import logging

import numpy as np
import pytest
import torch

from resilient_optim import ARS


@pytest.fixture
def model():
    return torch.nn.Linear(3, 1)


def make(trained, **settings):
    return ARS(torch.optim.SGD(trained.parameters(), lr=0.1), **settings)


def step(model, optimizer, *loss):
    optimizer.zero_grad()
    model(torch.ones(2, 3)).square().mean().backward()
    optimizer.step(*loss)


def test_a_loss_that_never_comes_is_told_of_once_in_every_process(model, caplog):
    optimizer = make(model)
    with caplog.at_level(logging.WARNING, "resilient_optim"):
        step(model, optimizer)
        assert not caplog.records, "torch.distributed.checkpoint makes one such step"
        for _ in range(9):
            step(model, optimizer)
    assert ["without a loss" in record.message for record in caplog.records] == [True]
    resumed = make(model)
    resumed.load_state_dict(optimizer.state_dict())
    with caplog.at_level(logging.WARNING, "resilient_optim"):
        step(model, resumed)
        step(model, resumed)
    assert len(caplog.records) == 2


def test_gradients_that_never_come_are_told_of_once(model, caplog):
    optimizer = make(model)
    with caplog.at_level(logging.WARNING, "resilient_optim"):
        optimizer.step(1.0)
        optimizer.step(1.1)
        assert not caplog.records
        for _ in range(5):
            optimizer.step(1.2)
    assert ["had a gradient" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("late", [0, 2])
def test_gradients_that_come_in_time_are_not(model, caplog, late):
    optimizer = make(model)
    with caplog.at_level(logging.WARNING, "resilient_optim"):
        for i in range(30):
            if i < late:
                optimizer.step(1.0 + i)
            else:
                step(model, optimizer, 1.0 / (1 + i))
    assert not any("had a gradient" in record.message for record in caplog.records)


@pytest.mark.parametrize("loss", [np.float32(1.5), np.array(1.5), np.int64(2), 2])
def test_numbers_of_numpy_are_losses(model, loss):
    optimizer = make(model)
    step(model, optimizer, loss)
    assert optimizer.last.loss == float(loss)


@pytest.mark.parametrize(
    ("loss", "remedy"),
    [
        (torch.ones(2), "loss.mean()"),
        (np.ones(2), "loss.backward() was called on"),
        (np.array("x"), "loss.backward() was called on"),
        ("x", "loss.backward() was called on"),
        ({"loss": 1.0}, "loss.backward() was called on"),
    ],
    ids=str,
)
def test_anything_else_is_refused_with_a_fitting_remedy(model, loss, remedy):
    optimizer, before = make(model), model.weight.clone()
    with pytest.raises(TypeError, match="loss must be a float") as caught:
        step(model, optimizer, loss)
    assert remedy in str(caught.value)
    assert torch.equal(model.weight, before)


def test_what_cannot_be_called_is_no_listener(model):
    with pytest.raises(TypeError, match="on_event must be a function or None, got 'print'"):
        make(model, on_event="print")


def test_the_model_must_be_the_one_that_is_trained(model):
    with pytest.raises(ValueError, match="model must be the one that is trained, got a Linear"):
        make(model, model=torch.nn.Linear(2, 2))
    make(model, model=torch.nn.Sequential(model, torch.nn.ReLU()))
    make(model, model=torch.nn.ReLU())  # one without parameters has buffers at most

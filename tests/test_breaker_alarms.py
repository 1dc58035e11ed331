"""What is survived, but not in silence: a loss, or a learning rate, that stands still."""

import copy
import logging
import math
import pickle

import pytest
import torch

from resilient_optim import ARS
from resilient_optim.alarms import STILL_AFTER, StandstillAlarm, lrs_at_hand
from resilient_optim.decision import Decision
from tests.training import OPTIMIZERS, Task

LOSS, LR = "the same to the bit", "All learning rates have been 0"


@pytest.fixture(autouse=True)
def _listening(caplog):
    caplog.set_level(logging.WARNING, logger="resilient_optim")


def told(caplog):
    """Which of the two warnings were logged, in order."""
    return [words for text in caplog.messages for words in (LOSS, LR) if words in text]


class Run:
    """A real run whose loss is reported as `report` says."""

    def __init__(self, name="sgd", **settings):
        self.task = Task(0)
        self.optimizer = ARS(OPTIMIZERS[name](self.task.model.parameters()), **settings)
        self.now = 0

    def train(self, steps, report=lambda step, loss: loss):
        for _ in range(steps):
            loss = self.task.loss(*self.task.batch(self.now))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step(report(self.now, loss))
            self.now += 1

    def set_lr(self, lr):
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def decisions(self, steps, report):
        found = []
        for _ in range(steps):
            self.train(1, report)
            found.append(self.optimizer.last)
        return found


STALE = {
    "float": lambda step, loss: 0.7,
    "tensor": lambda step, loss: torch.tensor(0.7),
    "bfloat16": lambda step, loss: torch.tensor([0.7], dtype=torch.bfloat16),
}


@pytest.mark.parametrize("settings", [{}, {"norm_guard": False}, {"preset": "paper"}], ids=str)
@pytest.mark.parametrize("kind", STALE)
def test_a_stale_loss_is_told_once(kind, settings, caplog):
    run = Run(**settings)
    run.train(30)
    run.train(STILL_AFTER - 1, STALE[kind])
    assert told(caplog) == []
    run.train(1, STALE[kind])
    assert told(caplog) == [LOSS]
    (text,) = caplog.messages
    assert "in each of the last 20 steps up to step 49" in text and "pass step()" in text
    run.train(60, STALE[kind])
    run.train(5)
    run.train(60, STALE[kind])
    assert told(caplog) == [LOSS]


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_of_healthy_runs_nothing_is_said(name, caplog):
    run = Run(name)
    run.train(300)
    assert caplog.messages == []


def test_losses_that_repeat_for_a_while_are_nothing_to_tell(caplog):
    run = Run()
    for _ in range(5):
        run.train(STILL_AFTER - 1, STALE["float"])
        run.train(1)
    run.train(200, lambda step, loss: (0.7, 0.8)[step % 2])
    assert told(caplog) == []


def test_steps_that_are_left_out_do_not_count(caplog):
    run = Run()
    run.train(80, lambda step, loss: 0.7 if step % 8 == 0 else math.nan if step % 2 else loss)
    assert told(caplog) == []
    run = Run()
    for _ in range(4):
        run.train(4, STALE["float"])
        run.train(3, lambda step, loss: math.nan)
    assert told(caplog) == [], "sixteen in twenty-eight"
    run.train(4, STALE["float"])
    assert told(caplog) == [LOSS], "the steps left out say nothing to the contrary"


def test_a_loss_that_is_constant_for_want_of_gradients_is_told_too(caplog):
    run = Run()
    for p in run.task.model.parameters():
        p.data.zero_()
    for _ in range(STILL_AFTER):
        loss = 0.0 * run.task.loss(*run.task.batch(0))
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step(loss)
    assert "gradient norm 0.0" in caplog.text and "what requires gradients" in caplog.text


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_learning_rates_that_stay_zero_are_told_once(name, caplog):
    run = Run(name)
    run.train(30)
    run.set_lr(0.0)
    run.train(STILL_AFTER - 1)
    assert told(caplog) == []
    run.train(1)
    assert told(caplog) == [LR]
    assert "up to step 49" in caplog.text and "if the schedule has come to its end" in caplog.text
    run.train(50)
    assert told(caplog) == [LR]


def test_a_run_that_begins_without_a_learning_rate_or_pauses_is_left_alone(caplog):
    run = Run()
    run.set_lr(0.0)
    run.train(60)
    for _ in range(4):
        run.set_lr(1e-2)
        run.train(1)
        run.set_lr(0.0)
        run.train(STILL_AFTER - 1)
    assert told(caplog) == []


def test_one_group_that_still_learns_is_enough(caplog):
    run = Run()
    run.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1e-3})
    run.train(30)
    run.optimizer.param_groups[0]["lr"] = 0.0
    run.train(60)
    assert told(caplog) == []


def test_a_resumed_run_whose_schedule_is_over_is_told_of(caplog):
    run = Run()
    run.train(30)
    again = Run()
    again.task.model.load_state_dict(run.task.model.state_dict())
    again.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    again.now = run.now
    again.set_lr(0.0)
    again.train(STILL_AFTER - 1, STALE["float"])
    assert told(caplog) == []
    again.train(1, STALE["float"])
    assert sorted(told(caplog)) == sorted([LOSS, LR])


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_goes_on_counting(twin, caplog):
    run = Run()
    run.train(12, STALE["float"])
    run = twin(run)
    run.train(8, STALE["float"])
    assert told(caplog) == [LOSS]


def test_nothing_is_decided_otherwise():
    """Than by a run that does not listen."""
    report = STALE["float"]
    listening, deaf = Run(), Run()
    deaf.optimizer._still_alarm.hear = lambda *_: None
    assert repr(listening.decisions(80, report)) == repr(deaf.decisions(80, report))
    assert listening.optimizer.counters == deaf.optimizer.counters


# -- by word from a GPU -------------------------------------------------------------------------


def test_of_words_that_arrive_now_and_then_the_steps_between_count_too(caplog):
    alarm = StandstillAlarm()
    alarm.hear(Decision(4, "apply", "quiet", 0.5), [0.1], [], steps=5)
    for step in (10, 16, 22):
        alarm.hear(Decision(step, "apply", "quiet", 0.5), [0.0], [], steps=6)
        assert told(caplog) == []
    alarm.hear(Decision(25, "apply", "quiet", 0.5), [0.0], [], steps=3)
    assert told(caplog) == [LOSS, LR]


def test_learning_rates_that_may_be_on_a_gpu_are_not_asked_for():
    groups = [{"lr": torch.tensor(0.0)}, {"lr": 0.5}, {"lr": None}, {}]
    assert str(lrs_at_hand(groups)) == "[nan, 0.5, 0.0, 0.0]"


def test_a_run_decided_on_a_device_tells_the_same(caplog, monkeypatch):
    pytest.importorskip("triton")
    from tests.interpreter import ON_GPU, interpreted
    from tests.test_device_guard import Training

    if not ON_GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    with interpreted():
        run = Training("adamw", "triton", start_up=0)
        run.steps([1.0])
        for group in run.optimizer.param_groups:
            group["lr"] = 0.0
        x = torch.ones(4, 6, device=run.model[0].weight.device)
        for _ in range(STILL_AFTER + 2):
            run.optimizer.zero_grad()
            loss = run.model(x).square().mean()
            loss.backward()
            run.optimizer.step(loss)
    assert sorted(told(caplog)) in ([LOSS], sorted([LOSS, LR]))

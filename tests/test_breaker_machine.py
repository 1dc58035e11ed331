"""Whatever happens to a run, in whatever order, ARS keeps its promises, or says that it cannot."""

import copy
import math
import pickle
from collections import Counter

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from resilient_optim import ARS, Budgets, Snapshots, TrainingDiverged
from tests.breaker_runs import flip_exponent_bit
from tests.helpers import bits
from tests.training import OPTIMIZERS, Task

BUDGETS = Budgets(skips_in_a_row=20, rollbacks=3)

TRIAL = 7
"""Steps of a trial that is begun before the budget of skipped steps is spent."""

BATCHES = {
    "NaN loss": lambda x, y: (x, y * math.nan),
    "infinite loss": lambda x, y: (x, y * math.inf),
    "huge loss": lambda x, y: (x, y * 1e6),
    "other task": lambda x, y: (x, y + 20.0),
    "NaN input": lambda x, y: (x * math.nan, y),
}


def tensors(optimizer):
    """All parameters and what the base optimizer remembers of them."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    states = [v for s in optimizer.state.values() for v in s.values()]
    return params + [v for v in states if isinstance(v, torch.Tensor)]


def all_finite(optimizer):
    return all(bool(t.isfinite().all()) for t in tensors(optimizer))


def values(optimizer):
    return [t.detach().clone() for t in tensors(optimizer)]


class Machine(RuleBasedStateMachine):
    """A run, and what it has seen."""

    @initialize(
        name=st.sampled_from(sorted(OPTIMIZERS)),
        seed=st.integers(0, 5),
        start_up=st.sampled_from([0, 15]),
        steps=st.sampled_from([0, 1, 20, 60]),
    )
    def begin(self, name, seed, start_up, steps):
        self.name, self.seed, self.start_up = name, seed, start_up
        self.now = 0
        self.build()
        self.take_steps(steps)

    def build(self):
        """Objects of a new process."""
        self.task = Task(self.seed)
        self.lr = OPTIMIZERS[self.name]([torch.zeros(1)]).param_groups[0]["lr"]
        self.optimizer = self.wrapped(self.task)
        self.seen = Counter()

    def wrapped(self, task, groups=1):
        base = OPTIMIZERS[self.name](task.model.parameters())
        optimizer = ARS(
            base,
            start_up=self.start_up,
            model=task.model,
            budgets=BUDGETS,
            snapshot=Snapshots(every=8),
        )
        for _ in range(groups - 1):
            self.add_to(task, optimizer)
        return optimizer

    def add_to(self, task, optimizer):
        extra = torch.nn.Parameter(torch.zeros(1))
        task.model[2].register_parameter(f"extra{len(optimizer.param_groups)}", extra)
        optimizer.add_param_group({"params": [extra]})

    # -- what happens ------------------------------------------------------------------------

    def take_steps(self, steps, spoil=None):
        for _ in range(steps):
            batch = self.task.batch(self.now)
            self.now += 1
            self.take_step(*(batch if spoil is None else spoil(*batch)))

    def take_step(self, x, y):
        task, optimizer = self.task, self.optimizer
        extras = [p for group in optimizer.param_groups[1:] for p in group["params"]]
        loss = task.loss(x, y + sum(extras, torch.zeros(1)))
        optimizer.zero_grad()
        loss.backward()
        was_finite, before = all_finite(optimizer), values(optimizer)
        try:
            optimizer.step(loss)
        except TrainingDiverged as error:
            assert error.rolled_back_to is None or all_finite(optimizer)
            self.build()
            return
        decision = optimizer.last
        self.seen[decision.action] += 1
        self.seen["touched"] += decision.touched
        if decision.action == "rollback":
            assert all_finite(optimizer) and decision.rolled_back_to <= decision.step
        elif decision.action == "skip" and decision.reason not in ("probe", "new level"):
            assert bits(values(optimizer)) == bits(before), "a skipped step changed something"
        elif decision.action != "skip" and was_finite:
            assert math.isfinite(decision.loss)
            assert all_finite(optimizer), "a step that was taken left something that is not finite"

    @rule(steps=st.integers(1, 24))
    def healthy_steps(self, steps):
        self.take_steps(steps)

    @rule(kind=st.sampled_from(sorted(BATCHES)), steps=st.integers(1, 24))
    def bad_batches(self, kind, steps):
        self.take_steps(steps, BATCHES[kind])

    @rule(value=st.sampled_from([math.nan, math.inf, 0.0, 1e10]), place=st.integers(0, 3))
    def overwritten_weights(self, value, place):
        list(self.task.model.parameters())[place].data.fill_(value)
        self.take_steps(1)

    @rule(place=st.integers(0, 3))
    def weights_times_1000(self, place):
        list(self.task.model.parameters())[place].data.mul_(1000.0)
        self.take_steps(1)

    @rule()
    def flipped_bit(self):
        flip_exponent_bit(self.task.model[0].weight.data)
        self.take_steps(1)

    @rule(value=st.sampled_from([math.nan, 0.0]))
    def overwritten_state(self, value):
        for state in self.optimizer.state.values():
            for tensor in state.values():
                if isinstance(tensor, torch.Tensor) and tensor.dim():
                    tensor.fill_(value)
        self.take_steps(1)

    @rule(factor=st.sampled_from([0.0, 0.1, 1.0, 10.0, 1e6, math.nan, math.inf]))
    def other_learning_rate(self, factor):
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self.lr
        self.take_steps(3)

    @rule()
    def added_group(self):
        if len(self.optimizer.param_groups) < 4:
            self.add_to(self.task, self.optimizer)
        self.take_steps(1)

    @rule(through_pickle=st.booleans())
    def saved_and_loaded(self, through_pickle):
        saved = self.task.model.state_dict(), self.optimizer.state_dict()
        saved = pickle.loads(pickle.dumps(saved)) if through_pickle else copy.deepcopy(saved)
        self.task = Task(self.seed)
        self.optimizer = self.wrapped(self.task, len(saved[1]["param_groups"]))
        self.task.model.load_state_dict(saved[0])
        self.optimizer.load_state_dict(saved[1])

    @rule(through_pickle=st.booleans())
    def copied(self, through_pickle):
        whole = self.task, self.optimizer
        self.task, self.optimizer = (
            pickle.loads(pickle.dumps(whole)) if through_pickle else copy.deepcopy(whole)
        )

    # -- what holds ---------------------------------------------------------------------------

    @invariant()
    def counters_are_consistent(self):
        counters, seen = self.optimizer.counters, self.seen
        taken = seen["apply"] + seen["damp"]
        assert counters["observed"] == taken + counters["skipped"] + counters["rollbacks"]
        assert (counters["skipped"], counters["rollbacks"]) == (seen["skip"], seen["rollback"])
        assert counters["touched"] == seen["touched"]
        assert counters["touched"] >= counters["skipped"] + counters["rollbacks"]
        assert counters["nonfinite"] <= counters["skipped"]

    @invariant()
    def the_buffer_is_finite(self):
        buffer = self.optimizer.loss_buffer
        assert np.isfinite(buffer.losses.values).all()
        assert np.isfinite(buffer.log_norms.values).all()

    @invariant()
    def budgets_are_kept(self):
        state, memory = self.optimizer._breaker.run.state, self.optimizer._memory
        assert state.recent_rollbacks <= BUDGETS.rollbacks
        assert memory.skips_in_a_row < BUDGETS.skips_in_a_row + TRIAL + BUDGETS.rollbacks
        assert 0.0 <= state.skip_share <= 1.0

    @invariant()
    def snapshots_are_finite_and_few(self):
        breaker = self.optimizer._breaker
        ring = breaker.ring
        held = [ring.good, ring.best, ring._candidate, *ring._spare]
        held += [] if breaker.way_back.probe is None else [breaker.way_back.probe.abandoned]
        assert len({id(s) for s in held if s is not None and s.nbytes}) <= 3
        for snapshot in (ring.good, ring.best):
            assert snapshot is None or snapshot.is_finite


Machine.TestCase.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
test_whatever_happens_the_promises_hold = Machine.TestCase

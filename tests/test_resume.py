"""Resume: a run that was killed goes on from its files as if nothing had happened, bit for bit."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from resilient_optim import ARS, Snapshots
from tests.helpers import STATE_KEY, bits
from tests.resumed_run import BASES, NAN_BATCH, STEPS, Loader, Run
from tests.test_ars_schedulers_scaler import SCHEDULERS


def kills(seed=20):
    """Each operation of the first write and a few, then moments that nobody has chosen."""
    moments = random.Random(seed)
    yield [f"e{n}" for n in range(1, 14)]
    yield [f"s{moments.randint(12, 40)}+{moments.uniform(0, 0.004):.4f}" for _ in range(12)]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Results of a run, and of two runs that were killed many times: bits, starts, checkpoints."""
    folder = tmp_path_factory.mktemp("killed")
    arguments = " - ".join(["", *(" ".join(part) for part in kills())]).split()
    done = subprocess.run(
        [sys.executable, "-m", "tests.resumed_run", folder, *arguments],
        cwd=Path(__file__).parents[1],
        # A process that has a GPU cannot be forked.
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    results = {}
    for number, name in enumerate(["whole", "operation", "moment"]):
        part = folder / str(number)
        state = bits(torch.load(part / "result.pt", weights_only=False))
        *starts, count = map(int, (part / "starts.txt").read_text().split())
        results[name] = {
            "state": state,
            "starts": starts,
            "kills": count,
            "files": [path.name for path in (part / "checkpoints").iterdir()],
        }
    return results


def different(a, b):
    assert a.keys() == b.keys()
    return [key for key in a if a[key] != b[key]]


def is_buffer(path):
    return path.startswith("/model/") and ("running" in path or "tracked" in path)


every_kind = pytest.mark.parametrize("kind", ["operation", "moment"])


@every_kind
def test_a_killed_run_is_the_uninterrupted_one(killed, kind):
    """With a NaN in the weights, a NaN batch and an outlier on the way."""
    a, b = killed["whole"], killed[kind]
    rest = [p for p in different(a["state"], b["state"]) if not is_buffer(p)]
    assert [path for path in rest if not path.endswith(STATE_KEY)] == []
    assert a["starts"] == [0] and a["kills"] == 0
    assert (a["state"]["/counters/rollbacks"], a["state"]["/counters/nonfinite"]) == ("1", "1")


@every_kind
def test_the_kills_took_place(killed, kind):
    """And between them the runs went on."""
    b = killed[kind]
    assert b["kills"] >= STEPS // 40, "no attempt takes more steps"
    assert len(set(b["starts"])) >= 4 and b["starts"] == sorted(b["starts"])
    assert max(b["starts"]) >= STEPS // 5


@every_kind
def test_buffers_are_those_of_the_uninterrupted_run(killed, kind):
    paths = different(killed["whole"]["state"], killed[kind]["state"])
    assert [path for path in paths if is_buffer(path)] == []


@every_kind
def test_ars_remembers_what_it_did(killed, kind):
    paths = different(killed["whole"]["state"], killed[kind]["state"])
    assert [path for path in paths if path.endswith(STATE_KEY)] == []


def test_buffers_that_are_mended(tmp_path):
    """The resumed run mends them from the state that it began with, the other from an older one."""
    whole = Run(tmp_path).train(0, NAN_BATCH + 8).settle()
    again = Run(tmp_path)
    start = again.optimizer.resume()
    assert start < NAN_BATCH
    again.train(start, NAN_BATCH + 8)
    assert bits(again.model) == bits(whole.model)


# -- in one process: what the run may be made of ----------------------------------------------


def without_breaker(state):
    """Bits of a state but for the circuit breaker's part of ARS's memory, tested above."""
    for group in state["optimizer"]["param_groups"]:
        group[STATE_KEY] = torch.cat([group[STATE_KEY][:-15], group[STATE_KEY][-2:]])
    return bits(state)


def resumed(directory, stop=44, end=60, **settings):
    """The state of a run, and of one that ended without warning and was resumed."""
    whole = Run(directory / "whole", **settings).train(0, end, faults=False).settle()
    expected = without_breaker(whole.state())
    Run(directory / "killed", **settings).train(0, stop, faults=False).settle()
    again = Run(directory / "killed", **settings, seed=9)
    start = again.optimizer.resume()
    assert 0 < start <= stop
    again.train(start, end, faults=False)
    assert again.losses == whole.losses[start:]
    return expected, without_breaker(again.state())


@pytest.mark.parametrize("base", BASES)
def test_every_optimizer_goes_on_to_the_bit(tmp_path, base):
    a, b = resumed(tmp_path, base=base, schedule=base != "schedulefree")
    assert different(a, b) == []


def test_accumulated_gradients_and_a_scaler(tmp_path):
    a, b = resumed(tmp_path, micro=3, scaler=4)
    assert different(a, b) == []
    assert a["/attached/scaler/scale"] != (16.0).hex()  # it has grown


def with_loader(directory, first, last):
    run = Run(directory, schedule=False)
    loader, given, loss = Loader(), [], run.loss

    def next_loss(index):
        given.append(loader.taken)
        loader.taken += 1
        return loss(index)

    run.loss = next_loss
    run.optimizer.attach(loader=loader)
    run.train(first or run.optimizer.resume(), last, faults=False).settle()
    return given


@pytest.mark.parametrize("make", SCHEDULERS)
def test_every_scheduler_goes_on(tmp_path, make):
    """Its state can be written, is read back, and belongs to the iteration that is resumed."""

    def run(first, last):
        one = Run(tmp_path, schedule=False)
        scheduler = make(one.optimizer)
        one.optimizer.attach(scheduler=scheduler)
        plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        first = one.optimizer.resume() if first is None else first
        lrs = []
        for index in range(first, last):
            one.train(index, index + 1, faults=False)
            scheduler.step(1.0) if plateau else scheduler.step()
            lrs.append(one.optimizer.param_groups[0]["lr"])
        one.settle()
        return lrs, scheduler.state_dict()

    lrs, state = run(0, 19)
    again, state_again = run(None, 19)
    assert len(lrs) == 19 and again == lrs[8:]
    assert bits(state_again) == bits(state)


# -- beside the straight path -----------------------------------------------------------------


def test_there_may_be_no_checkpoint(tmp_path):
    run = Run(tmp_path / "new")
    before = bits(run.state()["model"]), torch.get_rng_state().tolist()
    assert run.optimizer.resume() == 0
    assert (bits(run.state()["model"]), torch.get_rng_state().tolist()) == before
    run.train(0, 15, faults=False).settle()  # the first state is proven after sixteen steps
    assert Run(tmp_path / "new").optimizer.resume() == 0


@pytest.mark.parametrize("snapshot", [False, True, "auto", Snapshots()], ids=str)
def test_a_directory_is_needed(snapshot):
    optimizer = ARS(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]), snapshot=snapshot)
    with pytest.raises(ValueError, match="snapshot must have a directory, got none"):
        optimizer.attach(scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match=r"pass snapshot=Snapshots\(directory=...\)"):
        optimizer.resume()


def test_only_what_has_a_state_can_be_attached(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(TypeError, match="epoch must have state_dict.* and .*, got int"):
        run.optimizer.attach(other=Loader(), epoch=3)
    assert run.attached.keys() == run.optimizer._breaker.checkpoints.attached.keys()


def test_what_is_attached_must_have_been_written(tmp_path):
    Run(tmp_path).train(0, 30, faults=False).settle()
    run = Run(tmp_path)
    run.optimizer.attach(loader=Loader())
    with pytest.raises(
        ValueError, match=r"loader must be in the checkpoint to be resumed, got \['scheduler'\]"
    ):
        run.optimizer.resume()


def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path):
    Run(tmp_path).train(0, 30, faults=False).settle()
    run = Run(tmp_path, seed=9)
    run.optimizer.attach(loader=Loader())
    before = bits(run.model)
    with pytest.raises(ValueError, match="loader must be in the checkpoint"):
        run.optimizer.resume()
    assert bits(run.model) == before


def after_resume(tmp_path, steps):
    """A resumed run whose weights are overwritten after some more steps."""
    Run(tmp_path).train(0, 44, faults=False).settle()
    run = Run(tmp_path, seed=9)
    start = run.optimizer.resume()
    good = bits(run.model)
    run.train(start, start + steps, faults=False)
    with torch.no_grad():
        run.model[0].weight.fill_(torch.nan)
    run.train(start + steps, start + steps + 1, faults=False)
    return run, start, good


def is_rolled_back(run, start, good):
    last = run.optimizer.last
    weights = {name: p for name, p in run.model.named_parameters()}
    return (
        last.action == "rollback"
        and last.rolled_back_to == start
        and (bits(weights).items() <= good.items())
    )


@pytest.mark.parametrize("steps", [1, 5])
def test_a_fault_soon_after_is_rolled_back(tmp_path, steps):
    run, start, good = after_resume(tmp_path, steps)
    assert is_rolled_back(run, start, good)
    run.train(start + steps + 1, start + 40, faults=False)
    assert np.isfinite(run.losses[steps + 1 :]).all()
    assert run.optimizer.counters["rollbacks"] == 1


def test_a_fault_before_the_first_step_is_rolled_back(tmp_path):
    assert is_rolled_back(*after_resume(tmp_path, 0))


def test_steps_that_were_not_observed_are_counted(tmp_path):
    """What resume returns is the calls of step(), without a loss and left out ones included."""
    run = Run(tmp_path)
    for index in range(40):
        loss = run.loss(-1)
        loss.backward()
        run.optimizer.step(*([] if index % 4 == 0 else [float("nan") if index == 9 else loss]))
        run.optimizer.zero_grad()
    run.settle()
    again = Run(tmp_path)
    start = again.optimizer.resume()
    counters = again.optimizer.counters
    assert counters["observed"] + counters["unobserved"] == start
    assert counters["unobserved"] >= 4 and counters["nonfinite"] == 1

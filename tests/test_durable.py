"""Files of good states: what is on disk is whole or known not to be, and costs no run its life."""

import errno
import logging
import os
import random
import threading

import numpy as np
import pytest
import torch

from resilient_optim import ARS, Snapshots, durable
from tests.helpers import bits
from tests.resumed_run import Run, files


@pytest.fixture
def trained(tmp_path):
    """A folder with the checkpoints of a run of 44 steps, of steps 16, 24 and 32."""
    Run(tmp_path).train(0, 44, faults=False).settle()
    assert [int(name[4:14]) for name in files(tmp_path)] == [16, 24, 32]
    return tmp_path


def truncated(content):
    return content[: len(content) // 2]


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE = {"truncated": truncated, "one bit flipped": flipped, "empty": lambda content: b""}


def damage(path, how):
    path.write_bytes(DAMAGE[how](path.read_bytes()))


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_is_passed_over(trained, how, caplog):
    newest = files(trained)[-1]
    damage(trained / newest, how)
    with caplog.at_level(logging.WARNING, logger="resilient_optim"):
        run = Run(trained)
        assert run.optimizer.resume() == 24
    assert f"{newest} does not match its checksum; an older state is used" in caplog.text
    whole = Run(trained / "whole").train(0, 60, faults=False)
    again = Run(trained)
    again.train(again.optimizer.resume(), 60, faults=False)
    assert again.losses == whole.losses[24:]


def test_whole_files_are_not_warned_of(trained, caplog):
    with caplog.at_level(logging.WARNING, logger="resilient_optim"):
        assert Run(trained).optimizer.resume() == 32
    assert caplog.text == ""


def test_all_files_may_be_damaged(trained):
    for name in files(trained):
        damage(trained / name, "truncated")
    assert Run(trained).optimizer.resume() == 0


def test_damaged_files_are_not_kept_in_place_of_new_ones(trained):
    for name in files(trained):
        damage(trained / name, "truncated")
    Run(trained).train(0, 20, faults=False).settle()
    assert Run(trained).optimizer.resume() == 8


def test_a_run_that_starts_anew_keeps_its_own_files(trained):
    """In the folder of an older run, from which it does not go on."""
    Run(trained, seed=5).train(0, 28, faults=False).settle()
    kept = [int(name[4:14]) for name in files(trained)]
    assert 16 in kept


def test_three_files_are_kept(tmp_path):
    run, seen = Run(tmp_path), []
    for step in range(60):
        run.train(step, step + 1, faults=False).settle()
        seen.append([int(name[4:14]) for name in files(tmp_path)])
    assert [n for i, n in enumerate(seen) if not i or n != seen[i - 1]] == [
        [], [8], [8, 16], [8, 16, 24], [16, 24, 32], [24, 32, 40], [32, 40, 48],
    ]  # fmt: skip
    assert seen.index([8]) == 15  # steps 0 to 7 made it, eight healthy ones proved it
    assert sorted(os.listdir(tmp_path)) == files(tmp_path)


LEFT = (".step0000000040-rank0.whole", "..step0000000040-rank0.whole.tmp", "step7.pt", "notes.txt")


def test_what_a_kill_leaves_behind_does_no_harm(trained):
    for name in LEFT:
        (trained / name).write_bytes(b"half of a fi")
    run = Run(trained)
    assert run.optimizer.resume() == 32
    run.train(32, 60, faults=False).settle()
    assert Run(trained).optimizer.resume() == 48


def test_what_a_kill_leaves_behind_is_removed(trained):
    (trained / ".step0000000035-rank0.whole").write_bytes(b"half of a fi")
    run = Run(trained)
    run.train(run.optimizer.resume(), 60, faults=False).settle()
    assert sorted(os.listdir(trained)) == files(trained)


# -- a copy that cannot be written -------------------------------------------------------------


def disk_full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def goes_on_without(run, first, caplog, expected="No space left on device"):
    """Train on, and see that it has been said that nothing is written."""
    with caplog.at_level(logging.WARNING, logger="resilient_optim"):
        run.train(first, 60, faults=False).settle()
    assert "ARS could not write a checkpoint to" in caplog.text and expected in caplog.text


@pytest.mark.parametrize("call", ["torch.save", "os.fsync", "os.replace"])
def test_a_full_disk_costs_the_copy(tmp_path, monkeypatch, caplog, call):
    whole = Run(tmp_path / "whole").train(0, 60, faults=False)
    run = Run(tmp_path / "full").train(0, 20, faults=False).settle()
    with monkeypatch.context() as patch:
        patch.setattr(call, disk_full)
        goes_on_without(run, 20, caplog)
    assert run.losses == whole.losses
    assert [name[:14] for name in files(tmp_path / "full")] == ["step0000000008"]
    run.train(60, 80, faults=False).settle()  # there is room again
    assert Run(tmp_path / "full").optimizer.resume() >= 56
    assert sorted(os.listdir(tmp_path / "full")) == files(tmp_path / "full")


def test_a_folder_that_cannot_be_made(tmp_path, caplog):
    (tmp_path / "taken").write_text("a file")
    run = Run(tmp_path / "taken" / "checkpoints")
    assert run.optimizer.resume() == 0
    goes_on_without(run, 0, caplog, "Not a directory")


class Odd:
    """Its state cannot be written, or not be read back."""

    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


class Own:
    pass


def test_a_state_that_could_not_be_read_back_costs_the_copy(tmp_path, caplog):
    run = Run(tmp_path)
    run.optimizer.attach(odd=Odd(Own()))
    goes_on_without(run, 0, caplog, "must load with weights_only=True")
    assert os.listdir(tmp_path) == []


def test_a_state_that_cannot_be_pickled_costs_the_copy(tmp_path, caplog):
    run = Run(tmp_path)
    run.optimizer.attach(odd=Odd(lambda: None))
    goes_on_without(run, 0, caplog, "pickle")


def test_a_slow_disk_delays_nothing_but_its_own_memory(tmp_path, monkeypatch):
    """A copy is not overwritten while it is being read."""
    write, gate, written = durable.write, threading.Event(), []

    def slow(content, directory, steps, rank):
        gate.wait(0.05)
        # By now the run has gone on: what is written must still be the state of its step.
        written.append((steps, bits(content["tree"]["params"])))
        return write(content, directory, steps, rank)

    monkeypatch.setattr(durable, "write", slow)
    run, states = Run(tmp_path), {}
    for step in range(60):
        run.train(step, step + 1, faults=False)
        states[step + 1] = bits(list(run.model.parameters()))
    gate.set()
    run.settle()
    assert len(written) >= 3
    assert all(params == states[steps] for steps, params in written)


# -- random generators -------------------------------------------------------------------------


def draws():
    """From all generators, the second of two normal numbers included, which numpy keeps aside."""
    return (
        torch.randn(3).tolist(), torch.randint(9, (5,)).tolist(), np.random.standard_normal(),
        np.random.rand(3).tolist(), random.gauss(0, 1), random.random(),
    )  # fmt: skip


@pytest.mark.parametrize("used", [0, 1, 700])
def test_random_generators_go_on_where_they_were(tmp_path, used):
    torch.manual_seed(used), np.random.seed(used), random.seed(used)
    for _ in range(used):
        torch.randn(1), np.random.standard_normal(), random.gauss(0, 1)
    path = durable.write({"rng": durable.rng_state()}, tmp_path, 3, 0)
    expected = draws(), draws()
    draws()
    durable.set_rng_state(durable.read(path)["rng"])
    assert (draws(), draws()) == expected


def test_names_and_checksums(tmp_path):
    paths = [durable.write({"a": torch.ones(2)}, tmp_path, n, r) for n, r in [(5, 0), (12, 1)]]
    assert [path.name[:21] for path in paths] == ["step0000000005-rank0-", "step0000000012-rank1-"]
    assert durable.found(tmp_path, 1) == [(12, paths[1])]
    assert all(map(durable.is_whole, paths))
    other = paths[0].with_name(paths[0].name.replace("rank0-", "rank0-0"))
    os.rename(paths[0], other)
    assert not durable.is_whole(other)
    assert durable.found(tmp_path / "none", 0) == []


def test_an_optimizer_alone(tmp_path):
    """Neither a model, nor anything attached: parameters and optimizer are known."""

    def run(first, last):
        torch.manual_seed(first)
        p = torch.nn.Parameter(torch.ones(4))
        optimizer = ARS(torch.optim.Adam([p]), snapshot=Snapshots(every=8, directory=str(tmp_path)))
        first = optimizer.resume()
        for _ in range(first, last):
            p.grad = torch.randn(4)
            optimizer.step(torch.rand(()))
        if optimizer._breaker.checkpoints._writer is not None:
            optimizer._breaker.checkpoints._writer.submit(int).result()
        return first, bits(p)

    assert run(0, 30)[0] == 0
    first, end = run(1, 30)
    assert first == 16
    assert run(2, 30) == (16, end) and run(3, 31)[1] != end

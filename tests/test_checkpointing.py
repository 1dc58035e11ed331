"""The best state: whole at every moment, independent of the run, put back without its lr."""

import errno
import os
from pathlib import Path

import pytest
import torch
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

from resilient_optim import ARS
from resilient_optim.checkpointing import BestState, cpu_copy
from resilient_optim.lr_cuts import cut_lrs
from tests.helpers import CASES, Layers, bits, optimizer_bits, train

DIRECTORY = pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])


def run(wrap=lambda base: base):
    torch.manual_seed(0)
    model = Layers()
    groups = [{"params": [p], "lr": 0.01 * (i + 1)} for i, p in enumerate(model.parameters())]
    optimizer = wrap(torch.optim.AdamW(groups))
    train(model, optimizer, range(3))
    return model, optimizer


@DIRECTORY
@pytest.mark.parametrize("wrap", [lambda base: base, ARS], ids=["bare", "ARS"])
def test_weights_and_optimizer_come_back_and_the_lr_stays(on_disk, wrap, tmp_path):
    model, optimizer = run(wrap)
    best = BestState(tmp_path / "new" if on_disk else None)
    best.save(model, optimizer, 3, 0.5)
    weights, state = bits(model), bits(optimizer.state_dict())
    train(model, optimizer, range(3, 6))
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
    assert bits(model) != weights
    for _ in range(2):  # what was restored from is not used up by training on
        best.restore(model, optimizer)
        assert bits(model) == weights
        now = bits(optimizer.state_dict())
        assert {k for k in now if now[k] != state[k]} == {f"/param_groups/{i}/lr" for i in (0, 1)}
        assert [g["lr"] for g in optimizer.param_groups] == [0.005, 0.01]
        train(model, optimizer, range(3, 6))
    assert (best.epoch, best.value) == (3, 0.5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_optimizer_goes_on_from_the_best_state_as_it_did_at_first(case):
    model, optimizer = case.build()
    train(model, optimizer, range(3), case.takes_closure)
    best = BestState()
    best.save(model, optimizer, 1, 1.0)
    futures = []
    for _ in range(2):
        train(model, optimizer, range(3, 6), case.takes_closure)
        futures.append((bits(model), optimizer_bits(optimizer)))
        best.restore(model, optimizer)
    assert futures[0] == futures[1]


def test_nothing_is_written_before_the_first_save(tmp_path):
    best = BestState(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(RuntimeError, match="best state must have been saved"):
        best.load()


def test_only_the_best_file_is_kept(tmp_path):
    model, optimizer = run()
    best = BestState(tmp_path)
    for epoch in (1, 2, 2, 3):
        best.save(model, optimizer, epoch, 1.0 / epoch)
        assert [f.name for f in tmp_path.iterdir()] == [best.path.name]
    assert best.path.name == "best_epoch3_0.333333.pt"
    assert torch.load(best.path, weights_only=True)["value"] == 1.0 / 3


STEPS = {
    "write": (torch, "save"),
    "fsync": (os, "fsync"),
    "read back": (torch, "load"),
    "replace": (os, "replace"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=repr)
def test_failure_at_any_step_of_a_write_leaves_the_old_best(step, error, tmp_path, monkeypatch):
    model, optimizer = run()
    best = BestState(tmp_path)
    best.save(model, optimizer, 1, 1.0)
    weights, old = bits(model), best.path
    train(model, optimizer, range(3, 6))
    owner, name = STEPS[step]
    with monkeypatch.context() as patch:
        if step == "write":  # half of it gets there

            def fail(content, file):
                file.write(b"half")
                raise error

        else:

            def fail(*args, **kwargs):
                raise error

        patch.setattr(owner, name, fail)
        with pytest.raises(type(error)):
            best.save(model, optimizer, 2, 0.5)
    assert (best.epoch, best.value, best.path) == (1, 1.0, old)
    assert list(tmp_path.iterdir()) == [old]
    best.restore(model, optimizer)
    assert bits(model) == weights
    best.save(model, optimizer, 3, 0.4)
    assert list(tmp_path.iterdir()) == [best.path]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that vanish at will")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_kill_at_any_system_call_leaves_a_whole_best(tmp_path):
    """Real processes that vanish without any clean-up, before each step of the second write."""
    for step in ("fsync", "replace", "unlink"):
        folder = tmp_path / step
        pid = os.fork()
        if pid == 0:
            try:
                model = torch.nn.Linear(2, 1)
                best = BestState(folder)
                best.save(model, None, 1, 1.0)
                owner = Path if step == "unlink" else os
                setattr(owner, step, lambda *args, **kwargs: os._exit(9))
                best.save(model, None, 2, 0.5)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        whole = [torch.load(f, weights_only=True)["epoch"] for f in folder.glob("*.pt")]
        assert set(whole) >= ({2} if step == "unlink" else {1})


def test_the_new_name_is_on_the_disk_before_the_old_file_goes(tmp_path, monkeypatch):
    model, optimizer = run()
    best = BestState(tmp_path)
    best.save(model, optimizer, 1, 1.0)
    calls = []
    for owner, name in ((os, "fsync"), (os, "replace"), (Path, "unlink")):
        real = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *a, _n=name, _r=real, **k: (calls.append(_n), _r(*a, **k))[1]
        )
    best.save(model, optimizer, 2, 0.5)
    assert calls == ["fsync", "replace", "fsync", "unlink"]


def test_state_that_could_not_be_read_back_is_refused(tmp_path):
    class Odd(torch.nn.Linear):
        def get_extra_state(self):
            return {"path": Path("x")}

        def set_extra_state(self, state):
            self.extra = state

    model = Odd(2, 1)
    best = BestState(tmp_path)
    with pytest.raises(TypeError, match="weights_only=True, got pathlib.* in it; .*None"):
        best.save(model, None, 1, 1.0)
    assert not list(tmp_path.iterdir()) and best.epoch is None
    BestState().save(model, None, 1, 1.0)


@DIRECTORY
def test_resume_finds_the_best_state(on_disk, tmp_path):
    model, optimizer = run()
    best = BestState(tmp_path if on_disk else None)
    best.save(model, optimizer, 1, 1.0)
    weights = bits(model)
    saved = best.state_dict()
    train(model, optimizer, range(3, 6))
    best.save(model, optimizer, 2, 0.5)  # the run goes on, is killed, and resumes from `saved`
    resumed = BestState(tmp_path if on_disk else None)
    resumed.load_state_dict(saved)
    resumed.restore(model, optimizer)
    assert bits(model) == weights
    assert (resumed.epoch, resumed.value) == (1, 1.0)


def test_files_that_no_recent_state_names_are_removed(tmp_path):
    model, _ = run()
    best = BestState(tmp_path)
    names = []
    for epoch in range(1, 6):
        best.save(model, None, epoch, 1.0 / epoch)
        best.state_dict()
        names.append(best.path.name)
    assert {f.name for f in tmp_path.iterdir()} == set(names[-2:])


def test_missing_file_is_named(tmp_path):
    model, _ = run()
    best = BestState(tmp_path)
    best.save(model, None, 1, 1.0)
    state = best.state_dict()
    with pytest.raises(FileNotFoundError, match="checkpoint_dir must hold .*best_epoch1_1.pt"):
        BestState(tmp_path / "elsewhere").load_state_dict(state)
    with pytest.raises(FileNotFoundError, match="got None"):
        BestState().load_state_dict(state)


def test_process_that_does_not_write_keeps_a_copy_until_it_sees_the_file(tmp_path):
    model, optimizer = run()
    other = BestState(tmp_path, writes=False)
    other.save(model, optimizer, 1, 1.0)
    assert not list(tmp_path.iterdir())
    other.drop_copy()
    weights = bits(other.load()["model"])
    BestState(tmp_path).save(model, optimizer, 1, 1.0)
    other.drop_copy()
    assert other._content is None
    assert bits(other.load()["model"]) == weights == bits(model)


def test_changed_params_are_left_out_with_a_warning(caplog):
    model, optimizer = run()
    best = BestState()
    best.save(model, optimizer, 1, 1.0)
    weights = bits(model)
    train(model, optimizer, range(3, 6))
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    best.restore(model, optimizer)
    assert bits(model) == weights and len(optimizer.param_groups) == 3
    assert "only weights restored" in caplog.text


def test_copy_shares_nothing_and_keeps_the_version_of_a_state_dict():
    state = torch.nn.BatchNorm1d(2).state_dict()
    twin = cpu_copy({"a": [state, (1, 2.0)], "b": None})
    assert twin["a"][0]._metadata == state._metadata and twin["a"][1] == (1, 2.0)
    twin["a"][0]["weight"].zero_()
    assert state["weight"].sum() == 2.0


SCHEDULERS = {
    "LambdaLR": lambda o: LambdaLR(o, lambda e: 1.0 / (1 + e)),
    "CosineAnnealingLR": lambda o: CosineAnnealingLR(o, T_max=10),
    "cosine with restarts": lambda o: CosineAnnealingLR(o, T_max=3),
    "StepLR": lambda o: StepLR(o, 3),
    "OneCycleLR": lambda o: OneCycleLR(o, [0.01, 0.02], total_steps=20),
    "SequentialLR": lambda o: SequentialLR(
        o, [LinearLR(o, 0.1, total_iters=3), LambdaLR(o, lambda e: 0.9**e)], [6]
    ),
    "ChainedScheduler": lambda o: ChainedScheduler([ExponentialLR(o, 0.9), StepLR(o, 2)]),
}


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.filterwarnings("ignore:.*epoch parameter in `scheduler.step")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_cut_rescales_the_whole_rest_of_a_schedule(name):
    """The same schedule with and without a cut: its later lrs are in the cut's ratio."""
    paths = []
    for factor in (None, 0.5):
        _, optimizer = run()
        scheduler, path = SCHEDULERS[name](optimizer), []
        for epoch in range(12):
            if epoch == 4 and factor:
                assert cut_lrs(optimizer, factor, 0.0, scheduler)
            path.append([g["lr"] for g in optimizer.param_groups])
            scheduler.step()
        paths.append(torch.tensor(path))
    torch.testing.assert_close(paths[1][:4], paths[0][:4])
    torch.testing.assert_close(paths[1][4:], 0.5 * paths[0][4:])


def test_each_group_is_cut_relative_to_its_own_lr_and_not_below_the_floor():
    _, optimizer = run()
    assert cut_lrs(optimizer, 0.1, 0.0015)
    assert [g["lr"] for g in optimizer.param_groups] == [0.0015, pytest.approx(0.002)]
    assert cut_lrs(optimizer, 0.1, 0.0015)
    assert [g["lr"] for g in optimizer.param_groups] == [0.0015, 0.0015]
    assert not cut_lrs(optimizer, 0.1, 0.0015)
    assert not cut_lrs(optimizer, 0.1, 1.0)  # a floor above the lr does not raise it
    assert [g["lr"] for g in optimizer.param_groups] == [0.0015, 0.0015]


def test_lr_that_is_a_tensor_is_cut_in_place():
    lr = torch.tensor(0.01)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=lr, foreach=False)
    held = optimizer.param_groups[0]["lr"]
    assert cut_lrs(optimizer, 0.5, 0.0)
    assert held is optimizer.param_groups[0]["lr"] and float(held) == pytest.approx(0.005)

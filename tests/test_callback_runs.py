"""ResonantCallback with the real RCA: real runs, resumed at any epoch, and on two ranks."""

import io
import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ExponentialLR

from resilient_optim import ARS
from resilient_optim.callback import ResonantCallback
from resilient_optim.rca import RCA
from tests.helpers import Layers, bits
from tests.processes import joined, run_ranks
from tests.training import Task, train

EPOCHS, STEPS = 60, 5


class Run:
    """The noisy regression of tests.training, an epoch being a few steps and a validation."""

    def __init__(self, wrap=lambda base: base, schedule=None, **given):
        self.task = Task(seed=3)
        self.optimizer = wrap(torch.optim.AdamW(self.task.model.parameters(), lr=0.02))
        self.scheduler = schedule and schedule(self.optimizer)
        self.rca = ResonantCallback(**{"verbose": False} | given)
        self.statistics = []

    def epoch(self, epoch):
        train(self.task, self.optimizer, STEPS * epoch, STEPS * (epoch + 1))
        value = self.task.validation()
        if epoch == 5:
            value = math.nan
        self.rca(
            val_loss=value,
            model=self.task.model,
            optimizer=self.optimizer,
            epoch=epoch,
            scheduler=self.scheduler,
        )
        if self.scheduler is not None:
            self.scheduler.step()
        self.statistics.append(self.rca.get_statistics())

    def go(self, first=0, last=EPOCHS):
        for epoch in range(first, last):
            self.epoch(epoch)
            if self.rca.should_stop():
                break
        self.rca.finalize()
        return self

    def parts(self):
        found = {"model": self.task.model, "optimizer": self.optimizer, "rca": self.rca}
        return found if self.scheduler is None else found | {"scheduler": self.scheduler}

    def saved(self):
        file = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in self.parts().items()}, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    def outcome(self):
        lrs = [group["lr"] for group in self.optimizer.param_groups]
        return bits(
            {"statistics": self.statistics, "lrs": lrs, "model": self.task.model.state_dict()}
        )


WRAPS = {"bare": lambda base: base, "ARS": ARS}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("preset", ["default", "paper", "auto", "fine-tune"])
def test_a_real_run_ends_by_itself_with_its_best_model(preset, wrap):
    run = Run(WRAPS[wrap], preset=preset).go(last=300)
    facts = run.statistics[-1]
    assert run.rca.should_stop() and facts["current_epoch"] < 299
    assert run.task.validation() == facts["best_loss"]
    values = [s["best_loss"] for s in run.statistics]
    assert facts["best_loss"] == min(values) < 0.5 * values[0]
    if preset != "paper":
        assert facts["lr_reductions"] == 2
        assert run.optimizer.param_groups[0]["lr"] == 0.005


CASES = {
    "memory": {},
    "disk": {"checkpoint_dir": True},
    "ARS": {"wrap": ARS},
    "schedule": {"schedule": lambda o: ExponentialLR(o, 0.99), "cooldown": 2},
    "paper": {"preset": "paper"},
    "auto": {"preset": "auto", "checkpoint_dir": True},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs by case, with their state after each epoch."""
    done = {}

    def of(case):
        if case not in done:
            folder = tmp_path_factory.mktemp(case)
            run, states = make(case, folder), []
            for epoch in range(EPOCHS):
                run.epoch(epoch)
                states.append(run.saved())
                if run.rca.should_stop():
                    break
            run.rca.finalize()
            done[case] = (run.outcome(), states)
        return done[case]

    return of


def make(case, folder):
    given = dict(CASES[case])
    if given.get("checkpoint_dir"):
        given["checkpoint_dir"] = folder
    return Run(**given)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("at", [0, 5, 12, 15, 16, 24])
def test_a_run_resumed_at_any_epoch_is_the_same(case, at, whole, tmp_path):
    outcome, states = whole(case)
    if at >= len(states):
        pytest.skip("the run is over by then")
    first = make(case, tmp_path)
    for epoch in range(at + 1):
        first.epoch(epoch)
    state = first.saved()
    assert bits(state) == bits(states[at])
    first.epoch(at + 1)  # it goes on for a while, then it is killed
    second = make(case, tmp_path)
    for name, part in second.parts().items():
        part.load_state_dict(state[name])
    second.statistics = first.statistics[: at + 1]
    if second.rca.should_stop():
        second.rca.finalize(second.task.model, second.optimizer)
    else:
        second.go(at + 1)
    found, expected = second.outcome(), outcome
    names = {k for k in expected if not k.endswith("/best_path")}
    assert {k: found[k] for k in names} == {k: expected[k] for k in names}


def test_state_of_another_kind_is_refused():
    state = ResonantCallback().state_dict()
    with pytest.raises(ValueError, match="state must be of preset and metrics"):
        ResonantCallback(preset="paper").load_state_dict(state)
    with pytest.raises(ValueError, match=r"\['accuracy'\]\), got"):
        ResonantCallback(metrics={"accuracy": "max"}).load_state_dict(state)


def test_settings_reach_rca():
    rca = ResonantCallback(min_gain=0.2, mode="max")
    assert rca.metrics["val_loss"].rca.config == RCA(min_gain=0.2).config
    assert rca.metrics["val_loss"].rca.mode == "max"
    with pytest.raises(TypeError, match="no_such must be a setting of ResonantCallback, got"):
        ResonantCallback(no_such=3)
    with pytest.raises(ValueError, match="preset='paper' must have one metric"):
        ResonantCallback(preset="paper", min_gain=0.2)


# -- two ranks ------------------------------------------------------------------------------


RANKS = 2


def replica(rank, folder, wrap=DistributedDataParallel, **given):
    """Ranks see different losses, one of them a NaN; both must do the same."""
    torch.manual_seed(0)
    model = Layers()
    wrapped = wrap(model.stack)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rca = ResonantCallback(folder, patience_steps=2, max_lr_reductions=1, verbose=False, **given)
    facts = []
    for epoch in range(40):
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(2 * epoch + rank))
        optimizer.zero_grad()
        (wrapped(x) - x[:, :2]).square().mean().backward()
        optimizer.step()
        loss = 1.0 + 0.5 * rank + 1.0 / (1 + epoch) if epoch < 8 else 1.5 + 0.1 * rank
        rca(val_loss=math.nan if (rank, epoch) == (1, 9) else loss, model=wrapped,
            optimizer=optimizer, train_loss=None if epoch + rank == 5 else 0.1 + rank)  # fmt: skip
        facts.append({k: v for k, v in rca.get_statistics().items() if k != "best_path"})
        if rca.should_stop():
            break
    return {"facts": facts, "weights": bits(model), "held": rca.best._content is not None}


def failing(rank, folder):
    """Rank 0 cannot write: both hear of it, none waits for the other."""
    rca = ResonantCallback(Path(folder) / "file" / "below", verbose=False)
    if rank == 0:
        (Path(folder) / "file").write_text("no folder")
    dist.barrier()
    try:
        rca(val_loss=1.0, model=Layers())
    except OSError as error:
        return str(error)
    return "saved"


def worker(rank, folder):
    with joined(rank, folder, RANKS):
        results = {
            "shared": replica(rank, f"{folder}/shared"),
            "separate": replica(rank, f"{folder}/of {rank}"),
            "memory": replica(rank, None),
            # Not data-parallel: the ranks end after different numbers of epochs.
            "apart": replica(rank, None, wrap=lambda model: model, process_group=False),
            "failing": failing(rank, folder),
        }
        torch.save(results, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of both ranks; one start of two processes serves all tests."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("torch without gloo")
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(worker, folder, RANKS)
    results = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]
    return folder, results


@pytest.mark.parametrize("kept", ["shared", "separate", "memory"])
def test_ranks_do_the_same_on_the_mean_of_their_values(ranks, kept):
    first, second = (rank[kept] for rank in ranks[1])
    assert bits(first["facts"]) == bits(second["facts"])
    assert first["weights"] == second["weights"]
    assert first["facts"][-1]["action"] == "stop"
    assert "not finite" not in first["facts"][8]["reason"]
    assert first["facts"][7]["best_loss"] == 1.375
    assert first["facts"][7]["train_share"] == pytest.approx(0.6 / 1.375)
    assert first["facts"][4]["train_share"] is first["facts"][5]["train_share"] is None


def test_ranks_that_decide_alone_differ(ranks):
    first, second = (rank["apart"] for rank in ranks[1])
    assert bits(first["facts"]) != bits(second["facts"])


def test_only_rank_0_writes_and_a_rank_that_cannot_see_it_keeps_a_copy(ranks):
    folder, results = ranks
    assert len(os.listdir(folder / "shared")) == len(os.listdir(folder / "of 0")) == 1
    assert not (folder / "of 1").exists()
    assert [rank["shared"]["held"] for rank in results] == [False, False]
    assert [rank["separate"]["held"] for rank in results] == [False, True]


def test_failed_write_is_heard_on_all_ranks(ranks):
    first, second = (rank["failing"] for rank in ranks[1])
    assert "file" in first and "another rank" in second

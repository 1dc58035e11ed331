"""Snapshots of runs on GPUs, told by tensors that only pretend to lie there, and by "meta" ones."""

from typing import NamedTuple

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from resilient_optim import host_copy, snapshot_ring
from resilient_optim.snapshot import Live, Snapshot, nbytes_of
from resilient_optim.snapshot_ring import MEMORY_SHARE, SnapshotRing, Snapshots


def live_of(*params, **state):
    """A run of some parameters; the first has a state."""
    live = Live(torch.optim.SGD([torch.nn.Parameter(p) for p in params], lr=0.1))
    if state:
        live.base.state[live.base.param_groups[0]["params"][0]] = state
    return live


def state_of(live):
    return next(iter(live.base.state.values()))


# -- several GPUs ------------------------------------------------------------------------------


class Stream(NamedTuple):
    device: torch.device


class Event:
    """Stands for `torch.cuda.Event`; notes what it is recorded behind and waited for."""

    seen: list[tuple[str, str]] = []

    def __init__(self, enable_timing):
        assert enable_timing

    def query(self):
        return True

    def elapsed_time(self, other):
        return 5.0 if self.device.index else 2.0

    def record(self, stream=None):
        self.device = torch.device("cuda:0") if stream is None else stream.device
        self.seen.append(("recorded", str(self.device)))

    def synchronize(self):
        self.seen.append(("waited", str(self.device)))


@pytest.fixture
def events(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream(device))
    monkeypatch.setattr(Event, "seen", [])
    return Event.seen


second_gpu = pytest.mark.skipif(
    torch.cuda.device_count() == 1, reason="torch looks for the pretended GPU beside the real one"
)


def on(*devices):
    return live_of(*(torch.ones(4, device=device) for device in devices))


@second_gpu
@pytest.mark.parametrize(
    "devices",
    [["cuda:1"], ["cuda:1", "cuda:0"], ["cuda:1", "cpu", "cuda:0", "cuda:1"]],
    ids=lambda devices: " ".join(devices),
)
def test_the_copies_of_each_gpu_are_waited_for(events, devices):
    with FakeTensorMode():
        snapshot = Snapshot()
        snapshot.take(on(*devices), 0, 1.0, {})
        gpus = sorted(set(devices) - {"cpu"})
        # Before the copies and behind them.
        before, behind = events[: len(gpus)], events[len(gpus) :]
        assert sorted(before) == sorted(behind) == [("recorded", gpu) for gpu in gpus]
        snapshot.tree()
    assert sorted(events[2 * len(gpus) :]) == [("waited", gpu) for gpu in gpus]
    assert snapshot.is_on_gpu is True
    assert snapshot.gpu_seconds == 0.005, "the slowest of them"


def test_what_has_not_arrived_has_not_been_timed(events, monkeypatch):
    monkeypatch.setattr(Event, "query", lambda self: False)
    done = [Event(enable_timing=True)]
    assert host_copy.seconds_between(done, done) is None
    assert host_copy.seconds_between([], []) is None


def test_nothing_is_waited_for_on_the_host(events):
    snapshot = Snapshot()
    for _ in range(2):
        snapshot.take(on("cpu"), 0, 1.0, {})
        snapshot.tree()
    assert events == [] and snapshot.is_on_gpu is False and snapshot.gpu_seconds is None


@second_gpu
def test_an_optimizer_may_keep_its_state_elsewhere(events):
    """As one does that spares GPU memory."""
    with FakeTensorMode():
        live = live_of(torch.ones(4, device="cuda:1"), moment=torch.ones(4))
        snapshot = Snapshot()
        snapshot.take(live, 0, 1.0, {})
    assert snapshot._health.shape == (2,) and snapshot.is_on_gpu


# -- where a state is put that the optimizer no longer has -------------------------------------


@pytest.fixture
def copying_nothing(monkeypatch):
    """A "meta" tensor has no elements to copy."""

    def copy(to, of, non_blocking):
        for a, b in zip(to, of, strict=True):
            if not b.is_meta:
                a.copy_(b)

    monkeypatch.setattr(torch, "_foreach_copy_", copy)
    monkeypatch.setattr("resilient_optim.snapshot.health_of", lambda *a: torch.zeros(0))


@pytest.mark.parametrize("param", ["cpu", "meta"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("shape", [(), (3,)], ids=["scalar", "vector"])
def test_lost_state_comes_back_to_the_device_that_it_was_on(copying_nothing, param, device, shape):
    """Adam's count of steps is on the GPU if it is fused or capturable, and on the host else."""
    made = torch.full(shape, 7.0, device=device)
    live = live_of(torch.ones(3, device=param), step=made, nested=[{"count": made.clone()}])
    live.base.param_groups[0]["seen"] = made.clone()
    snapshot = Snapshot()
    snapshot.take(live, 0, 1.0, {})
    live.base.state.clear()
    del live.base.param_groups[0]["seen"]
    live.put_back(snapshot.tree(), scheduled=False)
    state = state_of(live)
    for found in (state["step"], state["nested"][0]["count"], live.base.param_groups[0]["seen"]):
        assert (found.device.type, found.shape) == (device, shape)
        assert found.is_meta or bool((found == 7.0).all())
    assert state["step"] is not snapshot.tree()["state"][0][0][1]["step"], "and is no part of it"


# -- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "elements, pinned", [(0, 0), (1, 4), (2, 8), (3, 16), (256, 1024), (257, 2048)]
)
def test_pinned_memory_is_counted_as_it_is_taken(elements, pinned):
    """In powers of two, for each tensor."""
    with FakeTensorMode():
        there = live_of(*(torch.ones(elements, device="cuda:0") for _ in range(3)))
        assert nbytes_of(there) == 3 * pinned
    assert nbytes_of(live_of(torch.ones(elements))) == 4 * elements


def test_snapshots_on_a_gpu_keep_to_their_share_of_memory(monkeypatch, events):
    with FakeTensorMode():
        live = live_of(torch.ones(257, device="cuda:0"))
        ring = SnapshotRing(live, Snapshots(every=8), unasked=True)
        free = 3 * 2048 / MEMORY_SHARE - 1  # a byte less than three need
        monkeypatch.setattr(snapshot_ring, "free_memory", lambda: free)
        assert ring.take(0, 1.0, {}, proven=True) is ring.good is None
        free += 1
        assert ring.take(8, 1.0, {}, proven=True) == 8

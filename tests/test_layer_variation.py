"""LayerVariationStopper: the means are right, cheap and resumable, and a real run is stopped."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from resilient_optim import distributed
from resilient_optim.layer_variation import LayerVariationStopper, variation


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2))


def batch(seed):
    return torch.randn(16, 1, 4, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_mean_of_the_standard_deviations_of_each_layer():
    model = network()
    with LayerVariationStopper(model, decimals=12) as stopper:
        for seed in range(3):
            model(batch(seed))
        stopper.end_epoch()
        stds = torch.tensor([
            [model[0](batch(s)).std(), model(batch(s)).std()] for s in range(3)
        ]).double().mean(dim=0)  # fmt: skip
    assert stopper.names == ["0", "3"]
    assert stopper.means == [pytest.approx(stds.tolist(), rel=1e-6)]
    assert math.isnan(stopper.latest_variation)


def test_stops_when_nothing_changed_for_five_epochs_and_not_before():
    model = network()
    stopper = LayerVariationStopper(model)
    stops = []
    for epoch in range(8):
        with torch.no_grad():
            model[0].weight.mul_(2.0 if epoch == 2 else 1.0)
        model(batch(0))
        stops.append(stopper.end_epoch())
    assert stops == [False] * 6 + [True] * 2
    assert stopper.latest_variation == 0.0
    model(10 * batch(0))
    assert not stopper.end_epoch() and not stopper.should_stop()
    assert stopper.latest_variation > 1.0


def test_changes_of_two_layers_do_not_cancel():
    assert variation([1.0, 2.0], [2.0, 1.0]) == 2.0


@given(st.lists(st.floats(0.0, 9.0), min_size=1, max_size=9))
def test_variation_is_zero_for_equal_means_and_symmetric(row):
    assert variation(row, row) == 0.0
    other = [x + 1.0 for x in row]
    assert variation(row, other) == variation(other, row) > 0.0


def test_only_train_mode_is_seen():
    model = network()
    stopper = LayerVariationStopper(model)
    model.eval()
    model(batch(0))
    with pytest.raises(RuntimeError, match="end_epoch.. must follow .*model.train()"):
        stopper.end_epoch()
    model.train()
    model(batch(0))
    model.eval()
    model(100 * batch(1))
    stopper.end_epoch()
    model.train()
    model(batch(0))
    stopper.end_epoch()
    assert stopper.latest_variation == 0.0


def test_close_removes_the_hooks_and_with_does_too():
    model = network()
    stopper = LayerVariationStopper(model)
    assert len(model[0]._forward_hooks) == 1
    stopper.close()
    stopper.close()
    with pytest.raises(KeyError), LayerVariationStopper(model):
        raise KeyError
    assert not any(module._forward_hooks for module in model.modules())


def test_output_and_gradients_are_untouched():
    plain, watched = network(), network()
    LayerVariationStopper(watched)
    for model in (plain, watched):
        model(batch(0)).square().mean().backward()
    for p, q in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_nothing_is_read_from_the_device_before_the_epoch_ends(monkeypatch):
    model = network()
    stopper = LayerVariationStopper(model)

    def read(*args):
        raise AssertionError("the host waited")

    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "__float__", "__bool__", "cpu"):
            patch.setattr(torch.Tensor, name, read)
        model(batch(0))
    stopper.end_epoch()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    model = network().to(dtype)
    stopper = LayerVariationStopper(model)
    model(batch(0).to(dtype))
    stopper.end_epoch()
    assert all(0.0 < mu < 10.0 for mu in stopper.means[0])


def test_named_layers_tuples_and_unused_layers():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(4, 3, batch_first=True)
            self.unused = nn.Linear(3, 1)

        def forward(self, x):
            return self.rnn(x)[0]

    model = Two()
    stopper = LayerVariationStopper(model, ["rnn", "unused"], stable_epochs=2)
    for _ in range(2):
        model(batch(0))
        stopped = stopper.end_epoch()
    assert stopped and stopper.means[-1][0] > 0.0


def test_ranks_judge_their_mean(monkeypatch):
    """Stand-ins for a second rank; the exchange itself is tested in test_distributed."""
    monkeypatch.setattr(distributed, "ranks", lambda group: 2)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda group: "gloo")
    monkeypatch.setattr(distributed, "mean_or_nan", lambda values, group: values + 1.0)
    model = network()
    alone, together = (
        LayerVariationStopper(model, process_group=False),
        LayerVariationStopper(model),
    )
    model(batch(0))
    alone.end_epoch()
    together.end_epoch()
    assert together.means[0] == pytest.approx([mu + 1.0 for mu in alone.means[0]])


def test_a_layer_that_overflows_never_counts_as_settled():
    model = nn.Sequential(nn.Linear(4, 4))
    stopper = LayerVariationStopper(model, stable_epochs=2)
    for _ in range(3):
        model(torch.full((2, 4), math.inf))
        assert not stopper.end_epoch()


@pytest.mark.parametrize("at", range(0, 12, 3))
def test_resume_is_identical_also_in_mid_epoch(at):
    def go(stopper, model, first, last):
        for step in range(first, last):
            model(batch(step % 2))
            if step % 2:
                stopper.end_epoch()

    model = network()
    whole = LayerVariationStopper(model, stable_epochs=3)
    go(whole, model, 0, 12)
    whole.close()
    with LayerVariationStopper(model, stable_epochs=3) as first:
        go(first, model, 0, at)
        state = first.state_dict()
    second = LayerVariationStopper(model, stable_epochs=3)
    second.load_state_dict(state)
    go(second, model, at, 12)
    assert second.means == whole.means
    assert second.should_stop() and whole.should_stop()
    assert second.state_dict() == whole.state_dict()


def test_state_of_other_layers_is_refused():
    state = LayerVariationStopper(network()).state_dict()
    with pytest.raises(ValueError, match=r"state must be of the layers \['0'\], got \['0', '3'\]"):
        LayerVariationStopper(network(), ["0"]).load_state_dict(state)


def test_a_real_run_is_stopped_after_it_has_learned():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(64, 1, 4, generator=torch.Generator().manual_seed(0))
    y = torch.stack([x.sum(dim=(1, 2)), x[:, 0, 0]], dim=1)
    losses = []
    with LayerVariationStopper(model) as stopper:
        for _ in range(3000):
            loss = (model(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if stopper.end_epoch():
                break
    assert stopper.should_stop() and 20 < len(losses) < 3000
    assert losses[-1] < 0.3 * losses[0]


def test_bad_arguments_are_named():
    model = network()
    for given_, message in (
        ({"layers": ["9"]}, "layers must be names from .* got '9'; this model has 0, 1"),
        ({"layers": "0"}, "layers must be a sequence of names, got '0'"),
        ({"layers": []}, "layers must not be empty"),
        ({"decimals": 0.5}, "decimals must be an integer"),
        ({"process_group": True}, "process_group must be a ProcessGroup, None or False, got True"),
        ({"stable_epochs": 1}, "stable_epochs must be an integer of at least 2"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            LayerVariationStopper(model, **given_)
    with pytest.raises(ValueError, match="no linear or convolutional layer"):
        LayerVariationStopper(nn.ReLU())
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got int"):
        LayerVariationStopper(3)

"""Pictures of schedules show the numbers of the schedules."""

import sys

import matplotlib
import pytest
from torch.optim import lr_scheduler

from resilient_optim.schedule_plot import trace
from resilient_optim.schedules import LinearDecay, PhaseSchedule, parse_phases, plot

matplotlib.use("Agg")


@pytest.fixture
def axes():
    from matplotlib import pyplot

    yield pyplot.subplots()[1]
    pyplot.close("all")


def test_plot_of_a_text_is_its_values(axes):
    text = "[1,0] lin[3,4]"
    assert plot(text, 6, axes) is axes
    assert axes.lines[0].get_ydata().tolist() == [1.0, 1.5, 2.0, 2.5, 3.0, 3.0]
    plot(parse_phases(text), 6, axes)
    assert axes.lines[1].get_ydata().tolist() == axes.lines[0].get_ydata().tolist()


def test_plot_of_a_scheduler_is_its_rates_on_new_axes(axes):
    mine = plot(lambda o: LinearDecay(o, 4), 5, lr=0.4)
    assert mine is not axes
    assert mine.lines[0].get_ydata().tolist() == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])
    assert len(mine.figure.axes) == 1


def test_plot_shows_the_weight_decay_on_its_own_axis(axes):
    plot(lambda o: PhaseSchedule(o, "[1,0] lin[3,4]", "[1e-3,0] const[2e-3,2]"), 4, axes)
    assert axes.figure.axes[1].lines[0].get_ydata().tolist() == pytest.approx(
        [1e-3, 1e-3, 2e-3, 2e-3]
    )
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "learning rate",
        "lr * weight decay",
    ]


def test_trace_of_a_schedule_that_ends_with_its_run():
    lrs, shares = trace(lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=10), 10)
    assert len(lrs) == 10 and shares == [0.0] * 10


def test_plot_refuses_what_it_cannot_draw(monkeypatch, axes):
    with pytest.raises(TypeError, match="^schedule must be a text, Phases or a function"):
        plot(3.0, 10, axes)
    with pytest.raises(ValueError, match="^schedule must have"):
        plot("[1,0] up[2,3]", 10, axes)
    with pytest.raises(ValueError, match="^steps must be"):
        plot("[1,0]", 0, axes)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"install resilient-optim\[report\]"):
        plot("[1,0]", 10)

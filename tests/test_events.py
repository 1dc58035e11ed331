"""The event log: what is written comes back, whatever happens to the process that writes."""

import copy
import gc
import json
import logging
import math
import pickle
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_optim import Decision, __version__
from resilient_optim.events import FLUSH_EVERY, EventLog, read_events, read_header

FLOATS = st.floats()
DECISIONS = st.builds(
    Decision,
    step=st.just(0),
    action=st.sampled_from(["apply", "damp", "skip"]),
    reason=st.sampled_from(["quiet", "surprise", "non-finite loss", 'a "reason"\n with é']),
    loss=FLOATS,
    grad_norm=st.none() | FLOATS,
    z=FLOATS,
    rho=FLOATS,
    psi=FLOATS,
    phi=FLOATS,
    chi=FLOATS,
    new_level=st.booleans(),
)


def quiet(step, loss=1.0, grad_norm=0.5):
    return Decision(step, "apply", "quiet", loss, grad_norm, z=0.3, rho=0.1)


def skip(step, loss=math.nan):
    return Decision(step, "skip", "non-finite loss", loss, phi=0.0, update_scale=0.0)


def write(path, decisions):
    log = EventLog(path)
    for decision in decisions:
        log.write(decision)
    log.close()


def same(a, b):
    if isinstance(b, tuple):  # JSON has lists
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


@settings(max_examples=50)
@given(st.lists(DECISIONS, max_size=5))
def test_what_is_written_comes_back(tmp_path_factory, decisions):
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    decisions = [decision._replace(step=step) for step, decision in enumerate(decisions)]
    write(path, decisions)
    events = read_events(path) if decisions else []
    assert [event["step"] for event in events] == list(range(len(decisions)))
    for event, decision in zip(events, decisions, strict=True):
        known = ("step", "action", "reason", "loss", "grad_norm")
        for name in known if decision.reason == "quiet" else Decision._fields:
            default = Decision._field_defaults.get(name)
            if name == "action" and decision.reason == "quiet":
                continue  # no quiet step is anything but applied
            assert same(event.get(name, default), getattr(decision, name)), name


@settings(max_examples=50)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | FLOATS
        | st.text().filter(lambda s: "n" not in s),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_values_of_the_writer_come_back(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    log = EventLog(path)
    log.write(quiet(0), extra=value)
    log.close()
    assert repr(read_events(path)[0]["extra"]) == repr(value)


def test_every_line_is_valid_json(tmp_path):
    write(tmp_path / "log", [skip(0), skip(1, math.inf), skip(2, -math.inf)])

    def refuse(name):
        raise AssertionError(name)

    lines = (tmp_path / "log").read_text().splitlines()
    parsed = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [line["loss"] for line in parsed[1:]] == ["nan", "inf", "-inf"]
    assert [event["loss"] for event in read_events(tmp_path / "log")][1:] == [math.inf, -math.inf]


def test_quiet_lines_hold_the_least_and_others_what_was_decided(tmp_path):
    write(tmp_path / "log", [quiet(0), quiet(1, grad_norm=None), skip(2)])
    header, *lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert header["resilient_optim"] == __version__
    assert lines[0] == {"step": 0, "loss": 1.0, "grad_norm": 0.5}
    assert lines[1] == {"step": 1, "loss": 1.0}
    assert abs(lines[2].pop("time") - time.time()) < 60
    assert lines[2] == {
        "step": 2, "action": "skip", "reason": "non-finite loss", "loss": "nan", "phi": 0.0,
        "update_scale": 0.0,
    }  # fmt: skip


def test_tensors_and_unknown_things_are_written(tmp_path):
    log = EventLog(tmp_path / "log", {"config": {"dtype": torch.float32, "lr": torch.tensor(0.5)}})
    log.write(quiet(0), lr=torch.tensor([0.5, math.nan]), kind=torch.float32)
    log.close()
    (event,) = read_events(tmp_path / "log")
    assert event["lr"][0] == 0.5 and math.isnan(event["lr"][1])
    assert event["kind"] == "torch.float32"
    assert read_header(tmp_path / "log")["config"] == {"dtype": "torch.float32", "lr": 0.5}


def test_what_is_not_quiet_is_on_the_disk_at_once(tmp_path):
    path, log = tmp_path / "new" / "folder" / "log", EventLog(tmp_path / "new" / "folder" / "log")
    for step in range(FLUSH_EVERY - 1):
        log.write(quiet(step))
    assert not path.exists()
    log.write(skip(FLUSH_EVERY - 1))
    assert len(read_events(path)) == FLUSH_EVERY
    for step in range(FLUSH_EVERY, 2 * FLUSH_EVERY):
        log.write(quiet(step))
    assert len(read_events(path)) == 2 * FLUSH_EVERY


def test_a_log_without_steps_leaves_no_file(tmp_path):
    EventLog(tmp_path / "log").close()
    assert not (tmp_path / "log").exists()


def test_lines_that_wait_are_written_when_the_log_is_collected(tmp_path):
    log = EventLog(tmp_path / "log")
    log.write(quiet(0))
    del log
    gc.collect()
    assert len(read_events(tmp_path / "log")) == 1


@settings(max_examples=50)
@given(cut=st.integers(0, 400))
def test_any_cut_of_a_log_can_be_read_and_gone_on_with(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    write(path, [quiet(0), skip(1, math.inf), quiet(2), skip(3, -math.inf), quiet(4)])
    whole = path.read_bytes()
    cut = min(cut, len(whole))
    path.write_bytes(whole[:cut])
    left = read_events(path)
    assert left == read_back(whole)[: len(left)]
    assert len(left) >= whole[:cut].count(b"\n") - 1
    write(path, [skip(9)])
    assert [event["step"] for event in read_events(path)][-1] == 9
    assert len(read_events(path)) >= whole[:cut].count(b"\n")


def read_back(whole):
    events = [json.loads(line) for line in whole.splitlines()[1:]]
    for event in events:
        event["loss"] = float(event["loss"])
        event.setdefault("action", "apply")
        event.setdefault("reason", "quiet")
    return events


def test_a_torn_line_longer_than_a_block_is_removed(tmp_path):
    write(tmp_path / "log", [skip(0)])
    with open(tmp_path / "log", "ab") as file:
        file.write(b'{"step": 1, "note": "' + b"x" * 20_000)
    write(tmp_path / "log", [skip(1), skip(2)])
    assert [event["step"] for event in read_events(tmp_path / "log")] == [0, 1, 2]


@pytest.mark.parametrize("line", ["{broken", "[1, 2]", '{"loss": 1.0}', '{"step": 2}', '"text"'])
def test_a_broken_line_is_named(tmp_path, line):
    write(tmp_path / "log", [skip(0)])
    with open(tmp_path / "log", "a") as file:
        file.write(line + "\n" + '{"step": 1, "loss": 1.0}\n')
    with pytest.raises(ValueError, match=r"log, line 3: must be"):
        read_events(tmp_path / "log")


def test_the_latest_header_is_read(tmp_path):
    for seed in range(2):
        log = EventLog(tmp_path / "log", {"config": {"seed": seed}})
        log.write(skip(seed))
        log.close()
    header = read_header(tmp_path / "log")
    assert header["config"] == {"seed": 1} and header["resilient_optim"] == __version__
    (tmp_path / "bare").write_text('{"step": 0, "loss": 1.0}\n')
    assert read_header(tmp_path / "bare") == {}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda log: pickle.loads(pickle.dumps(log))])
def test_a_copy_goes_on_in_the_same_file(tmp_path, duplicate):
    log = EventLog(tmp_path / "log", {"config": 1})
    log.write(quiet(0))
    other = duplicate(log)
    log.close()
    other.write(quiet(1))
    other.close()
    assert [event["step"] for event in read_events(tmp_path / "log")] == [0, 1]


def test_writing_goes_on_after_close(tmp_path):
    log = EventLog(tmp_path / "log")
    log.write(quiet(0))
    log.close()
    log.write(quiet(1))
    log.close()
    assert len((tmp_path / "log").read_text().splitlines()) == 3


def test_a_file_that_is_no_log_is_left_alone(tmp_path):
    (tmp_path / "train.py").write_text("import torch")
    with pytest.raises(ValueError, match="path must be a new file or an event log"):
        EventLog(tmp_path / "train.py")
    assert (tmp_path / "train.py").read_text() == "import torch"
    with pytest.raises(ValueError, match="path must be a file, got the folder"):
        EventLog(tmp_path)
    (tmp_path / "empty").touch()
    EventLog(tmp_path / "empty")


def test_a_failing_disk_costs_lines_and_not_the_run(tmp_path, caplog):
    path = tmp_path / "log"
    log = EventLog(path)
    log.write(skip(0))
    path.rename(tmp_path / "kept")
    path.mkdir()  # opening it fails now, as on a full or vanished disk, for root as well
    with caplog.at_level(logging.WARNING):
        log.write(skip(1))
    assert "1 lines lost" in caplog.text
    path.rmdir()
    (tmp_path / "kept").rename(path)
    log.write(skip(2))
    assert [event["step"] for event in read_events(path)] == [0, 2]


def test_a_quiet_step_is_cheap(tmp_path):
    """About 6 microseconds on an idle machine; the bound leaves room for a busy one."""
    log, decisions = EventLog(tmp_path / "log"), [quiet(step) for step in range(10_000)]
    start = time.perf_counter()
    for decision in decisions:
        log.write(decision, lr=1e-3)
    assert (time.perf_counter() - start) / len(decisions) < 100e-6


def test_a_large_log_is_read_in_seconds(tmp_path):
    lines = (f'{{"step": {i}, "loss": 1.5, "grad_norm": 0.25}}\n' for i in range(100_000))
    (tmp_path / "log").write_text("".join(lines))
    start = time.perf_counter()
    assert len(read_events(tmp_path / "log")) == 100_000
    assert time.perf_counter() - start < 20.0  # 0.6 s on an idle machine

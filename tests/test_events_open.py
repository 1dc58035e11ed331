"""Event logs that are open in this process: read while they are written, and by one writer each."""

import copy
import gc
import os
import pickle
import threading
import time

import pytest
import torch

from resilient_optim import ARS, Decision, report
from resilient_optim.event_writer import Writer
from resilient_optim.events import FLUSH_EVERY, EventLog, read_events, read_header

OPEN = "nobody else in this process writes to.*give each optimizer a file of its own"


def quiet(step):
    return Decision(step, "apply", "quiet", 1.0, 0.5)


def steps(path):
    return [event["step"] for event in read_events(path)]


def optimizer_with(path):
    base = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    return ARS(base, event_log=path, start_up=0, process_group=False)


def train(optimizer, count):
    for _ in range(count):
        optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
        optimizer.step(1.0)


# -- read while they are written -------------------------------------------------------------------


def test_who_reads_a_log_in_the_process_that_writes_it_misses_nothing(tmp_path):
    log = EventLog(tmp_path / "log", {"config": 1})
    for step in range(30):
        log.write(quiet(step))
    assert not (tmp_path / "log").exists()
    assert read_header(tmp_path / "log")["config"] == 1
    log.write(quiet(30))
    (tmp_path / "link").symlink_to(tmp_path / "log")
    assert steps(tmp_path / "link") == list(range(31))
    log.close()
    log.write(quiet(31))
    assert steps(tmp_path / "log") == list(range(32)), "a log that goes on is open again"


def test_report_of_the_process_that_trains_has_the_newest_steps(tmp_path):
    optimizer = optimizer_with(tmp_path / "log")
    train(optimizer, 250)
    report.html(tmp_path / "log", tmp_path / "run.html")
    assert "250 steps" in (tmp_path / "run.html").read_text()
    assert len(steps(tmp_path / "log")) == optimizer.counters["observed"] == 250


def test_an_optimizer_writes_what_waits_when_told_to(tmp_path):
    optimizer = optimizer_with(tmp_path / "log")
    train(optimizer, 130)
    optimizer.flush()
    assert (tmp_path / "log").read_text().count('"step"') == 130
    ARS(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])).flush()


def test_lines_keep_their_order_when_another_thread_reads_the_log(tmp_path, monkeypatch):
    log, append, writing = EventLog(tmp_path / "log"), Writer._append, threading.Event()
    reader = threading.Thread(target=read_events, args=(tmp_path / "log",))

    def slow(writer, lines):
        if threading.current_thread() is reader:
            writing.set()
            time.sleep(0.2)  # the other thread writes more than enough for a flush of its own
        append(writer, lines)

    monkeypatch.setattr(Writer, "_append", slow)
    log.write(quiet(0))
    reader.start()
    assert writing.wait(60)
    for step in range(1, 2 * FLUSH_EVERY):
        log.write(quiet(step))
    reader.join()
    assert steps(tmp_path / "log") == list(range(2 * FLUSH_EVERY))


# -- one writer each -------------------------------------------------------------------------------


def test_two_optimizers_on_one_file_are_refused_before_anything_happens(tmp_path):
    first, group = optimizer_with(tmp_path / "log"), {"params": [torch.ones(3)]}
    (tmp_path / "link").symlink_to(tmp_path / "log")
    for name in ("log", "link", "../" + tmp_path.name + "/log"):
        base = torch.optim.SGD([group], lr=0.1)
        with pytest.raises(ValueError, match=OPEN):
            ARS(base, event_log=tmp_path / name)
        assert "ars" not in base.param_groups[0]
    second = optimizer_with(tmp_path / "other")
    train(first, 5)
    train(second, 7)
    assert (len(steps(tmp_path / "log")), len(steps(tmp_path / "other"))) == (5, 7)


def test_an_optimizer_that_is_gone_has_let_go_of_its_file(tmp_path):
    first = optimizer_with(tmp_path / "log")
    train(first, 20)
    saved = copy.deepcopy(first.state_dict())
    del first
    resumed = optimizer_with(tmp_path / "log")
    resumed.load_state_dict(saved)
    train(resumed, 5)
    assert steps(tmp_path / "log") == list(range(25))


def test_an_optimizer_in_a_cycle_has_let_go_of_its_file(tmp_path):
    first = optimizer_with(tmp_path / "log")
    first.kept_by_itself = [first]
    train(first, 5)
    gc.disable()
    try:
        del first
        optimizer_with(tmp_path / "log")
    finally:
        gc.enable()
    assert steps(tmp_path / "log") == list(range(5))


def test_a_log_that_is_closed_has_let_go_of_its_file(tmp_path):
    log = EventLog(tmp_path / "log")
    with pytest.raises(ValueError, match=OPEN):
        EventLog(tmp_path / "log")
    log.close()
    EventLog(tmp_path / "log").close()
    log.write(quiet(0))
    with pytest.raises(ValueError, match=OPEN):
        EventLog(tmp_path / "log")


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_an_optimizer_takes_the_place_of_the_original(tmp_path, duplicate):
    first = optimizer_with(tmp_path / "log")
    train(first, 20)
    twin = duplicate(first)
    del first
    optimizer_with(tmp_path / "log")  # no copy holds a file that it has not written to
    train(twin, 5)
    assert steps(tmp_path / "log") == list(range(25))
    with pytest.raises(ValueError, match=OPEN):
        optimizer_with(tmp_path / "log")


def test_a_forked_child_does_not_hold_what_its_parent_writes_to(tmp_path):
    log = EventLog(tmp_path / "log")
    log.write(quiet(0))
    child = os.fork()
    if not child:
        try:
            EventLog(tmp_path / "log")
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert steps(tmp_path / "log") == [0]


# -- where a run was given up ----------------------------------------------------------------------


def test_a_step_keeps_its_diagnosis_until_the_run_goes_back_or_begins_anew(tmp_path):
    path = tmp_path / "log"
    log = EventLog(path)
    bad = quiet(2)._replace(action="skip", reason="non-finite loss")
    for step in range(3):
        log.write(quiet(step))
    log.write(bad, diagnosis="first")
    log.write(bad, diagnosis="second")
    log.write(quiet(2))
    log.write(quiet(3))
    assert [event.get("diagnosis") for event in read_events(path)] == [None, None, "first", None]
    for step in (1, 2):
        log.write(quiet(step))
    assert not any("diagnosis" in event for event in read_events(path)), "it went back"
    log.write(bad._replace(step=3), diagnosis="third")
    log.close()
    again = EventLog(path)
    again.write(quiet(3))
    assert not any("diagnosis" in event for event in read_events(path)), "it was resumed"

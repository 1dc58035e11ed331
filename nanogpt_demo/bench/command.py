"""The command ``bench``: what a step costs under each method, or the cases that are missing yet."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from nanogpt_demo.bench.cases import CASES, GPU_CASES, LARGE, TINY, Case, Shape, gpt2_shapes
from nanogpt_demo.bench.kernels import gpu_kernels_table, measure_kernels
from nanogpt_demo.bench.measure import device_name, measure
from nanogpt_demo.bench.picture import overhead_picture
from nanogpt_demo.bench.summary import overhead_checks, row_of, summarise
from nanogpt_demo.environment import commit, environment
from nanogpt_demo.store import Document, Store
from nanogpt_demo.stress import DEFAULT_OUT, joined

KERNEL_SHAPES: dict[str, list[Shape]] = {
    "20x1M": LARGE,
    "200-tiny": TINY,
    "gpt2-124m": gpt2_shapes(),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add = parser.add_argument
    add("--out", type=Path, default=DEFAULT_OUT, help=f"folder (default: {DEFAULT_OUT})")
    add("--fresh", action="store_true", help="measure again what results exist of")


@dataclass(frozen=True)
class Results:
    """The result file of the benchmark.

    Attributes:
        store: where it is.
        command: what the user typed.
        device: what is measured; a file is of one device.
    """

    store: Store
    command: str
    device: str

    def rows(self) -> set[tuple[str, str]]:
        """The rows that are done.

        Raises:
            ValueError: If the file is of another device.
        """
        records = self.store.read()["records"]
        others = {record["device"] for record in records} - {self.device}
        if others:
            raise ValueError(
                f"out must hold results of {self.device}, got {', '.join(sorted(others))}; "
                "give another folder"
            )
        return {row_of(record) for record in records}

    def add(self, records: list[dict[str, Any]]) -> None:
        """Keep the records of one row, in place of older ones."""
        code = commit()
        fresh = [record | {"commit": code} for record in records]
        row = row_of(fresh[0])

        def edit(document: Document) -> None:
            everything = [*(r for r in document["records"] if row_of(r) != row), *fresh]
            command = joined(document.get("command"), self.command)
            document.clear()
            document |= {
                "command": command,
                "commit": code,
                "environment": environment(torch.get_num_threads()) | {"device": self.device},
                "summary": summarise(everything),
                "records": everything,
            }

        self.store.change(edit)


def run(
    cases: Iterable[Case], results: Results, device: torch.device, console: Console, fresh: bool
) -> None:
    """Measure the rows that are missing, each saved as soon as it is done.

    Args:
        cases: what to measure.
        results: where the records go.
        device: where to measure.
        console: where to show the progress.
        fresh: measure the others again as well.
    """
    known = results.rows()
    for case in cases:
        for base in case.bases:
            if (case.name, base) in known and not fresh:
                console.print(f"{case.name}, {base}: done already")
                continue
            show = partial(track, description=f"{case.name}, {base}", console=console)
            results.add(measure(case, base, device, show))


def save_kernels(store: Store, command: str, device: torch.device) -> None:
    """Measure the kernels against the copy bandwidth of a GPU, and keep it."""
    records = measure_kernels(KERNEL_SHAPES, device)

    def edit(document: Document) -> None:
        document.clear()
        document |= {
            "command": command,
            "commit": commit(),
            "environment": environment(torch.get_num_threads()) | {"device": device_name(device)},
            "summary": {},
            "records": records,
        }

    store.change(edit)


def main(options: argparse.Namespace, command: str, console: Console) -> int:
    """Run the benchmark on the GPU, or on all cores where there is none.

    Each kind of machine has files of its own: "overhead", or "gpu_overhead" and "gpu_kernels".

    Args:
        options: Parsed options of ``add_arguments``.
        command: What the user typed.
        console: Where to print.

    Returns:
        Exit code 0.

    Raises:
        ValueError: If the folder holds results of another device.
    """
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    store = Store(options.out, "gpu_overhead" if gpu else "overhead")
    results = Results(store, command, device_name(device))
    if gpu:
        results.rows()  # refused before anything is measured
        kernels = Store(options.out, "gpu_kernels")
        save_kernels(kernels, command, device)
        console.print(gpu_kernels_table(kernels.read()), markup=False)
    run(GPU_CASES if gpu else CASES, results, device, console, options.fresh)
    document = store.read()
    overhead_picture(document, store.picture)
    console.print(overhead_checks(document), markup=False)
    console.print(f"results: {store.path}  picture: {store.picture}")
    return 0

"""Writes the tables of the pages from the committed result files.

A block between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` is replaced; nothing else is
touched. A test fails when a block is not what the result files say.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from nanogpt_demo.bench.summary import overhead_checks, overhead_memory, overhead_table
from nanogpt_demo.detectors import detectors_table
from nanogpt_demo.faults import tables as faults
from nanogpt_demo.headline import cost, headline, where_it_loses
from nanogpt_demo.kernel_report import kernels_predictions, kernels_table
from nanogpt_demo.markdown import difference, markdown, plus_minus
from nanogpt_demo.provenance import provenance
from nanogpt_demo.results_index import NAMES, index_table
from nanogpt_demo.snapshot_cost import snapshots_table
from nanogpt_demo.stopping.live import live_table
from nanogpt_demo.stopping.tables import (
    stopping_by_kind,
    stopping_claims,
    stopping_table,
    stopping_told,
)
from nanogpt_demo.store import Document, Store
from nanogpt_demo.suite import tables
from nanogpt_demo.suite.claims import suite_claims
from nanogpt_demo.suite.peers import PEERS
from nanogpt_demo.summary import OURS, Record, by_method, compare_seeds, groups

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "results/README.md", "resilient_optim/guide.md")


def stress_table(document: Document) -> str:
    """One table for each comparison of the stress test, as Markdown."""
    return "\n\n".join(
        _comparison(name, members, document["summary"][name])
        for name, members in groups(document["records"]).items()
    )


def _comparison(name: str, members: list[Record], summary: dict[str, Any]) -> str:
    header = ["method", "val", f"{OURS} minus it", "recovery", "touched", "survived", "norm > 100"]
    rows = [_row(method, numbers, summary) for method, numbers in summary["methods"].items()]
    seeds = sorted({record["seed"] for record in members})
    return f"**{name}**, seeds {', '.join(map(str, seeds))}\n\n{markdown(header, rows)}"


def _row(method: str, numbers: dict[str, Any], summary: dict[str, Any]) -> list[str]:
    n = numbers["n"]
    recovery = "-"
    if numbers["recovered"]:
        recovery = f"{numbers['recovery_steps']:.0f} steps"
        recovery += f" ({numbers['recovered']} of {n})" if numbers["recovered"] < n else ""
    crossed = f"{numbers['weight_norm_100']} of {n}"
    if numbers["weight_norm_100"]:
        crossed += f", at step {numbers['weight_norm_100_at']:.0f}"
    return [
        f"**{method}**" if method == OURS else method,
        plus_minus(numbers["val"], numbers["val_se"]),
        difference(summary[f"{OURS}_minus"].get(method)) if method != OURS else "",
        recovery,
        f"{100 * numbers['touched']:.1f} %",
        f"{numbers['survived']} of {n}",
        crossed,
    ]


def published_claim(document: Document) -> str:
    """What became of the published claim: ARS as published against bare AdamW, by comparison."""
    lines = []
    for name, members in groups(document["records"]).items():
        methods = by_method(members)
        published, bare = methods.get("ars-paper", []), methods.get("adamw", [])
        if not published or not bare:
            continue
        pair = compare_seeds(published, bare)
        lost = sum(not run["survived"] for run in bare)
        seeds = f"{pair['n']} seed" + ("s" if pair["n"] != 1 else "")
        crossed = sum(run["weight_norm_100_at"] is not None for run in bare)
        lines.append(
            f"- {name}: ARS as published minus AdamW, on {seeds}: {difference(pair)}. Of "
            f"{len(bare)} runs of AdamW {lost} diverged and {crossed} crossed the published limit."
        )
    return "\n".join(lines)


def suite_sources(document: Document) -> str:
    """Where each method of the suite comes from."""
    run = {record["method"] for record in document["records"]}
    rows = [[name, peer.source] for name, peer in PEERS.items() if name in run]
    return markdown(["method", "source"], rows)


TESTED = (
    ("every optimizer and scheduler of torch, GradScaler, autocast, float16 and bfloat16, closures",
     "torch", "test_ars_*, test_precision, test_torch_schedulers"),
    ("DDP, FSDP2, HSDP, ZeRO, torch.distributed.checkpoint (gloo, two and four processes)",
     "torch", "test_distributed, test_fsdp, test_zero, test_dcp"),
    ("torch.compile of a training step", "torch", "test_compile"),
    ("every optimizer of the package, Lookahead and SAM", "pytorch-optimizer",
     "test_optimizer_packages, test_wrappers"),
    ("every optimizer of the package", "torch-optimi", "test_optimizer_packages"),
    ("every optimizer of the package, train and eval", "schedulefree", "test_optimizer_packages"),
    ("automatic and manual optimization, accumulation, resume", "lightning", "test_lightning*"),
    ("the Trainer: accumulation, resume", "transformers", "test_transformers"),
    ("accumulation, prepared schedulers", "accelerate", "test_accelerate"),
    ("metrics()", "tensorboard", "test_loggers"),
    ("metrics(), offline", "wandb", "test_loggers"),
    ("metrics()", "mlflow-skinny", "test_loggers"),
    ("kernels, in the interpreter and compiled offline", "triton",
     "test_triton_*, test_kernels_offline"),
)  # fmt: skip
"""What is tested, the package it is tested with, and the tests."""


def versions() -> dict[str, str]:
    """The version of each package that development and CI install."""
    pins = (ROOT / "constraints.txt").read_text("utf-8") + (ROOT / "pyproject.toml").read_text()
    return dict(re.findall(r"([\w-]+)==([\w.]+)", pins))


def versions_table() -> str:
    """What is tested with which version."""
    version = versions()
    rows = [[what, f"{name} {version[name]}", f"`{tests}`"] for what, name, tests in TESTED]
    return markdown(["what", "with", "tests"], rows)


def versions_line() -> str:
    """The same in a sentence."""
    version = versions()
    packages = dict.fromkeys(name for _, name, _ in TESTED)
    return f"Tested with {', '.join(f'{name} {version[name]}' for name in packages)}."


BLOCKS: dict[str, tuple[str, Callable[..., str]]] = {
    "headline": ("stress suite faults overhead stopping gpu_overhead gpu_stress", headline),
    "cost": ("overhead snapshots", cost),
    "where-it-loses": ("suite", where_it_loses),
    "versions-table": ("", versions_table),
    "versions-line": ("", versions_line),
    "results-index": (" ".join(NAMES), index_table),
    "stress-table": ("stress", stress_table),
    "stress-claim": ("stress", published_claim),
    "stress-provenance": ("stress", provenance),
    "suite-ranks": ("suite", tables.suite_ranks),
    "suite-claims": ("suite", suite_claims),
    "suite-cells": ("suite", tables.suite_cells),
    "suite-losses": ("suite", tables.suite_losses),
    "suite-controls": ("suite", tables.suite_controls),
    "suite-ablation": ("suite", tables.suite_ablation),
    "suite-ideas": ("ideas", tables.suite_ideas),
    "suite-ideas-lr": ("ideas", tables.suite_lr),
    "suite-ideas-provenance": ("ideas", provenance),
    "suite-lr": ("suite", tables.suite_lr),
    "suite-sources": ("suite", suite_sources),
    "suite-provenance": ("suite", provenance),
    "detectors-table": ("detectors", detectors_table),
    "detectors-provenance": ("detectors", provenance),
    "overhead-table": ("overhead", overhead_table),
    "overhead-checks": ("overhead", overhead_checks),
    "overhead-memory": ("overhead", overhead_memory),
    "overhead-provenance": ("overhead", provenance),
    "snapshots-table": ("snapshots", snapshots_table),
    "snapshots-provenance": ("snapshots", provenance),
    "faults-table": ("faults", faults.faults_table),
    "faults-persistent": ("faults", faults.faults_persistent),
    "faults-controls": ("faults", faults.faults_controls),
    "faults-losses": ("faults", faults.faults_losses),
    "faults-provenance": ("faults", provenance),
    "gpu-stress-table": ("gpu_stress", stress_table),
    "gpu-stress-provenance": ("gpu_stress", provenance),
    "gpu-overhead-table": ("gpu_overhead", overhead_table),
    "gpu-overhead-checks": ("gpu_overhead", overhead_checks),
    "gpu-overhead-provenance": ("gpu_overhead", provenance),
    "kernels-table": ("kernels", kernels_table),
    "kernels-predictions": ("kernels", kernels_predictions),
    "kernels-provenance": ("kernels", provenance),
    "stopping-table": ("stopping", stopping_table),
    "stopping-claims": ("stopping", stopping_claims),
    "stopping-told": ("stopping", stopping_told),
    "stopping-kinds": ("stopping", stopping_by_kind),
    "stopping-provenance": ("stopping", provenance),
    "stopping-live-table": ("stopping_live", live_table),
    "stopping-live-provenance": ("stopping_live", provenance),
    "curves-provenance": ("curves", provenance),
}
"""By name of the block: the result files it comes from, and what makes it of their documents."""


def render(text: str, results: Path) -> str:
    """Return a page with every block filled in.

    Args:
        text: Markdown with block markers.
        results: Folder of the result files.

    Raises:
        ValueError: If a block has an unknown name, or its result file is missing.
    """

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in BLOCKS:
            raise ValueError(f"block must be one of {', '.join(BLOCKS)}, got {name!r}")
        sources, make = BLOCKS[name]
        stores = [Store(results, source) for source in sources.split()]
        for store in stores:
            if not store.path.exists():
                raise ValueError(f"{store.path} must exist for block {name!r}; run the experiment")
        return f"{match['begin']}\n{make(*(store.read() for store in stores))}\n{match['end']}"

    pattern = r"(?P<begin><!-- begin (?P<name>[\w-]+) -->).*?(?P<end><!-- end (?P=name) -->)"
    return re.sub(pattern, fill, text, flags=re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--root", type=Path, default=ROOT, help="repository to write in")


def main(options: argparse.Namespace, command: str, console: Console) -> int:
    """Fill in the blocks of all pages.

    Args:
        options: Parsed options of ``add_arguments``.
        command: What the user typed.
        console: Where to print.

    Returns:
        Exit code 0.
    """
    for name in PAGES:
        page = options.root / name
        page.write_text(render(page.read_text("utf-8"), options.root / "results"), "utf-8")
        console.print(f"written: {page}")
    return 0

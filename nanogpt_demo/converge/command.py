"""The command ``converge``: a well-known data set, trained with and without RCA.

Everything but the digits is downloaded the first time. The digits take a minute and a half on one
core; of the others only stand-ins have been run here, and CIFAR-10 will take hours.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from nanogpt_demo import measures
from nanogpt_demo._checks import require_int
from nanogpt_demo.converge.datasets import Data, load
from nanogpt_demo.converge.train import FULL, TASKS, train
from nanogpt_demo.corpus import cache_folder
from nanogpt_demo.environment import commit, environment
from nanogpt_demo.markdown import markdown, plus_minus
from nanogpt_demo.store import Document, Store
from nanogpt_demo.stress import DEFAULT_OUT, joined, seeds

CONVERGE = "converge"  # name of the result file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add = parser.add_argument
    add("--dataset", default="digits", choices=TASKS, help="what to train on (default: digits)")
    add("--epochs", type=int, help="budget of a run (default: by data set)")
    add("--seeds", type=seeds, default=[1, 2, 3], help="as in 1,2 or 1-5 (default: 1-3)")
    add("--data", type=Path, help="folder of the data sets (default: that of the texts)")
    add("--out", type=Path, default=DEFAULT_OUT, help=f"folder (default: {DEFAULT_OUT})")
    add("--fresh", action="store_true", help="repeat these runs even where results exist")


def group_name(dataset: str, sha256: str, epochs: int) -> str:
    """Name a comparison: other samples of the same data set are another one."""
    return f"{dataset}.{sha256[:8]} of {epochs} epochs"


def run_key(group: str, method: str, seed: int) -> str:
    """Name a run."""
    return f"{group}, {method}, seed {seed}"


def group_of(record: Mapping[str, Any]) -> str:
    """Name of the comparison that a record belongs to."""
    return group_name(record["dataset"], record["data_sha256"], record["epochs"])


def key_of(record: Mapping[str, Any]) -> str:
    """Name of the run that a record is of."""
    return run_key(group_of(record), record["method"], record["seed"])


def main(options: argparse.Namespace, command: str, console: Console) -> int:
    """Do the runs that are missing, and print the comparison.

    Args:
        options: Parsed options of ``add_arguments``.
        command: What the user typed.
        console: Where to print.

    Returns:
        Exit code 0.

    Raises:
        ValueError: If an option is out of range, or the data cannot be had; nothing has been run.
    """
    task = TASKS[options.dataset]
    epochs = task.epochs if options.epochs is None else options.epochs
    require_int("epochs", epochs, 1, "give the number of passes through the training data")
    folder = cache_folder() if options.data is None else options.data
    store = Store(options.out, CONVERGE)
    known = set() if options.fresh else {key_of(r) for r in store.read()["records"]}
    data = load(
        options.dataset, folder, lambda line: console.print(line, markup=False, soft_wrap=True)
    )
    group = group_name(data.name, data.sha256, epochs)
    # Seed by seed, so that an interrupted comparison has all methods on its first seeds.
    wanted = [(method, seed) for seed in options.seeds for method in task.methods]
    missing = [
        (method, seed) for method, seed in wanted if run_key(group, method, seed) not in known
    ]
    if len(missing) < len(wanted):
        done = len(wanted) - len(missing)
        console.print(f"{done} of {len(wanted)} runs are in {store.path} already")
    _run(data, epochs, missing, store, command, console)
    document = store.read()
    # Not wrapped: the lines of a Markdown table have to stay whole.
    console.print(converge_table(document, group), markup=False, soft_wrap=True)
    if task.preset == "easy":
        console.print(f"the preset for {data.name}, easy, has the default's values")
    console.print(f"results: {store.path}")
    return 0


def _run(
    data: Data,
    epochs: int,
    runs: Sequence[tuple[str, int]],
    store: Store,
    command: str,
    console: Console,
) -> None:
    """Do runs one after the other, each with all of torch's threads; keep each when it is done."""
    text = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
    code = commit()
    with Progress(text[0], BarColumn(), MofNCompleteColumn(), text[1], console=console) as board:
        for method, seed in runs:
            line = board.add_task(f"{method}, seed {seed}", total=epochs, note="")
            record, trace = train(data, method, seed, epochs, _reporter(board, line))
            board.remove_task(line)
            _add(store, record | {"commit": code}, trace, command)


def _reporter(board: Progress, line: TaskID) -> Callable[[int, float], None]:
    return lambda epoch, loss: board.update(line, completed=epoch, note=f"val {loss:.3f}")


def _add(store: Store, record: dict[str, Any], trace: dict[str, Any], command: str) -> None:
    """Put one run into the result file, and bring its summary up to date."""
    key = key_of(record)

    def edit(document: Document) -> None:
        records = [r for r in document["records"] if key_of(r) != key] + [record]
        traces = document["traces"] | {key: trace}
        before = document.get("command")
        document.clear()
        document |= {
            "command": joined(before, command),
            "commit": record["commit"],
            "environment": environment(torch.get_num_threads()),
            "summary": summarise(records),
            "records": records,
            "traces": traces,
        }

    store.change(edit)


def summarise(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By comparison and method: means over the seeds, and the paired loss of accuracy.

    ``against_full`` is the accuracy that is kept minus that of the full budget on the same seeds,
    ``against_best`` minus that of the full budget's best epoch: what stopping costs, apart from
    what putting the best weights back brings.
    """
    summary: dict[str, Any] = {}
    for name in dict.fromkeys(map(group_of, records)):
        group = [r for r in records if group_of(r) == name]
        full = {r["seed"]: r for r in group if r["method"] == FULL}
        summary[name] = {
            method: _of_method([r for r in group if r["method"] == method], full)
            for method in dict.fromkeys(r["method"] for r in group)
        }
    return summary


def _of_method(ours: list[dict[str, Any]], full: dict[int, dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"n": len(ours), "seeds": sorted(r["seed"] for r in ours)}
    for field in ("epochs_run", "saved", "best_val_loss", "best_accuracy", "accuracy_at_best",
                  "kept_accuracy", "lr_reductions", "seconds"):  # fmt: skip
        values = [r[field] for r in ours if r[field] is not None]
        found[field] = measures.mean_se(values)[:2] if values else None
    pairs = [(r, full[r["seed"]]) for r in ours if r["seed"] in full and r["method"] != FULL]
    for name, field in (("against_full", "kept_accuracy"), ("against_best", "accuracy_at_best")):
        differences = [r["kept_accuracy"] - reference[field] for r, reference in pairs]
        found[name] = measures.mean_se(differences)[:2] if differences else None
    return found


def converge_table(document: Document, name: str) -> str:
    """One comparison as Markdown; accuracies in percent, mean ± standard error over the seeds.

    Args:
        document: Content of the result file.
        name: A key of its summary.
    """
    header = [
        name, "runs", "epochs", "saved", "best val loss", "best val accuracy, %",
        "test accuracy kept, %", "minus full budget", "minus its best epoch", "seconds",
    ]  # fmt: skip
    rows = [[method, str(n["n"]), *_cells(n)] for method, n in document["summary"][name].items()]
    return markdown(header, rows)


def _cells(n: dict[str, Any]) -> list[str]:
    loss = n["best_val_loss"]
    return [
        f"{n['epochs_run'][0]:.1f}",
        f"{100 * n['saved'][0]:.0f} %",
        "not finite" if loss is None else plus_minus(*loss),
        _percent(n["best_accuracy"]),
        _percent(n["kept_accuracy"]),
        _percent(n["against_full"], "+"),
        _percent(n["against_best"], "+"),
        f"{n['seconds'][0]:.1f}",
    ]


def _percent(pair: tuple[float, float | None] | None, sign: str = "") -> str:
    if pair is None:
        return "-"
    mean, se = pair
    return f"{100 * mean:{sign}.2f}" + ("" if se is None else f" ± {100 * se:.2f}")

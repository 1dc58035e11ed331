"""What the GPU kernels compile to, and the bytes that they move: known without a GPU.

Compiles all of them for four targets, about a minute on one core. Times are predicted from bytes,
and say so. No picture: a dozen numbers that should be zero or 128 are best seen in their table.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from nanogpt_demo.bench.cases import gpt2_shapes
from nanogpt_demo.environment import commit, environment
from nanogpt_demo.kernel_traffic import (
    DEVICES,
    ITEMSIZE,
    NOTE,
    PREDICTED,
    Record,
    Traffic,
    predictions,
    traffic,
)
from nanogpt_demo.markdown import markdown
from nanogpt_demo.store import Document, Store

RESULTS = Path("results")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: results)")


def compiled(known: dict[str, Traffic], console: Console) -> list[Record]:
    """What each kernel compiles to, for all targets."""
    from resilient_optim.kernels.offline import TARGETS, compile_for

    found: list[Record] = []
    for target in TARGETS:
        console.print(f"compiling for {target}", highlight=False)
        for made in compile_for(target):
            moves = known[made.kernel]
            found.append(
                {
                    "kind": "compiled",
                    **asdict(made),
                    "access_bits": made.access_bits,
                    "bytes_per_element": {name: moves.per_element(name) for name in ITEMSIZE},
                    "minimum_per_element": {
                        name: moves.passes * size for name, size in ITEMSIZE.items()
                    },
                    "bytes_per_tensor": moves.tensor,
                    "bytes_per_launch": moves.fixed,
                }
            )
    return found


def summarise(records: list[Record]) -> dict[str, Any]:
    """What is wrong with any kernel, and what the predictions rest on."""
    made = [record for record in records if record["kind"] == "compiled"]
    numels = [math.prod(shape) for shape in gpt2_shapes()]
    return {
        "spilling": [_name(r) for r in made if r["spills"] or r["stack"]],
        "narrow": [_name(r) for r in made if r["access"] and r["access_bits"] < 128],
        "gradients": {"name": "GPT-2 124M", "tensors": len(numels), "elements": sum(numels)},
        "devices": {name: device._asdict() for name, device in DEVICES.items()},
        "note": NOTE,
    }


def _name(record: Record) -> str:
    return f"{record['kernel']} on {record['target']}"


def main(options: argparse.Namespace, command: str, console: Console) -> int:
    """Compile, count, predict.

    Args:
        options: Parsed options of ``add_arguments``.
        command: What the user typed.
        console: Where to print.

    Returns:
        Exit code: 0, or 1 if a kernel spills or does not move 128 bits at a time.

    Raises:
        ValueError: If Triton is missing, or a tool that comes with it.
    """
    try:
        known = traffic()
        records = [*compiled(known, console), *predictions(known)]
    except (ImportError, FileNotFoundError) as error:
        raise ValueError(
            f"triton must be installed whole to compile its kernels, got {error!r}; "
            "pip install resilient-optim[triton], on Linux"
        ) from error
    store = Store(options.out, "kernels")
    document = store.change(lambda document: _fill(document, command, records))
    for table in (kernels_table, kernels_predictions):
        console.print(table(document), markup=False, highlight=False)
    console.print(f"results: {store.path}")
    return 1 if document["summary"]["spilling"] or document["summary"]["narrow"] else 0


def _fill(document: Document, command: str, records: list[Record]) -> None:
    document.clear()
    document |= {
        "command": command,
        "commit": commit(),
        "environment": {"triton": version("triton")} | environment(1),
        "records": records,
        "summary": summarise(records),
        "traces": {},  # every result file has them
    }


# -- the tables of the front page --------------------------------------------------------------


def kernels_table(document: Document) -> str:
    """What came out of the compiler, a row for each kernel, as Markdown."""
    made = [record for record in document["records"] if record["kind"] == "compiled"]
    targets = list(dict.fromkeys(record["target"] for record in made))
    header = ["kernel", *(f"registers, {target}" for target in targets)]
    header += ["spills", "stack", "main loops", "bytes per element (fp32, bf16)"]
    rows = []
    for kernel in dict.fromkeys(record["kernel"] for record in made):
        of = {record["target"]: record for record in made if record["kernel"] == kernel}
        narrowest = min((r["access_bits"] for r in of.values() if r["access"]), default=None)
        moved = [next(iter(of.values()))["bytes_per_element"][dtype] for dtype in PREDICTED]
        rows.append(
            [
                kernel,
                *(_registers(of[target]) for target in targets),
                str(sum(record["spills"] for record in of.values())),
                f"{max(record['stack'] for record in of.values())} bytes",
                "-" if narrowest is None else f"{narrowest} bits",
                ", ".join(f"{size:.3f}" for size in moved),
            ]
        )
    return markdown(header, rows)


def _registers(record: Record) -> str:
    scalar = record["scalar_spills"]
    return f"{record['registers']}" + (f" ({scalar} scalars in lanes)" if scalar else "")


def kernels_predictions(document: Document) -> str:
    """The time that memory alone takes for the gradients of GPT-2, as Markdown."""
    devices, gradients = document["summary"]["devices"], document["summary"]["gradients"]
    made = [record for record in document["records"] if record["kind"] == "prediction"]
    times = {(r["operation"], r["dtype"], r["device"]): r for r in made}
    rows = []
    for operation, dtype in dict.fromkeys((r["operation"], r["dtype"]) for r in made):
        found = [times[operation, dtype, device] for device in devices]
        size, least = found[0]["bytes"], found[0]["minimum_bytes"]
        more = f" (minimum + {100 * (size / least - 1):.2f} %)" if least else ""
        rows.append([operation, dtype, f"{size / 1e6:.2f}{more}", *map(_predicted, found)])
    header = ["operation", "gradients", "MB", *(f"{device}, predicted ms" for device in devices)]
    sources = "; ".join(device["source"] for device in devices.values())
    what = f"{gradients['name']}: {gradients['tensors']} tensors, {gradients['elements']} elements"
    left_out = "Launches, and the arithmetic of the noise, are not in it."
    return (
        f"{what}; {document['summary']['note']} ({sources}). {left_out}\n\n{markdown(header, rows)}"
    )


def _predicted(record: Record) -> str:
    return "latency" if record["predicted_ms"] is None else f"{record['predicted_ms']:.4f}"

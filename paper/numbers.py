"""Every measured number of the paper's prose, by name, made from the result files alone.

Where the prose says more than a number ("in no cell", "no better than"), the words are checked in
the modules that this one puts together, too: `require` stops the build when the results no longer
say so.
"""

from __future__ import annotations

from nanogpt_demo.provenance import core_seconds
from paper.common import Documents, Numbers
from paper.numbers_cost import cost
from paper.numbers_faults import faults
from paper.numbers_gpu import on_gpu
from paper.numbers_stopping import stopping, stopping_live
from paper.numbers_stress import stress
from paper.numbers_suite import detectors, ideas, suite

FILES = (
    "stress", "suite", "ideas", "detectors", "faults", "stopping", "stopping_live", "curves",
    "overhead", "snapshots", "gpu_overhead", "gpu_stress",
)  # fmt: skip
"""The result files that the paper is made from."""


def numbers(documents: Documents) -> Numbers:
    """All measured numbers, by the names that ``paper.typ`` uses.

    Args:
        documents: the contents of `FILES`, by name.

    Raises:
        ValueError: If the results do not support the paper's words any more.
    """
    on_cpu = [document for name, document in documents.items() if not name.startswith("gpu")]
    parts = (
        stress(documents["stress"]),
        suite(documents["suite"]),
        ideas(documents["ideas"]),
        detectors(documents["detectors"]),
        faults(documents["faults"]),
        stopping(documents["stopping"]),
        stopping_live(documents["stopping_live"]),
        cost(documents["overhead"], documents["snapshots"]),
        on_gpu(documents["gpu_overhead"], documents["gpu_stress"]),
        {"results-hours": f"{sum(map(core_seconds, on_cpu)) / 3600:.0f}"},
    )
    return {name: text for part in parts for name, text in part.items()}

"""Builds ``paper/paper.pdf`` from the prose and the result files: ``python -m paper.build``.

The PDF carries a fingerprint of all that went into it, so that a test can tell whether it is that
of the results beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import typst

from nanogpt_demo.plots import stress_picture
from nanogpt_demo.stopping.picture import stopping_picture
from nanogpt_demo.store import Document, Store
from nanogpt_demo.suite.picture import suite_picture
from paper.common import Documents
from paper.numbers import FILES, numbers
from paper.numbers_stress import comparisons
from paper.settings import settings
from paper.tables import tables

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
SOURCES = ("paper.typ", "style.typ", "references.bib")


def read(results: Path) -> Documents:
    """The result files that the paper is made from.

    Raises:
        ValueError: If one is missing.
    """
    stores = {name: Store(results, name) for name in FILES}
    for store in stores.values():
        if not store.path.exists():
            raise ValueError(f"{store.path} must exist for the paper; run `make results`")
    return {name: store.read() for name, store in stores.items()}


def data_of(documents: Documents) -> dict[str, Any]:
    """All that the prose can refer to, with the fingerprint of it and of the prose."""
    data: dict[str, Any] = {
        "numbers": settings() | numbers(documents),
        "tables": tables(documents),
    }
    prose = [(HERE / name).read_text("utf-8") for name in SOURCES]
    inputs = json.dumps([data, prose], ensure_ascii=False, sort_keys=True)
    return data | {"fingerprint": hashlib.sha256(inputs.encode()).hexdigest()}


def only(document: Document, name: str) -> Document:
    """The part of the stress test's document that belongs to one comparison."""
    settings = {
        key: value for key, value in document["summary"][name].items()
        if key in ("size", "shift_at", "lr", "corpus", "shift")
    }  # fmt: skip
    records = [r for r in document["records"] if settings.items() <= r.items()]
    return document | {"records": records, "summary": {name: document["summary"][name]}}


def draw(documents: Documents, folder: Path) -> None:
    """Draw the figures as SVG, the same to the byte for the same results."""
    stress = documents["stress"]
    with matplotlib.rc_context({"svg.hashsalt": "resilient_optim", "svg.fonttype": "path"}):
        stress_picture(only(stress, comparisons(stress)["large"]), folder / "stress.svg")
        suite_picture(documents["suite"], folder / "suite.svg", profile=False)
        stopping_picture(documents["stopping"], folder / "stopping.svg")


def build(documents: Documents, out: Path) -> int:
    """Write the PDF.

    Args:
        documents: the contents of the result files, by name.
        out: the file to write.

    Returns:
        Its number of pages.

    Raises:
        ValueError: If the results do not support the paper's words any more.
        typst.TypstError: If the prose refers to what does not exist.
    """
    data = data_of(documents)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for source in SOURCES:
            shutil.copy(HERE / source, folder)
        (folder / "data.json").write_text(json.dumps(data, ensure_ascii=False), "utf-8")
        (folder / "figures").mkdir()
        draw(documents, folder / "figures")
        main = folder / "paper.typ"
        typst.compile(main, output=out, root=folder, ignore_system_fonts=True)
        pages = json.loads(typst.query(main, "<pages>", field="value", one=True, root=folder))
    return int(pages)


def main() -> None:
    """Build the paper from the committed results."""
    parser = argparse.ArgumentParser(prog="python -m paper.build", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--out", type=Path, default=HERE / "paper.pdf", help="the file to write")
    options = parser.parse_args()
    build(read(options.results), options.out)


if __name__ == "__main__":
    main()

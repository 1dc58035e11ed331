"""The report of a run from its event log: a picture, and a web page that holds it all.

```python
from resilient_optim import report

report.plot("events.jsonl", "run.png")
report.html("events.jsonl", "run.html")  # or: python -m resilient_optim report events.jsonl
```
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from .decision import APPLY
from .report_picture import draw, headline
from .report_run import Events, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["html", "plot", "write"]

ROWS = 200
"""Events listed on a page; the log holds the others."""

DPI = 110

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1b1b1b; --line: #d0d0d0; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #181a1b; --ink: #e4e4e4; --line: #45494b; }
}
body { background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
img { width: 100%; height: auto; background: #ffffff; border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: 0.2rem 1rem 0.2rem 0; text-align: left;
  vertical-align: top; }
td.number { text-align: right; }
pre { white-space: pre-wrap; border-left: 4px solid #d55e00; padding-left: 1rem; }
</style>
</head>
<body>
<h1>$title</h1>
$diagnosis
<img alt="$headline" src="$picture">
<h2>Counts of steps</h2>
<p>A step may count in several rows; those of the start-up count, too.</p>
$counters
<h2>Events</h2>
$events
$header
</body>
</html>
""")


def plot(run: Events, path: str | os.PathLike[str] | None = None) -> Figure:
    """The picture of a run: its loss, what ARS did, the gradient norm, and what RCA made of it.

    Args:
        run: the path of an event log, or its events in order.
        path: where to save the picture, in the format of its ending; None: nowhere.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the log cannot be read, or the picture not be written.
        ValueError: the log is broken, see `read_events`.
        TypeError: `run` holds something that is no event.
    """
    figure = draw(Run(run))
    if path is not None:
        figure.savefig(path, dpi=DPI)
    return figure


def html(run: Events, path: str | os.PathLike[str]) -> None:
    """A web page of a run that needs nothing but itself: picture, counts, events, diagnosis.

    The diagnosis is the field `diagnosis` of the latest event that has one.

    Args:
        run: the path of an event log, or its events in order.
        path: the page to write.

    Raises:
        ImportError, OSError, ValueError, TypeError: as `plot`.
    """
    name = Path(run).name if isinstance(run, (str, os.PathLike)) else "run"
    known = Run(run)
    Path(path).write_text(_page(name, known, _png(draw(known))), encoding="utf-8")


def write(log: str | os.PathLike[str], folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write the picture and the page of an event log, named as it is.

    Args:
        log: the path of the log.
        folder: where to write; made if it is missing.

    Returns:
        The paths of the picture (PNG) and of the page (HTML).

    Raises:
        ImportError, OSError, ValueError: as `plot`.
    """
    log, folder = Path(log), Path(folder)
    run = Run(log)
    png = _png(draw(run))
    folder.mkdir(parents=True, exist_ok=True)
    picture, page = folder / f"{log.stem}.png", folder / f"{log.stem}.html"
    picture.write_bytes(png)
    page.write_text(_page(log.name, run, png), encoding="utf-8")
    return picture, page


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def _page(name: str, run: Run, png: bytes) -> str:
    return PAGE.substitute(
        title=escape(f"Report of {name}"),
        headline=escape(headline(run)),
        diagnosis=_diagnosis(run),
        picture="data:image/png;base64," + base64.b64encode(png).decode(),
        counters=_table(("", ""), run.counters().items()),
        events=_events(run),
        header=_header(run.header),
    )


def _diagnosis(run: Run) -> str:
    event = run.given_up()
    if event is None:
        return ""
    last = run.events[-1]["step"]
    after = f"<p>The run went on all the same, to step {last}.</p>\n"
    block = _block(str(event["diagnosis"]))
    return f"<h2>Diagnosis</h2>\n{after if last != event['step'] else ''}{block}"


def _events(run: Run) -> str:
    """The first of the steps that were not quiet, and how many there are."""
    # The gate's opening at the start of every run is no news.
    listed = [
        event
        for event, kind in zip(run.events, run.kinds, strict=True)
        if kind not in ("quiet", "start-up")
    ]
    if not listed:
        return "<p>None: every step after the start-up was the bare optimizer's.</p>"
    rows = [
        (event["step"], event["loss"], event.get("grad_norm"), _action(event), event.get("reason"))
        for event in listed[:ROWS]
    ]
    text = f"The first {len(rows)} of {len(listed)}." if len(listed) > len(rows) else ""
    heads = ("step", "loss", "gradient norm", "action", "reason")
    return f"<p>{text} Steps of the start-up are left out.</p>\n{_table(heads, rows)}"


def _action(event: dict[str, Any]) -> str:
    back = event.get("rolled_back_to")
    action = str(event.get("action", APPLY))
    return action if back is None else f"{action} to step {back}"


def _header(header: dict[str, Any]) -> str:
    if not header:
        return ""
    text = json.dumps(header, indent=1, default=str)
    return f"<h2>Settings</h2>\n<details><summary>as logged</summary>\n{_block(text)}</details>"


def _block(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def _table(heads: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = ['<div class="wide"><table>']
    if any(heads):
        lines.append("<tr>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>")
    for row in rows:
        lines.append("<tr>" + "".join(_cell(value) for value in row) + "</tr>")
    return "\n".join([*lines, "</table></div>"])


def _cell(value: Any) -> str:
    if isinstance(value, (int, float)):
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        return f'<td class="number">{text}</td>'
    return f"<td>{'' if value is None else escape(str(value))}</td>"

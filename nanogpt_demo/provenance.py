"""Where a result file comes from, in words: command, code, machine, and what it took."""

from __future__ import annotations

from nanogpt_demo.store import Document


def commits(document: Document) -> str:
    """The code that made the records, each commit once."""
    found = {str(record.get("commit", document["commit"])) for record in document["records"]}
    return ", ".join(sorted(found))


def core_seconds(document: Document) -> float:
    """Time of all runs that kept theirs, on as many cores as one of them uses."""
    threads = int(document.get("environment", {}).get("threads", 1))
    return threads * sum(float(record.get("seconds", 0.0)) for record in document["records"])


def amount(document: Document) -> str:
    """How many runs there are, and their time if each record is a run of its own."""
    records = document["records"]
    if any("seconds" not in record for record in records):
        return f"{len(records)} records"
    return f"{len(records)} runs, {core_seconds(document) / 3600:.1f} core-hours"


def machine(document: Document) -> str:
    """What it ran on, in short: the processor or the device, and torch."""
    environment = document["environment"]
    device = environment.get("device", "cpu")
    return f"{environment['cpu'] if device == 'cpu' else device}, torch {environment['torch']}"


def provenance(document: Document) -> str:
    """Everything that is known of where a file comes from, as Markdown."""
    commands = document["command"].replace(" && ", "\n")
    details = ", ".join(f"{key} {value}" for key, value in document["environment"].items())
    size = f"{amount(document)}, code at commit {commits(document)}"
    return f"```\n{commands}\n```\n\n{size} ({details})."

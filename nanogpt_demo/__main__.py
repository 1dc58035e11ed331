"""Command line: ``python -m nanogpt_demo [stress] [options]``; ``--help`` lists them.

Without a command it runs the stress test at its quick size: about three minutes on two cores.
"""

from __future__ import annotations

import argparse
import shlex
import sys

from rich.console import Console

from nanogpt_demo import detectors, kernel_report, readme, results_run, snapshot_cost, stress
from nanogpt_demo.bench import command as bench
from nanogpt_demo.converge import command as converge
from nanogpt_demo.faults import command as faults
from nanogpt_demo.stopping import command as stopping
from nanogpt_demo.suite import command as suite

# name: (module with add_arguments and main, one line of help)
COMMANDS = {
    "stress": (stress, "reverse the text in mid-run and compare the methods"),
    "suite": (suite, "compare ARS with its peers over many small runs, sick and healthy"),
    "faults": (faults, "break runs on purpose and see who survives: bare, arc-training, ARS"),
    "detectors": (detectors, "measure power and false alarms of the loss detectors"),
    "bench": (bench, "measure what a step costs, about 25 minutes on two idle cores"),
    "snapshots": (snapshot_cost, "measure what snapshots cost, about 7 minutes on two idle cores"),
    "kernels": (kernel_report, "compile the GPU kernels without a GPU, and say what came out"),
    "stopping": (stopping, "record learning curves and replay stopping rules on them"),
    "converge": (converge, "train on a well-known data set with and without RCA"),
    "results": (results_run, "run all experiments in order; --list says how long they take"),
    "readme": (readme, "bring the tables of the pages up to date with results/"),
}
DEFAULT = "stress"


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    made = argparse.ArgumentParser(prog="python -m nanogpt_demo", description=__doc__)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=text, description=text))
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words after the program's name; the command may be left out.

    Returns:
        Exit code: 0, 1 if a run failed, 2 for bad arguments, 130 if interrupted.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] not in (*COMMANDS, "-h", "--help"):
        words = [DEFAULT, *words]
    options = parser().parse_args(words)
    command = f"python -m nanogpt_demo {shlex.join(words)}"
    console = Console()
    try:
        code: int = COMMANDS[options.command][0].main(options, command, console)
        return code
    except (TypeError, ValueError) as error:
        Console(stderr=True).print(f"[red]error:[/] {error}", highlight=False)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here")
        return 130


if __name__ == "__main__":
    sys.exit(main())

"""Compiles every Triton kernel for a named GPU, without having one, and says what came out.

What is read is the machine code that would run: the sections that NVIDIA's tools print of a cubin,
and the assembly and its metadata that LLVM prints for AMD. For development: nothing imports this.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import gate, guard, norm
from .launch import OPTIONS

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),  # A100
    "sm_90": GPUTarget("cuda", 90, 32),  # H100
    "sm_100": GPUTarget("cuda", 100, 32),  # B200
    "gfx942": GPUTarget("hip", "gfx942", 64),  # MI300X
}
"""What Triton is told, by the name that the vendors give the instruction set."""

Source = tuple[Any, Mapping[str, str], Mapping[str, Any], Mapping[Any, Any]]
"""Function, signature, constants and attributes: what `signatures` of a kernel's module gives."""

Frame = tuple[str, int]
"""File and line."""


@dataclass(frozen=True)
class Compiled:
    """A kernel as compiled for a target.

    Attributes:
        kernel: its name in `sources`.
        target: a key of `TARGETS`.
        registers: of a thread.
        spills: to memory: accesses to it on NVIDIA, vector registers on AMD.
        scalar_spills: scalar registers that AMD keeps in lanes of vector registers, out of memory
            as long as there is no stack.
        stack: bytes of memory of a thread's own; spilling needs it, and so do indexed arrays.
        shared: bytes of shared memory of a program.
        access: by type of the gradients, bits of the narrowest "load" and "store" in their main
            loops; empty for kernels that do not look at gradients.
    """

    kernel: str
    target: str
    registers: int
    spills: int
    scalar_spills: int
    stack: int
    shared: int
    access: dict[str, dict[str, int]]

    @property
    def access_bits(self) -> int | None:
        """The narrowest access of all main loops; None without any."""
        widths = [bits for kinds in self.access.values() for bits in kinds.values()]
        return min(widths, default=None)


class Access(NamedTuple):
    """An instruction that reads or writes global memory.

    Attributes:
        kind: "load" or "store".
        bits: how many each thread moves.
        frames: where in the source it comes from, through all inlined calls, innermost first.
    """

    kind: str
    bits: int
    frames: list[Frame]


def sources(target: str) -> dict[str, tuple[Source, dict[str, Any]]]:
    """What to compile for a target, and the options to do it with, by kernel."""
    lanes = OPTIONS["num_warps"] * TARGETS[target].warp_size
    made = norm.signatures(lanes) | gate.signatures(lanes) | guard.signatures()
    # The options say whether to fuse: left open, Triton warns that its default will change.
    return {name: (source, OPTIONS) for name, source in made.items()}


def compile_for(target: str) -> list[Compiled]:
    """Compile all kernels; some ten seconds, or none if Triton's cache has them.

    Args:
        target: a key of `TARGETS`.

    Raises:
        ValueError: if the target is unknown.
        FileNotFoundError: if a tool is missing that comes with Triton.
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    return [compile_one(name, target, *what) for name, what in sources(target).items()]


def compile_one(name: str, target: str, source: Source, options: Mapping[str, Any]) -> Compiled:
    """Compile one kernel.

    Args:
        name: what to call it.
        target: a key of `TARGETS`.
        source: function, signature, constants and attributes.
        options: of the compiler.
    """
    made = triton.compile(ASTSource(*source), target=TARGETS[target], options=dict(options))
    read = _read_nvidia if "cubin" in made.asm else _read_amd
    resources, accesses = read(made.asm)
    # Triton's own number: it asks for shared memory at launch, so that the binary has none.
    shared = made.metadata.shared
    access = main_loops(accesses, Path(inspect.getfile(source[0].fn)))
    return Compiled(name, target, **resources, shared=shared, access=access)


def main_loops(accesses: list[Access], path: Path) -> dict[str, dict[str, int]]:
    """The narrowest load and store in the main loops of each type, in bits.

    Machine code knows no types, but each instruction knows its line and the calls that led to it.
    Kernels pass the type in the outermost call, a branch of the kernel itself, as `tl.float32`
    etc., and what may be accessed 16 bytes at a time, the main loops, by a pointer `hinted`. They
    access gradients themselves; what Triton's library does for them, such as looking up the table
    with which large arguments of a cosine are reduced, has its innermost line elsewhere.

    Args:
        accesses: of a kernel.
        path: file of the kernel. Only its name is compared: a kernel in Triton's cache may have
            been compiled elsewhere.
    """
    passed = _arguments(path)
    found: dict[str, dict[str, int]] = {}
    for kind, bits, frames in accesses:
        arguments = [passed.get(line, set()) for name, line in frames if name == path.name]
        if frames[0][0] == path.name and any("hinted" in names for names in arguments):
            (dtype,) = (name for name in arguments[-1] if name.startswith("tl."))
            widths = found.setdefault(dtype.removeprefix("tl."), {})
            widths[kind] = min(bits, widths.get(kind, bits))
    return found


def _arguments(path: Path) -> dict[int, set[str]]:
    """The arguments of all calls of a source file, by the line on which the call begins."""
    found: dict[int, set[str]] = {}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            found.setdefault(node.lineno, set()).update(map(ast.unparse, node.args))
    return found


# -- NVIDIA ------------------------------------------------------------------------------------


def _read_nvidia(asm: Mapping[str, Any]) -> tuple[dict[str, int], list[Access]]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(asm["cubin"])
        usage = _run("cuobjdump", "--dump-resource-usage", cubin)
        # Not PTX, although that has the widths as well: the assembler has the last word.
        sass = _run("nvdisasm", "--print-line-info-inline", cubin)
    return nvidia_resources(usage, sass), list(nvidia_accesses(sass))


def _run(tool: str, *arguments: str | Path) -> str:
    """What a tool prints that comes with Triton."""
    try:
        path = getattr(triton.knobs.nvidia, tool).path
    except RuntimeError as error:
        raise FileNotFoundError(
            f"{tool} must be there to read NVIDIA binaries, but triton {triton.__version__} came "
            f"without it ({error}); set TRITON_{tool.upper()}_PATH to one"
        ) from error
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def nvidia_resources(usage: str, sass: str) -> dict[str, int]:
    """Registers, spills and stack.

    Args:
        usage: what `cuobjdump --dump-resource-usage` prints of a binary with one kernel.
        sass: what `nvdisasm` prints of it.
    """
    numbers = {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", usage)}
    return {
        "registers": numbers["REG"],
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "scalar_spills": 0,
        "stack": numbers["STACK"] + numbers["LOCAL"],
    }


def nvidia_accesses(sass: str) -> Iterator[Access]:
    """All accesses to global memory in what `nvdisasm --print-line-info-inline` prints."""
    frames: list[Frame] = []
    in_code = True
    for line in sass.splitlines():
        if place := re.search(r'//## File "(?:[^"]*/)?([^"/]+)", line (\d+)', line):
            frames = [] if in_code else frames  # a comment for each call, then the code
            frames.append((place[1], int(place[2])))
        elif access := re.search(r"\b(LD|ST)G?((?:\.\w+)*)\s", line):
            width = re.search(r"\.[US]?(8|16|64|128|256)\b", access[2])
            kind = "load" if access[1] == "LD" else "store"
            yield Access(kind, int(width[1]) if width else 32, frames)
        in_code = place is None


# -- AMD ---------------------------------------------------------------------------------------


def _read_amd(asm: Mapping[str, Any]) -> tuple[dict[str, int], list[Access]]:
    return amd_resources(asm["amdgcn"]), list(amd_accesses(asm["amdgcn"]))


def amd_resources(assembly: str) -> dict[str, int]:
    """Registers, spills and stack, from the metadata that LLVM appends to the assembly."""

    def number(name: str) -> int:
        (found,) = re.findall(rf"^\s+(?:- )?\.{name}:\s+(\d+)$", assembly, re.MULTILINE)
        return int(found)

    return {
        "registers": number("vgpr_count") + number("agpr_count"),
        "spills": number("vgpr_spill_count"),
        "scalar_spills": number("sgpr_spill_count"),
        "stack": number("private_segment_fixed_size"),
    }


AMD_BITS = {"byte": 8, "short": 16, "dword": 32, "dwordx2": 64, "dwordx3": 96, "dwordx4": 128}


def amd_accesses(assembly: str) -> Iterator[Access]:
    """All accesses to global memory in AMD assembly with line information."""
    frames: list[Frame] = []
    pattern = r"^\s+(?:global|buffer|flat)_(load|store)_[us]?(byte|short|dword(?:x\d)?)"
    for line in assembly.splitlines():
        if line.lstrip().startswith(".loc"):
            frames = [(name, int(at)) for name, at in re.findall(r"([^\s/:]+):(\d+):\d+", line)]
        elif access := re.match(pattern, line):
            yield Access(access[1], AMD_BITS[access[2]], frames)

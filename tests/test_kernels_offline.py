"""The Triton kernels compiled without a GPU: nothing spills, main loops move 16 bytes at a time."""

import argparse
import importlib
import importlib.util
import io
import json
import pkgutil
from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("triton", reason="kernels cannot be compiled without triton")

from nanogpt_demo import kernel_report
from nanogpt_demo.kernel_traffic import Traffic, predictions, traffic
from resilient_optim import kernels
from resilient_optim.kernels import norm, offline
from resilient_optim.kernels.launch import OPTIONS
from resilient_optim.kernels.offline import Access, Compiled, compile_one, sources
from resilient_optim.kernels.table import BLOCK

DTYPES = ("float32", "bfloat16", "float16", "float64")
KERNELS = {"norm_block", "norm_tensor", "gate", "guard"}
every_target = pytest.mark.parametrize("target", offline.TARGETS)
reads_its_tools = pytest.mark.skipif(
    tuple(map(int, offline.triton.__version__.split(".")[:2])) < (3, 9),
    reason="the report reads what the tools of the Triton print that development pins",
)


# -- what is shipped --------------------------------------------------------------------------


@reads_its_tools
@every_target
def test_kernels_keep_their_registers_and_their_wide_accesses(target):
    made = {one.kernel: one for one in offline.compile_for(target)}
    assert made.keys() == KERNELS, "a new kernel is named in KERNELS, with its accesses below"
    for one in made.values():
        assert (one.spills, one.stack) == (0, 0), one
        assert 0 < one.registers <= 128, one
    assert made["norm_block"].access == {dtype: {"load": 128} for dtype in DTYPES}
    assert made["gate"].access == {dtype: {"load": 128, "store": 128} for dtype in DTYPES}
    assert made["norm_tensor"].access == made["guard"].access == {}


def test_all_kernels_are_compiled():
    names = (f"{kernels.__name__}.{found.name}" for found in pkgutil.iter_modules(kernels.__path__))
    modules = [importlib.import_module(name) for name in names]
    declared = {kernel for m in modules if hasattr(m, "signatures") for kernel in m.signatures()}
    assert sources("sm_80").keys() == declared, "add the module's signatures to offline.sources"


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match="target must be one of sm_80, .*, got 'sm_1'"):
        offline.compile_for("sm_1")


# -- the report would notice ------------------------------------------------------------------

POINTER = "memory.to(tl.pointer_type(DTYPE))"


def changed_norm(folder, old, new):
    """The norm kernel's source with a change, ready to compile."""
    text = Path(norm.__file__).read_text("utf-8")
    assert text.count(old) == 1
    text = text.replace(old, new).replace("from .", "from resilient_optim.kernels.")
    path = folder / "changed.py"
    path.write_text(text, "utf-8")
    spec = importlib.util.spec_from_file_location("changed", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@reads_its_tools
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
@pytest.mark.parametrize(
    ("old", "new"),
    [(f"tl.multiple_of({POINTER}, 16)", POINTER), ("count // 8 * 8", "count")],
    ids=["pointer without its hint", "length of any number"],
)
def test_a_lost_hint_is_seen(tmp_path, target, old, new):
    lanes = 256 if target == "gfx942" else 128
    source = changed_norm(tmp_path, old, new).signatures(lanes)["norm_block"]
    access = compile_one("changed", target, source, OPTIONS).access
    assert access == {
        dtype: {"load": bits} for dtype, bits in zip(DTYPES, [32, 16, 16, 64], strict=True)
    }


@pytest.mark.parametrize(
    ("target", "kernel", "options"),
    [("sm_90", "norm_block", {"maxnreg": 24}), ("gfx942", "norm_tensor", {"waves_per_eu": 8})],
)
def test_spilling_is_seen(target, kernel, options):
    source, usual = sources(target)[kernel]
    made = compile_one(kernel, target, source, usual | options)
    assert made.spills > 0 and made.stack > 0


def test_a_missing_tool_is_named(monkeypatch):
    monkeypatch.setenv("TRITON_CUOBJDUMP_PATH", "/nowhere")
    tool = vars(type(offline.triton.knobs.nvidia))["cuobjdump"]
    monkeypatch.setattr(tool, "default_path", "/nowhere")
    with pytest.raises(FileNotFoundError, match="cuobjdump must be there"):
        offline.compile_for("sm_80")


# -- reading: samples as the tools print them ---------------------------------------------------

USAGE = """
Resource usage:
 Common:
  GLOBAL:52 CONSTANT[4]:24
 Function _gate_kernel:
  REG:53 STACK:16 SHARED:1024 LOCAL:8 CONSTANT[0]:624 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
SASS = """
\t//## File "/a/kernels/norm.py", line 161 inlined at "/a/kernels/norm.py", line 137
\t//## File "/a/kernels/norm.py", line 137 inlined at "/a/kernels/norm.py", line 122
\t//## File "/a/kernels/norm.py", line 122
        /*04b0*/              @!P0 LDG.E.128 R4, desc[UR16][R16.64] ;
        /*04c0*/                   LDG.E.U16.CONSTANT R8, desc[UR16][R16.64+0x800] ;
\t//## File "/b/triton/language/random.py", line 187 inlined at "/a/kernels/gate.py", line 168
\t//## File "/a/kernels/gate.py", line 168
        /*04d0*/                   STL [R1+0x4], R2 ;
        /*04e0*/                   LDG.E R2, desc[UR8][R2.64] ;
        /*04f0*/                   LDL R2, [R1+0x4] ;
        /*0500*/              @!P4 STG.E.64 desc[UR8][R30.64+0x800], R8 ;
        /*0510*/                   LDS.128 R4, [R7] ;
"""
AMDGCN = """
	.loc	1 160 36 is_stmt 0              ; gate.py:160:36 @[ gate.py:130:9 @[ gate.py:100:13 ] ]
	v_lshl_add_u64 v[6:7], v[6:7], 1, s[28:29]
	global_load_dwordx4 v[28:31], v[6:7], off
	.loc	1 68 0 prologue_end             ; gate.py:68:0
	s_load_dwordx2 s[2:3], s[0:1], 0x0
	buffer_load_dword v1, v2, s[4:7], 0 offen
	global_load_ushort v1, v[6:7], off
	global_store_short_d16_hi v[8:9], v4, off
	ds_read_b64 v[32:33], v4
  - .agpr_count:     2
    .private_segment_fixed_size: 36
    .sgpr_spill_count: 4
    .vgpr_count:     72
    .vgpr_spill_count: 3
"""


def test_reading_what_nvidias_tools_print():
    found = {"registers": 53, "spills": 2, "scalar_spills": 0, "stack": 24}
    assert offline.nvidia_resources(USAGE, SASS) == found
    loop = [("norm.py", 161), ("norm.py", 137), ("norm.py", 122)]
    library = [("random.py", 187), ("gate.py", 168)]
    assert list(offline.nvidia_accesses(SASS)) == [
        Access("load", 128, loop),
        Access("load", 16, loop),
        Access("load", 32, library),
        Access("store", 64, library),
    ]


def test_reading_amd_assembly():
    found = {"registers": 74, "spills": 3, "scalar_spills": 4, "stack": 36}
    assert offline.amd_resources(AMDGCN) == found
    assert list(offline.amd_accesses(AMDGCN)) == [
        Access("load", 128, [("gate.py", 160), ("gate.py", 130), ("gate.py", 100)]),
        Access("load", 32, [("gate.py", 68)]),
        Access("load", 16, [("gate.py", 68)]),
        Access("store", 16, [("gate.py", 68)]),
    ]


def test_the_narrowest_access_of_the_main_loops_counts(tmp_path):
    path = tmp_path / "kernel.py"
    path.write_text("branch(\n    memory, tl.float16)\nspan(hinted, 0)\nspan(plain, 0)\nload(x)\n")
    main, tail = [("kernel.py", 3), ("kernel.py", 1)], [("kernel.py", 4), ("kernel.py", 1)]
    accesses = [
        Access("load", 128, [("kernel.py", 5), *main]),
        Access("load", 64, [("kernel.py", 5), *main]),
        Access("load", 16, [("kernel.py", 5), *tail]),
        Access("store", 128, [("kernel.py", 5), *main]),
        Access("load", 32, [("random.py", 5), *main]),
    ]
    access = offline.main_loops(accesses, path)
    assert access == {"float16": {"load": 64, "store": 128}}
    assert Compiled("k", "t", 1, 0, 0, 0, 0, access).access_bits == 64


# -- bytes and the command --------------------------------------------------------------------


def test_traffic_by_hand():
    known = traffic()
    # Address and length of the tensor, type, tensor of the block, its start; then sum and flag, or
    # both factors and the step.
    assert known["norm_block"] == Traffic(1, block=8 + 8 + 4 + 4 + 8 + 8 + 4)
    assert known["gate"] == Traffic(2, block=8 + 8 + 4 + 4 + 8 + 4 + 4 + 8)
    assert known["norm_tensor"] == Traffic(0, block=12, tensor=28)
    assert known["guard"].tensor == 32 and known["guard"].passes == 0
    assert Traffic(2, 10, 100, 1000).moved([BLOCK + 1, 5], "bfloat16") == (
        4 * (BLOCK + 6) + 10 * 3 + 100 * 2 + 1000
    )


def test_predictions_are_bytes_over_bandwidth():
    found = {(r["operation"], r["dtype"], r["device"]): r for r in predictions(traffic())}
    gate_bf16 = found["gate", "bfloat16", "H100 SXM"]
    assert gate_bf16["minimum_bytes"] == 4 * 124_439_808
    assert gate_bf16["predicted_ms"] == pytest.approx(gate_bf16["bytes"] / 3350e9 * 1e3)
    assert 1 < gate_bf16["bytes"] / gate_bf16["minimum_bytes"] < 1.005
    assert found["gate, quiet", "float32", "MI300X"]["minimum_bytes"] == 0
    assert found["guard", "float32", "MI300X"]["predicted_ms"] is None


def run(folder):
    options, told = argparse.Namespace(out=folder), io.StringIO()
    code = kernel_report.main(options, "the command", Console(file=told, width=300))
    return code, told.getvalue(), json.loads((folder / "kernels.json").read_text())


def fake(**what):
    """Compiled kernels as they should be, but for `what` of the gate."""
    good = {"registers": 40, "spills": 0, "scalar_spills": 0, "stack": 0, "shared": 0, "access": {}}
    return lambda target: [
        Compiled(kernel, target, **good | (what if kernel == "gate" else {}))
        for kernel in sorted(KERNELS)
    ]


def test_the_command_writes_numbers_and_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(offline, "compile_for", fake(access={"float16": {"load": 128}}))
    code, told, document = run(tmp_path)
    assert code == 0 and document["command"] == "the command"
    assert document["environment"]["triton"] == offline.triton.__version__
    assert kernel_report.kernels_table(document) in told
    assert kernel_report.kernels_predictions(document) in told
    kinds = [record["kind"] for record in document["records"]]
    assert kinds.count("compiled") == 16 and kinds.count("prediction") == 24


def test_the_command_fails_for_a_bad_kernel(tmp_path, monkeypatch):
    monkeypatch.setattr(offline, "compile_for", fake(spills=1, access={"float16": {"load": 64}}))
    code, _, document = run(tmp_path)
    bad = [f"gate on {target}" for target in offline.TARGETS]
    assert code == 1
    assert document["summary"]["spilling"] == document["summary"]["narrow"] == bad


def test_the_command_says_what_is_missing(tmp_path, monkeypatch):
    def fails(target):
        raise FileNotFoundError("no cuobjdump")

    monkeypatch.setattr(offline, "compile_for", fails)
    with pytest.raises(ValueError, match="triton must be installed whole.*no cuobjdump"):
        run(tmp_path)

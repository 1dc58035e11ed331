"""The committed report on the compiled kernels: complete, without a fault, from clean code."""

import json
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parent.parent / "results" / "kernels.json"
TARGETS = {"sm_80", "sm_90", "sm_100", "gfx942"}
DTYPES = ("float32", "bfloat16", "float16", "float64")
FIELDS = {
    "registers", "spills", "scalar_spills", "stack", "shared", "access", "access_bits",
    "bytes_per_element", "minimum_per_element", "bytes_per_tensor", "bytes_per_launch",
}  # fmt: skip
MAIN_LOOPS = {"norm_block": ["load"], "gate": ["load", "store"]}


@pytest.fixture(scope="module")
def document():
    return json.loads(PATH.read_text("utf-8"))


def of_kind(document, kind):
    return [record for record in document["records"] if record["kind"] == kind]


def test_every_kernel_is_there_for_every_target(document):
    found = [(record["kernel"], record["target"]) for record in of_kind(document, "compiled")]
    kernels = {kernel for kernel, _ in found}
    assert kernels == {"norm_block", "norm_tensor", "gate", "guard"}, "run: make kernels"
    assert sorted(found) == sorted((kernel, target) for kernel in kernels for target in TARGETS)
    assert all(record.keys() >= FIELDS for record in of_kind(document, "compiled"))


def test_it_comes_from_committed_code(document):
    assert document["commit"] and "dirty" not in document["commit"]
    assert document["environment"]["triton"]


def test_no_kernel_spills_and_main_loops_move_16_bytes(document):
    assert document["summary"]["spilling"] == document["summary"]["narrow"] == []
    for record in of_kind(document, "compiled"):
        assert record["spills"] == record["stack"] == 0, record
        kinds = MAIN_LOOPS.get(record["kernel"])
        wide = {dtype: dict.fromkeys(kinds, 128) for dtype in DTYPES} if kinds else {}
        assert record["access"] == wide, record
        assert record["access_bits"] == (128 if kinds else None)


def test_hardly_more_than_the_minimum_is_moved(document):
    for record in of_kind(document, "compiled"):
        for dtype, least in record["minimum_per_element"].items():
            assert least <= record["bytes_per_element"][dtype] < least + 0.01


def test_predictions_say_that_they_are(document):
    found = of_kind(document, "prediction")
    assert {record["operation"] for record in found} == {"norm", "gate", "gate, quiet", "guard"}
    assert {record["dtype"] for record in found} == {"float32", "bfloat16"}
    for record in found:
        assert record["note"] == "prediction: bytes / bandwidth, not a measurement"
        speed = document["summary"]["devices"][record["device"]]["bytes_per_s"]
        if record["operation"] == "guard":
            assert record["predicted_ms"] is None
        else:
            assert record["predicted_ms"] == pytest.approx(1e3 * record["bytes"] / speed)

"""The paper is that of the results beside it, and nothing in it was typed by hand."""

import copy
import re

import pytest

pytest.importorskip("typst")

from paper import build, numbers  # noqa: E402
from paper.numbers_suite import suite  # noqa: E402
from paper.settings import settings  # noqa: E402
from paper.tables import tables  # noqa: E402

PAPER = build.HERE / "paper.pdf"

MATHEMATICS = {
    *"0123456789",  # exponents, halves, and the like
    "16", "29", "90",  # variance of the number of turning points
    "128",  # the window of OLMo's rule, cited
}  # fmt: skip
"""Numbers that a formula may hold; none of them is a measurement."""

PROSE = {"90", "95"}
"""Numbers that prose may hold: the levels of intervals."""


@pytest.fixture(scope="module")
def documents():
    return build.read(build.RESULTS)


def typed_by_hand(text):
    """The numbers in Typst's text that come from neither the results nor mathematics."""
    text = re.sub(r"(?m)^\s*//.*$", "", text).replace("GPT-2", "")
    text = re.sub(r'"[^"]*"', "", text)  # names in code; quotations in prose hold no numbers either
    text = re.sub(r"@[a-z0-9-]+|<[a-z0-9-]+>", "", text)  # citations and labels
    text = re.sub(r"(?m)^#(set|show) .*$", "", text)
    text = re.sub(r"width: \d+%", "", text)
    text = re.sub(r"size: [\d.]+pt", "", text)
    formulas = re.findall(r"\$[^$]*\$", text)
    prose = re.sub(r"\$[^$]*\$", "", text)
    number = r"\d+(?:[.,]\d+)*"
    typed = [n for formula in formulas for n in re.findall(number, formula)]
    return (set(typed) - MATHEMATICS) | (set(re.findall(number, prose)) - PROSE)


def test_no_number_is_typed_by_hand():
    assert typed_by_hand((build.HERE / "paper.typ").read_text("utf-8")) == set()


@pytest.mark.parametrize(
    "text", ["ARS saves 40.5 % of it.", "a loss of $2.26$", "in 31 runs", "#v('x') and 1,838"]
)
def test_a_number_typed_by_hand_is_found(text):
    assert typed_by_hand(text)


def test_everything_made_is_used(documents):
    text = (build.HERE / "paper.typ").read_text("utf-8")
    made = settings() | numbers.numbers(documents)
    assert set(re.findall(r'\bv\("([^"]+)"\)', text)) == made.keys()
    assert set(re.findall(r'results\(\s*"([^"]+)"', text)) == tables(documents).keys()


def test_tables_are_rectangular(documents):
    for name, table in tables(documents).items():
        assert table["rows"], name
        assert {len(row) for row in table["rows"]} == {len(table["header"])}, name


def test_the_committed_paper_is_that_of_the_results(documents):
    fingerprint = build.data_of(documents)["fingerprint"]
    assert fingerprint.encode() in PAPER.read_bytes(), "run: make paper"


def test_it_builds_and_has_the_length_of_a_paper(documents, tmp_path):
    out = tmp_path / "paper.pdf"
    assert 6 <= build.build(documents, out) <= 10
    fingerprint = build.data_of(documents)["fingerprint"]
    assert fingerprint.encode() in out.read_bytes()


def test_words_that_the_results_do_not_support_stop_the_build(documents):
    changed = copy.deepcopy(documents["suite"])
    changed["summary"]["held-out"]["methods"]["ars"]["survived"] -= 1
    with pytest.raises(ValueError, match="survives all runs"):
        suite(changed)


def test_a_missing_result_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="stress.json must exist.*make results"):
        build.read(tmp_path)

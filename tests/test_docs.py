"""What the documentation says is true: examples run, names are documented, numbers have sources."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import resilient_optim
from nanogpt_demo import readme
from tests import snippets

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / page for page in readme.PAGES]

PUBLISHED = {
    "7.8": "the announcement's claim, quoted",
    "3.10": "a Python version",
    "3.13": "a Python version",
    "3.9": "a Triton version",
    "2.14": "a torch version",
    "2.6": "a torch version",
    "2.7": "a torch version",
    "2309.14322": "an arXiv number",
    "0.8": "size of the tuning model in millions of parameters",
}
"""Numbers with a decimal point that prose may hold: quotations, not measurements of ours."""


def modules():
    found = [resilient_optim]
    for info in pkgutil.walk_packages(resilient_optim.__path__, "resilient_optim."):
        try:
            found.append(importlib.import_module(info.name))
        except ImportError:
            if "integrations" not in info.name:  # those need their frameworks
                raise
    kernels = importlib.import_module("resilient_optim.kernels")
    for info in pkgutil.walk_packages(kernels.__path__, "resilient_optim.kernels."):
        found.append(importlib.import_module(info.name))
    return found


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.__name__)
def test_docstring_examples_run(module):
    assert doctest.testmod(module).failed == 0


def test_there_are_docstring_examples():
    finder = doctest.DocTestFinder()
    assert any(test.examples for module in modules() for test in finder.find(module))


@pytest.mark.parametrize("page", snippets.PAGES, ids=lambda page: page.name)
def test_readme_examples_run_in_order(page, capsys):
    assert snippets.run_page(page) >= 1
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.__name__)
def test_every_public_name_has_a_docstring(module):
    assert module.__doc__
    for name, thing in vars(module).items():
        own = getattr(thing, "__module__", None) == module.__name__
        if name.startswith("_") or not own or not callable(thing):
            continue
        if isinstance(thing, type) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), f"{module.__name__}.{name}"
        for member, value in vars(thing).items() if isinstance(thing, type) else ():
            if inspect.isfunction(value) and not member.startswith("_"):
                assert inspect.getdoc(value), f"{module.__name__}.{name}.{member}"


def test_every_setting_is_documented():
    for config in (resilient_optim.DefaultConfig, resilient_optim.PaperConfig):
        for name in config.__dataclass_fields__:
            assert re.search(rf"^\s*{name}: ", config.__doc__, re.MULTILINE), name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.parent.name + "/" + p.name)
def test_tables_are_what_the_result_files_say(page):
    text = page.read_text("utf-8")
    assert "<!-- begin " in text
    assert readme.render(text, ROOT / "results") == text, "run: python -m nanogpt_demo readme"


def test_every_table_has_its_place():
    """The page of the results holds all of them; other pages may repeat some, or sum them up."""
    text = (ROOT / "results" / "README.md").read_text("utf-8")
    placed = re.findall(r"<!-- begin ([\w-]+) -->", text)
    assert len(placed) == len(set(placed))
    elsewhere = {"headline", "cost", "where-it-loses", "versions-line", "versions-table"}
    assert set(placed) == readme.BLOCKS.keys() - elsewhere


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.parent.name + "/" + p.name)
def test_no_measured_number_is_typed_by_hand(page):
    text = re.sub(
        r"<!-- begin ([\w-]+) -->.*?<!-- end \1 -->", "", page.read_text("utf-8"), flags=re.S
    )
    prose = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", text, flags=re.S)
    assert set(re.findall(r"\d+\.\d+", prose)) <= PUBLISHED.keys()


def test_an_unknown_block_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(ValueError, match="block must be one of .*got 'nope'"):
        readme.render("<!-- begin nope --><!-- end nope -->", tmp_path)
    for block in ("stress-table", "headline", "results-index"):
        with pytest.raises(ValueError, match="stress.json must exist"):
            readme.render(f"<!-- begin {block} --><!-- end {block} -->", tmp_path)

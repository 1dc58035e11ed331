"""The Python blocks of pages and docstrings, and how they are run."""

import re
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "resilient_optim" / "guide.md")
"""Pages for users: every Python block of theirs is run by a test."""


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run_page(page: Path) -> int:
    """Execute the blocks of a page in order; how many.

    Those that show an integration are left to `run_example`: they need its framework.
    """
    own = [b for b in blocks(page.read_text("utf-8")) if "resilient_optim.integrations" not in b]
    namespace: dict[str, Any] = {"__name__": "example"}
    for block in own:
        exec(compile(block, str(page), "exec"), namespace)
    return len(own)


def run_example(module: ModuleType) -> dict[str, Any]:
    """Execute the example in an integration's docstring; what it has defined.

    Then the blocks of the pages that import from the module: they are short, and may leave the
    model and the data to the docstring's example.
    """
    (example,) = blocks(module.__doc__ or "")
    namespace: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, str(module.__file__), "exec"), namespace)
    shown = [block for page in PAGES for block in blocks(page.read_text("utf-8"))]
    shown = [block for block in shown if f"from {module.__name__} import" in block]
    assert shown, f"no page shows {module.__name__}"
    for block in shown:
        exec(compile(block, "a page", "exec"), dict(namespace))
    return namespace

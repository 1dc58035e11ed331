"""Every public name has a complete docstring: the reference page is made of nothing else."""

import importlib
import types

import pytest

from tests.docstrings import problems, public_names

MODULES = {
    "resilient_optim": None,
    "resilient_optim.schedules": None,
    "resilient_optim.report": None,
    "resilient_optim.events": None,
    "resilient_optim.integrations": None,
    "resilient_optim.integrations.accelerate": "accelerate",
    "resilient_optim.integrations.lightning": "lightning",
    "resilient_optim.integrations.transformers": "transformers",
}
"""What the reference is made of, and the framework that a module needs."""


@pytest.mark.filterwarnings("ignore")  # of the frameworks, when they are loaded
@pytest.mark.parametrize("name", MODULES)
def test_docstrings_are_complete(name):
    if MODULES[name] is not None:
        pytest.importorskip(MODULES[name])
    module = importlib.import_module(name)
    assert public_names(module)
    assert problems(module) == []


BAD = '''
def no_docstring(x: int) -> None: pass

def no_sections(x: int) -> int:
    """Do something."""
    if x < 0:
        raise ValueError(x)
    return x

def wrong_name(x: int) -> None:
    """Do something.

    Args:
        y: not there.

    Returns:
        What is not returned.
    """

def complete(x: int, *rest: int, **named: int) -> int:
    """Do something.

    Args:
        x: a number; of more than
            one line: of text.
        *rest: more of them.
        **named: likewise.

    Returns:
        A number: always.

    Raises:
        TypeError, ValueError: by what it calls.
    """
    return checked(x)

def checked(x: int) -> int:
    """Do something.

    Args:
        x: a number.

    Returns:
        A number.

    Raises:
        TypeError: there is none.
        ValueError: it is negative.
    """
    if x is None:
        raise TypeError(x)
    if x < 0:
        raise ValueError(x)
    return x

class Base:
    """A class.

    Args:
        x: a number.

    Attributes:
        y: another.
        z: that nobody sets.
    """

    def __init__(self, x: int, forgotten: int) -> None:
        self.y = checked(x)

    def method(self, x: int) -> int:
        """Do something.

        Args:
            x: a number.

        Returns:
            A number.
        """
        return x

    @property
    def undocumented(self) -> int:
        return 1

class Heir(Base):
    """Has the constructor of the other one."""

    def method(self, x: int) -> int:
        """Need not repeat what that of the other says."""
        return -x

    def _private(self, x): ...

class Problem(Exception):
    """Is caught, not made.

    Attributes:
        x: a number.
    """

    def __init__(self, x: int) -> None:
        self.x = x
'''

FOUND = [
    "no_docstring: has no docstring",
    "no_docstring: Args must be ['x'], got []",
    "no_sections: Args must be ['x'], got []",
    "no_sections: does not say what it returns",
    "no_sections: does not say that it raises ['ValueError']",
    "wrong_name: Args must be ['x'], got ['y']",
    "wrong_name: says what it returns, but returns nothing",
    "Base: Args must be ['x', 'forgotten'], got ['x']",
    "Base: does not say that it raises ['TypeError', 'ValueError']",
    "Base: has no attributes ['z'], which its docstring names",
    "Base.undocumented: has no docstring",
    "Heir: Args must be ['x', 'forgotten'], got ['x']",
    "Heir: does not say that it raises ['TypeError', 'ValueError']",
    "Heir: has no attributes ['z'], which its docstring names",
]


def test_incomplete_docstrings_are_found(tmp_path, monkeypatch):
    (tmp_path / "badly_documented.py").write_text(BAD)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("badly_documented")
    assert isinstance(module, types.ModuleType)
    assert problems(module, ours="badly_documented") == FOUND

"""What the docstring of a public name leaves out, or says too much: Google sections against code.

A class documents the arguments of its constructor under Args or Attributes. An exception does not:
it is caught, not made. A method need not repeat what the method that it overrides says, if that is
one of ours. Of a hook that a framework calls (not torch's), and of a method "for ARS to call" or
"for torch to call", only a summary is asked: its arguments are not the reader's matter.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

HEADINGS = ("Args", "Attributes", "Returns", "Raises")
NOT_TO_BE_NAMED = {"NotImplementedError", "AttributeError"}
"""Raised by what is abstract, and by what is not there."""

Sections = dict[str, list[str]]


def sections(text: str) -> Sections:
    """The names of the entries of each section; the first line of what is no entry."""
    found: Sections = {}
    for heading, body in re.findall(r"^(\w+):\n((?:(?: {4}.*)?\n)+)", text + "\n", re.MULTILINE):
        entries = re.findall(r"^ {4}(\S.*?)(?::\s|:?$)", body, re.MULTILINE)
        if heading in HEADINGS:
            found[heading] = [name for entry in entries for name in entry.split(", ")]
    return found


def public_names(module: ModuleType) -> dict[str, Any]:
    """The classes and functions that a module offers: in `__all__`, or defined there."""
    names = getattr(module, "__all__", None) or [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__
    ]
    things = {name: getattr(module, name) for name in names}
    return {name: x for name, x in things.items() if isinstance(x, type | FunctionType)}


def problems(module: ModuleType, ours: str = "resilient_optim") -> list[str]:
    """What is wrong with the docstrings of a module's public names, one sentence for each."""
    found: dict[str, None] = {}  # ordered; a method inherited twice is reported once
    for thing in public_names(module).values():
        if isinstance(thing, type):
            found |= dict.fromkeys(_of_class(thing, ours))
        else:
            found |= dict.fromkeys(_of_function(thing, None, ours))
    return list(found)


def _of_class(cls: type, ours: str) -> Iterator[str]:
    label = cls.__qualname__
    if not inspect.cleandoc(vars(cls).get("__doc__") or ""):
        yield f"{label}: has no docstring"
    makers = ("__init__", "__new__", "__post_init__")
    maker = next(base for base in cls.__mro__ if vars(base).keys() & set(makers))
    said = _merged([cls, maker])
    attributes = said.get("Attributes", [])
    if not issubclass(cls, BaseException) and _is_ours(maker, ours):
        parameters = _parameters(cls)
        listed = said.get("Args", [])
        expected = [p for p in parameters if p in listed or p not in attributes]
        yield from _compared(label, "Args", listed, expected)
        raised: set[str] = set()
        for name in makers:
            function = vars(maker).get(name)
            if isinstance(function, FunctionType):
                raised |= raised_by(function, cls, ours)
        yield from _unsaid(label, raised, said)
    unknown = [name for name in attributes if not _has(cls, name)]
    if unknown:
        yield f"{label}: has no attributes {unknown}, which its docstring names"
    for base in cls.__mro__:
        for name, member in vars(base).items() if _is_ours(base, ours) else ():
            if name.startswith("_") and name != "__call__":
                continue
            if isinstance(member, property) and not inspect.getdoc(member):
                yield f"{base.__qualname__}.{name}: has no docstring"
            if isinstance(member, staticmethod | classmethod):
                member = member.__func__
            if isinstance(member, FunctionType) and member.__module__.startswith(ours):
                yield from _of_function(member, base, ours)


def _of_function(function: FunctionType, owner: type | None, ours: str) -> Iterator[str]:
    function = inspect.unwrap(function)
    label, text = function.__qualname__, inspect.cleandoc(function.__doc__ or "")
    if not text:
        yield f"{label}: has no docstring"
    bases = owner.__mro__[1:] if owner is not None else ()
    overridden = [vars(base).get(function.__name__) for base in bases]
    parents = [f for f in overridden if isinstance(f, FunctionType)]
    own, said = sections(text), _merged([function, *(f for f in parents if _is_ours(f, ours))])
    if re.search(r"for (ARS|torch) to call", text) or _is_hook(parents, ours):
        return
    parameters = _parameters(function, method=owner is not None)
    yield from _compared(label, "Args", own.get("Args") or said.get("Args", []), parameters)
    returns = inspect.signature(function).return_annotation not in (None, "None")
    if returns and "Returns" not in said:
        yield f"{label}: does not say what it returns"
    if not returns and "Returns" in own:
        yield f"{label}: says what it returns, but returns nothing"
    yield from _unsaid(label, raised_by(function, owner, ours), said)


def _is_hook(overridden: list[FunctionType], ours: str) -> bool:
    return any(not _is_ours(f, ours) and not _is_ours(f, "torch") for f in overridden)


def _compared(label: str, section: str, listed: list[str], parameters: list[str]) -> Iterator[str]:
    if listed != parameters:
        yield f"{label}: {section} must be {parameters}, got {listed}"


def _unsaid(label: str, raised: set[str], said: Sections) -> Iterator[str]:
    unsaid = raised - set(said.get("Raises", [])) - NOT_TO_BE_NAMED
    if unsaid:
        yield f"{label}: does not say that it raises {sorted(unsaid)}"


def raised_by(function: Callable[..., Any], owner: type | None, ours: str) -> set[str]:
    """Exceptions that a function raises itself, or that what it calls of ours raises itself."""
    body = list(_body(function))
    found = _raised(body)
    for node in body:
        called = _called(node, function, owner) if isinstance(node, ast.Call) else None
        if isinstance(called, type):
            called = vars(called).get("__init__") or vars(called).get("__post_init__")
        if isinstance(called, FunctionType) and _is_ours(called, ours):
            found |= _raised(list(_body(called)))
    return found


def _raised(body: list[ast.AST]) -> set[str]:
    raised = [node.exc for node in body if isinstance(node, ast.Raise)]
    names = [ast.unparse(x.func) for x in raised if isinstance(x, ast.Call)]
    return {name for name in names if name[0].isupper()}


def _body(function: Callable[..., Any]) -> Iterator[ast.AST]:
    """All nodes of a function's body, those of functions inside it left out."""
    definition = ast.parse(_source(function)).body
    waiting: list[ast.AST] = [*ast.iter_child_nodes(definition[0])] if definition else []
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def _called(node: ast.Call, function: Callable[..., Any], owner: type | None) -> Any:
    """The function or class that is called, if it can be told: f(), module.f(), self.f()."""
    names = inspect.unwrap(function).__globals__  # type: ignore[attr-defined]
    match ast.unparse(node.func).split("."):
        case [name]:
            return names.get(name)
        case ["self", name]:
            return getattr(owner, name, None)
        case ["super()", name] if owner is not None:
            return getattr(super(owner, owner), name, None)
        case [module, name] if isinstance(names.get(module), ModuleType):
            return getattr(names[module], name, None)
    return None


def _parameters(thing: Callable[..., Any], method: bool = False) -> list[str]:
    parameters = inspect.signature(thing).parameters.values()
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*"}
    stars[inspect.Parameter.VAR_KEYWORD] = "**"
    found = [stars.get(p.kind, "") + p.name for p in parameters]
    return found[1:] if method and found[:1] == ["self"] else found


def _merged(things: list[Any]) -> Sections:
    """The sections of all docstrings; of a section that is there twice, the first."""
    merged: Sections = {}
    for thing in reversed(things):
        merged |= sections(inspect.cleandoc(thing.__doc__ or ""))
    return merged


def _has(cls: type, name: str) -> bool:
    """Whether instances have an attribute: of the class, a field, or set in a method."""
    bases = [base for base in cls.__mro__ if base.__module__ != "builtins"]
    annotated = any(name in vars(base).get("__annotations__", {}) for base in bases)
    is_set = re.compile(rf"\bself\.{name}\b.*=")
    return hasattr(cls, name) or annotated or any(is_set.search(_source(base)) for base in bases)


def _source(thing: Any) -> str:
    """The source, empty of what a decorator such as dataclass has made."""
    try:
        return textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        return ""


def _is_ours(thing: Any, ours: str) -> bool:
    return str(getattr(thing, "__module__", "")).split(".")[0] == ours.split(".")[0]

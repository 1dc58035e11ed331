"""Runs Triton kernels wherever the tests run: on the GPU if there is one, else interpreted.

Triton decides at decoration whether a function is compiled or interpreted, and its own library is
decorated when it is first imported. So as not to depend on who imports it first, `interpreted`
exchanges the compiled functions for interpreted ones, and puts them back.
"""

import contextlib
import sys
import warnings

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction

with contextlib.suppress(ModuleNotFoundError):  # older Triton has none
    import triton.experimental.gluon  # noqa: F401  imported at first launch: not while exchanged

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
INTERPRETS = ON_GPU or tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)
"""Whether kernels can be run here: the interpreters of older Triton do not know all they use."""


@contextlib.contextmanager
def interpreted(*functions):
    """While it lasts, all kernels of the library run on CPU tensors; on a GPU it does nothing.

    Gives the functions that were passed, those of a test, in a form that can be called.
    """
    if not INTERPRETS:
        pytest.skip(f"the interpreter of Triton {triton.__version__}")
    if ON_GPU:
        yield functions
        return
    ours = [m for name, m in sys.modules.items() if name.startswith("resilient_optim.kernels.")]
    with contextlib.ExitStack() as stack:
        # Overflow and NaN are part of what is tested; numpy warns of them.
        stack.enter_context(np.errstate(all="ignore"))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy, in older Triton
        stack.callback(_replace(vars(interpreter), {"_convert_float": _convert_float}))
        stack.callback(_mend_language())
        for module in ours:
            # Interpreted functions find the interpreter's names among their own globals.
            missing = {k: v for k, v in vars(interpreter).items() if k not in vars(module)}
            stack.callback(_replace(vars(module), missing))
        for module in [tl, tl.core, tl.math, tl.random, tl.standard, *ours]:
            stack.callback(_replace(vars(module), _interpreted(vars(module))))
        yield tuple(_twin(function) for function in functions)


_TWINS = {}
"""One interpreted function for each compiled one: the interpreter compares them by identity."""


def _twin(function):
    if id(function.fn) not in _TWINS:  # the compiled one cannot be hashed once others are exchanged
        _TWINS[id(function.fn)] = interpreter.InterpretedFunction(function.fn)
    return _TWINS[id(function.fn)]


def _interpreted(names):
    return {name: _twin(f) for name, f in names.items() if isinstance(f, JITFunction)}


def _replace(names, new):
    """Put new values into a namespace; what undoes it is returned."""
    old = {name: names[name] for name in new if name in names}
    names.update(new)

    def undo():
        for name in new:
            del names[name]
        names.update(old)

    return undo


def _mend_language():
    """What it returns undoes all that the interpreter changes in Triton's language from now on.

    For a function called by a kernel it does not undo it by itself, and nothing would compile.
    """
    scope, before, missing = interpreter._LangPatchScope, {}, object()
    set_attr = scope.set_attr

    def note(self, owner, name, value):
        before.setdefault((id(owner), name), (owner, name, getattr(owner, name, missing)))
        set_attr(self, owner, name, value)

    def undo():
        scope.set_attr = set_attr
        for owner, name, value in before.values():
            if value is not missing:
                setattr(owner, name, value)
            elif name in vars(owner):
                delattr(owner, name)

    scope.set_attr = note
    return undo


_original_convert = interpreter._convert_float


def _convert_float(values, source, target, rounding):
    """The interpreter truncates to bfloat16 where a GPU rounds, and mistakes its subnormals."""
    if (source, target) == (tl.float32, tl.bfloat16):
        rounded = torch.from_numpy(np.array(values, dtype=np.float32)).to(torch.bfloat16)
        return rounded.view(torch.int16).numpy().view(np.uint16)
    if (source, target) == (tl.bfloat16, tl.float32):
        return values.astype(np.uint32) << np.uint32(16)
    return _original_convert(values, source, target, rounding)

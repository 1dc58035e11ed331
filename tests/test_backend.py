"""The choice of a backend: automatic falls back, explicit works or says at once why it cannot."""

import builtins
import re

import pytest
import torch

from resilient_optim import ARS
from resilient_optim.kernels import triton_problem

CPU = torch.device("cpu")


def weights():
    return [torch.nn.Parameter(torch.ones(3))]


def fused():
    return torch.optim.AdamW(weights(), fused=True)


def test_auto_and_torch_need_neither_triton_nor_a_gpu(monkeypatch):
    real = builtins.__import__

    def without_triton(name, *args, **kwargs):
        if name == "triton":
            raise ImportError("no triton here")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_triton)
    for backend in ("auto", "torch"):
        ARS(fused(), backend=backend).step(1.0)
    assert triton_problem(CPU) == "triton is not installed (no triton here)"
    with pytest.raises(RuntimeError, match="triton is not installed"):
        ARS(fused(), backend="triton")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_explicit_triton_without_a_gpu_says_what_was_found(monkeypatch):
    triton = pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError) as caught:
        ARS(fused(), backend="triton")
    message = str(caught.value)
    assert "'auto' or 'torch'" in message
    assert f"triton {triton.__version__}" in message
    assert "on cpu" in message
    # Parameters that claim to be on a GPU get as far as the driver.
    assert "no driver" in triton_problem(torch.device("cuda", 0))


@pytest.mark.parametrize("version", ["3.2.0", "3.3.1+rocm6.4"])
def test_a_triton_that_the_kernels_do_not_run_on_is_named(monkeypatch, version):
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # all else is there
    assert ARS(fused(), backend="triton")._device is not None
    monkeypatch.setattr(triton, "__version__", version)
    message = f"triton {re.escape(version)} is too old, the kernels need 3.4; torch 2.8"
    with pytest.raises(RuntimeError, match=message):
        ARS(fused(), backend="triton")
    for fine in ("3.4.0", "3.10.0+git1a2b"):
        monkeypatch.setattr(triton, "__version__", fine)
        assert triton_problem(CPU) is None


class OfThirdParty(torch.optim.Optimizer):
    """Takes `found_inf` by its own account, to an effect that nobody here has tested."""

    _step_supports_amp_scaling = True

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1, "fused": True})


def unfused_by_a_checkpoint():
    optimizer = fused()
    optimizer.load_state_dict(torch.optim.AdamW(weights()).state_dict())
    return optimizer


@pytest.mark.parametrize(
    ("make", "settings", "reason"),
    [
        (lambda: torch.optim.AdamW(weights()), {}, "fused=True"),
        (fused, {"preset": "paper"}, "default preset"),
        (lambda: torch.optim.LBFGS(weights()), {}, "LBFGS cannot leave a step out"),
        (lambda: torch.optim.Adagrad(weights(), fused=True), {}, "Adagrad cannot leave a step out"),
        (lambda: OfThirdParty(weights()), {}, "OfThirdParty cannot leave a step out"),
        (unfused_by_a_checkpoint, {}, r"param_groups\[0\] has fused=None; fused=True makes"),
    ],
    ids=["not fused", "paper", "LBFGS", "Adagrad", "third party", "unfused checkpoint"],
)
def test_explicit_triton_names_what_is_missing(make, settings, reason):
    with pytest.raises(RuntimeError, match=reason):
        ARS(make(), backend="triton", **settings)


@pytest.mark.parametrize("backend", ["cuda", None, 3])
def test_unknown_backends_are_refused(backend):
    with pytest.raises(ValueError, match="backend must be one of auto, torch, triton"):
        ARS(fused(), backend=backend)


def test_importing_the_library_does_not_import_triton():
    import subprocess
    import sys

    code = "import sys, resilient_optim; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

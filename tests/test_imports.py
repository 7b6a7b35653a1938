"""What an import costs and needs: no torch for the help, no symbolic links, no Unix."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import fusion_pipeline
from fusion_pipeline.pipeline import clock

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("bundles", "networks", "transforms")
# where a tester keeps further packages; never another copy of ours
OTHERS = [
    folder
    for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if folder and not (Path(folder) / "fusion_pipeline").exists()
]
_FINDS_ITS_PARTS = """
import sys, torch, monai
sys.modules["resource"] = None  # as on Windows; torch has its own way around that
import pathlib, fusion_pipeline.networks, fusion_pipeline.transforms
from fusion_pipeline.pipeline import bundle_for
from fusion_pipeline.pipeline.fingerprint import code_digest
here = pathlib.Path.cwd()
for module in (fusion_pipeline.networks, fusion_pipeline.transforms):
    assert pathlib.Path(module.__file__).is_relative_to(here), module.__file__
for dims in (2, 3):
    assert (bundle_for(dims) / "models" / "model.pt").is_file()
    assert bundle_for(dims).is_relative_to(here), bundle_for(dims)
before = code_digest()
code = pathlib.Path(fusion_pipeline.networks.__file__)
code.write_text(code.read_text("utf-8") + "# changed", "utf-8")
code_digest.cache_clear()
assert code_digest() != before
"""

# one process for all: torch and MONAI take seconds
_COMES_WHEN_ASKED_FOR = """
import sys
from fusion_pipeline import metrics
print([name for name in ("torchmetrics", "pytorch_lightning") if name in sys.modules])
import fusion_pipeline.export
print("pytorch_lightning" in sys.modules)
classes = [name for name in metrics.__all__ if name[0].isupper()]
made = [getattr(metrics, name).__mro__[-1].__name__ for name in classes]
print(len(classes) == len(made) > 0, "torchmetrics" in sys.modules)
"""


def python(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(cwd), *OTHERS])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(params=["as text files", pytest.param("absent", marks=pytest.mark.slow)])
def checkout_without_links(request, tmp_path):
    """The package as git, Python's zipfile or Windows leave it where links cannot be made."""
    ignored = shutil.ignore_patterns("__pycache__", *LINKED)
    shutil.copytree(ROOT / "fusion_pipeline", tmp_path / "fusion_pipeline", ignore=ignored)
    for name in LINKED:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        if request.param == "as text files":
            (tmp_path / "fusion_pipeline" / name).write_text(f"../{name}", "utf-8")
    return tmp_path


@pytest.mark.slow
def test_a_checkout_without_links_finds_its_parts(checkout_without_links):
    found = python("-c", _FINDS_ITS_PARTS, cwd=checkout_without_links)
    assert found.returncode == 0, found.stderr


def test_a_checkout_with_links_has_one_folder():
    assert len(fusion_pipeline.__path__) == 1


@pytest.mark.parametrize("statement", ["import fusion_pipeline", "import fusion_pipeline.cli"])
def test_the_package_alone_imports_neither_torch_nor_monai(statement):
    heavy = "{'torch', 'monai', 'numpy', 'pytorch_lightning'} & set(sys.modules)"
    found = python("-c", f"import sys; {statement}; print({heavy})")
    assert found.stdout == "set()\n", found.stderr


def imported(name, visited=None):
    """What a module of the package imports when it is imported, and so what those import."""
    visited = set() if visited is None else visited
    parts = name.split(".")
    for module in (".".join(parts[: n + 1]) for n in range(len(parts))):
        path = ROOT.joinpath(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if module in visited or not path.is_file():  # the last part may be a function's name
            continue
        visited.add(module)
        for other in _outside_functions(ast.parse(path.read_text("utf-8"))):
            if other.partition(".")[0] == "fusion_pipeline":
                imported(other, visited)
            else:
                visited.add(other.partition(".")[0])
    return visited


def _outside_functions(node):
    """Names in the import statements that run with a module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
        return
    elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        for inner in ast.iter_child_nodes(node):
            yield from _outside_functions(inner)


def test_metrics_as_functions_and_export_import_neither_torchmetrics_nor_lightning():
    assert not {"torchmetrics", "pytorch_lightning"} & imported("fusion_pipeline.metrics")
    assert "pytorch_lightning" not in imported("fusion_pipeline.export")
    # where they are imported, they are listed
    assert "torchmetrics" in imported("fusion_pipeline.metrics.registration_metrics")
    assert "pytorch_lightning" in imported("fusion_pipeline.training")


@pytest.mark.slow
def test_metrics_as_functions_and_export_need_neither_torchmetrics_nor_lightning():
    found = python("-c", _COMES_WHEN_ASKED_FOR)
    assert found.stdout.splitlines() == ["[]", "False", "True True"], found.stderr


def test_the_pipeline_is_a_name_of_the_package():
    from fusion_pipeline.pipeline import FusionPipeline

    assert fusion_pipeline.FusionPipeline is FusionPipeline
    assert set(fusion_pipeline.__all__) <= set(dir(fusion_pipeline))


def test_another_name_is_refused():
    with pytest.raises(AttributeError, match="module 'fusion_pipeline' has no attribute 'Fusion'"):
        fusion_pipeline.Fusion  # noqa: B018


def test_python_m_prints_the_version():
    found = python("-m", "fusion_pipeline", "--version")
    assert found.stdout == f"fusion-pipeline {fusion_pipeline.__version__}\n", found.stderr


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("", r"Register, harmonize and fuse the CT, MR, PET"),
        ("run", r"--refine-steps N"),
        ("train", r"end to end \(default: all\)"),
        ("demo", r"known truth"),
        ("export", r"default: ct,mr"),
    ],
)
def test_the_help_speaks_to_a_user_and_comes_at_once(command, text):
    seconds = []
    for _ in range(3):
        before = cpu_seconds_of_children()
        found = python("-m", "fusion_pipeline", *command.split(), "--help")
        seconds.append(cpu_seconds_of_children() - before)
    assert found.returncode == 0
    assert re.search(text, found.stdout)
    assert "exit code" not in found.stdout
    # 0.1 measured; with torch it would be 2. Processor time: other jobs do not count
    assert min(seconds) < 0.3


def cpu_seconds_of_children():
    """Of the processes that ended so far; not counted on Windows."""
    times = os.times()
    return times.children_user + times.children_system


def test_peak_memory_on_windows_comes_from_psutil(monkeypatch):
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=3 * 1024**2))
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(psutil, "Process", lambda: process)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert clock.peak_memory_mb() == 3.0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource module")
def test_peak_memory_is_at_least_what_is_in_use_now():
    now = psutil.Process().memory_info().rss / 1024**2
    assert 0.99 * now < clock.peak_memory_mb() < 100 * now

"""A checkout and a wheel hold the same package, each class exists once, and the README is true."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("bundles", "networks", "transforms")


@pytest.fixture(scope="module")
def settings():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]


def test_every_package_is_listed(settings):
    own = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "fusion_pipeline").rglob("__init__.py")
    }
    linked = {f"fusion_pipeline.{name}" for name in LINKED}
    assert set(settings["packages"]) == own | linked


@pytest.mark.parametrize("name", LINKED)
def test_folders_of_the_top_level_are_mapped_and_linked(settings, name):
    assert settings["package-dir"][f"fusion_pipeline.{name}"] == name
    link = ROOT / "fusion_pipeline" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name


@pytest.mark.parametrize("name", ["networks", "transforms"])
def test_the_bare_name_is_refused(name):
    found = subprocess.run(
        [sys.executable, "-c", f"import {name}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 1
    assert f"import fusion_pipeline.{name}, not {name}" in found.stderr


def test_constraints_name_torch_first():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert next(line for line in lines if line[:1].isalpha()).startswith("torch==")


def docker_copies() -> list[str]:
    """What the Dockerfile copies into the image."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    return [
        name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()
    ]


def test_the_dockerfile_copies_what_the_context_holds():
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == set(docker_copies())
    assert all((ROOT / name).exists() for name in docker_copies())


def test_the_dockerfile_takes_a_base_and_the_torch_of_the_constraints():
    text = (ROOT / "Dockerfile").read_text("utf-8")
    assert re.search(r"^ARG BASE=python:3\.\d+-slim\nFROM \$\{BASE\}$", text, re.MULTILINE)
    (command,) = re.findall(r'"\$\((grep .*?)\)"', text)
    printed = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"torch==[\d.]+\n", printed.stdout)


@pytest.mark.slow
def test_what_the_dockerfile_copies_builds_a_working_wheel(tmp_path):
    """Its last step, on its files alone; a container engine is not needed."""
    tree, built = tmp_path / "src", tmp_path / "built"
    tree.mkdir()
    for name in docker_copies():
        source = ROOT / name
        # as COPY does: the links fusion_pipeline/networks and so on stay links
        ignore = shutil.ignore_patterns("__pycache__")
        if source.is_dir():
            shutil.copytree(source, tree / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(source, tree / name)
    offline = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet")
    wheel = [sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", str(built), "."]
    subprocess.run(wheel, cwd=tree, check=True, capture_output=True)
    (path,) = built.glob("*.whl")
    found = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "check_wheel.py"), str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path):
    text = (ROOT / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert list(tmp_path.glob("out/*/report.html"))


@pytest.mark.slow
def test_an_unpacked_sdist_builds_a_working_wheel(tmp_path):
    """The archive holds no links: whoever unpacks it, wherever, gets the whole package."""
    tree, built = tmp_path / "tree", tmp_path / "built"
    skipped = shutil.ignore_patterns(".*", "__pycache__", "tests", "benchmarks", "build")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=skipped)
    sdist = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", sdist], cwd=tree, check=True, capture_output=True)
    (archive,) = tree.glob("dist/*.tar.gz")
    with tarfile.open(archive) as files:
        assert not [member.name for member in files if member.issym() or member.islnk()]
        files.extractall(tmp_path, filter="data")
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    offline = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet")
    wheel = [sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", str(built)]
    subprocess.run([*wheel, str(unpacked)], cwd=tmp_path, check=True, capture_output=True)
    (path,) = built.glob("*.whl")
    found = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "check_wheel.py"), str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "fine" in found.stdout

"""Every code block of the tutorials runs as written, in the site's order; the site is whole."""

import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml

from fusion_pipeline.cli import main

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml; what it says of Python objects does not matter here."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def navigation() -> list[str]:
    """The pages of the site's navigation, in its order."""
    left = [yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader=_Loader)["nav"]]
    pages = []
    while left:
        one = left.pop(0)
        if isinstance(one, str):
            pages.append(one)
        else:
            left[:0] = one.values() if isinstance(one, dict) else one
    return pages


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and code of each block."""
    return BLOCK.findall(page.read_text("utf-8"))


def run_python(code: str, page: str) -> None:
    """A block of Python, as a script of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, page, "exec"), {"__name__": "__main__"})


def run_bash(code: str) -> None:
    """A block of a shell; our own command runs in this process, which has imported it already."""
    commands = code.replace("\\\n", " ").strip().splitlines()
    if all(line.startswith("fusion-pipeline ") for line in commands):
        for line in commands:
            assert main(shlex.split(line)[1:]) == 0, line
        return
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [shutil.which("bash") or "bash", "-euc", code],
        env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


def test_the_tutorials_are_all_in_the_navigation_and_have_blocks():
    pages = [page for page in navigation() if page.startswith("tutorials/")]
    assert sorted(pages) == sorted(f"tutorials/{path.name}" for path in TUTORIALS.glob("*.md"))
    for page in pages:
        languages = {language for language, _ in blocks(ROOT / "docs" / page)}
        assert languages, page
        assert languages <= {"python", "bash"}, page


def test_blocks_and_the_navigation_are_read_in_order(tmp_path):
    (tmp_path / "a.md").write_text("x\n```bash\na\nb\n```\ny\n```python\nc\n```\n")
    assert blocks(tmp_path / "a.md") == [("bash", "a\nb\n"), ("python", "c\n")]
    assert navigation()[:2] == ["index.md", "tutorials/first-case.md"]


@pytest.mark.slow
def test_every_block_of_the_tutorials_runs_as_written(tmp_path, monkeypatch):
    """One folder for all pages, as a reader has it: later pages use what the first one left."""
    monkeypatch.chdir(tmp_path)
    root, own = logging.getLogger(), logging.getLogger("fusion_pipeline")
    before = list(root.handlers)
    try:
        for page in navigation():
            if page.startswith("tutorials/"):
                for language, code in blocks(ROOT / "docs" / page):
                    run_python(code, page) if language == "python" else run_bash(code)
    finally:
        root.handlers[:] = before
        own.handlers.clear()
        own.propagate = True
        own.setLevel(logging.NOTSET)
    for left in (
        "out/case01",
        "out/dicom01/dicom/mr_registered",
        "out_cohort/case01",
        "warped",
        "on_mr",
        "out_bundle",
        "out_mine",
        "derivatives",
    ):
        assert any((tmp_path / left).iterdir()), left
    assert (tmp_path / "study" / "study.html").is_file()


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    """Strict: a link, an anchor or a name of the API that leads nowhere fails."""
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "api" / "index.html").read_text("utf-8")
    for name in ("pipeline.FusionPipeline", "geometry.warp", "networks.MultimodalNet"):
        assert f'id="fusion_pipeline.{name}"' in api, name
    assert (tmp_path / "cards" / "multimodal_fusion" / "index.html").is_file()

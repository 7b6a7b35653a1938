"""What the site takes from outside ``docs``: model cards, benchmarks, contributing, changes.

Pages link as they do in the repository, where they are read as well. Here a link is led to the page
that the site makes of its target; a link to a file that is no page of the site (code, a license)
becomes its text.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).resolve().parents[1]
_PAGES = {
    "bundles/multimodal_fusion/docs/README.md": "cards/multimodal_fusion.md",
    "bundles/multimodal_fusion_2d/docs/README.md": "cards/multimodal_fusion_2d.md",
    "benchmarks/README.md": "inside/benchmarks.md",
    "CONTRIBUTING.md": "inside/contributing.md",
    "CHANGELOG.md": "inside/changes.md",
    "README.md": "index.md",
    "docs": "index.md",
    "docs/decisions": "decisions/index.md",
    "docs/history": "history/README.md",
    "docs/figures": "figures/index.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_CODE = re.compile(r"(```.*?```)", re.DOTALL)


def on_files(files: Files, *, config: Any) -> Files:  # noqa: ANN401 - MkDocs' own
    """Add the pages that lie outside ``docs``, and lists of the decisions and figures."""
    for source, page in _PAGES.items():
        if source.endswith(".md") and page != "index.md":
            text = (_ROOT / source).read_text(encoding="utf-8")
            files.append(File.generated(config, page, content=text))
    for folder, title in (("decisions", "Decisions"), ("figures", "Tables of the benchmarks")):
        text = _list_of(folder, title)
        files.append(File.generated(config, f"{folder}/index.md", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, files: Files, **_: Any) -> str:  # noqa: ANN401
    """Lead the links of a page, code left alone, to pages of the site."""
    here = page.file.src_uri
    origin = {made: source for source, made in _PAGES.items() if source.endswith(".md")}
    source = origin.get(here, f"docs/{here}") if here != "index.md" else "docs/index.md"

    def led(match: re.Match[str]) -> str:
        mark, text, link = match.groups()
        path, sharp, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link) or not path:
            return match[0]
        target = os.path.normpath(PurePosixPath(source).parent / path)
        site = _PAGES.get(target) or (target[5:] if target.startswith("docs/") else None)
        if site is None or files.get_file_from_path(site) is None:
            if not (_ROOT / target).exists():
                raise FileNotFoundError(f"{source}: {link}")
            return text
        relative = os.path.relpath(site, PurePosixPath(here).parent)
        return f"{mark}[{text}]({relative}{sharp}{anchor})"

    parts = _CODE.split(markdown)
    return "".join(p if p.startswith("```") else _LINK.sub(led, p) for p in parts)


def _list_of(folder: str, title: str) -> str:
    """A page that links all pages of a folder by their first heading."""
    lines = [f"# {title}", ""]
    for path in sorted((_ROOT / "docs" / folder).glob("*.md")):
        first = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").strip()
        lines.append(f"- [{first or path.stem}]({path.name})")
    return "\n".join(lines) + "\n"

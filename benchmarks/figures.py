"""Carry measured figures from the tables in docs/figures to the texts that state them.

    python benchmarks/figures.py            # tables → docs/figures.json → texts
    python benchmarks/figures.py --check    # write nothing; exit code 1 where one of them differs

A benchmark writes its table to ``docs/figures``. ``docs/figures.json`` names the cells that texts
state, with unit, n, data and command. Texts hold them between ``<!-- figures:NAME -->`` and
``<!-- end -->``; what stands there is made by ``figure_texts.BLOCKS[NAME]``.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from figure_tables import Figures
from figure_texts import BLOCKS

ROOT = Path(__file__).resolve().parents[1]
STORE = Path("docs/figures.json")
TEXTS = (
    "README.md",
    "docs/input.md",
    "docs/results.md",
    "bundles/multimodal_fusion/docs/README.md",
    "bundles/multimodal_fusion_2d/docs/README.md",
)
_MARKED = re.compile(r"(<!-- figures:([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_NUMBER = re.compile(r"[-−]?\d+(?:\.\d+)?")

Group = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Write, or check; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, name what differs")
    check = parser.parse_args(arguments).check
    differ = {p: new for p, new in fresh(ROOT).items() if (ROOT / p).read_text("utf-8") != new}
    for path, new in differ.items():
        print(f"{path} {'differs from docs/figures' if check else 'written'}")
        if not check:
            (ROOT / path).write_text(new, "utf-8")
    return int(check and bool(differ))


def fresh(root: Path) -> dict[str, str]:
    """What the store and each text should hold, by path below ``root``."""
    groups = read_sources(json.loads((root / STORE).read_text("utf-8")), root)
    figures = Figures(groups)
    return {str(STORE): dumped(groups)} | {
        path: filled((root / path).read_text("utf-8"), figures) for path in TEXTS
    }


def filled(text: str, figures: Figures) -> str:
    """A text with every marked part made anew.

    Raises:
        ValueError: a mark whose name no block has.
    """

    def made(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name not in BLOCKS:
            raise ValueError(f"figures:{name} is none of {', '.join(sorted(BLOCKS))}")
        return f"{begin}{BLOCKS[name](figures)}\n{end}"

    return _MARKED.sub(made, text)


def read_sources(groups: dict[str, Group], root: Path) -> dict[str, Group]:
    """The groups with their values read anew from the sources that they name."""
    return {name: _read_group(group, root) for name, group in groups.items()}


def _read_group(group: Group, root: Path) -> Group:
    """One group: each row from a table, or from a sentence where it has a pattern to find."""
    rows = []
    for row in group["rows"]:
        text = (root / row["source"]).read_text("utf-8")
        read = _from_sentence(row, text) if "find" in row else _from_table(row, text, group)
        rows.append({**row, **read})
    return {**group, "rows": rows}


def _from_sentence(row: dict[str, Any], text: str) -> dict[str, Any]:
    """The numbers that the groups of the pattern stand for."""
    found = re.findall(row["find"], text)
    if len(found) != 1:
        raise ValueError(f"{row['source']}: found {len(found)} times: {row['find']}")
    numbers = [found[0]] if isinstance(found[0], str) else list(found[0])
    return {"values": {"value": [_number(one) for one in numbers]}}


def _from_table(row: dict[str, Any], text: str, group: Group) -> dict[str, Any]:
    """The numbers in the row's cells under the group's headings, and n where the table has it."""
    for section, cells in _table_rows(text):
        first = list(cells.values())[: len(row["row"])]
        titled = row.get("section") in (None, section.split(",")[0])
        if first == row["row"] and titled:
            break
    else:
        raise ValueError(f"{row['source']}: no row {row['row']} in {row.get('section', 'it')}")
    values = {
        name: [_number(one) for one in _NUMBER.findall(cells[column["heading"]])]
        for name, column in group["columns"].items()
    }
    count = re.search(r"n = (\d+)", section)
    number = cells.get("n") or (count and count[1]) or row["n"]
    return {"n": int(number), "values": values}


def _table_rows(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row of each table as heading → cell, with the line above that names the table."""
    section, headings = "", []
    for line in text.splitlines():
        if not line.startswith("|"):
            headings = []
            if line.startswith("**") or re.match(r"n = \d", line):
                section = line.replace("**", "")
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not headings:
            headings = cells
        elif not set("".join(cells)) <= set("-:"):
            yield section, dict(zip(headings, cells, strict=True))


def _number(text: str) -> float:
    """A number as it is printed, with either minus; whole numbers stay whole."""
    text = text.replace("−", "-")
    return float(text) if "." in text else int(text)


def dumped(groups: dict[str, Group]) -> str:
    """JSON with one row to a line."""
    parts = []
    for name, group in groups.items():
        head = json.dumps({k: v for k, v in group.items() if k != "rows"}, ensure_ascii=False)
        rows = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in group["rows"])
        parts.append(f'  "{name}": {head[:-1]}, "rows": [\n{rows}\n  ]}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main())

"""The texts are true: their links, the formulas and names they point to, and their figures."""

import ast
import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import figures
from figure_tables import Figures, rounded, spread
from figure_texts import BLOCKS

ROOT = Path(__file__).resolve().parents[1]
CARD = "bundles/multimodal_fusion/docs/README.md"
STATED = {"docs/figures.json", "docs/results.md", CARD}
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "bundles/*/docs/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
SOURCES = sorted(
    path
    for top in ("fusion_pipeline", "networks", "transforms")
    for path in ROOT.glob(f"{top}/**/*.py")
)
FORMULA = r"\d(?:\.\d)?"
IN_BRACKETS = re.compile(r"\(([1-7]\.[1-9])\)")
CITED = re.compile(rf"METHOD (?:section )?({FORMULA}(?:(?:, | to | and ){FORMULA})*)")


def read(path: str) -> str:
    return (ROOT / path).read_text("utf-8")


def cited(code: str) -> set[str]:
    """The numbers of formulas and sections that a module's docstrings name."""
    if "METHOD" not in code and not IN_BRACKETS.search(code):  # to parse all takes seconds
        return set()
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(n) or "" for n in ast.walk(ast.parse(code)) if isinstance(n, nodes)]
    found = {n for text in texts for one in CITED.findall(text) for n in re.findall(FORMULA, one)}
    return found | {n for text in texts for n in IN_BRACKETS.findall(text)}


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_formula_that_code_cites_stands_in_the_method():
    numbered = set(re.findall(rf"^#+ ({FORMULA}) ", read("docs/method.md"), flags=re.MULTILINE))
    found = {path.name: cited(path.read_text("utf-8")) for path in SOURCES}
    assert len(set().union(*found.values())) >= 10
    assert {name: numbers - numbered for name, numbers in found.items() if numbers - numbered} == {}


@pytest.mark.parametrize(
    ("line", "numbers"),
    [
        ('"""Warp (METHOD 3.2)."""', {"3.2"}),
        ('"""All (METHOD 3.1, 4.1 and 5.2), and β of (4.4)."""', {"3.1", "4.1", "5.2", "4.4"}),
        ('"""From METHOD 4.2 to 4.4."""', {"4.2", "4.4"}),
        ("x = (2.5)  # METHOD of no docstring", set()),
    ],
)
def test_cited_numbers_are_found(line, numbers):
    assert cited(line) == numbers


def test_every_name_in_the_method_exists():
    names = set(re.findall(r"`([a-z]+(?:\.\w+)+)`", read("docs/method.md")))
    assert len(names) > 40
    for name in names:
        module, _, attribute = f"fusion_pipeline.{name}".rpartition(".")
        try:
            importlib.import_module(f"fusion_pipeline.{name}")
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), attribute), name


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", read(page), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(target.read_text("utf-8")), f"{page}: {link}"


def test_docs_that_code_and_pages_name_exist():
    code = [*SOURCES, *ROOT.glob("tests/*.py"), *ROOT.glob("benchmarks/*.py")]
    files = [p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/**/*")]
    files += [f"docs/{p.name}" for p in ROOT.glob("bundles/*/docs/*")]
    for path in [*code, *(ROOT / page for page in PAGES)]:
        for named in re.findall(r"docs/[\w/.-]*\w", path.read_text("utf-8")):
            # a decision may be named by its number alone
            short = re.fullmatch(r"docs/decisions/\d{4}", named)
            assert any(f == named or (short and f.startswith(named)) for f in files), (path, named)


def test_a_decision_takes_half_a_page():
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(path.name[:4]) for path in decisions] == list(range(1, len(decisions) + 1))
    for path in decisions:
        text = path.read_text("utf-8")
        assert len(text.split()) <= 210, path
        for part in ("**Context.**", "**Decision.**", "**Consequence.**"):
            assert part in text, (path, part)


def test_the_readme_is_short_and_its_figures_come_from_tables():
    text = read("README.md")
    assert len(text.splitlines()) <= 80
    own = re.sub(r"<!-- figures:.*?<!-- end -->", "", text, flags=re.DOTALL)
    assert own != text
    assert len(re.findall(r"\d+(?:\.\d+)*", text)) <= 25
    assert len(re.findall(r"\d+(?:\.\d+)*", own)) <= 5
    beside = r"```.*?```|<!--.*?-->|\]\([^)]*\)|^[|#].*?$"  # code, marks, addresses, tables, titles
    prose = re.sub(beside, "\n\n", text, flags=re.DOTALL | re.MULTILINE)
    sentences = re.split(r"[.:;](?:\s|$)|\n\n|^- ", prose, flags=re.MULTILINE)
    assert max(len(one.split()) for one in sentences) <= 30
    first_screen = "\n".join(text.splitlines()[:20])
    assert "make demo" in first_screen
    assert "make test" in first_screen


def test_the_readme_shows_a_picture_in_colour():
    path = re.search(r"!\[[^\]]+\]\(([^)]+)\)", read("README.md"))[1]
    with Image.open(ROOT / path) as picture:
        saturation = np.asarray(picture.convert("HSV"))[..., 1]
    assert (saturation > 100).mean() > 0.005


# what benchmarks write to docs/figures is as wide as they need
@pytest.mark.parametrize(
    "page", [p for p in PAGES if not p.startswith(("docs/figures/", "docs/study.md"))]
)
def test_tables_have_at_most_six_columns(page):
    for line in read(page).splitlines():
        assert not re.fullmatch(r"\|(\s*:?-+:?\s*\|){7,}", line), (page, line)


def test_texts_state_what_the_tables_say():
    assert {p for p, new in figures.fresh(ROOT).items() if read(p) != new} == set()


def test_each_block_is_used():
    used = {name for path in figures.TEXTS for name in re.findall(r"figures:([\w-]+)", read(path))}
    assert used == set(BLOCKS)


@pytest.fixture
def copy(tmp_path):
    """The texts, the store and their sources, to be changed."""
    for path in [*figures.TEXTS, str(figures.STORE)]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    for folder in ("docs/figures", "docs/history"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


@pytest.mark.parametrize(
    ("path", "old", "new", "differ"),
    [
        ("docs/figures/registration_ct_pet.md", "| 3.54 ± 2.04 |", "| 3.45 ± 2.04 |",
         STATED),
        ("docs/figures/registration_ct_mr.md", ": 13 of 23 cases", ": 12 of 23 cases",
         {"docs/figures.json", CARD, "docs/input.md"}),
        ("docs/figures.json", "[13, 23]", "[14, 23]", {"docs/figures.json"}),
        ("docs/input.md", "13 of 23", "13 of 22", {"docs/input.md"}),
        ("docs/figures/fusion.md", "| 0.305 ± 0.087 |", "| 0.350 ± 0.087 |",
         {"docs/figures.json", CARD}),
        ("docs/figures/registration_ct_pet.md", "| 6.34 ± 1.64 |", "| 6.43 ± 1.64 |",
         STATED | {"README.md"}),
    ],
)  # fmt: skip
def test_a_changed_figure_is_noticed_where_it_is_stated(copy, path, old, new, differ):
    changed(copy / path, old, new)
    fresh = figures.fresh(copy)
    assert {p for p, text in fresh.items() if (copy / p).read_text("utf-8") != text} == differ


def test_a_source_without_the_named_row_or_sentence_is_refused(copy):
    changed(copy / "docs/figures/demo.md", "| mr |", "| mri |")
    with pytest.raises(ValueError, match=r"demo\.md: no row \['mr'\]"):
        figures.fresh(copy)
    changed(copy / "docs/figures/demo.md", "| mri |", "| mr |")
    changed(copy / "docs/figures/cohort.md", "27 of 27 patients: neither", "All patients: neither")
    with pytest.raises(ValueError, match=r"cohort\.md: found 0 times"):
        figures.fresh(copy)


def test_an_unknown_block_is_refused():
    with pytest.raises(ValueError, match="figures:nothing is none of cohort, cost"):
        figures.filled("<!-- figures:nothing -->\n<!-- end -->", Figures({}))


def test_every_figure_has_what_a_reader_needs():
    for name, group in json.loads(read("docs/figures.json")).items():
        assert group["what"], name
        assert group["command"], name
        columns = group.get("columns", {"value": {}})
        for row in group["rows"]:
            assert row["n"] >= 1
            assert row["on"]
            assert (ROOT / row["source"]).is_file()
            for column, numbers in row["values"].items():
                assert numbers
                assert columns[column].get("unit") or row.get("unit") or group.get("unit"), name


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(-0.007, 2, "−0.01"), (2.675, 2, "2.68"), (0.5, 0, "1"), (3, 1, "3.0")],
)
def test_numbers_are_rounded_as_people_do(value, digits, text):
    assert rounded(value, digits) == text


def test_a_deviation_follows_its_mean():
    assert spread([1.5, 0.25]) == "1.50 ± 0.25"
    assert spread([0.8]) == "0.80"

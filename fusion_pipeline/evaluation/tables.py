"""Scores of many cases summed up: a table of summaries and one of comparisons, in four formats."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fusion_pipeline.evaluation.scores import KINDS, Kind, Score, by_patient
from fusion_pipeline.evaluation.statistics import Comparison, Summary, compare, holm, summarize


@dataclass(frozen=True)
class SummaryRow:
    """One score of one method in one group of cases.

    Attributes:
        group: such as ``ct-mr``.
        image: key of a source where the score is one source's; else empty.
        label: of a label map; empty for the mean over labels.
        name: see `KINDS`.
        method: who made it.
        summary: over its cases.
    """

    group: str
    image: str
    label: str
    name: str
    method: str
    summary: Summary


@dataclass(frozen=True)
class ComparisonRow:
    """One score of two methods on the same patients; fields as in `SummaryRow`."""

    group: str
    image: str
    label: str
    name: str
    method: str
    other: str
    comparison: Comparison

    @property
    def verdict(self) -> str:
        """Of ``method`` against ``other``."""
        return self.comparison.verdict(higher_is_better=KINDS[self.name].higher_is_better)


@dataclass(frozen=True)
class Table:
    """A table of texts, for any format.

    Attributes:
        caption: what, on what, how many.
        head: names of the columns.
        rows: texts.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def markdown(self) -> str:
        """The caption and a table."""
        return "\n\n".join(part for part in (self.caption, pipes(self.head, self.rows)) if part)

    @property
    def latex(self) -> str:
        """A ``tabular`` with the packages that LaTeX has anyway; the caption as a comment."""
        return f"% {self.caption}\n{tabular(self.head, self.rows)}"


_Cell = tuple[str, str, str, str]


def summary_rows(scores: Sequence[Score]) -> list[SummaryRow]:
    """A row for each group, image, label, score and method; cost last.

    A case counts as missing where another method or another case of its group has the score.
    """
    cells = _cells(scores)
    rows = []
    for cell, methods in cells.items():
        # a case that failed by one method is missing there
        expected = {score.case for one in methods.values() for score in one}
        for method, one in methods.items():
            there = {score.case for score in one}
            summary = summarize(
                by_patient(one),
                higher_is_better=KINDS[cell[3]].higher_is_better,
                missing=len(expected - there),
            )
            rows.append(SummaryRow(*cell, method, summary))
    return rows


def comparison_rows(scores: Sequence[Score], method: str) -> list[ComparisonRow]:
    """One method against each other one, for all scores that both have.

    p values are corrected by Holm's procedure over all rows of a stage (registration,
    harmonization, fusion): each stage is one question. Cost is left out: machines differ, and a
    time needs no test. So are doubts: a method that never judges itself would be the best.

    Args:
        scores: of all methods.
        method: which of them is compared.
    """
    rows = []
    for cell, methods in _cells(scores).items():
        if method not in methods or KINDS[cell[3]].stage == "cost" or cell[3] == "doubtful":
            continue
        ours = by_patient(methods[method])
        for other, theirs in methods.items():
            if other != method:
                found = compare(ours, by_patient(theirs))
                rows.append(ComparisonRow(*cell, method, other, found))
    corrected: dict[ComparisonRow, float] = {}
    for stage in dict.fromkeys(KINDS[row.name].stage for row in rows):
        family = [row for row in rows if KINDS[row.name].stage == stage]
        p_holm = holm([row.comparison.p for row in family])
        corrected |= dict(zip(family, p_holm, strict=True))
    return [replace(row, comparison=replace(row.comparison, p_holm=corrected[row])) for row in rows]


def as_json(
    summaries: Sequence[SummaryRow], comparisons: Sequence[ComparisonRow], facts: Mapping[str, Any]
) -> str:
    """Everything, for programs; null where there is no number."""
    content = {
        **facts,
        "summary": [_flat(row, row.summary) for row in summaries],
        "comparison": [
            {**_flat(row, row.comparison), "verdict": row.verdict} for row in comparisons
        ],
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def as_markdown(summaries: Sequence[SummaryRow], comparisons: Sequence[ComparisonRow]) -> str:
    """Two tables for people."""
    parts = [pipes(SUMMARY_HEAD, [summary_cells(row) for row in summaries])]
    if comparisons:
        parts.append(f"{comparisons[0].method} against each other method, paired over patients.")
        parts.append(pipes(COMPARISON_HEAD, [comparison_cells(row) for row in comparisons]))
    return "\n\n".join(parts) + "\n"


def as_latex(summaries: Sequence[SummaryRow], comparisons: Sequence[ComparisonRow]) -> str:
    """Two ``tabular`` environments with the packages that LaTeX has anyway."""
    parts = [tabular(SUMMARY_HEAD, [summary_cells(row) for row in summaries])]
    if comparisons:
        parts.append(f"% {comparisons[0].method} against each other method, paired over patients")
        parts.append(tabular(COMPARISON_HEAD, [comparison_cells(row) for row in comparisons]))
    return "\n\n".join(parts) + "\n"


SUMMARY_HEAD = (
    "group", "score", "method", "patients", "cases", "missing",
    "failures", "mean (95 % interval)", "SD", "median", "worst 30 %",
)  # fmt: skip
COMPARISON_HEAD = (
    "group", "score", "against", "verdict", "difference (95 % interval)",
    "effect", "p", "p (Holm)", "patients", "missing",
)  # fmt: skip


def summary_cells(row: SummaryRow) -> list[str]:
    """The texts of a row."""
    one = row.summary
    return [
        row.group,
        _title(row),
        row.method,
        *(str(n) for n in (one.patients, one.cases, one.missing)),
        "–" if math.isnan(one.failures) else f"{100 * one.failures:.0f} %",
        f"{short(one.mean)} ({short(one.low)} to {short(one.high)})",
        *(short(value) for value in (one.sd, one.median, one.worst)),
    ]


def comparison_cells(row: ComparisonRow) -> list[str]:
    """The texts of a row; the method that is compared is the same in all of them."""
    one = row.comparison
    return [
        row.group,
        _title(row),
        row.other,
        row.verdict,
        f"{short(one.mean)} ({short(one.low)} to {short(one.high)})",
        f"{one.effect:.2f}",
        p_text(one.p),
        p_text(one.p_holm),
        *(str(n) for n in (one.patients, one.missing)),
    ]


def short(value: float) -> str:
    """Three significant digits; a dash where there is no number.

    >>> short(0.12345), short(12.345), short(1234.5), short(float("nan"))
    ('0.123', '12.3', '1234', '–')
    """
    if math.isnan(value):
        return "–"
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 4)}f}"


def p_text(value: float) -> str:
    """A p value as journals print it."""
    if math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _cells(scores: Sequence[Score]) -> dict[_Cell, dict[str, list[Score]]]:
    """Per group, image, label and name the scores of each method, in the order of `KINDS`."""
    order = {name: n for n, name in enumerate(KINDS)}
    known = [score for score in scores if score.name in KINDS]
    cells: dict[_Cell, dict[str, list[Score]]] = {}
    for score in sorted(known, key=lambda s: (order[s.name], s.group, s.image, int(s.label or 0))):
        image = score.image if KINDS[score.name].stage in ("fusion", "harmonization") else ""
        cell = (score.group, image, score.label, score.name)
        cells.setdefault(cell, {}).setdefault(score.method, []).append(score)
    return cells


def _title(row: SummaryRow | ComparisonRow) -> str:
    """What the score is, of which image and label, in which unit."""
    kind: Kind = KINDS[row.name]
    of = f" of {row.image}" if row.image else ""
    label = f", label {row.label}" if row.label else ""
    unit = f", {kind.unit}" if kind.unit else ""
    return f"{kind.title}{of}{label}{unit}"


def _flat(row: SummaryRow | ComparisonRow, numbers: Summary | Comparison) -> dict[str, Any]:
    """One level; null for NaN."""
    named = {k: v for k, v in asdict(row).items() if isinstance(v, str)}
    kind = KINDS[row.name]
    values = {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in asdict(numbers).items()
    }
    return {**named, "unit": kind.unit, "higher_is_better": kind.higher_is_better, **values}


def pipes(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tabular(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A LaTeX table."""
    lines = [" & ".join(map(_escaped, line)) + r" \\" for line in (head, *rows)]
    body = "\n".join([lines[0], r"\hline", *lines[1:]])
    return f"\\begin{{tabular}}{{{'l' * len(head)}}}\n{body}\n\\end{{tabular}}"


_LATEX = {"_": r"\_", "%": r"\%", "&": r"\&", "^": r"\^{}", "<": "$<$", "–": "--", "#": r"\#"}


def _escaped(text: str) -> str:
    """What LaTeX reads otherwise."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


__all__ = [
    "ComparisonRow",
    "SummaryRow",
    "Table",
    "as_json",
    "as_latex",
    "as_markdown",
    "comparison_cells",
    "comparison_rows",
    "p_text",
    "pipes",
    "short",
    "summary_cells",
    "summary_rows",
    "tabular",
]

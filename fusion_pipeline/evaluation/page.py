"""The page of a study: tables, distributions, and the cases, worst first, with links."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined

from fusion_pipeline.evaluation.scores import KINDS, START, Score
from fusion_pipeline.evaluation.tables import (
    COMPARISON_HEAD,
    SUMMARY_HEAD,
    ComparisonRow,
    SummaryRow,
    Table,
    comparison_cells,
    short,
    summary_cells,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# what a reader looks at first, as far as the cases bring it
_FIRST = ("tre_mm", "landmarks_mm", "dice", "hd95_mm", "agreement", "q_min", "ssim_min", "vif_min")
_INCHES = (2.2, 2.6)


@dataclass(frozen=True)
class CaseRow:
    """A case on the page.

    Attributes:
        id: the case.
        report: path of its report, relative to the page; empty where it failed.
        picture: path of a small picture of the fused image; empty without one.
        score: text of the score by which the cases are sorted.
        message: why it failed; empty.
    """

    id: str
    report: str
    picture: str
    score: str
    message: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page beside the scores.

    Attributes:
        title: its heading.
        note: a sentence below it; may be empty.
        tables: with their captions.
        figures: per caption a data URI.
    """

    title: str
    note: str
    tables: Sequence[Table]
    figures: Mapping[str, str]

    @classmethod
    def of(
        cls, title: str, note: str, tables: Sequence[Table], pictures: Mapping[str, Path]
    ) -> "Section":
        """With the PNG files of its figures inside."""
        figures = {caption: _uri(path.read_bytes()) for caption, path in pictures.items()}
        return cls(title, note, tables, figures)


def render_page(
    scores: Sequence[Score],
    summaries: Sequence[SummaryRow],
    comparisons: Sequence[ComparisonRow],
    cases: Sequence[CaseRow],
    facts: Mapping[str, Any],
    sections: Sequence[Section] = (),
) -> str:
    """Draw the page.

    Args:
        scores: all rows.
        summaries: of them.
        comparisons: of them.
        cases: as they are to stand on it.
        facts: what was run, for its head.
        sections: other parts.

    Returns:
        HTML with its style and plots inside; pictures of cases are linked.
    """
    return (
        _environment()
        .get_template("study.html.j2")
        .render(
            facts=facts,
            plots=[box_plot(scores, name) for name in _FIRST if _values(scores, name)],
            agreement=bland_altman(scores, facts["methods"][0]),
            regularity=accuracy_regularity(scores),
            summary_head=SUMMARY_HEAD,
            summaries=[summary_cells(row) for row in summaries if not row.label],
            labels=[summary_cells(row) for row in summaries if row.label],
            comparison_head=COMPARISON_HEAD,
            comparisons=[comparison_cells(row) for row in comparisons if not row.label],
            cases=cases,
            sections=sections,
        )
    )


def sorted_cases(
    scores: Sequence[Score],
    method: str,
    reports: Mapping[str, tuple[str, str]],
    failed: Mapping[str, str],
) -> list[CaseRow]:
    """Failed cases first, then the worst by the first score that the cases have.

    Args:
        scores: all rows.
        method: whose cases.
        reports: per case the paths of its report and of its picture.
        failed: per failed case its message.
    """
    name = next((n for n in (*_FIRST, "mind") if _values(scores, n)), "")
    values: dict[str, list[float]] = {}
    for score in scores:
        if (score.name, score.method, score.label) == (name, method, "") and not (
            KINDS[name].stage == "fusion" and score.image
        ):
            values.setdefault(score.case, []).append(score.value)
    worst = min if name and KINDS[name].higher_is_better else max
    sign = 1 if name and KINDS[name].higher_is_better else -1
    rows = [CaseRow(case, "", "", "", message) for case, message in failed.items()]
    keyed = []
    for case, (report, picture) in reports.items():
        value = worst(values[case]) if case in values else None
        text = "" if value is None else f"{KINDS[name].title} {short(value)} {KINDS[name].unit}"
        keyed.append(
            (float("inf") if value is None else sign * value, CaseRow(case, report, picture, text))
        )
    return [*rows, *(row for _, row in sorted(keyed, key=lambda pair: (pair[0], pair[1].id)))]


def box_plot(scores: Sequence[Score], name: str) -> dict[str, str]:
    """One score by group and method: quartiles, and each case as a dot."""
    values = _values(scores, name)
    groups = list(dict.fromkeys(group for group, _ in values))
    figure, axes = _figure(1.0 + 0.55 * len(values))
    ticks, labels = [], []
    for at, ((group, method), some) in enumerate(values.items()):
        axes.boxplot(
            [some], positions=[at], widths=0.6, showfliers=False, medianprops={"color": "black"}
        )
        # spread by rank, so that equal runs draw equal pictures
        spread = [at + 0.3 * ((k * 0.618) % 1 - 0.5) for k in range(len(some))]
        axes.plot(spread, some, ".", color="#1f6fb2", markersize=4, alpha=0.7)
        ticks.append(at)
        labels.append(f"{group}\n{method}" if len(groups) > 1 else method)
    axes.set_xticks(ticks, labels, fontsize=7, rotation=30, ha="right")
    kind = KINDS[name]
    every = [value for some in values.values() for value in some]
    if kind.unit == "mm" and min(every) > 0:
        axes.set_yscale("log")  # one lost case must not flatten all others
    axes.set_ylabel(f"{kind.title}{', ' + kind.unit if kind.unit else ''}", fontsize=8)
    title = f"{kind.title} ({'higher' if kind.higher_is_better else 'lower'} is better)"
    return {"title": title, "image": _png(figure)}


def bland_altman(scores: Sequence[Score], method: str) -> dict[str, str] | None:
    """Estimated against true error of one method, mean and difference; None without both."""
    pairs = _paired([s for s in scores if s.method == method], "error_mm", "tre_mm")
    if len(pairs) < 3:
        return None
    figure, axes = _figure(3.2)
    mean = [(a + b) / 2 for a, b in pairs]
    difference = [a - b for a, b in pairs]
    axes.plot(mean, difference, ".", color="#1f6fb2")
    middle = sum(difference) / len(difference)
    spread = (sum((d - middle) ** 2 for d in difference) / (len(difference) - 1)) ** 0.5
    for level, style in (
        (middle, "-"),
        (middle - 1.96 * spread, "--"),
        (middle + 1.96 * spread, "--"),
    ):
        axes.axhline(level, color="black", linestyle=style, linewidth=0.8)
    axes.set_xlabel("mean of both, mm", fontsize=8)
    axes.set_ylabel("estimated − true error, mm", fontsize=8)
    limits = f"bias {middle:.2f} mm, 95 % limits ± {1.96 * spread:.2f} mm (n = {len(pairs)})"
    title = f"Estimated error: {limits}"
    return {"title": title, "image": _png(figure)}


def accuracy_regularity(scores: Sequence[Score]) -> dict[str, str] | None:
    """Target registration error over the spread of the log Jacobian; None without both."""
    methods = dict.fromkeys(score.method for score in scores if score.method != START)
    pairs = {
        method: _paired([s for s in scores if s.method == method], "sd_log_jacobian", "tre_mm")
        for method in methods
    }
    if not any(pairs.values()):
        return None
    figure, axes = _figure(3.2)
    # methods with the same registration have the same points, under one name
    named: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for method, points in pairs.items():
        if points:
            named.setdefault(tuple(points), []).append(method)
    for some, sharing in named.items():
        axes.plot(*zip(*some, strict=True), ".", label="\n".join(sharing))
    axes.set_xlabel("SD of the log Jacobian", fontsize=8)
    axes.set_ylabel("target registration error, mm", fontsize=8)
    axes.legend(fontsize=7)
    return {"title": "Accuracy and regularity of the fields", "image": _png(figure)}


def _values(scores: Sequence[Score], name: str) -> dict[tuple[str, str], list[float]]:
    """Per group and method the values of the cases; sources and labels left out."""
    found: dict[tuple[str, str], list[float]] = {}
    for score in scores:
        if (
            score.name == name
            and not score.label
            and not (KINDS[name].stage == "fusion" and score.image)
        ):
            found.setdefault((score.group, score.method), []).append(score.value)
    return dict(sorted(found.items(), key=lambda item: item[0][0]))


def _paired(scores: Sequence[Score], first: str, second: str) -> list[tuple[float, float]]:
    """Two scores of the same case, image and method."""
    tables: list[dict[tuple[str, str, str], float]] = []
    for name in (first, second):
        rows = (s for s in scores if s.name == name and not s.label and s.method != START)
        tables.append({(s.case, s.image, s.method): s.value for s in rows})
    return [(value, tables[1][key]) for key, value in tables[0].items() if key in tables[1]]


def _figure(width: float) -> "tuple[Figure, Any]":
    """A figure that no window needs."""
    from matplotlib.figure import Figure

    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(max(_INCHES[0], width), _INCHES[1]), layout="constrained")
        axes = figure.subplots()
    axes.tick_params(labelsize=7)
    return figure, axes


def _png(figure: "Figure") -> str:
    """A data URI."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130, metadata={"Software": None})
    return _uri(out.getvalue())


def _uri(png: bytes) -> str:
    """A picture inside the page."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _environment() -> Environment:
    """The template: all text is escaped, a name that is not given is an error."""
    return Environment(
        loader=PackageLoader("fusion_pipeline.evaluation", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


__all__ = ["CaseRow", "Section", "render_page", "sorted_cases"]

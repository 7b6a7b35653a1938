"""``summary.html``: the cases of a run on one page, those to look at first."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from fusion_pipeline.report.facts import label
from fusion_pipeline.report.html import environment

Cell = str | float | int | None

# A value this far from the median, in robust standard deviations, is an outlier: Iglewicz and
# Hoaglin, How to Detect and Handle Outliers, 1993, the modified z-score.
_OUTLIER_Z = 3.5
_MAD_TO_SD = 1.4826  # of a normal distribution
_FEWEST = 8  # cases; the spread of fewer says too little

_WIDTH, _HEIGHT, _EDGE = 560, 26, 10  # of a strip, in its own units


class Measure(NamedTuple):
    """A number that each case has for each moving image.

    Attributes:
        column: end of its name in ``summary.csv``.
        title: its name on the page.
        unit: of the page.
        factor: from the column to the page.
        higher_is_better: decides on which side outliers are looked for.
    """

    column: str
    title: str
    unit: str
    factor: float
    higher_is_better: bool


_MEASURES = (
    Measure("tre_mm_after", "Target registration error", "mm", 1, False),
    Measure("landmarks_mm_after", "Distance of landmarks", "mm", 1, False),
    Measure("dice_after", "Dice of labels", "", 1, True),
    Measure("hd95_mm_after", "95 % Hausdorff distance of labels", "mm", 1, False),
    Measure("error_mm", "Estimated error", "mm", 1, False),
    Measure("over_5_mm", "Probability of an error over 5 mm", "%", 100, False),
    Measure("nmi_after", "Normalized mutual information", "", 1, True),
    Measure("mind_after", "MIND-SSC distance", "", 1, False),
    Measure("overlap_after", "Overlap", "", 1, True),
    Measure("folded_fraction", "Folded voxels", "%", 100, False),
)


@dataclass(frozen=True)
class CohortCase:
    """A case of a run.

    Attributes:
        id: the case.
        status: ``ok``, ``skipped`` (was done before) or ``failed``.
        message: why it failed.
        numbers: its cells of ``summary.csv``.
    """

    id: str
    status: str
    message: str
    numbers: Mapping[str, Cell]

    @property
    def link(self) -> str:
        """Its report, from the page; empty where there is none."""
        return "" if self.status == "failed" else f"{quote(self.id)}/report.html"

    @property
    def keys(self) -> list[str]:
        """Its moving images."""
        return [n.removesuffix("_transform") for n in self.numbers if n.endswith("_transform")]


@dataclass(frozen=True)
class Dot:
    """A case on a strip.

    Attributes:
        x: across the strip.
        y: down the strip; dots that would cover each other differ.
        name: the case and its value.
        link: its report.
        outlier: far from the others, on the worse side.
    """

    x: float
    y: float
    name: str
    link: str
    outlier: bool


@dataclass(frozen=True)
class Strip:
    """The distribution of a measure over the cases.

    Attributes:
        title: the measure and its unit.
        image: whose.
        dots: a case each.
        box: across the strip: lower quartile, median, upper quartile.
        quartiles: the same as text.
        ends: lowest and highest value, as text.
    """

    title: str
    image: str
    dots: Sequence[Dot]
    box: tuple[float, float, float]
    quartiles: str
    ends: tuple[str, str]


@dataclass(frozen=True)
class CohortRow:
    """A case in the table.

    Attributes:
        case: what it is.
        reasons: why to look at it; empty for none.
        images: per moving image: name, whether its registration is plausible, estimated error.
    """

    case: CohortCase
    reasons: Sequence[str]
    images: Sequence[tuple[str, bool, Cell]]


def render_cohort(cases: Sequence[CohortCase], length: str = "mm") -> str:
    """Draw the page: distributions, then the cases, those to look at first.

    Args:
        cases: in any order.
        length: unit of lengths: mm, or px where the cases are pictures.

    Returns:
        HTML that loads nothing; its links lead to ``<id>/report.html``.
    """
    measures = [m._replace(unit=length) if m.unit == "mm" else m for m in _MEASURES]
    strips, outliers = _strips(cases, measures)
    rows = [_row(case, outliers.get(case.id, [])) for case in cases]
    rows.sort(key=_urgency)
    return (
        environment()
        .get_template("cohort.html.j2")
        .render(
            rows=rows,
            strips=strips,
            failed=sum(case.status == "failed" for case in cases),
            doubtful=sum(any(not ok for _, ok, _ in row.images) for row in rows),
            outlying=len(outliers),
            size=(_WIDTH, _HEIGHT),
            length=length,
            fewest=_FEWEST,
            limit=_OUTLIER_Z,
        )
    )


def _urgency(row: CohortRow) -> tuple[bool, bool, int, str]:
    """Failed cases first, then doubtful ones, then those with most outliers."""
    doubtful = any(not ok for _, ok, _ in row.images)
    return (row.case.status != "failed", not doubtful, -len(row.reasons), row.case.id)


def _row(case: CohortCase, outliers: Sequence[str]) -> CohortRow:
    """A case and why to look at it."""
    images = [
        (label(key), bool(case.numbers[f"{key}_ok"]), case.numbers.get(f"{key}_error_mm"))
        for key in case.keys
    ]
    doubts = [f"{name}: the registration is doubtful" for name, ok, _ in images if not ok]
    failed = [case.message] if case.status == "failed" else []
    return CohortRow(case, [*failed, *doubts, *outliers], images)


def _strips(
    cases: Sequence[CohortCase], measures: Sequence[Measure]
) -> tuple[list[Strip], dict[str, list[str]]]:
    """The distributions, and per case what is far from the others."""
    strips: list[Strip] = []
    outliers: dict[str, list[str]] = {}
    keys = dict.fromkeys(key for case in cases for key in case.keys)
    for measure, key in ((m, k) for m in measures for k in keys):
        values = dict(_values(cases, measure, key))
        if len(values) < 2:
            continue
        far = outlying(list(values.values()), higher_is_better=measure.higher_is_better)
        strips.append(_strip(measure, key, values, far))
        for (case, value), is_far in zip(values.items(), far, strict=True):
            if is_far:
                text = f"{label(key)}: {measure.title} {_with_unit(value, measure.unit)}"
                outliers.setdefault(case.id, []).append(text)
    return strips, outliers


def _values(
    cases: Iterable[CohortCase], measure: Measure, key: str
) -> Iterator[tuple["_ById", float]]:
    """The cases that have a number, and it."""
    for case in cases:
        value = case.numbers.get(f"{key}_{measure.column}")
        if isinstance(value, int | float) and np.isfinite(value):
            yield _ById(case.id, case.link), measure.factor * float(value)


class _ById(NamedTuple):
    """What a dot needs of a case."""

    id: str
    link: str


def outlying(values: Sequence[float], *, higher_is_better: bool) -> list[bool]:
    """Which values lie far from the median on the worse side.

    Args:
        values: of different cases.
        higher_is_better: low ones are worse.

    Returns:
        All False for fewer than 8 values, or where more than half are equal.

    >>> outlying([1, 2, 1, 2, 1, 2, 1, 2, 40], higher_is_better=False)[-1]
    True
    >>> outlying([1, 2, 1, 2, 1, 2, 1, 2, 40], higher_is_better=True)[-1]
    False
    """
    array = np.asarray(values, dtype=float)
    middle = float(np.median(array))
    spread = _MAD_TO_SD * float(np.median(np.abs(array - middle)))
    if len(array) < _FEWEST or spread == 0:
        return [False] * len(array)
    worse = (middle - array) if higher_is_better else (array - middle)
    return [bool(far) for far in worse / spread > _OUTLIER_Z]


def _strip(measure: Measure, key: str, values: Mapping[_ById, float], far: Sequence[bool]) -> Strip:
    """Dots over a box of quartiles."""
    array = np.asarray(list(values.values()))
    low, high = float(array.min()), float(array.max())
    scale = (_WIDTH - 2 * _EDGE) / (high - low) if high > low else 0.0
    quartiles = [float(q) for q in np.percentile(array, [25, 50, 75])]
    first, middle, last = (_EDGE + scale * (q - low) for q in quartiles)
    dots = [
        # spread by rank, so that equal runs draw equal pages
        Dot(
            round(_EDGE + scale * (value - low), 1),
            round(_HEIGHT * (0.25 + 0.5 * ((n * 0.618) % 1)), 1),
            f"{case.id}: {_with_unit(value, measure.unit)}",
            case.link,
            is_far,
        )
        for n, ((case, value), is_far) in enumerate(zip(values.items(), far, strict=True))
    ]
    title = f"{measure.title}{', ' + measure.unit if measure.unit else ''}"
    text = f"{quartiles[1]:.3g} ({quartiles[0]:.3g} to {quartiles[2]:.3g})"
    ends = (f"{low:.3g}", f"{high:.3g}")
    return Strip(title, label(key), dots, (first, middle, last), text, ends)


def _with_unit(value: float, unit: str) -> str:
    """A number for a reader."""
    return f"{value:.3g} {unit}".strip()


__all__ = ["CohortCase", "outlying", "render_cohort"]

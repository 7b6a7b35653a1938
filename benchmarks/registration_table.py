"""Registration results as a table and a plot, with the best peer's marks beside them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

Row = dict[str, Any]
_SUCCESS_MM = 3.0
_DOUBTFUL_MM = 5.0  # an error that a flag should announce
_COLUMNS = (
    "TRE in mm over the fixed body, a mean per case; mean, SD, median and worst are over cases, "
    "p95 is the mean of the cases' own 95th percentiles. In view: before → after over what the "
    "moved image shows. Worse: share of cases whose mean TRE rose. Success: share of cases whose "
    "mean TRE is under 3 mm or a voxel of the coarser image (cube root of its volume). Best peer: "
    "PEERS.md, table of real patients, other patients than these, empty where nobody was measured; "
    "✗: ours is above."
)


@dataclass(frozen=True)
class Mark:
    """What the best engine leaves, measured on other patients.

    Attributes:
        mm: mean target registration error.
        peer: whose.
        source: the line of PEERS.md, table "Real patients".
    """

    mm: float
    peer: str
    source: str


_PAINTED_MILD = "painted label map, mild | 1 | 4.9 | **1.6**"
_PAINTED_STRONG = "painted label map, strong | 1 | 25.5 | **2.3**"
MARKS = {
    ("sarcoma CT-MR", "rigid"): Mark(5.8, "convexAdam", "CT–MR rigid | 6 | 17.1 | 6.7 | **5.8**"),
    ("sarcoma CT-MR", "mild"): Mark(4.7, "convexAdam", "CT–MR mild | 6 | 5.5 | 6.7 | **4.7**"),
    ("sarcoma CT-MR", "strong"): Mark(7.0, "deeds", "CT–MR strong | 6 | 20.4 | **7.0** | 8.3"),
    ("sarcoma CT-PET", "mild"): Mark(3.9, "convexAdam", "CT–PET mild | 2 | 4.8 | 8.5 | **3.9**"),
    ("sarcoma CT-PET", "strong"): Mark(
        10.3, "greedy rigid → NMI", "CT–PET strong | 2 | 20.2 | 21 | 12.9 | **10.3**"
    ),
    # that table does not say which contrasts were painted
    ("painted CT-T1", "mild"): Mark(1.6, "deeds", _PAINTED_MILD),
    ("painted CT-T1", "strong"): Mark(2.3, "deeds", _PAINTED_STRONG),
    ("painted T1-PET", "mild"): Mark(1.6, "deeds", _PAINTED_MILD),
    ("painted T1-PET", "strong"): Mark(2.3, "deeds", _PAINTED_STRONG),
    ("tcga T1-T2", "strong"): Mark(1.35, "deeds", "T1–T2 brain strong | 1 | 19.1 | 1.35"),
    ("tcga T1-FLAIR", "rigid"): Mark(
        0.3, "ANTs or greedy rigid", "FLAIR–T1 brain rigid | 1 | 14.8 | … | **0.3**"
    ),
}


def mark_of(group: str, severity: str) -> Mark | None:
    """The mark for a group; training patients are measured against the same."""
    return MARKS.get((group.removesuffix(" (training)"), severity))


def summary(rows: Sequence[Row]) -> list[Row]:
    """One entry per group, severity and method, in the order of `_order`."""
    cells: dict[tuple[str, str, str], list[Row]] = {}
    for row in sorted(rows, key=_order):
        cells.setdefault((row["group"], row["severity"], row["method"]), []).append(row)
    return [_summary(*key, mine) for key, mine in cells.items()]


def _summary(group: str, severity: str, method: str, rows: Sequence[Row]) -> Row:
    before, after = _column(rows, "before", "mean"), _column(rows, "after", "mean")
    mark = mark_of(group, severity)
    return {
        "group": group,
        "severity": severity,
        "method": method,
        "n": len(rows),
        "raised": sum("raised" in r for r in rows),
        "before": before.mean(),
        "mean": after.mean(),
        "sd": after.std(ddof=1) if len(after) > 1 else None,
        "median": float(np.median(after)),
        "p95": _column(rows, "after", "p95").mean(),
        "worst": after.max(),
        "before_in_view": _mean(_column(rows, "before_in_view", "mean")),
        "mean_in_view": _mean(_column(rows, "after_in_view", "mean")),
        "worse": float((after > before).mean()),
        "success": float(np.mean([_succeeded(row) for row in rows])),
        "not_ok": sum(not r["ok"] for r in rows),
        "folded_worst": max(r["folded_fraction"] for r in rows),
        "cpu_s": float(np.mean([r["cpu_s"] for r in rows])),
        "peer_mm": mark.mm if mark else None,
        "peer": mark.peer if mark else None,
        "peer_source": mark.source if mark else None,
    }


def _succeeded(row: Row) -> bool:
    """Under 3 mm, or under a voxel of the coarser image."""
    return "raised" not in row and row["after"]["mean"] < max(_SUCCESS_MM, row["voxel_mm"])


def _column(rows: Sequence[Row], when: str, name: str) -> np.ndarray:
    """One number of every row; NaN where a row has none."""
    return np.array([np.nan if r[when] is None else r[when][name] for r in rows], float)


def _mean(values: np.ndarray) -> float | None:
    """Mean of what there is."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def markdown(rows: Sequence[Row]) -> str:
    """The table, what its columns mean, and how far the estimated error can be trusted."""
    head = (
        "group",
        "severity",
        "method",
        "n",
        "before",
        "TRE mean ± SD",
        "median",
        "p95",
        "worst",
        "in view",
        "worse",
        "success",
        "not ok",
        "folded, worst",
        "CPU s",
        "best peer",
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(_cells(entry))} |" for entry in summary(rows)]
    notes = [_COLUMNS, *_on_confidence(rows)]
    return "\n".join([*lines, "", *notes]) + "\n"


def _cells(s: Row) -> list[str]:
    sd = "" if s["sd"] is None else f" ± {s['sd']:.2f}"
    beaten = "" if s["peer_mm"] is None else ("" if s["mean"] <= s["peer_mm"] else " ✗")
    view = (
        "" if s["mean_in_view"] is None else f"{s['before_in_view']:.1f} → {s['mean_in_view']:.2f}"
    )
    return [
        s["group"],
        s["severity"],
        s["method"],
        f"{s['n']}" + (f" ({s['raised']} raised)" if s["raised"] else ""),
        f"{s['before']:.1f}",
        f"{s['mean']:.2f}{sd}{beaten}",
        f"{s['median']:.2f}",
        f"{s['p95']:.1f}",
        f"{s['worst']:.1f}",
        view,
        f"{s['worse']:.0%}",
        f"{s['success']:.0%}",
        str(s["not_ok"]),
        f"{s['folded_worst']:.4%}",
        f"{s['cpu_s']:.1f}",
        "" if s["peer_mm"] is None else f"{s['peer_mm']} ({s['peer']})",
    ]


def _on_confidence(rows: Sequence[Row]) -> Iterator[str]:
    """Whether the estimated error and the flag say what happened."""
    for method in sorted({r["method"] for r in rows}):
        mine = [r for r in rows if r["method"] == method]
        known = [r for r in mine if r["error_mm"] is not None]
        after = [r["after"]["mean"] for r in known]
        estimates = [r["error_mm"] for r in known]
        bad = [r for r in mine if r["after"]["mean"] >= _DOUBTFUL_MM]
        if len(known) > 2 and np.ptp(after) > 0 and np.ptp(estimates) > 0:
            rho = spearmanr(estimates, after).statistic
            yield f"\n{method}: rank correlation of estimated and true error {rho:.2f}."
        if bad:
            flagged = sum(not r["ok"] for r in bad)
            yield f"\n{method}: {flagged} of {len(bad)} cases over {_DOUBTFUL_MM:.0f} mm flagged."


def plot(rows: Sequence[Row], path: Path) -> None:
    """Mean TRE of each case before (hollow) and after (filled), the best peer as a line."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    methods = sorted({r["method"] for r in rows})
    groups = list(dict.fromkeys((r["group"], r["severity"]) for r in sorted(rows, key=_order)))
    figure, axes = plt.subplots(figsize=(4.5 + 0.9 * len(groups), 4.8), layout="constrained")
    width = 0.6 / len(methods)
    for place, key in enumerate(groups):
        here = [r for r in rows if (r["group"], r["severity"]) == key]
        for m, method in enumerate(methods):
            mine = [r for r in here if r["method"] == method]
            x = place + (m - (len(methods) - 1) / 2) * width
            spread = x + np.linspace(-0.25, 0.25, len(mine) + 2)[1:-1] * width
            axes.plot(spread, _column(mine, "before", "mean"), "o", mfc="none", mec="0.6", ms=4)
            axes.plot(spread, _column(mine, "after", "mean"), "o", color=f"C{m}", ms=4)
        mark = mark_of(*key)
        if mark:
            axes.hlines(mark.mm, place - 0.4, place + 0.4, color="k", lw=1.2, ls="--")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    names = [f"{group}\n{severity}" for group, severity in groups]
    axes.set_xticks(range(len(groups)), names, rotation=35, ha="right")
    axes.set_ylabel("mean TRE, mm")
    axes.grid(axis="y", which="both", alpha=0.25)
    for m, method in enumerate(methods):
        axes.plot([], [], "o", color=f"C{m}", ms=4, label=method)
    axes.plot([], [], "o", mfc="none", mec="0.6", ms=4, label="before")
    axes.plot([], [], "k--", lw=1.2, label="best peer (other patients)")
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _order(row: Row) -> tuple[str, int, str]:
    """Groups by name, severities as PEERS.md has them, methods by name."""
    place = ("rigid", "mild", "strong", "far").index(row["severity"])
    return row["group"], place, row["method"]

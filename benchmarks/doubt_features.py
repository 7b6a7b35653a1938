r"""What says that a registration is off by more than 5 mm? Sets of measures, compared.

    python benchmarks/doubt_features.py --rows out/doubt_rows.jsonl --out out

Reads the results of ``doubt_rows.py``. Each set of measures is judged by a logistic model with a
ridge, each patient's results by a model of the others'; the first is what the package said when the
rows were made. Writes ``doubt_features.md``, and ``doubt_features.json`` with the weights of every
set, fitted to all rows. Nothing here reads a held-out patient.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from doubt import Judged, Row, fitted, judged_on_others, training_rows, wrong

_NATS = 0.05  # a rival pose that scores so much lower counts 1/e
_APART_MM = 8.0  # two climbed poses so far apart are two answers

MEASURES: Mapping[str, Callable[[Row], float]] = {
    "estimate": lambda r: math.log(max(r["estimate_mm"], 0.1)),
    "unevenness": lambda r: math.log(r["estimate_percentiles"][2] / r["estimate_percentiles"][1]),
    "information": lambda r: math.log(max(r["after"]["nmi"] - 1, 1e-3)),
    "structure": lambda r: r["after"]["mind"],
    "gain": lambda r: r["before"]["mind"] - r["after"]["mind"],
    "overlap": lambda r: r["after"]["overlap"],
    "score": lambda r: r["details"]["pose_score_rigid"],
    "score_gain": lambda r: r["details"]["pose_score_rigid"] - r["details"]["pose_score_start"],
    "move": lambda r: math.log1p(r["move_mm"]),
    "bend": lambda r: math.log1p(r["bend_mm"]),
    "emission": lambda r: float(r["moving"] == "pet"),
    "spread": lambda r: spread_mm(r["rivals"]),
    "second": lambda r: second_nats(r["rivals"]),
    # of `doubt_measures.py`
    "fall_6": lambda r: math.log(max(min(r["fall_6"]), 1e-3)),
    "median_fall": lambda r: math.log(max(float(np.median(r["fall_6"])), 1e-3)),
    "stays": lambda r: float(r["transform"] == "none"),
    "fall_12": lambda r: math.log(max(min(r["fall_12"]), 1e-3)),
    "rerun": lambda r: math.log1p(float(np.median(r["rerun_mm"]))),
    "rerun_gain": lambda r: max(0.0, *r["rerun_gain"]),
    "fall_of_estimate": lambda r: math.log(r["start_estimate_mm"] / r["estimate_mm"]),
    "as_one": lambda r: math.log(max(r["closed_affine_mm"], 0.1)),
    "in_parts": lambda r: math.log(max(r["closed_rest_mm"], 0.1)),
}
SETS = {
    "estimate alone": ("estimate",),
    "estimate, NMI, emission": ("estimate", "information", "emission"),
    "median fall alone": ("median_fall",),
    "estimate, median fall": ("estimate", "median_fall"),
    "the package's, fitted anew": ("estimate", "median_fall", "stays"),
    "with the least fall": ("estimate", "median_fall", "fall_6", "stays"),
    "with the estimate in parts": ("estimate", "median_fall", "stays", "in_parts"),
    "pose search": ("score", "score_gain", "spread", "second"),
    "estimate, score": ("estimate", "score", "emission"),
    "estimate, score, spread": ("estimate", "score", "spread", "emission"),
    "estimate, falls of the score": ("estimate", "fall_6", "fall_12", "emission"),
    "estimate, reruns": ("estimate", "rerun", "rerun_gain", "emission"),
    "estimate in parts": ("as_one", "in_parts", "fall_of_estimate", "emission"),
    "falls, reruns, parts": (
        *("estimate", "fall_6", "fall_12", "rerun", "rerun_gain"),
        *("fall_of_estimate", "as_one", "in_parts", "emission"),
    ),
    "all": tuple(MEASURES),
}
_LEAST = 20  # results, and a quarter of them over 5 mm: fewer say nothing


def spread_mm(rivals: Sequence[tuple[float, float]]) -> float:
    """Mean distance of the climbed poses from the result, each by how well it scores; ln(1 + mm).

    Args:
        rivals: distance in mm and score in nats of each.

    >>> round(spread_mm([(0.0, 1.0), (10.0, 1.0)]), 3)  # ln(1 + 5)
    1.792
    """
    distances, scores = np.array(rivals, dtype=float).T
    weights = np.exp((scores - scores.max()) / _NATS)
    return math.log1p(float(weights @ distances / weights.sum()))


def second_nats(rivals: Sequence[tuple[float, float]]) -> float:
    """How much lower than the best the best pose scores that lies elsewhere; 1 at most.

    >>> round(second_nats([(0.5, 1.4), (2.0, 1.3), (20.0, 1.1)]), 3)
    0.3
    """
    best_mm, best = max(rivals, key=lambda rival: rival[1])
    elsewhere = [score for mm, score in rivals if abs(mm - best_mm) > _APART_MM]
    return min(1.0, best - max(elsewhere, default=best - 1.0))


def table(rows: Sequence[Row], names: Sequence[str]) -> np.ndarray:
    """Measures of each row, ``(n, m)``."""
    return np.array([[MEASURES[name](row) for name in names] for row in rows])


def with_measures(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The rows that hold all of these measures."""
    chosen = []
    for row in rows:
        try:
            if np.isfinite([MEASURES[name](row) for name in names]).all():
                chosen.append(row)
        except KeyError:  # made before there was such a measure, or a region that was too small
            continue
    return chosen


def main() -> None:
    """Compare the sets of measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, required=True, help="of doubt_rows.py")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = training_rows(args.rows)
    over, patients = wrong(rows), [row["patient"] for row in rows]
    results = {
        "as told when it was made": Judged(np.array([row["over_5_mm"] for row in rows]), over)
    }
    weights: dict[str, dict[str, float]] = {}
    for name, names in SETS.items():
        some = with_measures(rows, names)
        y = wrong(some)
        if len(some) < _LEAST or min(y.sum(), (~y).sum()) < _LEAST / 4:
            continue
        x = table(some, names)
        results[name] = judged_on_others(x, y, [row["patient"] for row in some])
        weights[name] = dict(zip(("offset", *names), fitted(x, y).tolist(), strict=True))
    lines = [
        f"{len(rows)} training results of {len(set(patients))} patients, {over.sum()} over 5 mm; "
        "each patient judged by a model of the others.",
        "",
        "| measures | results | AUROC | over 5 mm flagged at 15 % false alarms |",
        "|---|---|---|---|",
    ]
    for name, one in results.items():
        caught, _ = one.flagged(one.limit)
        lines.append(f"| {name} | {len(one.wrong)} | {one.auroc:.2f} | {caught:.0%} |")
    text = "\n".join([*lines, ""])
    (args.out / "doubt_features.md").write_text(text, encoding="utf-8")
    content = json.dumps(weights, indent=1) + "\n"
    (args.out / "doubt_features.json").write_text(content, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

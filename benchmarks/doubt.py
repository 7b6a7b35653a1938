r"""How likely is a result off by more than 5 mm? Fit that probability, and judge it.

    python benchmarks/doubt.py --rows docs/history/doubt_rows.jsonl --out out/doubt          # fit
    python benchmarks/doubt.py --rows docs/history/doubt_held_out.jsonl --out out/doubt --judge

The rows are results of known truth, which ``doubt_rows.py`` makes. Fit: a logistic model of
`register.risk.risk_measures`, with a ridge. It prints `RiskSettings` for ``register/settings.py``,
and how the model judges patients that it was not fitted on (each is left out in turn). Judge: the
model of the package on the held-out patients, to be done once. Both write ``training`` or
``held-out`` ``.md`` (the table) and ``.png`` (the reliability). To be repeated when the
registration network changes, since the model rests on its estimate.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from registration_cases import EVALUATION
from scipy.optimize import minimize

from fusion_pipeline.register.risk import probability_over_5_mm, risk_measures
from fusion_pipeline.register.settings import RISK

LIMIT_MM = 5.0
FALSE_ALARMS = 0.15  # at most, of the results under 5 mm
HELD_OUT = (*EVALUATION, "sts008")
_RIDGE = 1.0  # penalty of a squared weight of a standardized measure, in results
_BINS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
Array = NDArray[np.float64]
Row = Mapping[str, Any]  # of `doubt_rows.py`


@dataclass(frozen=True)
class Judged:
    """Results of known truth with what a model says of each.

    Attributes:
        probability: of an error over 5 mm, ``(n,)``.
        wrong: whether it is, ``(n,)``.
    """

    probability: Array
    wrong: NDArray[np.bool_]

    @property
    def auroc(self) -> float:
        """Share of pairs of a wrong and a right result that are in the right order."""
        wrong, right = self.probability[self.wrong], self.probability[~self.wrong]
        above = wrong[:, None] - right[None]
        return float(((above > 0) + 0.5 * (above == 0)).mean())

    @property
    def limit(self) -> float:
        """The lowest limit with at most `FALSE_ALARMS` among the right results."""
        right = np.sort(self.probability[~self.wrong])[::-1]
        return float(right[int(FALSE_ALARMS * len(right))])

    def flagged(self, limit: float) -> tuple[float, float]:
        """Shares of the wrong and of the right results that lie above a limit."""
        above = self.probability > limit
        return float(above[self.wrong].mean()), float(above[~self.wrong].mean())

    def bins(self) -> list[tuple[float, float, NDArray[np.bool_]]]:
        """Limits of each bin of probability that holds results, and which those are."""
        p = self.probability
        edges = pairwise(_BINS)
        inside = [(low, high, (p >= low) & ((p < high) | (high == 1))) for low, high in edges]
        return [one for one in inside if one[2].any()]


def read_rows(path: Path) -> list[Row]:
    """Results of `doubt_rows.py` that have an estimate."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if math.isfinite(row["estimate_mm"])]


def training_rows(path: Path) -> list[Row]:
    """Results that a model may be fitted to.

    Raises:
        SystemExit: a held-out patient is among them.
    """
    rows = read_rows(path)
    named = sorted({row["patient"] for row in rows} & set(HELD_OUT))
    if named:
        raise SystemExit(f"{path}: expected training patients alone, got {', '.join(named)}")
    return rows


def _evidence(row: Row) -> tuple[float, float, bool]:
    """Estimate, fall of the score, and whether a search left the image as it came."""
    return row["estimate_mm"], float(np.median(row["fall_6"])), row["transform"] == "none"


def measures(rows: Sequence[Row]) -> Array:
    """What the model reads, ``(n, m)``."""
    return np.array([[*_measures(row).values()] for row in rows])


def _measures(row: Row) -> dict[str, float]:
    estimate, fall, stays = _evidence(row)
    return risk_measures(estimate, fall, stays=stays)


def probabilities(rows: Sequence[Row]) -> Array:
    """What the package says, ``(n,)``."""
    evidence = [_evidence(row) for row in rows]
    return np.array([probability_over_5_mm(e, fall, stays=stays) for e, fall, stays in evidence])


def wrong(rows: Sequence[Row]) -> NDArray[np.bool_]:
    """Which results are off by more than 5 mm on average over the body."""
    return np.array([row["error_mm"] > LIMIT_MM for row in rows])


def fitted(x: Array, y: NDArray[np.bool_]) -> Array:
    """Offset and weights ``(1 + m,)`` of a logistic model with a ridge on standardized measures."""
    mean, spread = x.mean(0), x.std(0) + 1e-9
    z = np.column_stack([np.ones(len(x)), (x - mean) / spread])

    def loss(w: Array) -> float:
        total = z @ w
        likelihood = np.logaddexp(0, total) - y * total
        return float(likelihood.sum() + 0.5 * _RIDGE * (w[1:] ** 2).sum())

    w = minimize(loss, np.zeros(z.shape[1]), method="BFGS").x
    weights = w[1:] / spread
    return np.array([w[0] - weights @ mean, *weights])


def judged_on_others(x: Array, y: NDArray[np.bool_], patients: Sequence[str]) -> Judged:
    """Each patient's results by a model of the others'."""
    names, out = np.array(patients), np.zeros(len(y))
    for patient in np.unique(names):
        mine = names == patient
        w = fitted(x[~mine], y[~mine])
        out[mine] = 1 / (1 + np.exp(-(w[0] + x[mine] @ w[1:])))
    return Judged(out, y)


def markdown(judged: Judged, limit: float, title: str) -> str:
    """What was asked for, and a line per bin of probability."""
    caught, alarms = judged.flagged(limit)
    n, m = int(judged.wrong.sum()), int((~judged.wrong).sum())
    lines = [
        f"{title}: {n} results over 5 mm, {m} under. AUROC {judged.auroc:.2f}. Above a probability "
        f"of {limit:.2f}: {caught:.0%} of the first, {alarms:.0%} of the second.",
        "",
        "| probability | results | mean probability | share over 5 mm |",
        "|---|---|---|---|",
    ]
    for low, high, inside in judged.bins():
        said, were = judged.probability[inside].mean(), judged.wrong[inside].mean()
        lines.append(f"| {low:.2f} to {high:.2f} | {inside.sum()} | {said:.2f} | {were:.2f} |")
    return "\n".join([*lines, ""])


def plot(judged: Judged, path: Path) -> None:
    """The reliability: how often results are over 5 mm, by what the model says."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(4, 4))
    axes.plot([0, 1], [0, 1], color="0.7", lw=1)
    for _, _, inside in judged.bins():
        said, were = judged.probability[inside].mean(), judged.wrong[inside].mean()
        n = inside.sum()
        spread = np.sqrt((were * (1 - were) + 0.25 / n) / n)  # not 0 where all are alike
        axes.errorbar(said, were, spread, fmt="o", color="C0")
        axes.annotate(f"n {n}", (said, were), (5, 5), textcoords="offset points")
    axes.set(xlabel="probability of an error over 5 mm", ylabel="share of results over 5 mm")
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Fit or judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, required=True, help="of doubt_rows.py")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--judge", action="store_true", help="the held-out patients, once")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    name = "held-out" if args.judge else "training"
    if args.judge:
        rows = read_rows(args.rows)
        judged, limit = Judged(probabilities(rows), wrong(rows)), RISK.limit
    else:
        rows = training_rows(args.rows)
        patients = [row["patient"] for row in rows]
        judged = judged_on_others(measures(rows), wrong(rows), patients)
        limit = judged.limit
        names, weights = ("offset", *_measures(rows[0])), fitted(measures(rows), wrong(rows))
        numbers = zip(names, weights, strict=True)
        print(", ".join(f"{k}={v:.3f}" for k, v in numbers), f"limit={limit:.2f}", sep=", ")
    text = markdown(judged, limit, name)
    (args.out / f"{name}.md").write_text(text, encoding="utf-8")
    plot(judged, args.out / f"{name}.png")
    print(text)


if __name__ == "__main__":
    main()

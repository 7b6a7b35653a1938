"""What scores of many cases say: means with intervals over patients, and paired comparisons."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Values = npt.NDArray[np.float64]

CONFIDENCE = 0.95
_RESAMPLES = 9_999
_SEED = 0
# Learn2Reg's robustness scores (TRE30, DSC30) look at the worst 30 %
_WORST_SHARE = 0.3


@dataclass(frozen=True)
class Summary:
    """One score over many cases. Each patient counts once, by the mean of its cases.

    Attributes:
        patients: how many have the score.
        cases: how many have it.
        missing: cases that do not.
        mean: over patients.
        low, high: 95 % interval of the mean (BCa bootstrap over patients); NaN below 3 patients.
        median: over patients.
        sd: standard deviation between patients; NaN for one.
        worst: mean of the worst 30 % of the cases, at least one.
    """

    patients: int
    cases: int
    missing: int
    mean: float
    low: float
    high: float
    median: float
    sd: float
    worst: float

    @property
    def failures(self) -> float:
        """Share of the cases that have no value; NaN of none."""
        total = self.cases + self.missing
        return self.missing / total if total else float("nan")


@dataclass(frozen=True)
class Comparison:
    """One score of two methods on the same patients; a difference is ``first - second``.

    Attributes:
        patients: that have the score by both methods.
        missing: patients that have it by one of them only.
        mean: mean difference.
        low, high: 95 % interval of the mean difference (BCa bootstrap over patients).
        p: two-sided Wilcoxon signed-rank test; 1 where all differences are 0.
        effect: matched-pairs rank-biserial correlation, −1..1: share of the ranks of positive
            differences less that of negative ones.
        p_holm: ``p`` after Holm's correction for all comparisons of one table; NaN before it.
    """

    patients: int
    missing: int
    mean: float
    low: float
    high: float
    p: float
    effect: float
    p_holm: float = float("nan")

    def verdict(self, *, higher_is_better: bool) -> str:
        """``better``, ``worse`` or ``no difference shown``, at 5 % after Holm's correction."""
        p = self.p if np.isnan(self.p_holm) else self.p_holm
        if not p < 1 - CONFIDENCE:
            return "no difference shown"
        return "better" if (self.effect > 0) == higher_is_better else "worse"


def summarize(
    scores: Mapping[str, Sequence[float]], *, higher_is_better: bool, missing: int = 0
) -> Summary:
    """Sum up one score.

    Args:
        scores: per patient its cases' values; NaN counts as missing.
        higher_is_better: which end is the worst.
        missing: cases that have no value at all.

    Returns:
        NaN everywhere where nobody has a value.
    """
    cases = np.array([v for values in scores.values() for v in values], dtype=np.float64)
    missing += int(np.isnan(cases).sum())
    cases = np.sort(cases[~np.isnan(cases)])
    patients = patient_means(scores)
    means = np.array(list(patients.values()))
    if not len(means):
        nothing = float("nan")
        return Summary(0, 0, missing, *[nothing] * 6)
    low, high = interval_of_mean(means)
    count = max(1, round(_WORST_SHARE * len(cases)))
    worst = cases[:count] if higher_is_better else cases[-count:]
    return Summary(
        patients=len(means),
        cases=len(cases),
        missing=missing,
        mean=float(means.mean()),
        low=low,
        high=high,
        median=float(np.median(means)),
        sd=float(means.std(ddof=1)) if len(means) > 1 else float("nan"),
        worst=float(worst.mean()),
    )


def patient_means(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Per patient the mean of the values that are there; patients without any are left out."""
    means = {}
    for patient, values in scores.items():
        there = [v for v in values if not np.isnan(v)]
        if there:
            means[patient] = float(np.mean(there))
    return means


def interval_of_mean(values: Values) -> tuple[float, float]:
    """95 % interval of the mean by the bias-corrected and accelerated bootstrap.

    Args:
        values: ``(n,)``, one for each patient.

    Returns:
        NaN twice below 3 values, where resampling says nothing; the value itself where all agree.

    References:
        Efron, "Better bootstrap confidence intervals", JASA 1987.
    """
    if len(values) < 3:
        return float("nan"), float("nan")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=_RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(_SEED),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def compare(
    first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]]
) -> Comparison:
    """Compare two methods on the patients that both have.

    Args:
        first: per patient its cases' values by the first method.
        second: likewise by the second.

    References:
        Kerby, "The simple difference formula: an approach to teaching nonparametric correlation",
        Comprehensive Psychology 2014 (effect size).
    """
    a, b = patient_means(first), patient_means(second)
    common = [patient for patient in a if patient in b]
    missing = len(a.keys() ^ b.keys())
    differences = np.array([a[patient] - b[patient] for patient in common])
    if not len(differences):
        nothing = float("nan")
        return Comparison(0, missing, *[nothing] * 5)
    low, high = interval_of_mean(differences)
    return Comparison(
        patients=len(common),
        missing=missing,
        mean=float(differences.mean()),
        low=low,
        high=high,
        p=_wilcoxon(differences),
        effect=_rank_biserial(differences),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for several tests.

    Args:
        p_values: of the tests; NaN (no test) stays NaN and does not count.

    Returns:
        Corrected values, in the given order.

    References:
        Holm, "A simple sequentially rejective multiple test procedure", Scand J Stat 1979.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    given = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(given.shape, np.nan)
    order = [int(k) for k in np.argsort(given) if not np.isnan(given[k])]
    largest = 0.0
    for rank, k in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * float(given[k])))
        corrected[k] = largest
    return [float(p) for p in corrected]


def _wilcoxon(differences: Values) -> float:
    """Two-sided p of the signed-rank test, exact where there are no ties."""
    if not differences.any():
        return 1.0
    with warnings.catch_warnings():
        # scipy warns of few samples, which the table shows by n
        warnings.simplefilter("ignore")
        return float(stats.wilcoxon(differences, zero_method="wilcox").pvalue)


def _rank_biserial(differences: Values) -> float:
    """Positive less negative ranks over all ranks, without zeros."""
    there = differences[differences != 0]
    if not len(there):
        return 0.0
    ranks = stats.rankdata(np.abs(there))
    return float((np.sign(there) * ranks).sum() / ranks.sum())


__all__ = [
    "CONFIDENCE",
    "Comparison",
    "Summary",
    "compare",
    "holm",
    "interval_of_mean",
    "patient_means",
    "summarize",
]

"""What predictions of many cases are worth: accuracy to AUROC, with intervals over patients."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torchmetrics.functional.classification import (
    binary_accuracy,
    binary_auroc,
    binary_calibration_error,
    binary_recall,
    binary_specificity,
)

from fusion_pipeline.evaluation.statistics import CONFIDENCE

Values = npt.NDArray[np.float64]

_RESAMPLES = 1_999
_SEED = 0
THRESHOLD = 0.5  # of the probability; fixed before the study
MARGIN = 0.05  # AUROC by which an input may be lower and still count as not worse
SCORES = ("accuracy", "sensitivity", "specificity", "auroc")
_BINS = 10  # of a calibration error


@dataclass(frozen=True)
class Prediction:
    """One case by the classifier of one input.

    Attributes:
        case: its id.
        patient: whose it is.
        fold: that was held out.
        input: what the classifier was given.
        target: 0 or 1.
        probability: of 1.
    """

    case: str
    patient: str
    fold: int
    input: str
    target: int
    probability: float


@dataclass(frozen=True)
class Estimate:
    """A score and its 95 % interval (BCa bootstrap over patients); NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Diagnosis:
    """What one input's predictions are worth.

    Attributes:
        input: see `Prediction`.
        patients, cases, positive: counts.
        scores: per name of `SCORES`.
        calibration_error: expected calibration error over ten bins.
        brier: mean squared error of the probability.
    """

    input: str
    patients: int
    cases: int
    positive: int
    scores: Mapping[str, Estimate]
    calibration_error: float
    brier: float


@dataclass(frozen=True)
class Difference:
    """AUROC of one input less that of another, on the same patients."""

    input: str
    against: str
    patients: int
    auroc: Estimate

    @property
    def verdict(self) -> str:
        """By the interval of the difference; not worse: above −0.05."""
        if np.isnan(self.auroc.low):
            return "no interval"
        if self.auroc.low > 0:
            return "better"
        if self.auroc.high < 0:
            return "worse"
        return "not worse" if self.auroc.low > -MARGIN else "no difference shown"


def diagnose(predictions: Sequence[Prediction]) -> Diagnosis:
    """Score the predictions of one input; values are torchmetrics'."""
    probability = torch.tensor([one.probability for one in predictions])
    target = torch.tensor([one.target for one in predictions])
    values = {
        "accuracy": binary_accuracy(probability, target, THRESHOLD),
        "sensitivity": binary_recall(probability, target, THRESHOLD),
        "specificity": binary_specificity(probability, target, THRESHOLD),
        "auroc": binary_auroc(probability, target),
    }
    patients = sorted({one.patient for one in predictions})
    scores = {}
    for name, value in values.items():
        low, high = _interval(_weighted(name, predictions, patients), len(patients))
        scores[name] = Estimate(float(value), low, high)
    return Diagnosis(
        input=predictions[0].input,
        patients=len(patients),
        cases=len(predictions),
        positive=int(target.sum()),
        scores=scores,
        calibration_error=float(binary_calibration_error(probability, target, _BINS)),
        brier=float((probability - target).square().mean()),
    )


def difference(first: Sequence[Prediction], second: Sequence[Prediction]) -> Difference:
    """Compare the AUROC of two inputs on the same cases.

    Raises:
        ValueError: they are not of the same cases.
    """
    if [one.case for one in first] != [one.case for one in second]:
        raise ValueError("expected predictions of the same cases in the same order")
    patients = sorted({one.patient for one in first})
    of_first, of_second = (_weighted("auroc", some, patients) for some in (first, second))

    def statistic(weights: Values) -> Values:
        return of_first(weights) - of_second(weights)

    low, high = _interval(statistic, len(patients))
    value = float(statistic(np.ones((1, len(patients))))[0])
    estimate = Estimate(value, low, high)
    return Difference(first[0].input, second[0].input, len(patients), estimate)


def _weighted(
    name: str, predictions: Sequence[Prediction], patients: Sequence[str]
) -> Callable[[Values], Values]:
    """The score as a function of how often each patient counts, ``(R, patients)`` to ``(R,)``."""
    place = {patient: n for n, patient in enumerate(patients)}
    owner = np.array([place[one.patient] for one in predictions])
    probability = np.array([one.probability for one in predictions])
    positive = np.array([one.target for one in predictions]) == 1
    if name == "auroc":
        above = probability[positive][:, None] - probability[~positive][None]
        won = (above > 0) + 0.5 * (above == 0)  # the area is the share of pairs in order

        def area(weights: Values) -> Values:
            ours, theirs = weights[:, owner[positive]], weights[:, owner[~positive]]
            pairs = ours.sum(1) * theirs.sum(1)
            return _ratio(((ours @ won) * theirs).sum(1), pairs)

        return area
    counted = {"sensitivity": positive, "specificity": ~positive}.get(name, np.ones_like(positive))
    right = ((probability >= THRESHOLD) == positive) & counted

    def share(weights: Values) -> Values:
        of_cases = weights[:, owner]
        return _ratio((of_cases * right).sum(1), (of_cases * counted).sum(1))

    return share


def _ratio(top: Values, bottom: Values) -> Values:
    """NaN where a resample has no case of a class."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(top / bottom, dtype=np.float64)


def _interval(statistic: Callable[[Values], Values], count: int) -> tuple[float, float]:
    """95 % BCa interval of a statistic of weighted patients.

    A resample without a patient of each class has no score, and is left out.
    """
    if count < 3:
        return float("nan"), float("nan")

    def of_indices(index: npt.NDArray[np.int64], axis: int = -1) -> Values:
        rows = np.moveaxis(index, axis, -1).reshape(-1, index.shape[axis])
        flat = rows + count * np.arange(len(rows))[:, None]
        weights = np.bincount(flat.ravel(), minlength=count * len(rows)).reshape(-1, count)
        found = statistic(weights.astype(np.float64))
        return found.reshape(np.delete(index.shape, axis)) if index.ndim > 1 else found[0]

    resampled = partial(
        stats.bootstrap,
        (np.arange(count),),
        of_indices,
        vectorized=True,
        confidence_level=CONFIDENCE,
        batch=200,
        rng=np.random.default_rng(_SEED),
    )
    with warnings.catch_warnings():
        # scipy warns where all resamples agree; the interval is then the value itself
        warnings.simplefilter("ignore")
        drawn = resampled(n_resamples=_RESAMPLES, method="percentile")
        values = drawn.bootstrap_distribution
        drawn.bootstrap_distribution = values[~np.isnan(values)]
        interval = resampled(n_resamples=0, bootstrap_result=drawn, method="BCa")
    low, high = interval.confidence_interval
    if np.isnan(low):
        every = statistic(np.ones((1, count)) - np.eye(count))
        if np.ptp(every) == 0:
            return float(every[0]), float(every[0])
    return float(low), float(high)


__all__ = [
    "MARGIN",
    "SCORES",
    "THRESHOLD",
    "Diagnosis",
    "Difference",
    "Estimate",
    "Prediction",
    "diagnose",
    "difference",
]

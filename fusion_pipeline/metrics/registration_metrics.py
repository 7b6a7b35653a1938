"""Scores of registrations as `torchmetrics.Metric`s, averaged over cases and processes.

Each class averages the function of `fusion_pipeline.metrics` that it names.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from fusion_pipeline.metrics.information import normalized_mutual_information
from fusion_pipeline.metrics.mean_over_cases import MeanOverCases, cases, masks
from fusion_pipeline.metrics.registration import (
    dice_per_label,
    folded_fraction,
    hd95_per_label,
    inverse_consistency,
    log_jacobian_std,
    target_registration_error,
)
from fusion_pipeline.metrics.similarity import mind_distance


class TargetRegistrationError(MeanOverCases):
    """`target_registration_error` in mm: the mean over a case's points, then over the cases."""

    higher_is_better = False

    def update(self, points_true: Iterable[Tensor], points_found: Iterable[Tensor]) -> None:
        """Add cases; one without a point does not count.

        Args:
            points_true: a list ``(n, d)`` for each case, mm; n may differ between cases. Vectors of
                a true field do as well, against those of the field found.
            points_found: the same, where the registration puts them.
        """
        scores = []
        for true, found in zip(points_true, points_found, strict=True):
            error = target_registration_error(true.detach().cpu(), found.detach().cpu())
            scores.append(float(torch.from_numpy(error).mean()))
        self._add(scores)


class _MeanOverLabels(MeanOverCases):
    """The mean over a case's labels, then over the cases."""

    labels: Sequence[int] | None

    def update(self, fixed: Tensor, warped: Tensor) -> None:
        """Add a batch of cases; labels without a score do not count, nor a case without any.

        Args:
            fixed: ``(B, 1, *S)`` labels.
            warped: ``(B, 1, *S)`` labels of the moving image, on the same grid.
        """
        for a, b in zip(cases(fixed), cases(warped), strict=True):
            labels = _labels(a) if self.labels is None else self.labels
            self._add([_mean(self._per_label(a, b, labels).values())])

    @abstractmethod
    def _per_label(self, a: np.ndarray, b: np.ndarray, labels: Sequence[int]) -> dict[int, float]:
        """Label → score."""


class DiceScore(_MeanOverLabels):
    """`dice_per_label`: the mean over a case's labels, then over the cases.

    Args:
        labels: which to judge; None takes those of the fixed map, without 0.
    """

    higher_is_better = True

    def __init__(self, labels: Sequence[int] | None = None) -> None:
        super().__init__((labels,))
        self.labels = labels

    def _per_label(self, a: np.ndarray, b: np.ndarray, labels: Sequence[int]) -> dict[int, float]:
        """Overlaps."""
        return dice_per_label(a, b, labels)


class HausdorffDistance95(_MeanOverLabels):
    """`hd95_per_label` in mm: the mean over a case's labels, then over the cases.

    Args:
        spacing: mm along each axis.
        labels: which to judge; None takes those of the fixed map, without 0.
    """

    higher_is_better = False

    def __init__(self, spacing: Sequence[float], labels: Sequence[int] | None = None) -> None:
        super().__init__((tuple(spacing), labels))
        self.spacing = tuple(spacing)
        self.labels = labels

    def _per_label(self, a: np.ndarray, b: np.ndarray, labels: Sequence[int]) -> dict[int, float]:
        """Distances in mm; NaN where one map lacks the label."""
        return hd95_per_label(a, b, self.spacing, labels)


class FoldedFraction(MeanOverCases):
    """`folded_fraction`: share of voxels whose Jacobian determinant is 0 or less."""

    higher_is_better = False

    def update(self, ddf: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch of fields; arguments as in `folded_fraction`."""
        self._add(folded_fraction(ddf, mask))


class LogJacobianStd(MeanOverCases):
    """`log_jacobian_std`: standard deviation of the logarithm of the local volume change."""

    higher_is_better = False

    def update(self, ddf: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch of fields; arguments as in `log_jacobian_std`."""
        self._add(log_jacobian_std(ddf, mask))


class InverseConsistency(MeanOverCases):
    """`inverse_consistency` in mm: where a voxel ends, there and back again.

    Args:
        spacing: mm along each axis.
    """

    higher_is_better = False

    def __init__(self, spacing: Sequence[float]) -> None:
        super().__init__((tuple(spacing),))
        self.spacing = tuple(spacing)

    def update(self, forward_ddf: Tensor, backward_ddf: Tensor) -> None:
        """Add a batch of pairs of fields; arguments as in `inverse_consistency`."""
        self._add(inverse_consistency(forward_ddf, backward_ddf, self.spacing))


class NormalizedMutualInformation(MeanOverCases):
    """`normalized_mutual_information` of two registered images, 1 to 2.

    Args:
        bins: of each image.
    """

    higher_is_better = True

    def __init__(self, bins: int = 64) -> None:
        super().__init__((bins,))
        self.bins = bins

    def update(self, fixed: Tensor, warped: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch of cases, ``(B, 1, *S)`` each."""
        triples = zip(cases(fixed), cases(warped), masks(fixed, mask), strict=True)
        self._add([normalized_mutual_information(a, b, m, self.bins) for a, b, m in triples])


class MindDistance(MeanOverCases):
    """`mind_distance`: mean absolute difference of the self-similarity descriptors."""

    higher_is_better = False

    def update(self, fixed: Tensor, warped: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch of cases, ``(B, 1, *S)`` each."""
        self._add(mind_distance(fixed, warped, mask))


def _labels(labels: np.ndarray) -> list[int]:
    """Those that occur, without 0."""
    return [int(label) for label in np.unique(labels) if label != 0]


def _mean(scores: Iterable[float]) -> float:
    """Mean of the scores that are numbers; NaN if none is."""
    numbers = [score for score in scores if not np.isnan(score)]
    return float(np.mean(numbers)) if numbers else float("nan")

"""How likely the error of a result is over 5 mm: a logistic model of what the stage measures."""

import math
from collections.abc import Mapping

from fusion_pipeline.register.settings import RISK


def risk_measures(
    error_mm: float, similarity: Mapping[str, float], *, emission: bool
) -> dict[str, float]:
    """What the probability is computed from.

    Args:
        error_mm: the network's estimate of the remaining error.
        similarity: of the result; ``nmi`` is taken.
        emission: one of the images is a PET or SPECT, beside which the network estimates more.

    Returns:
        ``estimate``: ln of the estimate in mm, NaN where there is none; ``information``: ln of
        NMI − 1; ``emission``: 1 or 0.
    """
    return {
        "estimate": math.log(max(error_mm, 0.1)) if math.isfinite(error_mm) else math.nan,
        "information": math.log(max(similarity["nmi"] - 1, 1e-3)),
        "emission": float(emission),
    }


def probability_over_5_mm(
    error_mm: float, similarity: Mapping[str, float], *, emission: bool
) -> float:
    """Probability that the mean error of a volume's result exceeds 5 mm.

    ``1 / (1 + exp(−(offset + Σ weight · measure)))``, fitted by ``benchmarks/doubt.py`` to results
    of training patients, each one person's images.

    Args:
        error_mm: see `risk_measures`.
        similarity: see `risk_measures`.
        emission: see `risk_measures`.

    Returns:
        0..1; NaN where there is no estimate.
    """
    measures = risk_measures(error_mm, similarity, emission=emission)
    total = RISK.offset + sum(getattr(RISK, name) * value for name, value in measures.items())
    return math.nan if math.isnan(total) else 1 / (1 + math.exp(-total))

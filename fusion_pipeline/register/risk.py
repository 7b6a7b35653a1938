"""How likely the error of a result is over 5 mm: a logistic model of what the stage measures."""

import math

from fusion_pipeline.register.settings import RISK


def risk_measures(error_mm: float, fall: float, *, stays: bool) -> dict[str, float]:
    """What the probability is computed from.

    Args:
        error_mm: the network's estimate of the remaining error.
        fall: how far the score of the pose falls when it is moved by 6 mm, nats: the median over
            its parameters (`sharpness.falls_around`).
        stays: whether a search left the image where it came.

    Returns:
        ``estimate``: ln of the estimate in mm, NaN where there is none; ``fall``: ln of the fall;
        ``stays``: 1 or 0.
    """
    return {
        "estimate": math.log(max(error_mm, 0.1)) if math.isfinite(error_mm) else math.nan,
        "fall": math.log(max(fall, 1e-3)) if math.isfinite(fall) else math.nan,
        "stays": float(stays),
    }


def probability_over_5_mm(error_mm: float, fall: float, *, stays: bool) -> float:
    """Probability that the mean error of a volume's result exceeds 5 mm.

    ``1 / (1 + exp(−(offset + Σ weight · measure)))``, fitted by ``benchmarks/doubt.py`` to results
    of training patients, each one person's images.

    Args:
        error_mm: see `risk_measures`.
        fall: see `risk_measures`.
        stays: see `risk_measures`.

    Returns:
        0..1; NaN where there is no estimate.
    """
    measures = risk_measures(error_mm, fall, stays=stays)
    total = RISK.offset + sum(getattr(RISK, name) * value for name, value in measures.items())
    return math.nan if math.isnan(total) else 1 / (1 + math.exp(-total))

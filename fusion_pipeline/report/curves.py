"""How each image was harmonized: its curve from own units to 0..1, and its bias field."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fusion_pipeline.networks.intensity_map import IntensityMap
from fusion_pipeline.report.facts import label
from fusion_pipeline.result import CaseResult

# The drawing's size in its own units; the page scales it.
WIDTH, HEIGHT = 220, 130
_LEVELS = 60
_HIGHEST = 0.99  # the curve approaches 1 and does not reach it


@dataclass(frozen=True)
class CurveFigure:
    """The curve of one image.

    Attributes:
        title: the image's name.
        units: of the image's own values.
        points: of an SVG polyline: own values to the right, harmonized values upwards.
        ticks: own values at the left and right end.
        bias: smallest and largest factor of the bias field; None where it is 1 everywhere.
    """

    title: str
    units: str
    points: str
    ticks: tuple[str, str]
    bias: tuple[str, str] | None


def curve_figures(result: CaseResult) -> list[CurveFigure]:
    """The curves of a case's images; none where the harmonization has no mappings."""
    return [
        _figure(key, mapping, result.case.images[key].units)
        for key, mapping in result.harmonization.mappings.items()
    ]


def _figure(key: str, mapping: IntensityMap, units: str) -> CurveFigure:
    """One curve."""
    flat = replace(mapping, log_bias=torch.zeros_like(mapping.log_bias))
    dims = mapping.log_bias.ndim - 2
    levels = torch.linspace(0, _HIGHEST, _LEVELS)
    own = flat.inverse(levels.view(1, 1, -1, *[1] * (dims - 1))).flatten()
    low, high = float(own[0]), float(own[-1])
    across = (own - low) / max(high - low, 1e-12)
    points = " ".join(
        f"{WIDTH * float(x):.1f},{HEIGHT * (1 - float(y)):.1f}"
        for x, y in zip(across, levels, strict=True)
    )
    factors = torch.exp(mapping.log_bias)
    even = float(factors.max() - factors.min()) < 1e-3
    return CurveFigure(
        title=label(key),
        units=units,
        points=points,
        ticks=_rounded((low, high)),
        bias=None if even else _rounded((float(factors.min()), float(factors.max()))),
    )


def _rounded(pair: Sequence[float]) -> tuple[str, str]:
    """Three digits each."""
    low, high = (f"{value:.3g}" for value in pair)
    return low, high

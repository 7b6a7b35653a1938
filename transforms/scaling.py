"""Intensity scaling as plain functions of plain tensors, and the record that undoes it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sinh

import torch
from torch import Tensor

from fusion_pipeline.transforms.arrays import ImageLike, plain_mask
from fusion_pipeline.transforms.modality import EMISSION, checked_modality, is_in_hu

# Order statistics of this many voxels are as good as those of all, and torch.quantile has a limit.
_QUANTILE_VOXELS = 1_000_000
# Where the values that a network reads end, in standard deviations.
_LIMIT = 4.0
_WINDOW_HU = (-300.0, 700.0)
_EMISSION_CAP = 99.9
_ROBUST_PERCENTS = (1.0, 99.0)


@dataclass(frozen=True)
class Scaling:
    """How the values ``x`` of one channel were scaled: ``y = (f(clip(x)) - mean) / std``.

    ``f(x) = asinh(x / emission_scale)`` for emission images, and ``f(x) = x`` for others.

    Attributes:
        lower: in the unit of ``x``; smaller values were clipped to it.
        upper: larger ones to this.
        mean: of ``f(x)`` inside the mask.
        std: likewise; 0 where all is constant (``y`` is 0 then).
        emission_scale: in the unit of ``x``; 0 where ``f(x) = x``.

    >>> Scaling(lower=0.0, upper=9.0, mean=5.0, std=2.0).restored(torch.tensor([1.5])).tolist()
    [8.0]
    """

    lower: float
    upper: float
    mean: float
    std: float
    emission_scale: float = 0.0

    def restored(self, scaled: Tensor) -> Tensor:
        """``x`` from ``y``: the values as they were, the clipped ones at ``lower`` or ``upper``."""
        linear = scaled * self.std + self.mean
        return torch.sinh(linear) * self.emission_scale if self.emission_scale else linear

    def clipped(self, limit: float) -> "Scaling":
        """Of values that were clipped to ``-limit <= y <= limit`` afterwards (``f(x) = x``)."""
        reach = limit * self.std
        return replace(
            self,
            lower=max(self.lower, self.mean - reach),
            upper=min(self.upper, self.mean + reach),
        )

    def of_emission(self, scale: float) -> "Scaling":
        """Of the uptake, where this is of ``asinh(uptake / scale)``."""
        return replace(
            self,
            lower=scale * sinh(self.lower),
            upper=scale * sinh(self.upper),
            emission_scale=scale,
        )


def percentiles(values: Tensor, *percents: float) -> list[float]:
    """Percentiles of a flat tensor, of an evenly spaced part of it where it is very long."""
    step = max(1, values.numel() // _QUANTILE_VOXELS)
    at = (torch.tensor(percents, dtype=torch.float32) / 100).to(values.device)
    found: list[float] = torch.quantile(values[::step], at).tolist()
    return found


def clip_hu(image: Tensor, lower: float = _WINDOW_HU[0], upper: float = _WINDOW_HU[1]) -> Tensor:
    """Clip Hounsfield units; see `ClipHU`."""
    return image.clamp(lower, upper)


def robust_z_score(
    image: Tensor,
    mask: ImageLike | None = None,
    lower: float = _ROBUST_PERCENTS[0],
    upper: float = _ROBUST_PERCENTS[1],
) -> Tensor:
    """Clip each channel to percentiles, then z-score it; see `RobustZScore`.

    Args:
        image: ``(C, *S)`` float32.
        mask: ``(1, *S)``; everything without it.
        lower: percentile inside the mask.
        upper: percentile inside the mask.

    Returns:
        ``(C, *S)`` float32.
    """
    return z_scored(image, mask, lower, upper)[0]


def scale_emission(
    image: Tensor, mask: ImageLike | None = None, upper: float = _EMISSION_CAP
) -> Tensor:
    """Compress an emission image; see `ScaleEmission`.

    Args:
        image: ``(C, *S)`` float32, any unit.
        mask: ``(1, *S)``; everything without it.
        upper: percentile of the positive values inside the mask where they are capped.

    Returns:
        ``(C, *S)`` float32, ≥ 0.
    """
    return compressed(image, mask, upper)[0]


def normalize_modality(
    image: Tensor, modality: str, mask: ImageLike | None = None, *, units: str | None = None
) -> Tensor:
    """Scale an image as its modality needs it; see `NormalizeModality`.

    Args:
        image: ``(1, *S)`` float32.
        modality: ``ct``, ``mr``, ``pet`` or ``spect``.
        mask: ``(1, *S)``; everything without it.
        units: of the image; see `is_in_hu` where None.

    Returns:
        ``(1, *S)`` float32 within [-4, 4].
    """
    return normalized(image, modality, mask, units=units)[0]


def normalized(
    image: Tensor,
    modality: str,
    mask: ImageLike | None = None,
    *,
    units: str | None = None,
    window_hu: tuple[float, float] = _WINDOW_HU,
    percentiles: tuple[float, float] = _ROBUST_PERCENTS,
    emission_percentile: float = _EMISSION_CAP,
) -> tuple[Tensor, list[Scaling]]:
    """What `normalize_modality` returns, and how each channel was scaled."""
    checked = checked_modality(modality)
    emission_scale = None
    # the window has cut a CT's tails already, the compression an emission image's
    percents: Sequence[float] = (0.0, 100.0)
    if checked in EMISSION:
        image, emission = compressed(image, mask, emission_percentile)
        emission_scale = emission.emission_scale
    elif is_in_hu(image, checked, units):
        image = clip_hu(image, *window_hu)
    else:
        percents = percentiles
    out, scalings = z_scored(image, mask, *percents)
    scalings = [scaling.clipped(_LIMIT) for scaling in scalings]
    if emission_scale is not None:
        scalings = [scaling.of_emission(emission_scale) for scaling in scalings]
    return out.clamp(-_LIMIT, _LIMIT), scalings


def z_scored(
    image: Tensor, mask: ImageLike | None, lower: float, upper: float
) -> tuple[Tensor, list[Scaling]]:
    """What `robust_z_score` returns, and how each channel was scaled."""
    where = plain_mask(mask, image)[0]
    scalings = [_z_scaling(channel[where], lower, upper) for channel in image]
    pairs = zip(image, scalings, strict=True)
    return torch.stack([_z_score(channel, scaling) for channel, scaling in pairs]), scalings


def _z_scaling(inside: Tensor, lower: float, upper: float) -> Scaling:
    """Limits, mean and deviation of the values inside a mask."""
    low, high = percentiles(inside, lower, upper)
    if not high > low:  # fewer than one percent of the voxels differ: keep them
        low, high = float(inside.min()), float(inside.max())
    values = inside.clamp(low, high)
    mean, std = float(values.mean()), float(values.std(correction=0))
    if std <= 1e-6 * max(abs(low), abs(high)):  # values may be as small as an ADC in m²/s
        std = 0.0
    return Scaling(low, high, mean, std)


def _z_score(channel: Tensor, scaling: Scaling) -> Tensor:
    """The scaled channel."""
    if scaling.std == 0:
        return torch.zeros_like(channel)
    return (channel.clamp(scaling.lower, scaling.upper) - scaling.mean) / scaling.std


def compressed(image: Tensor, mask: ImageLike | None, upper: float) -> tuple[Tensor, Scaling]:
    """What `scale_emission` returns, and how all channels were scaled."""
    image = image.clamp_min(0)
    where = plain_mask(mask, image).expand_as(image)
    positive = image[where & (image > 0)]
    if positive.numel() == 0:
        return torch.zeros_like(image), Scaling(0.0, 0.0, 0.0, 1.0, 1.0)
    median, cap = percentiles(positive, 50.0, upper)
    out = torch.asinh(image.clamp_max(cap) / median)
    return out, Scaling(0.0, cap, 0.0, 1.0, median)

"""Painted images in the units of a scanner."""

from collections.abc import Callable

import torch
from torch import Tensor

from fusion_pipeline.synthesis.noise import uniform

# What `tissue_means` compresses: CT from −300 to 700 HU, uptake by asinh(SUV / 0.7) / 4.
_WINDOW_HU = (-300.0, 700.0)
_AIR_HU = -1000.0
_KNEE_SUV, _TOP = 0.7, 4.0
# White of an MR, a.u.: scanners scale as they like.
_MR_WHITE = (200.0, 4000.0)


def in_own_units(image: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """A normalized image as a scanner would store it: HU, MR units, or uptake in SUV.

    The darkest value is air: −1000 HU in a CT, 0 in all others.

    Args:
        image: ``(1, 1, *S)`` normalized, as `paint` draws it.
        kind: ``ct``, ``mr`` or ``emission``.
        generator: the randomness: white of an MR.

    Returns:
        ``(1, 1, *S)``; it rises with ``image``.
    """
    low, high = image.amin(), image.amax()
    unit = (image - low) / (high - low).clamp_min(1e-3)
    scales: dict[str, Callable[[Tensor], Tensor]] = {"ct": _hounsfield, "emission": _uptake}
    if kind in scales:
        return scales[kind](unit)
    white = torch.tensor(_MR_WHITE).log().tolist()
    return unit * float(torch.tensor(uniform(generator, *white)).exp())


def _hounsfield(unit: Tensor) -> Tensor:
    """The window, and the air that it cut off below it."""
    low, high = _WINDOW_HU
    air = (1 - unit / 0.02).clamp(0, 1)
    return low + (high - low) * unit + (_AIR_HU - low) * air


def _uptake(unit: Tensor) -> Tensor:
    """The compression undone."""
    return _KNEE_SUV * torch.sinh(_TOP * unit)

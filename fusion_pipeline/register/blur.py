"""Gaussian blur: SciPy's on the CPU, sums of shifted images on any other device."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from fusion_pipeline.geometry.affines import Matrix

_TRUNCATE = 2.5  # standard deviations, where the kernel ends
_NUMPY_NAMES = {"nearest": "edge", "reflect": "symmetric"}


def gaussian_blur(
    values: Tensor,
    sigma: Sequence[float],
    *,
    border: Literal["nearest", "reflect"] = "nearest",
) -> Tensor:
    """Blur an image.

    Args:
        values: ``(*S)`` float32.
        sigma: standard deviation along each axis in voxels; 0 leaves an axis alone.
        border: how the image goes on, in SciPy's words.

    Returns:
        ``(*S)`` float32, on the device of ``values``; devices differ by rounding.
    """
    if values.device.type == "cpu":
        blurred = ndimage.gaussian_filter(values.numpy(), sigma, truncate=_TRUNCATE, mode=border)
        return torch.from_numpy(blurred)
    for axis, width in enumerate(sigma):
        if width > 0:
            values = _along(values, axis, _kernel(width), border)
    return values


def kernel_radius(sigma: float) -> int:
    """Voxels up to which a kernel reaches, as SciPy rounds.

    Args:
        sigma: standard deviation in voxels.

    Returns:
        Voxels on either side of the middle.
    """
    return int(_TRUNCATE * sigma + 0.5)


def _kernel(sigma: float) -> Matrix:
    """SciPy's weights, in float64."""
    radius = kernel_radius(sigma)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.asarray(weights / weights.sum())


def _along(values: Tensor, axis: int, weights: Matrix, border: str) -> Tensor:
    """Weighted sum of neighbours along one axis, in float32: convolutions may be less exact."""
    size, radius = values.shape[axis], len(weights) // 2
    index = np.arange(size)
    index = np.pad(index, radius, mode=_NUMPY_NAMES[border])  # type: ignore[call-overload]
    wide = values.index_select(axis, torch.from_numpy(index).to(values.device))
    total = torch.zeros_like(values)
    for start, weight in enumerate(weights.tolist()):
        total.add_(wide.narrow(axis, start, size), alpha=weight)
    return total

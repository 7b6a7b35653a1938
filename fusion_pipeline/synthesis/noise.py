"""Smooth random fields and blurs, seeded by a generator: what everything here is drawn from."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """One number, evenly distributed."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def chance(generator: torch.Generator, probability: float) -> bool:
    """True in that share of the calls."""
    return float(torch.rand((), generator=generator)) < probability


def choice(generator: torch.Generator, count: int) -> int:
    """One of ``0 … count − 1``."""
    return int(torch.randint(count, (), generator=generator))


def smooth_noise(
    shape: Sequence[int],
    knots: float | Sequence[float],
    generator: torch.Generator,
    channels: int = 1,
) -> Tensor:
    """A random field as a cubic B-spline with normally distributed coefficients.

    Twice continuously differentiable, and quick: one small matrix per axis.

    Args:
        shape: spatial shape, 2 or 3 numbers.
        knots: voxels between the knots, one number or one per axis: the size of the blobs.
        generator: the randomness.
        channels: independent fields.

    Returns:
        ``(channels, *shape)``, mean about 0 and deviation about 1.
    """
    steps = (
        [float(knots)] * len(shape) if isinstance(knots, int | float) else [float(k) for k in knots]
    )
    bases = [_spline_basis(n, k) for n, k in zip(shape, steps, strict=True)]
    out = torch.randn((channels, *[b.shape[1] for b in bases]), generator=generator)
    for basis in bases:
        # contracts the first spatial axis and appends the result: after d turns the order is back
        out = torch.tensordot(out, basis, dims=([1], [1]))
    # a B-spline of unit coefficients has deviation sqrt(0.479) per axis on average
    return out / 0.479 ** (0.5 * len(shape))


def _spline_basis(size: int, step: float) -> Tensor:
    """Cubic B-splines at ``size`` voxels, ``(size, knots)``."""
    at = torch.arange(size, dtype=torch.float32) / step
    count = int(at[-1]) + 4
    distance = (at[:, None] + 1.0 - torch.arange(count, dtype=torch.float32)).abs()
    near = 2.0 / 3.0 - distance**2 + distance**3 / 2.0
    far = (2.0 - distance).clamp_min(0) ** 3 / 6.0
    return torch.where(distance < 1.0, near, far)


def gaussian_blur(image: Tensor, sigma: float | Sequence[float]) -> Tensor:
    """Blur each channel, the border continued.

    Args:
        image: ``(C, *S)``.
        sigma: voxels, one number or one per axis; below 0.2 nothing is done along that axis.

    Returns:
        ``(C, *S)``.
    """
    d = image.ndim - 1
    widths = [float(sigma)] * d if isinstance(sigma, int | float) else [float(s) for s in sigma]
    out = image
    for axis, width in enumerate(widths):
        if width >= 0.2 and image.shape[1 + axis] > 1:
            out = _blur_along(out, 1 + axis, width)
    return out


def _blur_along(image: Tensor, axis: int, sigma: float) -> Tensor:
    """One axis of a separable blur: a banded matrix, faster here than a convolution per channel."""
    at = torch.arange(image.shape[axis], dtype=torch.float32, device=image.device)
    kernel = torch.exp(-((at[:, None] - at[None, :]) ** 2) / (2 * sigma**2))
    # rows sum to one: near the border the weights that fall outside go to those inside
    kernel = kernel / kernel.sum(1, keepdim=True)
    return torch.tensordot(image, kernel, dims=([axis], [1])).movedim(-1, axis)


def shrink_and_enlarge(image: Tensor, factors: Sequence[float]) -> Tensor:
    """What a coarser scanner would have seen: averaged over thick voxels, then interpolated back.

    Args:
        image: ``(C, *S)``.
        factors: size of the coarse voxels in voxels, per axis, ≥ 1.

    Returns:
        ``(C, *S)``.
    """
    shape = image.shape[1:]
    small = [max(2, round(n / f)) for n, f in zip(shape, factors, strict=True)]
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    pool = F.adaptive_avg_pool2d if len(shape) == 2 else F.adaptive_avg_pool3d
    coarse = pool(image, tuple(small))  # type: ignore[arg-type]
    return F.interpolate(coarse[None], size=tuple(shape), mode=mode, align_corners=False)[0]

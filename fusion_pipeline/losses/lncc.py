"""Local normalized cross-correlation."""

import torch
from torch import Tensor

from fusion_pipeline.geometry.filters import box_sum_same

_FLAT = 1e-3
_TINY = 1e-12


def lncc(
    a: Tensor, b: Tensor, mask: Tensor | None = None, *, window: int = 9, squared: bool = False
) -> Tensor:
    """Mean correlation in small windows: ``mean_x cov / √((var_a + ε_a)(var_b + ε_b))``.

    ``ε`` is 1/1000 of the image's variance, so a flat window counts as uncorrelated and neither
    image's gain or offset matters. Windows end at the lattice and at the mask: no value is made up
    beyond.

    Convention:
        - higher is more similar, 1 for the same image; a loss is ``1 − lncc``
        - unit: voxels (the window)

    Args:
        a: ``(B, 1, *S)``.
        b: ``(B, 1, *S)``.
        mask: ``(B, 1, *S)`` 0/1; voxels outside enter no window and are not averaged.
        window: odd width in voxels.
        squared: mean of the squared correlation in [0, 1], blind to contrast inverted locally.

    Returns:
        ``(B,)`` in [-1, 1]; 0 under an empty mask.

    References:
        Cachier et al., "Iconic feature based nonrigid registration: the PASHA algorithm", Computer
        Vision and Image Understanding 2003.
    """
    if window % 2 == 0:
        raise ValueError(f"expected an odd window in voxels, got {window}")
    axes = tuple(range(1, a.ndim))
    inside = torch.ones_like(a[:, :1]) if mask is None else (mask > 0.5).float()
    total = inside.sum(axes, keepdim=True).clamp_min(1.0)
    x, spread_x = _centred(a.float(), inside, total)
    y, spread_y = _centred(b.float(), inside, total)
    moments = torch.cat([inside, x, y, x * x, y * y, x * y], dim=1)
    count, *sums = box_sum_same(moments, window).split(1, dim=1)
    mean_x, mean_y, xx, yy, xy = (value / count.clamp_min(1.0) for value in sums)
    variance_x = (xx - mean_x**2).clamp_min(0.0) + spread_x
    variance_y = (yy - mean_y**2).clamp_min(0.0) + spread_y
    covariance = xy - mean_x * mean_y
    if squared:
        correlation = covariance**2 / (variance_x * variance_y)
    else:
        correlation = covariance * torch.rsqrt(variance_x * variance_y)
    return (correlation * inside).sum(axes) / total.flatten()


def _centred(image: Tensor, inside: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """The image brought to mean 0 and spread 1 in the mask, 0 outside, and the variance of "flat".

    Scaling first keeps float32's digits; it cancels in the correlation, so it needs no gradient.
    """
    axes = tuple(range(1, image.ndim))
    with torch.no_grad():
        mean = (image * inside).sum(axes, keepdim=True) / total
        variance = (((image - mean) * inside) ** 2).sum(axes, keepdim=True) / total
        scale = torch.where(variance > _TINY * mean**2, variance.clamp_min(_TINY).rsqrt(), 0.0)
    return (image - mean) * inside * scale, torch.full_like(scale, _FLAT)

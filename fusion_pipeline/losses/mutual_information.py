"""Mutual information from a smooth joint histogram, for optimization; exact counts: `metrics`."""

import torch
from torch import Tensor

_EMPTY = 1e-10  # probability of an empty bin, whose logarithm does not exist


def mutual_information(
    a: Tensor,
    b: Tensor,
    mask: Tensor | None = None,
    *,
    bins: int = 32,
    samples: int | None = None,
    normalized: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Shared information of two images: ``(H(a) + H(b)) / H(a, b)``, or ``H(a) + H(b) − H(a, b)``.

    Each value is spread over four bins by a cubic B-spline (Parzen window), so the result is
    differentiable in both images. The bins span each image's smallest to largest value in the mask.

    Convention:
        - higher is more similar; normalized: 1 for independent images, at most 2; else nats, ≥ 0
        - a constant image shares nothing: 1 or 0, with a finite gradient
        - memory: ``8 · bins`` bytes for each voxel used; whole volumes should be sampled

    Args:
        a: ``(B, 1, *S)``, any range.
        b: ``(B, 1, *S)``, any range.
        mask: ``(B, 1, *S)`` 0/1; only voxels inside are used.
        bins: bins of each image, of which two at either end take only the spread.
        samples: use this many voxels, drawn with replacement; None uses all.
        normalized: the ratio above, which a shrinking overlap changes less than the difference.
        generator: draws the samples.

    Returns:
        ``(B,)``.

    References:
        Studholme et al., "An overlap invariant entropy measure of 3D medical image alignment",
        Pattern Recognition 1999. Mattes et al., "PET-CT image registration in the chest using
        free-form deformations", IEEE TMI 2003.
    """
    if bins < 5:
        raise ValueError(f"a cubic B-spline histogram needs at least 5 bins, got {bins}")
    values = []
    for index in range(a.shape[0]):
        x, y = a[index].float().flatten(), b[index].float().flatten()
        if mask is not None:
            inside = mask[index].flatten() > 0.5
            x, y = x[inside], y[inside]
        pair = torch.stack([_positions(x, bins), _positions(y, bins)])
        values.append(_information(_drawn(pair, samples, generator), bins, normalized))
    return torch.stack(values)


def _drawn(pair: Tensor, samples: int | None, generator: torch.Generator | None) -> Tensor:
    """Some of the voxels, or all, ``(2, n)``."""
    n = pair.shape[1]
    if samples is None or n <= samples:
        return pair
    device = pair.device if generator is None else generator.device
    chosen = torch.randint(n, (samples,), generator=generator, device=device)
    return pair[:, chosen.to(pair.device)]


def _information(pair: Tensor, bins: int, normalized: bool) -> Tensor:
    """The measure of two lists of positions among the bins."""
    if pair.numel() == 0:
        return pair.sum() + float(normalized)
    with torch.autocast(pair.device.type, enabled=False):  # half precision cannot count voxels
        joint = _bin_weights(pair[0], bins).T @ _bin_weights(pair[1], bins) / pair.shape[1]
    difference = _entropy(joint.sum(0)) + _entropy(joint.sum(1))
    together = _entropy(joint)
    return difference / together if normalized else difference - together


def _entropy(p: Tensor) -> Tensor:
    """``−Σ p log p`` in nats; the slope stays finite in empty bins."""
    return -(p * (p + _EMPTY).log()).sum()


def _positions(values: Tensor, bins: int) -> Tensor:
    """Where the values lie among the bins, so that the splines of the outermost fit."""
    if values.numel() == 0:
        return values
    low, high = values.detach().aminmax()
    extent = high - low
    return 1.0 + (values - low) * torch.where(extent > 0, (bins - 4) / extent, 0.0)


def _bin_weights(position: Tensor, bins: int) -> Tensor:
    """The share of each value in each bin, ``(n, bins)``; rows sum to 1."""
    first = position.detach().floor().clamp(1, bins - 3)
    t = position - first
    weights = torch.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], dim=1
    )
    columns = first.long()[:, None] + torch.arange(-1, 3, device=position.device)
    return position.new_zeros(position.numel(), bins).scatter(1, columns, weights / 6)

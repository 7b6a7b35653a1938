"""How well images were registered: distances in mm, label overlap, and how sane a field is."""

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics import compute_dice
from monai.metrics.utils import get_edge_surface_distance
from torch import Tensor

from fusion_pipeline.geometry import compose, identity_points, inside, jacobian_determinant

_LEAST_JACOBIAN = 1e-6  # volume ratio of a fold, whose logarithm does not exist


def target_registration_error(
    points_true: npt.ArrayLike, points_found: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Distance of each point from where it belongs.

    Args:
        points_true: ``(n, d)`` world mm, where the points are.
        points_found: ``(n, d)`` world mm, where the registration puts them.

    Returns:
        ``(n,)`` mm.

    >>> target_registration_error([[0.0, 0.0], [1.0, 1.0]], [[3.0, 4.0], [1.0, 1.0]]).tolist()
    [5.0, 0.0]
    """
    true, given = np.asarray(points_true, np.float64), np.asarray(points_found, np.float64)
    if true.shape != given.shape or true.ndim != 2:
        raise ValueError(f"expected two lists of points (n, d), got {true.shape}, {given.shape}")
    return np.asarray(np.linalg.norm(true - given, axis=1))


def dice(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Overlap of two regions, ``2 |A ∩ B| / (|A| + |B|)``, by MONAI.

    Args:
        a: ``(*S)`` region, nonzero inside.
        b: ``(*S)`` the same on the same grid.

    Returns:
        Overlap in [0, 1]; NaN if both regions are empty.

    >>> round(dice([0, 1, 1, 0], [0, 1, 0, 0]), 6)
    0.666667
    """
    first, second = _same_grid(a, b)
    regions = _as_channels(first != 0, second != 0)
    if not any(bool(region.any()) for region in regions):
        return float("nan")
    # MONAI calls an overlap undefined where the second region alone is empty; it is none
    return float(compute_dice(*regions, ignore_empty=False))


def dice_per_label(
    a: npt.ArrayLike, b: npt.ArrayLike, labels: Sequence[int] | None = None
) -> dict[int, float]:
    """`dice` of each label.

    Args:
        a: ``(*S)`` labels.
        b: ``(*S)`` labels on the same grid.
        labels: which to judge; None takes all that occur in either, without 0.

    Returns:
        Label → overlap; NaN where neither image has the label.

    >>> dice_per_label([0, 1, 1, 2], [0, 1, 1, 2])
    {1: 1.0, 2: 1.0}
    """
    first, second = _same_grid(a, b)
    chosen = _labels(first, second) if labels is None else labels
    return {int(n): dice(first == n, second == n) for n in chosen}


def hd95(a: npt.ArrayLike, b: npt.ArrayLike, spacing: Sequence[float]) -> float:
    """95 % of either surface lies closer to the other than this; surfaces by MONAI.

    Convention:
        - unit: mm, with another voxel size along each axis
        - surface: voxels of the region with a neighbour (across a face) outside of it; the region
          ends at the lattice
        - symmetric: the larger of the two directed 95th percentiles

    Args:
        a: ``(*S)`` region, nonzero inside.
        b: ``(*S)`` the same on the same grid.
        spacing: mm along each axis.

    Returns:
        mm; NaN if either region is empty.
    """
    first, second = _same_grid(a, b)
    first, second = first != 0, second != 0
    if len(spacing) != first.ndim:
        raise ValueError(f"expected {first.ndim} spacings for {first.shape}, got {list(spacing)}")
    if not (first.any() and second.any()):
        return float("nan")
    with warnings.catch_warnings():
        # MONAI 1.6 calls its own helper by an argument that it has deprecated
        warnings.simplefilter("ignore", FutureWarning)
        _, distances, _ = get_edge_surface_distance(
            *(torch.from_numpy(region) for region in (first, second)),
            spacing=[float(step) for step in spacing],
            symmetric=True,
        )
    # float32, as MONAI's own percentile computes, loses up to 5e-6 of the distance
    return max(float(np.percentile(d.numpy().astype(np.float64), 95)) for d in distances)


def hd95_per_label(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    spacing: Sequence[float],
    labels: Sequence[int] | None = None,
) -> dict[int, float]:
    """`hd95` of each label.

    Args:
        a: ``(*S)`` labels.
        b: ``(*S)`` labels on the same grid.
        spacing: mm along each axis.
        labels: which to judge; None takes all that occur in either, without 0.

    Returns:
        Label → mm; NaN where either image lacks the label.
    """
    first, second = _same_grid(a, b)
    chosen = _labels(first, second) if labels is None else labels
    return {int(n): hd95(first == n, second == n, spacing) for n in chosen}


def folded_fraction(ddf: Tensor, mask: Tensor | None = None) -> Tensor:
    """Share of voxels where the field folds, ``det(I + ∂ddf/∂x) ≤ 0``.

    Args:
        ddf: ``(B, d, *S)`` voxels.
        mask: ``(B, 1, *S)`` 0/1, which voxels to judge.

    Returns:
        ``(B,)`` in [0, 1]; NaN under an empty mask.
    """
    folded = jacobian_determinant(ddf) <= 0
    chosen = torch.ones_like(folded) if mask is None else mask[:, 0] > 0.5
    return (folded & chosen).flatten(1).sum(1) / chosen.flatten(1).sum(1)


def log_jacobian_std(ddf: Tensor, mask: Tensor | None = None) -> Tensor:
    """Spread of the logarithm of the local volume change; 0 for every affine field.

    Args:
        ddf: ``(B, d, *S)`` voxels. Folds count as a volume of 1e-6.
        mask: ``(B, 1, *S)`` 0/1, which voxels to judge.

    Returns:
        ``(B,)``; NaN under an empty mask.

    References:
        Leow et al., "Statistical properties of Jacobian maps and the realization of unbiased
        large-deformation nonlinear image registration", IEEE TMI 2007.
    """
    logarithm = jacobian_determinant(ddf).clamp_min(_LEAST_JACOBIAN).log()
    chosen = torch.ones_like(logarithm) if mask is None else (mask[:, 0] > 0.5).to(logarithm.dtype)
    axes = tuple(range(1, logarithm.ndim))
    count = chosen.sum(axes, keepdim=True)
    mean = (logarithm * chosen).sum(axes, keepdim=True) / count
    variance = ((logarithm - mean) ** 2 * chosen).sum(axes) / count.flatten()
    return variance.sqrt()


def inverse_consistency(forward: Tensor, backward: Tensor, spacing: Sequence[float]) -> Tensor:
    """Mean distance from where a voxel starts to where it ends, there and back again.

    Args:
        forward: ``(B, d, *S)`` voxels, from the first grid into the second.
        backward: ``(B, d, *S)`` voxels, from the second grid, of the same lattice, into the first.
        spacing: mm along each axis.

    Returns:
        ``(B,)`` mm, over the voxels that ``forward`` keeps inside the lattice; NaN if none stays.
    """
    shape = forward.shape[2:]
    there = identity_points(shape, device=forward.device) + forward.float().movedim(1, -1)
    stays = inside(there, shape)
    scale = forward.new_tensor(list(spacing)).reshape(1, -1, *[1] * len(shape))
    distance = (compose(forward, backward) * scale).norm(dim=1)
    return (distance * stays).flatten(1).sum(1) / stays.flatten(1).sum(1)


def _same_grid(
    a: npt.ArrayLike, b: npt.ArrayLike
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]:
    """Two arrays of one shape."""
    first, second = np.asarray(a), np.asarray(b)
    if first.shape != second.shape:
        raise ValueError(f"expected regions on one grid, got {first.shape} and {second.shape}")
    return first, second


def _labels(first: npt.NDArray[np.generic], second: npt.NDArray[np.generic]) -> list[int]:
    """All that occur in either, without 0."""
    return [int(label) for label in np.union1d(first, second) if label != 0]


def _as_channels(*regions: npt.NDArray[np.bool_]) -> list[Tensor]:
    """``(1, 1, *S)`` each, as MONAI takes regions."""
    return [torch.from_numpy(region)[None, None] for region in regions]

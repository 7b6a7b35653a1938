"""How smooth a field is, in physical units."""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor


def bending_energy(field: Tensor, spacing: Sequence[float]) -> Tensor:
    """Mean of the squared second derivatives: ``mean_x Σ_c Σ_ij (∂²u_c / ∂x_i ∂x_j)²``.

    Convention:
        - zero for every affine field; mixed derivatives count twice, as the sum over i and j says
        - components may follow world or lattice axes: a rotation of the vectors changes nothing
        - central differences inside the lattice, one voxel away from its border

    Args:
        field: ``(B, d, *S)`` mm, every axis at least 3 voxels long.
        spacing: mm along each spatial axis.

    Returns:
        ``(B,)`` in 1/mm².

    References:
        Rueckert et al., "Nonrigid registration using free-form deformations: application to breast
        MR images", IEEE TMI 1999.
    """
    field = _checked(field, spacing, shortest=3)
    d = len(spacing)
    density = field.new_zeros(())
    for axis in range(d):
        density = density + _second(field, axis, spacing[axis]).square().sum(1)
    for i, j in combinations(range(d), 2):
        mixed = _central(_central(field, i, spacing[i]), j, spacing[j])
        density = density + 2 * _inner(mixed, {i, j}).square().sum(1)
    return density.flatten(1).mean(1)


def diffusion_energy(field: Tensor, spacing: Sequence[float]) -> Tensor:
    """Mean of the squared first derivatives: ``Σ_k mean_x Σ_c (∂u_c / ∂x_k)²``.

    Convention:
        - zero for a translation only; a stretch by a factor ``1 + s`` along one axis costs ``s²``
        - components may follow world or lattice axes: a rotation of the vectors changes nothing
        - differences between neighbouring voxels, each axis averaged over its own

    Args:
        field: ``(B, d, *S)`` mm, every axis at least 2 voxels long.
        spacing: mm along each spatial axis.

    Returns:
        ``(B,)``, without unit.
    """
    field = _checked(field, spacing, shortest=2)
    parts = [
        (field.diff(dim=2 + axis) / step).square().sum(1).flatten(1).mean(1)
        for axis, step in enumerate(spacing)
    ]
    return torch.stack(parts).sum(0)


def _checked(field: Tensor, spacing: Sequence[float], shortest: int) -> Tensor:
    """A field with digits for differences, a spacing for each axis, and axes long enough."""
    shape = tuple(field.shape)
    if len(spacing) != field.ndim - 2:
        raise ValueError(f"expected one spacing per axis of field {shape}, got {list(spacing)}")
    if min(shape[2:]) < shortest:
        raise ValueError(f"expected at least {shortest} voxels along each axis, got field {shape}")
    return field.to(torch.promote_types(field.dtype, torch.float32))


def _second(field: Tensor, axis: int, step: float) -> Tensor:
    """``(u(x+1) − 2u(x) + u(x−1)) / h²`` on inner voxels."""
    return _inner(field.diff(n=2, dim=2 + axis) / step**2, {axis})


def _central(field: Tensor, axis: int, step: float) -> Tensor:
    """``(u(x+1) − u(x−1)) / 2h``, two voxels shorter along the axis."""
    n = field.shape[2 + axis] - 2
    return (field.narrow(2 + axis, 2, n) - field.narrow(2 + axis, 0, n)) / (2 * step)


def _inner(field: Tensor, shortened: set[int]) -> Tensor:
    """Drop the border along the axes that no difference has shortened yet."""
    for axis in range(field.ndim - 2):
        if axis not in shortened:
            field = field.narrow(2 + axis, 1, field.shape[2 + axis] - 2)
    return field

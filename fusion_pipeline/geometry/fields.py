"""Displacement and velocity fields: warp, compose, invert, integrate, measure."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fusion_pipeline.geometry.sampling import Mode, identity_points, resize, sample


def warp(
    image: Tensor,
    ddf: Tensor,
    *,
    mode: Mode = "bilinear",
    fill: float | None = 0.0,
    points: Tensor | None = None,
) -> Tensor:
    """Warp an image by a displacement field, ``warped(x) = image(x + ddf(x))`` (METHOD 3.2).

    Convention:
        - direction: pull-back; ``ddf`` lives on the fixed grid and points into the moving image
        - unit: voxels of ``image``; channel ``c`` displaces along tensor axis ``2 + c``
        - sampling: ``align_corners=True``; outside the image is ``fill`` (None: its border goes on)

    Args:
        image: ``(B, C, *S)``.
        ddf: ``(B, d, *T)``; T is the shape of the result.
        mode: linear or nearest (labels).
        fill: value outside the image.
        points: ``identity_points(T)``, where a caller keeps them.

    Returns:
        ``(B, C, *T)``.

    >>> ramp = torch.arange(5.0).reshape(1, 1, 5, 1).expand(1, 1, 5, 5)
    >>> step = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 5, 5)
    >>> warp(ramp, step)[0, 0, :, 0].tolist()
    [1.0, 2.0, 3.0, 4.0, 0.0]
    """
    if ddf.shape[1] != image.ndim - 2:
        raise ValueError(
            f"a {image.ndim - 2}D image needs a field of {image.ndim - 2} channels, "
            f"got image {tuple(image.shape)} and field {tuple(ddf.shape)}"
        )
    grid = identity_points(ddf.shape[2:], device=ddf.device) if points is None else points
    return sample(image, grid + ddf.float().movedim(1, -1), mode=mode, fill=fill)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """The field of going ``first`` and then ``second``: ``c(x) = first(x) + second(x + first(x))``.

    Warping by ``c`` equals warping by ``second`` and then by ``first``:
    ``warp(image, c) = warp(warp(image, second), first)``, with one interpolation instead of two.

    Args:
        first: ``(B, d, *S)`` voxels, on the grid of the result.
        second: ``(B, d, *S)`` voxels, on the grid that ``first`` points into.

    Returns:
        ``(B, d, *S)``.
    """
    return first + warp(second, first, fill=None)


def integrate(velocity: Tensor, steps: int = 6) -> Tensor:
    """Exponentiate a stationary velocity field by scaling and squaring: ``ddf = exp(v) − id``.

    Args:
        velocity: ``(B, d, *S)`` voxels per unit time.
        steps: squarings; the first step is ``v / 2**steps`` and has to stay well under a voxel.

    Returns:
        ``(B, d, *S)``, without folds for a smooth velocity.

    References:
        Arsigny et al., "A log-Euclidean framework for statistics on diffeomorphisms", MICCAI 2006.
    """
    ddf = velocity.float() / 2**steps
    points = identity_points(velocity.shape[2:], device=velocity.device)
    for _ in range(steps):
        ddf = ddf + warp(ddf, ddf, fill=None, points=points)
    return ddf


def invert(ddf: Tensor, iterations: int = 20) -> Tensor:
    """The inverse field by fixed-point iteration: ``u(x) = −ddf(x + u(x))``.

    Args:
        ddf: ``(B, d, *S)`` voxels; a contraction plus identity (no folds).
        iterations: the error shrinks by the field's largest slope each time.

    Returns:
        ``(B, d, *S)`` with ``compose(u, ddf) ≈ 0``.

    References:
        Chen et al., "A simple fixed-point approach to invert a deformation field", Med Phys 2008.
    """
    inverse = -ddf
    for _ in range(iterations):
        inverse = -warp(ddf, inverse, fill=None)
    return inverse


def jacobian_determinant(ddf: Tensor) -> Tensor:
    """``det(I + ∂ddf/∂x)`` by central differences (one-sided at the border).

    Args:
        ddf: ``(B, d, *S)`` voxels; every axis at least 2 voxels long.

    Returns:
        ``(B, *S)``: 1 where volume is kept, ≤ 0 where the field folds. It does not depend on the
        spacing, since ``det(A J A⁻¹) = det(J)``.
    """
    d = ddf.shape[1]
    axes = tuple(range(2, 2 + d))
    rows = [torch.stack(torch.gradient(ddf[:, c : c + 1], dim=axes), -1) for c in range(d)]
    jacobian = torch.cat([row.movedim(1, -2) for row in rows], dim=-2)
    return torch.linalg.det(jacobian + torch.eye(d, device=ddf.device, dtype=ddf.dtype))


def resize_ddf(ddf: Tensor, shape: Sequence[int]) -> Tensor:
    """Bring a voxel displacement field to another shape, its vectors scaled with the voxels.

    Args:
        ddf: ``(B, d, *S)`` voxels of the old lattice.
        shape: the new spatial shape.

    Returns:
        ``(B, d, *shape)`` voxels of the new lattice (corner voxels stay on corner voxels).
    """
    scale = [(n - 1) / max(o - 1, 1) for n, o in zip(shape, ddf.shape[2:], strict=True)]
    factor = torch.stack([ddf.new_full((), s) for s in scale])  # see `sample`
    return resize(ddf, shape) * factor.reshape(1, -1, *[1] * len(shape))


def ddf_mm_from_ddf(ddf: Tensor, world_from_voxel: Tensor) -> Tensor:
    """Turn a displacement in voxels into one in world millimetres: ``v = A[:d, :d] · ddf``.

    Args:
        ddf: ``(B, d, *S)`` voxels of the lattice that ``world_from_voxel`` describes.
        world_from_voxel: ``(d + 1, d + 1)``.

    Returns:
        ``(B, d, *S)`` mm in the axes of that world (RAS+ inside this package).
    """
    d = ddf.shape[1]
    linear = world_from_voxel[:d, :d].to(device=ddf.device, dtype=ddf.dtype)
    return torch.einsum("ab,nb...->na...", linear, ddf)


def ddf_from_ddf_mm(ddf_mm: Tensor, world_from_voxel: Tensor) -> Tensor:
    """Turn a displacement in world millimetres into voxels, the inverse of `ddf_mm_from_ddf`.

    Args:
        ddf_mm: ``(B, d, *S)`` mm.
        world_from_voxel: ``(d + 1, d + 1)`` of the lattice whose voxels are meant.

    Returns:
        ``(B, d, *S)`` voxels.
    """
    return ddf_mm_from_ddf(ddf_mm, torch.linalg.inv(world_from_voxel))

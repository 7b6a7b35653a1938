"""Read an image at any points: only here ``grid_sample`` is called."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fusion_pipeline.geometry.affines import Matrix

Mode = Literal["bilinear", "nearest"]


def identity_points(
    shape: Sequence[int],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The voxel coordinates of a lattice, ``p[i, j, k] = (i, j, k)``.

    Args:
        shape: spatial shape, 2 or 3 numbers.
        device: where the points lie.
        dtype: float32 unless asked otherwise; lower precision would move voxels.

    Returns:
        ``(*shape, d)``.

    >>> identity_points((1, 3))[0].tolist()
    [[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]]
    """
    axes = [torch.arange(n, device=device, dtype=dtype) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def inside(points: Tensor, shape: Sequence[int]) -> Tensor:
    """Which points lie in an image, half a voxel around its outermost centres included.

    Args:
        points: ``(..., d)`` voxel coordinates.
        shape: spatial shape of the image.

    Returns:
        Boolean, ``(...)``.

    >>> inside(torch.tensor([[-0.5, 0.0], [-0.6, 0.0]]), (4, 4)).tolist()
    [True, False]
    """
    within = torch.ones(points.shape[:-1], dtype=torch.bool, device=points.device)
    for axis, size in enumerate(shape):
        within &= (points[..., axis] >= -0.5) & (points[..., axis] <= size - 0.5)
    return within


def sample(
    image: Tensor,
    points: Tensor,
    *,
    mode: Mode = "bilinear",
    fill: float | None = None,
) -> Tensor:
    """Read ``image`` at ``points``: ``out(x) = image(points(x))``.

    Convention:
        - unit: voxels of ``image``; component ``c`` of a point runs along tensor axis ``2 + c``
        - sampling: ``align_corners=True``; voxel centres at integer coordinates
        - outside: ``fill``; None continues the border, as fields need it

    Args:
        image: ``(B, C, *S)``, d = 2 or 3 spatial axes.
        points: ``(B, *T, d)``, a lattice or a list of points; computed in float32 whatever the
            image's type, since a half-precision coordinate is wrong by up to half a voxel.
        mode: linear in d dimensions, or nearest (for labels).
        fill: value outside the image.

    Returns:
        ``(B, C, *T)``, of the image's type.
    """
    shape = image.shape[2:]
    d = len(shape)
    # grid_sample wants as many point axes as spatial axes: a list of points becomes one long axis
    coordinates = points.float().reshape(points.shape[0], -1, *[1] * (d - 1), d)
    # one scalar per axis: a tensor of the list would write the sizes into an exported graph
    size = torch.stack([coordinates.new_full((), n) for n in shape])
    # A single voxel along an axis has no extent to normalize by: any value reads that voxel.
    unit = coordinates.mul(2.0).div_((size - 1.0).clamp_min(1.0)).sub_(1.0)
    out = F.grid_sample(
        image.float(), unit.flip(-1), mode=mode, padding_mode="border", align_corners=True
    )
    if fill is not None:
        out = torch.where(inside(coordinates, shape).unsqueeze(1), out, fill)
    return out.reshape(*out.shape[:2], *points.shape[1:-1]).to(image.dtype)


def sample_along_axes(image: Tensor, positions: Sequence[Matrix]) -> Tensor:
    """Read ``image`` on a lattice whose axes run along its own, linearly; the border goes on.

    `sample` at all combinations of the positions, but one axis after the other: several times
    faster, since no points are made and neighbours share what lies between.

    Convention:
        - unit: voxels of ``image``; voxel centres at integer coordinates
        - outside: the border goes on

    Args:
        image: ``(C, *S)`` float32.
        positions: along each axis of ``image``, ``(n,)`` with at least one.

    Returns:
        ``(C, *T)``, as many along each axis as its positions; may share memory with ``image``.
    """
    cells = []
    for axis, (at, size) in enumerate(zip(positions, image.shape[1:], strict=True)):
        at = np.clip(at, 0, size - 1)
        low = np.minimum(np.floor(at).astype(np.int64), max(size - 2, 0))
        first, last = int(low.min()), min(int(low.max()) + 1, size - 1)
        image = image.narrow(1 + axis, first, last - first + 1)
        beyond = (at - low).astype(np.float32)
        cells.append((low - first, np.minimum(low - first + 1, last - first), beyond))
    # the first axis last: the largest copies are of whole planes
    for axis in reversed(range(len(cells))):
        if np.array_equal(positions[axis], np.arange(image.shape[1 + axis])):
            continue
        *ends, part = (torch.from_numpy(x).to(image.device) for x in cells[axis])
        weight = part.to(image).view(-1, *[1] * (len(cells) - 1 - axis))
        lower, upper = (image.index_select(1 + axis, rows) for rows in ends)
        image = lower.lerp_(upper, weight)
    return image


def resample(
    image: Tensor,
    image_from_target: Tensor,
    shape: Sequence[int],
    *,
    mode: Mode = "bilinear",
    fill: float | None = 0.0,
) -> Tensor:
    """Read an image on another lattice by an affine: ``out(x) = image(image_from_target @ x)``.

    Args:
        image: ``(B, C, *S)``.
        image_from_target: ``(d + 1, d + 1)`` or ``(B, d + 1, d + 1)``, voxels of the target lattice
            to voxels of the image; may lie on the CPU, where float64 is at home, for any image.
        shape: spatial shape of the target lattice.
        mode: see `sample`.
        fill: value outside the image.

    Returns:
        ``(B, C, *shape)``.
    """
    matrix = image_from_target.expand(image.shape[0], *image_from_target.shape[-2:])
    return sample(image, _mapped(matrix, shape, image.device), mode=mode, fill=fill)


def resize(image: Tensor, shape: Sequence[int], *, mode: Mode = "bilinear") -> Tensor:
    """Bring an image or field to another shape, corner voxels kept on corner voxels.

    Args:
        image: ``(B, C, *S)``.
        shape: the new spatial shape.
        mode: linear or nearest.

    Returns:
        ``(B, C, *shape)``; the values are not scaled (for displacements see `resize_ddf`).
    """
    if tuple(image.shape[2:]) == tuple(shape):
        return image
    if mode == "nearest":
        size = image.new_tensor(list(shape)).float()
        old = torch.as_tensor(image.shape[2:], device=image.device)
        scale = (old - 1) / (size - 1).clamp_min(1)
        points = identity_points(shape, device=image.device) * scale
        return sample(image, points.expand(image.shape[0], *points.shape), mode="nearest")
    return F.interpolate(
        image,
        size=tuple(shape),
        mode="bilinear" if len(shape) == 2 else "trilinear",
        align_corners=True,
    )


def _mapped(matrix: Tensor, shape: Sequence[int], device: torch.device) -> Tensor:
    """The points of a lattice after affine maps ``(B, d + 1, d + 1)``, ``(B, *shape, d)`` float32.

    What each axis adds is summed, the longest sum last, in float32 and on the device; up to there
    in the matrix's own type, since a large origin would eat float32's digits.
    """
    d = len(shape)
    points = matrix[:, :d, d].reshape(-1, *[1] * d, d)
    for axis, size in enumerate(shape):
        steps = torch.arange(size, device=matrix.device, dtype=matrix.dtype)
        along = matrix[:, None, :d, axis] * steps[:, None]
        along = along.reshape(-1, *[size if a == axis else 1 for a in range(d)], d)
        if axis < d - 1:
            points = points + along
        else:
            points = points.float().to(device) + along.float().to(device)
    return points

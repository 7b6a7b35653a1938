"""Affine matrices in float64 NumPy: named ``b_from_a``, so that products cancel."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def spacing_of(world_from_voxel: Matrix) -> Matrix:
    """Voxel size along each axis in mm: the lengths of the affine's columns.

    >>> spacing_of(np.diag([2.0, 3.0, 1.0])).tolist()
    [2.0, 3.0]
    """
    d = world_from_voxel.shape[0] - 1
    return np.asarray(np.linalg.norm(world_from_voxel[:d, :d], axis=0))


def apply_affine(b_from_a: Matrix, points: npt.ArrayLike) -> Matrix:
    """Map points: ``p_b = b_from_a @ p_a``.

    Args:
        b_from_a: ``(d + 1, d + 1)``.
        points: ``(..., d)``.

    Returns:
        ``(..., d)`` float64.

    >>> apply_affine(np.array([[2.0, 0, 1], [0, 2, 0], [0, 0, 1]]), [1.0, 1.0]).tolist()
    [3.0, 2.0]
    """
    p = np.asarray(points, dtype=np.float64)
    d = b_from_a.shape[0] - 1
    return np.asarray(p @ b_from_a[:d, :d].T + b_from_a[:d, d])


def inverse_affine(b_from_a: Matrix) -> Matrix:
    """The map back, ``a_from_b``.

    >>> inverse_affine(np.diag([2.0, 4.0, 1.0])).diagonal().tolist()
    [0.5, 0.25, 1.0]
    """
    return np.asarray(np.linalg.inv(b_from_a), dtype=np.float64)


def lps_from_ras(spatial_dims: int) -> Matrix:
    """RAS+ mm (NIfTI, this package) to LPS mm (ITK, DICOM); its own inverse.

    >>> lps_from_ras(3).diagonal().tolist()
    [-1.0, -1.0, 1.0, 1.0]
    """
    return np.diag([-1.0, -1.0, *[1.0] * (spatial_dims - 1)])


def rescaled_affine(
    world_from_voxel: Matrix, shape: Sequence[int], spacing: float
) -> tuple[Matrix, tuple[int, ...]]:
    """An isotropic lattice over the same field of view, along the same axes.

    Args:
        world_from_voxel: ``(d + 1, d + 1)`` of the given lattice.
        shape: its spatial shape.
        spacing: voxel size of the new lattice in mm.

    Returns:
        ``world_from_voxel`` and shape of the new lattice. It is centred on the old one and its
        voxels cover at least the old ones' extent.
    """
    d = len(shape)
    old = spacing_of(world_from_voxel)
    extent = old * np.asarray(shape)
    new_shape = np.maximum(1, np.ceil(extent / spacing - 1e-6)).astype(int)
    affine = np.eye(d + 1)
    affine[:d, :d] = world_from_voxel[:d, :d] / old * spacing
    centre = apply_affine(world_from_voxel, (np.asarray(shape) - 1) / 2)
    affine[:d, d] = centre - affine[:d, :d] @ ((new_shape - 1) / 2)
    return affine, tuple(int(n) for n in new_shape)


def rigid_matrix(
    rotation_deg: Sequence[float], translation: Sequence[float], centre: Sequence[float]
) -> Matrix:
    """A rotation about a centre, then a translation: ``x' = R (x − c) + c + t``.

    Args:
        rotation_deg: one angle in 2D; in 3D angles about the first, second and third world axis,
            applied in that order.
        translation: mm.
        centre: mm.

    Returns:
        ``(d + 1, d + 1)`` world to world.

    >>> turned = rigid_matrix([90.0], [0.0, 0.0], [1.0, 0.0])
    >>> apply_affine(turned, [2.0, 0.0]).round(6).tolist()
    [1.0, 1.0]
    """
    d = len(translation)
    rotation = np.eye(d)
    planes = [(0, 1)] if d == 2 else [(1, 2), (2, 0), (0, 1)]
    for angle, (a, b) in zip(np.deg2rad(rotation_deg), planes, strict=True):
        turn = np.eye(d)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        rotation = turn @ rotation
    out = np.eye(d + 1)
    out[:d, :d] = rotation
    out[:d, d] = np.asarray(centre) - rotation @ np.asarray(centre) + np.asarray(translation)
    return out

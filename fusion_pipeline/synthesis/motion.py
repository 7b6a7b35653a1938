"""Where images lie, and how the patient moved between them: lattices and true mappings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusion_pipeline.geometry import (
    apply_affine,
    identity_points,
    inverse_affine,
    rigid_matrix,
    sample,
)
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.synthesis.noise import smooth_noise, uniform

_ELASTIC_STEP = 5.0
_ELASTIC_KNOTS = 40.0


@dataclass(frozen=True)
class Lattice:
    """Where an image is sampled, and how its axes lie.

    Attributes:
        shape: spatial shape.
        affine: ``(d + 1, d + 1)`` world_from_voxel, RAS mm.
    """

    shape: tuple[int, ...]
    affine: Matrix

    def world(self) -> Matrix:
        """World coordinates of the voxels, ``(*S, d)`` float64."""
        return apply_affine(self.affine, identity_points(self.shape, dtype=torch.float64).numpy())


@dataclass(frozen=True)
class Motion:
    """The true mapping fixed → moving: ``φ(x) = moving_from_fixed @ (x + d(x))``.

    Attributes:
        moving_from_fixed: rigid, world to world.
        elastic: ``(1, d, *W)`` mm on the lattice ``lattice_affine``.
        lattice_affine: world_from_voxel of the elastic lattice.
    """

    moving_from_fixed: Matrix
    elastic: Tensor
    lattice_affine: Matrix

    def elastic_at(self, points: Matrix) -> Matrix:
        """The elastic displacement at world points ``(*S, d)``, mm."""
        voxels = torch.from_numpy(apply_affine(inverse_affine(self.lattice_affine), points))
        return sample(self.elastic, voxels[None])[0].movedim(0, -1).double().numpy()

    def forward(self, points: Matrix) -> Matrix:
        """Fixed world to moving world."""
        return apply_affine(self.moving_from_fixed, points + self.elastic_at(points))

    def backward(self, points: Matrix) -> Matrix:
        """Moving world to fixed world, by fixed-point iteration: ``x = A⁻¹ y − d(x)``."""
        rigid = apply_affine(inverse_affine(self.moving_from_fixed), points)
        out = rigid
        for _ in range(6):  # the slope of d is about 0.3: 6 turns leave 6 mm · 0.3⁶ = 0.004 mm
            out = rigid - self.elastic_at(out)
        return out


def centred_affine(
    directions: Matrix, shape: Sequence[int], spacing: npt.ArrayLike, centre: npt.ArrayLike
) -> Matrix:
    """``world_from_voxel`` of a lattice with its middle at ``centre``.

    Args:
        directions: ``(d, d)`` orthonormal columns, the axes in the world.
        shape: spatial shape.
        spacing: mm per voxel along each axis.
        centre: world mm.
    """
    d = len(shape)
    affine = np.eye(d + 1)
    affine[:d, :d] = directions * np.asarray(spacing)
    affine[:d, d] = np.asarray(centre) - affine[:d, :d] @ ((np.asarray(shape) - 1) / 2)
    return affine


def random_motion(
    canvas: Lattice, limits: tuple[float, float, float], generator: torch.Generator
) -> Motion:
    """A rigid motion about the middle of a lattice, and a smooth elastic one.

    Args:
        canvas: where the patient lies.
        limits: largest rotation in degrees, translation in mm, elastic displacement in mm; each is
            drawn from 50 to 100 % of it.
        generator: the randomness.
    """
    d = len(canvas.shape)
    degrees, shift, elastic = (uniform(generator, 0.5, 1.0) * limit for limit in limits)
    middle = apply_affine(canvas.affine, (np.asarray(canvas.shape) - 1) / 2)
    signed = degrees if uniform(generator, -1, 1) < 0 else -degrees
    angles = [signed] if d == 2 else (degrees * _direction(3, generator)).tolist()
    push = (shift * _direction(d, generator)).tolist()
    rigid = rigid_matrix(angles, push, middle.tolist())
    extent = np.linalg.norm(canvas.affine[:d, :d], axis=0) * np.asarray(canvas.shape)
    shape = [int(e / _ELASTIC_STEP) + 2 for e in extent]
    field = smooth_noise(shape, _ELASTIC_KNOTS / _ELASTIC_STEP, generator, d)
    field = field * (elastic / float(field.norm(dim=0).max()))
    affine = centred_affine(np.eye(d), shape, [_ELASTIC_STEP] * d, middle)
    return Motion(rigid, field[None], affine)


def _direction(d: int, generator: torch.Generator) -> Matrix:
    """A random unit vector."""
    vector = torch.randn(d, generator=generator).double().numpy()
    return np.asarray(vector / np.linalg.norm(vector))

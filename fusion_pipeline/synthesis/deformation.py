"""Random deformations with an exact way back: what the pose search may leave to the network."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fusion_pipeline.geometry import compose, identity_points, integrate, resize_ddf, rigid_matrix
from fusion_pipeline.synthesis.noise import chance, uniform
from fusion_pipeline.synthesis.painting import random_velocity

_STEPS = 5  # squarings: the first step of a field of 8 voxels is a quarter of a voxel


@dataclass(frozen=True)
class Deformation:
    """A field ``exp(v)`` and an affine after it, pull-back on one lattice.

    Attributes:
        velocity: ``(1, d, *S)`` voxels.
        affine: ``(d + 1, d + 1)`` between voxels; None: the identity.
    """

    velocity: Tensor
    affine: np.ndarray | None = None

    @property
    def ddf(self) -> Tensor:
        """``(1, d, *S)`` voxels."""
        field = _integrated(self.velocity)
        if self.affine is None:
            return field
        return compose(field, _affine_ddf(self.affine, field.shape[2:]))

    @property
    def inverse(self) -> Tensor:
        """``(1, d, *S)`` voxels: the way back, as exact as the integration."""
        field = _integrated(-self.velocity)
        if self.affine is None:
            return field
        return compose(_affine_ddf(np.linalg.inv(self.affine), field.shape[2:]), field)


def random_deformation(
    shape: Sequence[int], generator: torch.Generator, max_voxels: float = 6.5
) -> Deformation:
    """A smooth deformation and, mostly, a small affine error after it.

    Args:
        shape: spatial shape, 2 or 3 numbers.
        generator: the randomness.
        max_voxels: length of the longest displacement of the smooth part.

    Returns:
        The deformation; none at all in one draw of twelve, so that the network also learns to leave
        alone what is aligned.
    """
    if chance(generator, 0.08):
        return Deformation(torch.zeros((1, len(shape), *shape)))
    strength = uniform(generator, 0.0, 1.0)
    smooth = uniform(generator, 7.0, 20.0)
    # steeper fields than this fold once they are integrated
    peak = min(max_voxels, 0.55 * smooth) * strength
    velocity = random_velocity(shape, generator, peak, smooth)
    if chance(generator, 0.3):
        return Deformation(velocity)
    return Deformation(velocity, _small_affine(shape, generator))


def _integrated(velocity: Tensor) -> Tensor:
    """``exp(v) − id`` on every second voxel: an eighth of the work; knots are 7 voxels apart."""
    shape = velocity.shape[2:]
    coarse = resize_ddf(velocity, [max(2, (n + 1) // 2) for n in shape])
    return resize_ddf(integrate(coarse, _STEPS), shape)


def _small_affine(shape: Sequence[int], generator: torch.Generator) -> np.ndarray:
    """Up to 6 degrees, 3 voxels and 6 % of stretch about the middle, ``(d + 1, d + 1)``."""
    d = len(shape)
    unit = torch.rand(3 * d + 3, generator=generator).numpy() * 2 - 1
    centre = (np.asarray(shape) - 1) / 2
    angles = (unit[: 1 if d == 2 else 3] * 6.0).tolist()
    matrix = rigid_matrix(angles, (unit[3 : 3 + d] * 3.0).tolist(), centre.tolist())
    stretch = np.eye(d + 1)
    stretch[:d, :d] += np.diag(unit[3 + d : 3 + 2 * d]) * 0.06
    stretch[:d, d] = centre - stretch[:d, :d] @ centre
    return matrix @ stretch


def _affine_ddf(matrix: np.ndarray, shape: Sequence[int]) -> Tensor:
    """What a matrix between voxels does, as a field ``(1, d, *S)``."""
    d = len(shape)
    grid = identity_points(shape).double().numpy()
    moved = grid @ matrix[:d, :d].T + matrix[:d, d]
    return torch.from_numpy((moved - grid).astype(np.float32)).movedim(-1, 0)[None]

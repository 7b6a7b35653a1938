"""How rough a velocity may be."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fusion_pipeline.losses import bending_energy, diffusion_energy


@dataclass(frozen=True)
class Smoothness:
    """How rough a velocity may be.

    The descriptors' mean squared distance counts a hundredfold beside the penalties.

    Attributes:
        diffusion: weight of the velocity's diffusion energy: of stretching and of bending.
        bending: weight of its bending energy, in distances of its nodes: affine maps are free.
        nodes: the velocity's nodes lie so many voxels apart: 4, blurred once, or 2, blurred twice.
    """

    diffusion: float
    bending: float = 0.0
    nodes: Literal[2, 4] = 4

    def penalty(self, velocity: Tensor) -> Tensor:
        """The penalty of a velocity ``(1, d, *Q)`` in voxels of its own lattice."""
        voxels = [1.0] * (velocity.ndim - 2)
        total = self.diffusion * diffusion_energy(velocity, voxels).sum()
        if self.bending:
            total = total + self.bending * bending_energy(velocity, voxels).sum()
        return total

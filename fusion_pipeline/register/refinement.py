"""Instance optimization: a few steps on one pair's velocity, from where the network left it."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fusion_pipeline.geometry import identity_points, integrate, resize_ddf, sample
from fusion_pipeline.geometry.filters import averaged, halved
from fusion_pipeline.losses import (
    bending_energy,
    diffusion_energy,
    mind_ssc,
    mutual_information,
)

_PATIENCE = 8
_LEAST_FALL = 1e-3  # of the loss
_RATE = 0.5  # voxels of the whole lattice
_CLOSER = 0.4  # of that on the second level after the first one, twice that without it
_LEAST_NODES = 3  # along an axis, so that it can bend
_BINS = 24
# Of the velocity that is compared by; the field that is applied gets 6. Smooth velocities that move
# by two of their nodes end within 0.05 of a node of that.
_SQUARINGS = 4
_EVERY = 3  # of the lattice's voxels enters the histogram of the mutual information


@dataclass(frozen=True)
class Smoothness:
    """How rough a velocity may be.

    The descriptors' mean squared distance counts a hundredfold beside the prices.

    Attributes:
        diffusion: price of the velocity's diffusion energy: of stretching and of bending.
        bending: price of its bending energy, in distances of its nodes: affine maps are free.
        nodes: the velocity's nodes lie so many voxels apart: 4, blurred once, or 2, blurred twice.
    """

    diffusion: float
    bending: float = 0.0
    nodes: Literal[2, 4] = 4

    def price(self, velocity: Tensor) -> Tensor:
        """What a velocity ``(1, d, *Q)`` in voxels of its own lattice costs."""
        voxels = [1.0] * (velocity.ndim - 2)
        cost = self.diffusion * diffusion_energy(velocity, voxels).sum()
        if self.bending:
            cost = cost + self.bending * bending_energy(velocity, voxels).sum()
        return cost


def describe(image: Tensor, known: Tensor) -> Tensor:
    """What two images are compared by: the values, MIND-SSC of what is known, and where that is.

    Args:
        image: ``(1, 1, *S)`` normalized.
        known: ``(1, 1, *S)`` 0..1.

    Returns:
        ``(1, C, *S)``: ``image``, the self-similarities, ``known``.
    """
    return torch.cat([image, mind_ssc(image, mask=known), known], 1)


def refine(
    fixed: Tensor,
    moving: Tensor,
    velocity: Tensor,
    *,
    steps: int,
    smoothness: Smoothness,
    information: float = 0.0,
    coarse: bool = True,
) -> Tensor:
    """Make one pair more alike by changing its velocity field.

    The self-similarity distance falls, and mutual information rises where it is worth something.

    Two levels: averaged descriptors are compared first (a long reach), then those of the whole
    lattice for half of the steps. The velocity has its nodes on a quarter or half of the lattice,
    is kept smooth by a blur and by what roughness costs, and is integrated, so that nothing folds.
    It is so smooth that comparing on half the lattice is enough on both levels: an eighth of the
    voxels in 3D. Stops early when the loss no longer falls.

    Convention:
        - lattices: odd sizes, so that half the lattice keeps the corner voxels
        - unit: ``velocity`` in voxels of half the lattice

    Args:
        fixed: ``(1, C, *S)`` `describe` of the reference.
        moving: ``(1, C, *S)`` `describe` of the moving image after the pose stage.
        velocity: ``(1, d, *H)`` to start from.
        steps: at most so many on the first level; 0 gives ``velocity`` back.
        smoothness: how rough the velocity may be.
        information: what a nat of mutual information is worth beside the hundredfold distance; on
            the second level only, since averages near the border hold what is not known.
        coarse: whether the first level is gone through; not needed from a start that has been.

    Returns:
        ``(1, d, *H)``.

    References:
        Siebert et al., "ConvexAdam: self-configuring dual-optimisation-based 3D multitask medical
        image registration", IEEE TMI 2024.
    """
    if steps == 0:
        return velocity
    half = velocity.shape[2:]
    quarter = tuple(max(_LEAST_NODES, (n + 1) // 2) for n in half)
    out = resize_ddf(velocity, half if smoothness.nodes == 2 else quarter)
    rate = _RATE / smoothness.nodes
    if coarse:
        unlikeness = _Unlikeness(halved(fixed), halved(moving))
        out = _optimize(unlikeness, out, steps, rate, smoothness)
    every_other = (slice(None), slice(None), *[slice(None, None, 2)] * (fixed.ndim - 2))
    rate *= _CLOSER if coarse else 2 * _CLOSER
    finer = _Unlikeness(fixed[every_other], moving, information)
    out = _optimize(finer, out, max(1, steps // 2), rate, smoothness)
    return resize_ddf(out, half)


class _Unlikeness:
    """Hundredfold distance of the descriptors over the common field of view, less information.

    Looked at where the fixed image is known, since nothing else counts.

    Args:
        fixed: ``(1, C, *S)`` `describe`.
        moving: the same on the lattice of ``fixed`` or on one of half its spacing.
        information: what a nat of mutual information is worth.
    """

    def __init__(self, fixed: Tensor, moving: Tensor, information: float = 0.0) -> None:
        self.shape = fixed.shape[2:]
        self.where = (fixed[0, -1].flatten() > 0).nonzero()[:, 0]
        self.fineness = (moving.shape[2] - 1) // (self.shape[0] - 1)
        self.places = self._there(identity_points(self.shape, device=fixed.device).movedim(-1, 0))
        self.fixed = self._there(fixed[0])
        self.moving = moving
        self.information = information
        self.some = self.where % _EVERY == 0

    def _there(self, values: Tensor) -> Tensor:
        """Values ``(C, *S)`` where the fixed image is known, ``(C, N)``."""
        return values.flatten(1)[:, self.where]

    def __call__(self, velocity: Tensor) -> Tensor:
        """What a velocity ``(1, d, *Q)`` in voxels of its own lattice leaves apart."""
        ddf = resize_ddf(integrate(velocity, _SQUARINGS), self.shape)
        points = self.fineness * (self.places + self._there(ddf[0])).T
        fixed, warped = self.fixed, sample(self.moving, points[None], fill=0.0)[0]
        both = fixed[-1] * warped[-1]
        distance = (fixed[1:-1] - warped[1:-1]).square().mean(0)
        # divided by what the fixed image knows, not by the overlap: losing overlap must not pay
        lost = fixed[-1] * (1 - warped[-1])
        unseen = (distance * both).sum().detach() / both.sum().clamp_min(1.0).detach()
        total = (distance * both + unseen * lost).sum() / fixed[-1].sum().clamp_min(1.0)
        if not self.information:
            return 100 * total
        surely = (both > 0.999).float()  # values in part not known would count as others
        some = [x[self.some][None, None] for x in (fixed[0], warped[0], surely)]
        shared = mutual_information(*some, bins=_BINS, normalized=False)[0]
        return 100 * total - self.information * shared


def _optimize(
    unlikeness: _Unlikeness,
    velocity: Tensor,
    steps: int,
    rate: float,
    smoothness: Smoothness,
) -> Tensor:
    """Adam on one level; gives back the best velocity it has seen."""
    blurs = 4 // smoothness.nodes
    current = velocity.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([current], lr=rate)
    best, lowest, since = velocity, float("inf"), 0
    for _ in range(steps):
        optimizer.zero_grad()
        bent = averaged(current, blurs)
        loss = unlikeness(bent) + smoothness.price(bent)
        loss.backward()
        value = float(loss.detach())
        falls = math.isinf(lowest) or value < lowest - _LEAST_FALL * abs(lowest)
        since = 0 if falls else since + 1
        if value < lowest:
            best, lowest = averaged(current.detach(), blurs), value
        if since >= _PATIENCE:
            break
        optimizer.step()
    return best

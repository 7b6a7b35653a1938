"""Instance optimization: a few steps on one pair's velocity, from where the network left it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion_pipeline.geometry import identity_points, integrate, sample
from fusion_pipeline.losses import diffusion_energy, mind_ssc

_PATIENCE = 8
_RATE = 0.25  # voxels of the half lattice


def refine(
    fixed: Tensor,
    moving: Tensor,
    velocity: Tensor,
    known: Tensor,
    moving_known: Tensor,
    *,
    steps: int,
    smoothness: float,
) -> Tensor:
    """Lower the self-similarity distance of one pair by changing its velocity field.

    Two levels: averaged descriptors are compared first (a long reach), then those of the whole
    lattice for a third of the steps. The velocity lives on half the lattice, is kept smooth by a
    blur and by its diffusion energy, and is integrated, so that nothing folds. It is so smooth that
    comparing at its own points is enough on both levels: an eighth of the voxels. Stops early when
    the loss no longer falls.

    Convention:
        - lattices: odd sizes, so that half the lattice keeps the corner voxels
        - unit: ``velocity`` in voxels of half the lattice

    Args:
        fixed: ``(1, 1, *S)`` normalized image.
        moving: ``(1, 1, *S)`` normalized, after the pose stage.
        velocity: ``(1, d, *H)`` to start from.
        known: ``(1, 1, *S)`` 0..1, where the fixed image is compared.
        moving_known: ``(1, 1, *S)`` 0..1, where the moving image is data.
        steps: at most so many on the first level; 0 gives ``velocity`` back.
        smoothness: price of the velocity's diffusion energy; the descriptors' mean squared distance
            counts a hundredfold beside it.

    Returns:
        ``(1, d, *H)``.

    References:
        Siebert et al., "ConvexAdam: self-configuring dual-optimisation-based 3D multitask medical
        image registration", IEEE TMI 2024.
    """
    if steps == 0:
        return velocity
    descriptors = [_described(fixed, known), _described(moving, moving_known)]
    coarse = [_halved(x) for x in descriptors]
    out = _optimize(coarse[0], coarse[1], velocity, steps, _RATE, smoothness)
    every_other = (slice(None), slice(None), *[slice(None, None, 2)] * (fixed.ndim - 2))
    fine = descriptors[0][every_other], descriptors[1]
    return _optimize(*fine, out, steps // 3, 0.4 * _RATE, smoothness)


def _described(image: Tensor, known: Tensor) -> Tensor:
    """Self-similarities and, as the last channel, where they are known."""
    return torch.cat([mind_ssc(image, mask=known), known], 1)


def _optimize(
    fixed: Tensor, moving: Tensor, velocity: Tensor, steps: int, rate: float, smoothness: float
) -> Tensor:
    """Adam on one level; gives back the best velocity it has seen."""
    current = velocity.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([current], lr=rate)
    best, lowest, since = velocity, float("inf"), 0
    for _ in range(steps):
        optimizer.zero_grad()
        bent = smooth(current)
        loss = _distance(fixed, moving, bent) + smoothness * _roughness(bent)
        loss.backward()
        value = float(loss.detach())
        since = 0 if value < lowest * 0.999 else since + 1
        if value < lowest:
            best, lowest = smooth(current.detach()), value
        if since >= _PATIENCE:
            break
        optimizer.step()
    return best


def _roughness(velocity: Tensor) -> Tensor:
    """Diffusion energy, in voxels of the velocity's own lattice."""
    return diffusion_energy(velocity, [1.0] * (velocity.ndim - 2)).sum()


def _distance(fixed: Tensor, moving: Tensor, velocity: Tensor) -> Tensor:
    """Hundredfold distance of the descriptors over the common field of view.

    ``fixed`` lies on the velocity's lattice, ``moving`` there or on one of half the spacing.
    """
    ddf = integrate(velocity, 5).movedim(1, -1)
    fineness = (moving.shape[2] - 1) // (fixed.shape[2] - 1)
    points = fineness * (identity_points(fixed.shape[2:], device=fixed.device) + ddf)
    warped = sample(moving, points, fill=0.0)
    both = fixed[:, -1:] * warped[:, -1:]
    distance = (fixed[:, :-1] - warped[:, :-1]).square().mean(1, keepdim=True)
    # divided by what the fixed image knows, not by the overlap: losing overlap must not pay
    lost = fixed[:, -1:] * (1 - warped[:, -1:])
    unseen = (distance * both).sum().detach() / both.sum().clamp_min(1.0).detach()
    return 100 * (distance * both + unseen * lost).sum() / fixed[:, -1:].sum().clamp_min(1.0)


def smooth(velocity: Tensor) -> Tensor:
    """Blur with a narrow kernel of three boxes; the border goes on."""
    d = velocity.ndim - 2
    pool = F.avg_pool3d if d == 3 else F.avg_pool2d
    for _ in range(2):
        velocity = pool(F.pad(velocity, [1] * (2 * d), mode="replicate"), 3, stride=1)
    return velocity


def _halved(image: Tensor) -> Tensor:
    """Average around every other voxel, corners kept."""
    pool = F.avg_pool3d if image.ndim == 5 else F.avg_pool2d
    return pool(image, 3, stride=2, padding=1, count_include_pad=False)

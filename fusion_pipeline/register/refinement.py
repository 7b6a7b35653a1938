"""Instance optimization: a few steps on one pair's velocity, from where the network left it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion_pipeline.geometry import identity_points, integrate, resize_ddf, sample
from fusion_pipeline.geometry.filters import averaged, halved
from fusion_pipeline.losses import mind_ssc, mutual_information
from fusion_pipeline.register.settings import REFINEMENT
from fusion_pipeline.register.smoothness import Smoothness


def describe(image: Tensor, field_of_view: Tensor) -> Tensor:
    """What two images are compared by: the values, MIND-SSC, and the field of view.

    Args:
        image: ``(1, 1, *S)`` normalized.
        field_of_view: ``(1, 1, *S)`` 0..1.

    Returns:
        ``(1, C, *S)``: ``image``, the self-similarities, ``field_of_view``.
    """
    return torch.cat([image, mind_ssc(image, mask=field_of_view), field_of_view], 1)


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
    """Make one pair more similar by changing its velocity field.

    The self-similarity distance falls, and mutual information rises where it has a weight.

    Two levels: averaged descriptors are compared first (a long reach), then those of the whole
    lattice for half of the steps. The velocity has its nodes on a quarter or half of the lattice,
    is kept smooth by a blur and by the penalty of roughness, and is integrated, so that nothing
    folds. It is so smooth that comparing on half the lattice is enough on both levels: an eighth
    of the voxels in 3D. Stops early when the loss no longer falls.

    The velocity's few nodes are integrated and changed where ``velocity`` lies, the images compared
    where they lie. With the velocity on the CPU the result is the same in each run even if the
    images are on a GPU, which adds up derivatives of what points read in any order.

    Convention:
        - lattices: odd sizes, so that half the lattice keeps the corner voxels
        - unit: ``velocity`` in voxels of half the lattice

    Args:
        fixed: ``(1, C, *S)`` `describe` of the reference.
        moving: ``(1, C, *S)`` `describe` of the moving image after the pose stage.
        velocity: ``(1, d, *H)`` to start from; may lie on another device than the images.
        steps: at most so many on the first level; 0 gives ``velocity`` back.
        smoothness: how rough the velocity may be.
        information: weight of a nat of mutual information beside the hundredfold distance; on the
            second level only, since averages near the border hold what is not data.
        coarse: whether the first level runs; not needed from a start that has been through it.

    Returns:
        ``(1, d, *H)``.

    References:
        Siebert et al., "ConvexAdam: self-configuring dual-optimisation-based 3D multitask medical
        image registration", IEEE TMI 2024.
    """
    if steps == 0:
        return velocity
    half = velocity.shape[2:]
    quarter = tuple(max(REFINEMENT.least_nodes, (n + 1) // 2) for n in half)
    out = resize_ddf(velocity, half if smoothness.nodes == 2 else quarter)
    rate = REFINEMENT.rate / smoothness.nodes
    if coarse:
        dissimilarity = _Dissimilarity(halved(fixed), halved(moving))
        out = _optimize(dissimilarity, out, steps, rate, smoothness)
    every_other = (slice(None), slice(None), *[slice(None, None, 2)] * (fixed.ndim - 2))
    rate *= REFINEMENT.second_rate if coarse else 2 * REFINEMENT.second_rate
    finer = _Dissimilarity(fixed[every_other], moving, information)
    out = _optimize(finer, out, max(1, steps // 2), rate, smoothness)
    return resize_ddf(out, half)


class _Dissimilarity:
    """Hundredfold distance of the descriptors over the overlap, less weighted information.

    Evaluated in the fixed image's field of view, since nothing else counts.

    Args:
        fixed: ``(1, C, *S)`` `describe`.
        moving: the same on the lattice of ``fixed`` or on one of half its spacing.
        information: weight of a nat of mutual information.
    """

    def __init__(self, fixed: Tensor, moving: Tensor, information: float = 0.0) -> None:
        self.shape = fixed.shape[2:]
        self.where = (fixed[0, -1].flatten() > 0).nonzero()[:, 0]
        self.fineness = (moving.shape[2] - 1) // (self.shape[0] - 1)
        self.points = self._in_view(identity_points(self.shape, device=fixed.device).movedim(-1, 0))
        self.fixed = self._in_view(fixed[0])
        self.moving = moving
        self.information = information
        self.some = self.where % REFINEMENT.histogram_stride == 0

    def _enlarged(self, nodes: Tensor) -> Tensor:
        """`resize_ddf` to the images' device as products of matrices.

        A GPU adds up the derivatives of an interpolation in any order, but those of a product in
        one.
        """
        sizes = list(zip(self.shape, nodes.shape[2:], strict=True))
        factor = nodes.new_tensor([(n - 1) / max(o - 1, 1) for n, o in sizes])
        ddf = (nodes * factor.view(1, -1, *[1] * len(sizes))).to(self.fixed.device)
        for new, old in sizes:  # each product takes the first axis and appends it as the last
            one = torch.eye(old, device=ddf.device)[None]
            weights = F.interpolate(one, size=new, mode="linear", align_corners=True)[0]
            ddf = torch.tensordot(ddf, weights, dims=([2], [0]))
        return ddf

    def _in_view(self, values: Tensor) -> Tensor:
        """Values ``(C, *S)`` in the fixed image's field of view, ``(C, N)``."""
        return values.flatten(1)[:, self.where]

    def __call__(self, velocity: Tensor) -> Tensor:
        """The dissimilarity after a velocity ``(1, d, *Q)`` in voxels of its own lattice.

        Returns:
            On the velocity's device.
        """
        nodes = integrate(velocity, REFINEMENT.squarings)
        on_cpu = self.fixed.device.type == "cpu"
        ddf = resize_ddf(nodes, self.shape) if on_cpu else self._enlarged(nodes)
        points = self.fineness * (self.points + self._in_view(ddf[0])).T
        fixed, warped = self.fixed, sample(self.moving, points[None], fill=0.0)[0]
        both = fixed[-1] * warped[-1]
        distance = (fixed[1:-1] - warped[1:-1]).square().mean(0)
        # divided by the fixed image's view, not by the overlap: losing overlap must not pay
        lost = fixed[-1] * (1 - warped[-1])
        typical = (distance * both).sum().detach() / both.sum().clamp_min(1.0).detach()
        total = (distance * both + typical * lost).sum() / fixed[-1].sum().clamp_min(1.0)
        if not self.information:
            return (100 * total).to(velocity.device)
        inner = (both > 0.999).float()  # values mixed with padding would count as others
        some = [x[self.some][None, None] for x in (fixed[0], warped[0], inner)]
        shared = mutual_information(*some, bins=REFINEMENT.bins, normalized=False)[0]
        return (100 * total - self.information * shared).to(velocity.device)


def _optimize(
    dissimilarity: _Dissimilarity,
    velocity: Tensor,
    steps: int,
    rate: float,
    smoothness: Smoothness,
) -> Tensor:
    """Adam on one level; gives back the best velocity on its way."""
    blurs = 4 // smoothness.nodes
    current = velocity.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([current], lr=rate)
    best, lowest, since = velocity, float("inf"), 0
    for _ in range(steps):
        optimizer.zero_grad()
        bent = averaged(current, blurs)
        loss = dissimilarity(bent) + smoothness.penalty(bent)
        loss.backward()
        value = float(loss.detach())
        falls = math.isinf(lowest) or value < lowest - REFINEMENT.least_fall * abs(lowest)
        since = 0 if falls else since + 1
        if value < lowest:
            best, lowest = averaged(current.detach(), blurs), value
        if since >= REFINEMENT.patience:
            break
        optimizer.step()
    return best

"""A pair on its working lattice, and what is seen of it after a deformation.

What is dear is made when it is first asked for, and kept.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from fusion_pipeline.geometry import compose, integrate, resize, resize_ddf, warp
from fusion_pipeline.metrics import normalized_mutual_information
from fusion_pipeline.networks.registration_net import RegistrationNet
from fusion_pipeline.register.lattice import Lattice, OnLattice
from fusion_pipeline.register.refinement import describe

_BINS = 32
_LEAST_VOXELS = 100  # under so few, nothing is said of how alike two images are


@dataclass(frozen=True)
class Side:
    """One image on the lattice, and what is read off it.

    Attributes:
        shown: the image there, after pose and deformation.
        network: describes images and finds the displacement between them.
        device: where the network computes.
    """

    shown: OnLattice
    network: RegistrationNet
    device: torch.device | str

    @cached_property
    def described(self) -> Tensor:
        """``(1, C, *S)``, see `refinement.describe`."""
        return describe(self.shown.image, self.shown.known)

    @cached_property
    def features(self) -> Tensor:
        """``(1, C, *H)`` the network's, on half the padded lattice."""
        with torch.no_grad():
            return self.network.features(self.shown.image.to(self.device))

    def warped(self, ddf: Tensor) -> "Side":
        """The same image after a deformation ``(1, d, *S)`` in voxels; its masks become shares."""
        image = warp(self.shown.image, ddf, fill=None)
        masks = warp(torch.cat([self.shown.known, self.shown.body, self.shown.bone], 1), ddf)
        return replace(self, shown=OnLattice(image, *masks.split(1, dim=1)))


@dataclass(frozen=True)
class Trial:
    """A reference and an image that was moved onto it.

    Attributes:
        fixed: the reference.
        moved: the other image.
        spacing: voxel size of the lattice in mm.
        ddf: ``(1, d, *S)`` the deformation that the other image went through; None: none.
    """

    fixed: Side
    moved: Side
    spacing: float
    ddf: Tensor | None = None

    def compared(self, *, either: bool = False) -> Tensor:
        """``(1, 1, *S)`` 0/1: the fixed body, or either's, where both images are data."""
        fixed, moved = self.fixed.shown, self.moved.shown
        body = fixed.body > 0
        if either:
            body = body | (moved.body > 0.5)
        return (body & (fixed.known > 0.5) & (moved.known > 0.5)).float()

    @cached_property
    def _apart(self) -> Tensor:
        """``(*S)`` mean absolute difference of the self-similarities."""
        moved = self.moved.shown
        # described anew where it is needed only once: descriptors are large
        described = self.moved.described if self.ddf is None else describe(moved.image, moved.known)
        return (self.fixed.described[0, 1:-1] - described[0, 1:-1]).abs().mean(0)

    def distance(self, where: Tensor) -> float:
        """Mean absolute difference of the self-similarities over a region; 1 over an empty one.

        Each image's patches end where it is known itself, so that its descriptors serve any region;
        `metrics.mind_distance` ends the patches of both at the region.
        """
        inside = where[0, 0] > 0.5
        return float(self._apart[inside].mean()) if bool(inside.any()) else 1.0

    @cached_property
    def similarity(self) -> dict[str, float]:
        """NMI (more is better), self-similarity distance (less is) over the overlap; its share."""
        where = self.compared()
        share = float(where.sum() / self.fixed.shown.body.sum().clamp_min(1.0))
        if float(where.sum()) < _LEAST_VOXELS:
            return {"nmi": 1.0, "mind": 1.0, "overlap": share}
        fixed, moved = self.fixed.shown.image[0, 0], self.moved.shown.image[0, 0]
        nmi = normalized_mutual_information(fixed, moved, where[0, 0], _BINS)
        return {"nmi": nmi, "mind": self.distance(where), "overlap": share}

    @cached_property
    def error_map_mm(self) -> Tensor:
        """``(*S)`` how far the network would still move the result, forth and back, in mm."""
        network, shape = self.fixed.network, self.fixed.shown.image.shape[2:]
        sides = self.fixed.features, self.moved.features
        half = [n // 2 for n in shape]  # so smooth that every other voxel is enough
        nodes = [slice(n + 1) for n in half]
        with torch.no_grad():
            forth, back = (
                integrate(network.match(*pair)[0], network.integration_steps)[:, :, *nodes]
                for pair in (sides, sides[::-1])
            )
            lengths = [x.square().sum(1).sqrt() for x in (forth, back, compose(forth, back))]
            length = 2 * self.spacing * torch.stack(lengths, 1).mean(1, keepdim=True)
        whole = resize(length, [2 * n + 1 for n in half])[0, 0]
        return whole[tuple(slice(n) for n in shape)].cpu()

    @cached_property
    def error_mm(self) -> float:
        """Its mean over what is compared; NaN where nothing is. Estimates the remaining error."""
        return self.error_over(self.compared())

    def error_over(self, where: Tensor) -> float:
        """Its mean over a region ``(1, 1, *S)``; NaN over an empty one."""
        inside = where[0, 0] > 0
        return float(self.error_map_mm[inside].mean()) if bool(inside.any()) else float("nan")


@dataclass(frozen=True)
class Pair:
    """Both images on the lattice, after the pose.

    Attributes:
        fixed: the reference.
        moving: the moving image after the pose.
        lattice: where both are sampled.
    """

    fixed: Side
    moving: Side
    lattice: Lattice

    @cached_property
    def undeformed(self) -> Trial:
        """The pair as the pose left it."""
        return Trial(self.fixed, self.moving, self.lattice.spacing)

    def trial(self, velocity: Tensor) -> Trial:
        """The pair after a velocity ``(1, d, *H)`` on half the lattice, in voxels of that."""
        ddf = resize_ddf(integrate(velocity), self.lattice.shape)
        return Trial(self.fixed, self.moving.warped(ddf), self.lattice.spacing, ddf)

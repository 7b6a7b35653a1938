"""A pair on its working lattice, and its similarity after a pose or a deformation.

What takes long is computed when it is first asked for, and kept.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from fusion_pipeline.geometry import compose, integrate, resize, resize_ddf
from fusion_pipeline.metrics import normalized_mutual_information
from fusion_pipeline.networks.registration_net import RegistrationNet
from fusion_pipeline.networks.warp import Warp
from fusion_pipeline.register.lattice import Lattice, LatticeArrays
from fusion_pipeline.register.refinement import describe
from fusion_pipeline.register.settings import DECISION


@dataclass(frozen=True)
class LatticeImage:
    """One image on the lattice, with its descriptors and features.

    Attributes:
        arrays: the image there, after pose and deformation.
        network: describes images and finds the displacement between them.
    """

    arrays: LatticeArrays
    network: RegistrationNet

    @cached_property
    def described(self) -> Tensor:
        """``(1, C, *S)``, see `refinement.describe`."""
        return describe(self.arrays.image, self.arrays.field_of_view)

    @cached_property
    def features(self) -> Tensor:
        """``(1, C, *H)`` the network's, on half the padded lattice."""
        with torch.no_grad():
            return self.network.features(self.arrays.image)

    def deformed(self, ddf: Tensor) -> "LatticeImage":
        """The same image after a deformation ``(1, d, *S)`` in voxels; its masks become shares."""
        arrays = self.arrays
        image = Warp(fill=None)(arrays.image, ddf)  # the very layer of `MultimodalNet`
        masks = Warp()(torch.cat([arrays.field_of_view, arrays.body, arrays.bone], 1), ddf)
        return replace(self, arrays=LatticeArrays(image, *masks.split(1, dim=1)))


@dataclass(frozen=True)
class AlignedPair:
    """A reference and an image that was warped onto it.

    Attributes:
        fixed: the reference.
        warped: the other image.
        spacing: voxel size of the lattice in mm.
        ddf: ``(1, d, *S)`` the deformation that the other image went through; None: none.
    """

    fixed: LatticeImage
    warped: LatticeImage
    spacing: float
    ddf: Tensor | None = None

    def compared_region(self, *, either: bool = False) -> Tensor:
        """``(1, 1, *S)`` 0/1: the fixed body, or either's, where both images are data."""
        fixed, warped = self.fixed.arrays, self.warped.arrays
        body = fixed.body > 0
        if either:
            body = body | (warped.body > 0.5)
        return (body & (fixed.field_of_view > 0.5) & (warped.field_of_view > 0.5)).float()

    @cached_property
    def _difference(self) -> Tensor:
        """``(*S)`` mean absolute difference of the self-similarities."""
        warped = self.warped.arrays
        # not kept where it is needed only once: descriptors are large
        described = (
            self.warped.described
            if self.ddf is None
            else describe(warped.image, warped.field_of_view)
        )
        return (self.fixed.described[0, 1:-1] - described[0, 1:-1]).abs().mean(0)

    def distance(self, where: Tensor) -> float:
        """Mean absolute difference of the self-similarities over a region; 1 over an empty one.

        Each image's patches end where it is data, so that its descriptors serve any region;
        `metrics.mind_distance` ends the patches of both at the region.
        """
        inside = where[0, 0] > 0.5
        return float(self._difference[inside].mean()) if bool(inside.any()) else 1.0

    @cached_property
    def similarity(self) -> dict[str, float]:
        """NMI (more is better), self-similarity distance (less is) over the overlap; its share."""
        where = self.compared_region()
        share = float(where.sum() / self.fixed.arrays.body.sum().clamp_min(1.0))
        if float(where.sum()) < DECISION.least_voxels:
            return {"nmi": 1.0, "mind": 1.0, "overlap": share}
        return {"nmi": self.nmi(where), "mind": self.distance(where), "overlap": share}

    def nmi(self, where: Tensor) -> float:
        """Normalized mutual information over a region ``(1, 1, *S)``; 1 where that is too small."""
        inside = where[0, 0] > 0
        if int(inside.sum()) < DECISION.least_voxels:
            return 1.0
        fixed, warped = (one.arrays.image[0, 0][inside].cpu() for one in (self.fixed, self.warped))
        return normalized_mutual_information(fixed, warped, bins=DECISION.bins)

    @cached_property
    def error_map_mm(self) -> Tensor:
        """``(*S)`` how far the network would still move the result, forth and back, in mm."""
        network, shape = self.fixed.network, self.fixed.arrays.image.shape[2:]
        features = self.fixed.features, self.warped.features
        half = [n // 2 for n in shape]  # so smooth that every other voxel is enough
        nodes = [slice(n + 1) for n in half]
        with torch.no_grad():
            forth, back = (
                integrate(network.match(*pair)[0], network.integration_steps)[:, :, *nodes]
                for pair in (features, features[::-1])
            )
            lengths = [x.square().sum(1).sqrt() for x in (forth, back, compose(forth, back))]
            length = 2 * self.spacing * torch.stack(lengths, 1).mean(1, keepdim=True)
        whole = resize(length, [2 * n + 1 for n in half])[0, 0]
        return whole[tuple(slice(n) for n in shape)]

    @cached_property
    def error_mm(self) -> float:
        """Its mean over the compared region, NaN where that is empty: the estimated error."""
        return self.error_over(self.compared_region())

    def error_over(self, where: Tensor) -> float:
        """Its mean over a region ``(1, 1, *S)``; NaN over an empty one."""
        inside = where[0, 0] > 0
        return float(self.error_map_mm[inside].mean()) if bool(inside.any()) else float("nan")


@dataclass(frozen=True)
class ImagePair:
    """Both images on the lattice, after the pose.

    Attributes:
        fixed: the reference.
        moving: the moving image after the pose.
        lattice: where both are sampled.
    """

    fixed: LatticeImage
    moving: LatticeImage
    lattice: Lattice

    @cached_property
    def undeformed(self) -> AlignedPair:
        """The pair as the pose left it."""
        return AlignedPair(self.fixed, self.moving, self.lattice.spacing)

    def deformed(self, velocity: Tensor) -> AlignedPair:
        """The pair after a velocity ``(1, d, *H)`` on half the lattice, in voxels of that."""
        there = velocity.to(self.fixed.arrays.image.device)
        ddf = resize_ddf(integrate(there), self.lattice.shape)
        return AlignedPair(self.fixed, self.moving.deformed(ddf), self.lattice.spacing, ddf)

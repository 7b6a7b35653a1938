"""The whole as one network: register, warp, harmonize, fuse; differentiable end to end."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusion_pipeline.geometry import warp
from fusion_pipeline.networks.fusion_net import FusionNet
from fusion_pipeline.networks.harmonization_net import HarmonizationNet
from fusion_pipeline.networks.kinds import KINDS
from fusion_pipeline.networks.registration_net import RegistrationNet
from fusion_pipeline.networks.warp import Warp


@dataclass(frozen=True)
class MultimodalOutput:
    """Everything that one pass computes, in the order of the input's channels (reference first).

    Attributes:
        ddf: ``(B, M - 1, d, *S)`` voxels, one field per moving image.
        warped: ``(B, M, *S)`` the reference and the warped moving images, normalized.
        field_of_view: ``(B, M, *S)`` 0/1, inside the field of view of each image after the warp.
        harmonized: ``(B, M, *S)`` 0..1.
        weights: ``(B, M, *S)``, sum to one over M.
        fused: ``(B, 1, *S)`` 0..1.
    """

    ddf: Tensor
    warped: Tensor
    field_of_view: Tensor
    harmonized: Tensor
    weights: Tensor
    fused: Tensor


class MultimodalNet(nn.Module):
    """Register every image to the first, harmonize all, fuse all (METHOD 3.1, 3.2, 4.1, 5.1, 5.2).

    The gradient of the fused image reaches the registration (METHOD 6.1). It works on images that
    already share a lattice and roughly a pose; large offsets are the register stage's business.

    Convention:
        - channel 0 is the reference (fixed); the others are moving, in any order and number
        - direction: pull-back, ``warped(x) = moving(x + ddf(x))``, ``ddf`` in voxels
        - values: registration reads normalized images (z-score within the body, clipped to −4..4),
          harmonization the same images in own units (HU, a.u., SUV)

    Args:
        registration: ``(fixed (B, 1, *S), moving (B, 1, *S)) → ddf (B, d, *S)``.
        harmonization: ``(image (B, 1, *S), kind, field_of_view (B, 1, *S)) → (B, 1, *S)`` in 0..1.
        fusion: ``(images (B, M, *S), kinds, field_of_view) →`` an object with ``fused`` and
            ``weights``.
    """

    def __init__(
        self, registration: RegistrationNet, harmonization: HarmonizationNet, fusion: FusionNet
    ) -> None:
        super().__init__()
        self.registration = registration
        # the border goes on: what lies outside is named by `field_of_view`, not by a value
        self.warp = Warp(fill=None)
        self.harmonization = harmonization
        self.fusion = fusion

    def forward(self, image: Tensor, kinds: Sequence[str] | None = None) -> Tensor:
        """The fused image.

        Args:
            image: ``(B, M, *S)`` normalized, reference first.
            kinds: kind of each channel; by default ``ct``, ``mr``, ``emission`` in this order.

        Returns:
            ``(B, 1, *S)`` in 0..1.
        """
        return self.fuse_all(image, kinds).fused

    def fuse_all(
        self,
        image: Tensor,
        kinds: Sequence[str] | None = None,
        field_of_view: Tensor | None = None,
        original: Tensor | None = None,
        body: Tensor | None = None,
    ) -> MultimodalOutput:
        """The fused image and everything on the way to it.

        Args:
            image: ``(B, M, *S)`` normalized, reference first.
            kinds: kind of each channel; by default ``ct``, ``mr``, ``emission`` in this order.
            field_of_view: ``(B, M, *S)`` 0/1, of each image on its own; None: everywhere.
            original: ``(B, M, *S)`` the images in own units, to be harmonized; without them the
                normalized ones are, a CT as a picture.
            body: ``(B, M, *S)`` 0/1, where CT and uptake are measured; by a threshold if None.

        Raises:
            ValueError: fewer than two channels, or kinds that do not fit them.
        """
        kinds = _checked_kinds(image, kinds)
        original = image if original is None else original
        field_of_view = torch.ones_like(image) if field_of_view is None else field_of_view
        ddf = [self.registration(image[:, :1], moving) for moving in image[:, 1:].split(1, dim=1)]
        warped, warped_view = [image[:, :1]], [field_of_view[:, :1]]
        own = [original[:, :1]]
        bodies = [None if body is None else body[:, :1]]
        for channel, field in enumerate(ddf, start=1):
            one = slice(channel, channel + 1)
            warped.append(self.warp(image[:, one], field))
            own.append(self.warp(original[:, one], field))
            warped_view.append(warp(field_of_view[:, one], field.detach(), mode="nearest"))
            bodies.append(
                None if body is None else warp(body[:, one], field.detach(), mode="nearest")
            )
        harmonized = [
            self.harmonization(one, kind, in_view, within)
            for one, kind, in_view, within in zip(own, kinds, warped_view, bodies, strict=True)
        ]
        inside = torch.cat(warped_view, dim=1)
        fusion = self.fusion(torch.cat(harmonized, dim=1), kinds, inside)
        return MultimodalOutput(
            ddf=torch.stack(ddf, dim=1),
            warped=torch.cat(warped, dim=1),
            field_of_view=inside,
            harmonized=torch.cat(harmonized, dim=1),
            weights=fusion.weights,
            fused=fusion.fused,
        )


def _checked_kinds(image: Tensor, kinds: Sequence[str] | None) -> Sequence[str]:
    """The kinds, one per channel."""
    channels = image.shape[1]
    if channels < 2:
        raise ValueError(f"two or more channels are needed, got an image of {tuple(image.shape)}")
    if kinds is None and channels <= len(KINDS):
        return KINDS[:channels]
    if kinds is None or len(kinds) != channels:
        raise ValueError(f"{channels} channels need {channels} kinds, got {kinds}")
    return kinds

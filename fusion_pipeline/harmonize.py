"""The harmonize stage: original intensities in, a common scale of 0 to 1 out, edges in place."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from monai.networks.layers.factories import Pool
from torch import Tensor

from fusion_pipeline.data import Image, recolour
from fusion_pipeline.data.image import along_axes_of, check_one_grid, in_canonical_axes
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.geometry.parts import PART_VOXELS
from fusion_pipeline.losses.harmonization_loss import edges_lost, information_lost
from fusion_pipeline.networks.harmonization_net import HarmonizationNet
from fusion_pipeline.networks.intensity_map import IntensityMap
from fusion_pipeline.networks.kinds import kind_of
from fusion_pipeline.transforms import NormalizeModality, body_mask

UNITS = "harmonized"  # the units of the result; an image that has them is handed on as it is
_SCORE_SIZE = 128


@dataclass(frozen=True)
class Harmonization:
    """What the harmonize stage hands on.

    Attributes:
        images: per key, harmonized, in [0, 1], on the reference's native grid; 0 outside the field
            of view. A colour picture keeps its hue.
        scores: per key: ``edges_kept`` and ``information_kept`` (cosine of the gradients and
            correlation with the own input, in the body), ``spread`` (standard deviation in the
            body), and for the moving images ``agreement_before`` and ``agreement_after``
            (correlation with the reference where both see, z-scored and harmonized).
        mappings: per key, how the image was mapped: its curve and bias field, on its own axes.
    """

    images: Mapping[str, Image]
    scores: Mapping[str, Mapping[str, float]]
    mappings: Mapping[str, IntensityMap] = field(default_factory=dict)

    def along_axes_of(self, affine: Matrix) -> "Harmonization":
        """The same, its images and bias fields in the axes of another grid."""
        turned = {key: image.in_axes_of(affine) for key, image in self.images.items()}
        mappings = {
            key: replace(
                mapping,
                log_bias=along_axes_of(affine, mapping.log_bias[0], self.images[key].affine)[None],
            )
            for key, mapping in self.mappings.items()
        }
        return replace(self, images=turned, mappings=mappings)

    def in_own_units(self, key: str) -> Tensor:
        """The way back: a harmonized image in HU, a.u. or the unit of its uptake.

        Args:
            key: of the image.

        Returns:
            ``(1, *S)``; outside the field of view, and where the image was black, the black value.

        Raises:
            KeyError: no mapping of that key.
        """
        return self.mappings[key].inverse(self.images[key].array[None])[0]


class Harmonize:
    """Bring images of one grid to one scale by a standard and a learned curve each.

    The mapping is measured on a small copy and applied at native resolution, slab by slab, so that
    the network's working memory stays bounded. The memory of the whole grows with the grid: a few
    float32 volumes per modality are held; on the device those of one image at a time.

    Args:
        network: predicts the mappings.
        device: where all of it is computed.
        normalize: brings an image to the scale that the scores compare with.
    """

    def __init__(
        self,
        network: HarmonizationNet,
        *,
        device: torch.device | str = "cpu",
        normalize: NormalizeModality | None = None,
    ) -> None:
        self._network = network.to(device).eval()
        self._device = torch.device(device)
        self._normalize = normalize or NormalizeModality()

    @torch.no_grad()
    def __call__(
        self, images: Mapping[str, Image], fields_of_view: Mapping[str, Tensor]
    ) -> Harmonization:
        """Harmonize.

        Args:
            images: the reference first, then the registered images, all in original units on the
                reference's native grid.
            fields_of_view: per key, ``(1, *S)``: where the image has data.

        Returns:
            Images on the CPU.

        Raises:
            ValueError: images of different shapes, or no field of view for one of them.
        """
        check_one_grid(images, fields_of_view)
        given = next(iter(images.values())).affine
        turned, fields = in_canonical_axes(images, fields_of_view)
        return self._harmonized(turned, fields).along_axes_of(given)

    def _harmonized(
        self, images: Mapping[str, Image], fields_of_view: Mapping[str, Tensor]
    ) -> Harmonization:
        """The same in canonical axes: the network is not quite the same along each axis."""
        harmonized: dict[str, Image] = {}
        mappings: dict[str, IntensityMap] = {}
        small: dict[str, _Small] = {}
        for key, given in images.items():
            image, view = given.to(self._device), fields_of_view[key].to(self._device) > 0.5
            body = (
                body_mask(image.array, image.spacing.tolist(), image.modality, units=image.units)
                & view
            )
            body = body if body.any() else view
            normalized, _ = self._normalize.scaled(
                image.array, body, modality=image.modality, units=image.units
            )
            if image.units == UNITS:
                array = image.array * view
            else:
                array, mappings[key] = self._mapped(image, view, body)
            harmonized[key] = _finished(given, array.cpu())
            small[key] = _Small.of(normalized, array, view, body)
        reference = next(iter(images))
        return Harmonization(
            images=harmonized,
            scores={
                key: _scores(one, None if key == reference else small[reference])
                for key, one in small.items()
            },
            mappings=mappings,
        )

    def _mapped(self, image: Image, view: Tensor, body: Tensor) -> tuple[Tensor, IntensityMap]:
        """The harmonized array ``(1, *S)``, and how it was mapped."""
        values = image.array.float()
        masks = (mask[None].float() for mask in (view, body))
        mapping = self._network.mapping(values[None], kind_of(image.modality), *masks)
        out = torch.empty_like(values)
        length = values.shape[1]
        thickness = max(1, PART_VOXELS * length // max(1, values.numel()))
        for first in range(0, length, thickness):
            slab = values[None, :, first : first + thickness]
            out[:, first : first + thickness] = mapping(slab, first=first, length=length)[0]
        return out * view, mapping.to("cpu")


@dataclass(frozen=True)
class _Small:
    """Small copies, ``(1, 1, *S)`` each, to measure on."""

    normalized: Tensor
    harmonized: Tensor
    view: Tensor
    body: Tensor

    @classmethod
    def of(cls, normalized: Tensor, harmonized: Tensor, view: Tensor, body: Tensor) -> "_Small":
        """Block means; what is partly outside is outside."""
        factors = tuple(max(1, -(-n // _SCORE_SIZE)) for n in normalized.shape[1:])
        pool = Pool[Pool.AVG, normalized.ndim - 1](factors)

        def shrunk(array: Tensor) -> Tensor:
            means: Tensor = pool(array[None].float())
            return means

        inside, held = shrunk(view) > 0.99, shrunk(body) > 0.5
        return cls(shrunk(normalized), shrunk(harmonized), inside.float(), (inside & held).float())


def scores_of_harmonization(
    images: Mapping[str, Image],
    harmonized: Mapping[str, Tensor],
    fields_of_view: Mapping[str, Tensor],
) -> dict[str, dict[str, float]]:
    """What `Harmonization.scores` tells, of any other way to harmonize.

    Args:
        images: in their own units, the reference first; all on one grid.
        harmonized: per key ``(1, *S)`` in 0..1.
        fields_of_view: per key ``(1, *S)``.
    """
    small = {}
    for key, image in images.items():
        view = fields_of_view[key] > 0.5
        kind = {"modality": image.modality, "units": image.units}
        body = body_mask(image.array, image.spacing.tolist(), **kind) & view
        body = body if body.any() else view
        normalized, _ = NormalizeModality().scaled(image.array, body, **kind)
        small[key] = _Small.of(normalized, harmonized[key], view, body)
    first = next(iter(small))
    return {key: _scores(one, None if key == first else small[first]) for key, one in small.items()}


def _scores(own: _Small, reference: _Small | None) -> dict[str, float]:
    """How much of itself an image kept, and how it agrees with the reference."""
    inside = own.harmonized[own.body > 0]
    scores = {
        "edges_kept": 1 - float(edges_lost(own.harmonized, own.normalized, own.body)),
        "information_kept": 1 - float(information_lost(own.harmonized, own.normalized, own.body)),
        "spread": float(inside.std(correction=0)) if inside.numel() else 0.0,
    }
    if reference is not None:
        both = own.view * reference.view
        before = information_lost(own.normalized, reference.normalized, both)
        after = information_lost(own.harmonized, reference.harmonized, both)
        scores["agreement_before"] = 1 - float(before)
        scores["agreement_after"] = 1 - float(after)
    return scores


def _finished(image: Image, array: Tensor) -> Image:
    """The harmonized image; a colour picture with its own hue."""
    colour = None if image.colour is None else recolour(255 * array, image.colour)
    return image.with_array(array, units=UNITS, colour=colour)

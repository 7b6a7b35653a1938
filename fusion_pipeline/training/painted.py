"""Samples without a scanner: label maps, moved by known fields and painted in random contrasts."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fusion_pipeline.geometry import resample, warp
from fusion_pipeline.geometry.sampling import Mode
from fusion_pipeline.networks.kinds import kind_of
from fusion_pipeline.synthesis import (
    Body,
    Style,
    body_label_map,
    in_own_units,
    other_protocol,
    paint,
    random_deformation,
    random_field_of_view,
    random_label_map,
)
from fusion_pipeline.synthesis.noise import chance, choice, uniform
from fusion_pipeline.training.batch import Sample
from fusion_pipeline.training.turns import random_turn, turned

_STYLES: dict[str, Style] = {"ct": "ct", "mr": "mr", "emission": "pet"}
# two MR contrasts of one patient are as usual as a CT and an MR
_CHOICES = tuple(kind_of(modality) for modality in ("ct", "mr", "pet", "mr"))
_BODIES: tuple[Body, ...] = ("head", "trunk", "limb")
# share of drawn anatomies: label maps that were given, made-up bodies; random shapes are the rest
_GIVEN, _BODY = 0.3, 0.45


class PaintedSamples(Dataset[Sample]):
    """Label maps, deformed by known fields and painted with random contrasts (METHOD 3).

    Convention:
        - ``ddf`` is the exact answer: ``labels of the reference = warp(labels of moving, ddf)``
        - sample ``i`` depends on ``seed`` and ``i`` alone

    Args:
        length: number of samples.
        shape: spatial shape, 2 or 3 numbers.
        modalities: images per sample; of several numbers one is drawn for each group.
        motion: move the moving images by known fields; False: all are aligned, and ``ddf`` is 0.
        protocols: draw each image by another protocol as well.
        typical: share of images painted in the manner of their kind; the others in any contrast.
        max_voxels: length of the longest displacement.
        label_maps: ``(1, i, j, k)`` integers each on an isotropic lattice, to paint beside the
            made-up bodies; 2D samples are slices of them.
        spacing: voxel size in mm that the lattice is taken to have.
        seed: start of the randomness.
        group: so many samples in a row share their kinds (the batch size).

    References:
        Hoffmann et al., "SynthMorph: learning contrast-invariant registration without acquired
        images", IEEE TMI 2022.
    """

    def __init__(  # noqa: PLR0913 - each is a setting of its own; the bundle's config names them
        self,
        length: int,
        shape: Sequence[int],
        *,
        modalities: int | Sequence[int] = 2,
        motion: bool = True,
        protocols: bool = False,
        typical: float = 0.5,
        max_voxels: float = 6.5,
        label_maps: Sequence[Tensor] = (),
        spacing: float = 2.0,
        seed: int = 0,
        group: int = 1,
    ) -> None:
        self.modalities = counts_of(modalities)
        self.length = length
        self.shape = tuple(shape)
        self.motion = motion
        self.protocols = protocols
        self.typical = typical
        self.max_voxels = max_voxels
        self.label_maps = list(label_maps)
        self.spacing = spacing
        self.seed = seed
        self.group = group

    def __len__(self) -> int:
        return self.length

    def kinds(self, index: int) -> tuple[str, ...]:
        """The kinds of a sample's group, in random order; nothing is painted."""
        generator = torch.Generator().manual_seed(self.seed + 7919 * (index // self.group + 1))
        count = self.modalities[choice(generator, len(self.modalities))]
        drawn = torch.cat(
            [torch.randperm(len(_CHOICES), generator=generator) for _ in range(count)]
        )
        return tuple(_CHOICES[i] for i in drawn[:count].tolist())

    def batch_key(self, index: int) -> Hashable:
        """What samples of one batch share."""
        return self.kinds(index)

    def truths(self, index: int) -> frozenset[str]:
        """What a sample brings beside its images: field and labels are exact."""
        del index
        return frozenset({"ddf", "labels"})

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(index)
        kinds = self.kinds(index)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        maps, ddf = self._moved(self._labels(generator), len(kinds), generator)
        images = [
            self._painted(labels, kind, generator) for labels, kind in zip(maps, kinds, strict=True)
        ]
        bodies = torch.cat([(labels > 0).float() for labels in maps])
        valid, painted = [], list(images)
        for m, image in enumerate(images):
            # the reference is cut less often: what lies outside it counts for nothing
            cut = chance(generator, 0.15 if m == 0 else 0.5)
            view = random_field_of_view(self.shape, generator) if cut else torch.ones_like(image)
            images[m] = without_view(image, view, generator)
            valid.append(view)
        original = [
            in_own_units(image, kind, generator) for image, kind in zip(painted, kinds, strict=True)
        ]
        return Sample(
            image=torch.cat(images)[:, 0],
            valid=torch.cat(valid)[:, 0],
            kinds=kinds,
            spacing=self.spacing,
            original=torch.cat(original)[:, 0],
            body=bodies * torch.cat(valid)[:, 0],
            labels=torch.cat(maps),
            ddf=ddf,
            protocol=self._other_protocols(original, bodies, kinds, generator),
        )

    def _labels(self, generator: torch.Generator) -> Tensor:
        """A label map ``(1, *S)``: given anatomy, a made-up body, or random shapes."""
        kind = uniform(generator, 0.0, 1.0)
        if kind < _GIVEN and self.label_maps:
            given = self.label_maps[choice(generator, len(self.label_maps))]
            labels = crop(given[None].float(), self.shape, generator, nearest=True)[0].long()
            if not bool(labels.any()):  # a window beside the anatomy shows nothing to learn from
                labels = body_label_map(self.shape, generator, _BODIES[choice(generator, 3)])
        elif kind < _GIVEN + _BODY:
            labels = body_label_map(self.shape, generator, _BODIES[choice(generator, 3)])
        else:
            labels = random_label_map(self.shape, generator, 4 + choice(generator, 16))
        if chance(generator, 0.5):
            labels = turned(labels, random_turn(self.shape, generator))
        return labels

    def _moved(
        self, labels: Tensor, count: int, generator: torch.Generator
    ) -> tuple[list[Tensor], Tensor]:
        """A label map per image, reference first, and the true fields."""
        d = len(self.shape)
        if not self.motion:
            return [labels] * count, torch.zeros(count - 1, d, *self.shape)
        # the first moving image is the anatomy as drawn, so that its field is exact
        first = random_deformation(self.shape, generator, self.max_voxels).ddf
        reference = _warped(labels, first)
        maps, fields = [reference, labels], [first]
        for _ in range(count - 2):
            other = random_deformation(self.shape, generator, self.max_voxels)
            maps.append(_warped(reference, other.inverse))
            fields.append(other.ddf)
        return maps, torch.cat(fields)

    def _painted(self, labels: Tensor, kind: str, generator: torch.Generator) -> Tensor:
        """``(1, 1, *S)`` in the manner of the kind, or in any."""
        typical = chance(generator, self.typical)
        vary = chance(generator, 0.3)
        style = _STYLES[kind] if typical else None
        return paint(labels, generator, style=style, vary_structures=vary)

    def _other_protocols(
        self,
        original: Sequence[Tensor],
        bodies: Tensor,
        kinds: Sequence[str],
        generator: torch.Generator,
    ) -> Tensor | None:
        """``(M, *S)``, where they are asked for."""
        if not self.protocols:
            return None
        spacing = [self.spacing] * len(self.shape)
        return other_protocol(
            torch.cat(list(original)), kinds, bodies[:, None], generator, spacing=spacing
        )[:, 0]


def counts_of(modalities: int | Sequence[int]) -> tuple[int, ...]:
    """The numbers of images that a sample may have.

    Raises:
        ValueError: one below two, or none.
    """
    counts = (modalities,) if isinstance(modalities, int) else tuple(modalities)
    if not counts or min(counts) < 2:
        raise ValueError(f"expected two or more modalities, got {modalities}")
    return counts


def without_view(image: Tensor, view: Tensor, generator: torch.Generator) -> Tensor:
    """An image that ends: outside its lowest value or, at times, any other, with noise or without.

    Args:
        image: ``(1, 1, *S)`` normalized.
        view: ``(1, 1, *S)`` 0/1.
        generator: the randomness.
    """
    value = float(image.min())
    if chance(generator, 0.2):
        value += uniform(generator, 0.0, 2.0)
    outside = torch.full_like(image, value)
    if chance(generator, 0.5):
        outside = outside + 0.06 * torch.randn(image.shape, generator=generator)
    return torch.where(view > 0.5, image, outside)


def crop(
    image: Tensor, shape: Sequence[int], generator: torch.Generator, *, nearest: bool = False
) -> Tensor:
    """A window of a random zoom at a random place; a 2D one is a slice across a random axis.

    Args:
        image: ``(1, C, i, j, k)``, or ``(1, C, i, j)`` for 2D shapes.
        shape: spatial shape of the window.
        generator: the randomness.
        nearest: take the nearest voxel, for labels.

    Returns:
        ``(1, C, *shape)``; beyond the image its border goes on.
    """
    d = len(shape)
    if image.ndim - 2 > d:
        axis = choice(generator, 3)
        image = image.select(2 + axis, _inner(image.shape[2 + axis], generator))
    zoom = uniform(generator, 0.8, 1.3)
    matrix = torch.eye(d + 1, dtype=torch.float64)
    for axis, (n, size) in enumerate(zip(image.shape[2:], shape, strict=True)):
        room = n - 1 - zoom * (size - 1)
        matrix[axis, axis] = zoom
        matrix[axis, d] = room * uniform(generator, 0.0, 1.0) if room > 0 else room / 2
    mode: Mode = "nearest" if nearest else "bilinear"
    return resample(image, matrix, tuple(shape), mode=mode, fill=None)


def _inner(count: int, generator: torch.Generator) -> int:
    """A slice in the middle three fifths, where the anatomy is."""
    return int(uniform(generator, 0.2, 0.8) * (count - 1))


def _warped(labels: Tensor, ddf: Tensor) -> Tensor:
    """``(1, *S)`` labels by the nearest one."""
    return warp(labels[None].float(), ddf, mode="nearest", fill=None)[0].long()

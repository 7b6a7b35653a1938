"""Samples to train on: painted from label maps with a known field, or cut out of real cases."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.transforms import Compose
from torch import Tensor
from torch.utils.data import Dataset

from fusion_pipeline.data import Case, CaseFiles, Image, InputError, Series, load_case
from fusion_pipeline.geometry import (
    apply_affine,
    ddf_from_ddf_mm,
    integrate,
    resample,
    rescaled_affine,
    warp,
)
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.geometry.sampling import Mode
from fusion_pipeline.networks.kinds import kind_of
from fusion_pipeline.synthesis import (
    Body,
    Style,
    body_label_map,
    paint,
    random_field_of_view,
    random_label_map,
    random_velocity,
)

_STYLES: dict[str, Style] = {"ct": "ct", "mr": "mr", "emission": "pet"}
_CHOICES = ("ct", "mr", "emission", "mr")
_BODIES: tuple[Body, ...] = ("head", "trunk", "limb")


@dataclass(frozen=True)
class Sample:
    """M images of one anatomy on one lattice, the reference first.

    Attributes:
        image: ``(M, *S)`` normalized.
        valid: ``(M, *S)`` 0/1, field of view of each image.
        kinds: kind of each image.
        spacing: voxel size of the lattice in mm, isotropic.
        labels: ``(M, *S)`` int64, or None where nobody drew any.
        ddf: ``(M - 1, d, *S)`` voxels, the true fields reference → moving, or None.
    """

    image: Tensor
    valid: Tensor
    kinds: tuple[str, ...]
    spacing: float
    labels: Tensor | None = None
    ddf: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Samples of the same kinds, stacked along a first axis B; see `Sample`."""

    image: Tensor
    valid: Tensor
    kinds: tuple[str, ...]
    spacing: float
    labels: Tensor | None = None
    ddf: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        labels = None if self.labels is None else self.labels.to(device)
        ddf = None if self.ddf is None else self.ddf.to(device)
        image, valid = self.image.to(device), self.valid.to(device)
        return Batch(image, valid, self.kinds, self.spacing, labels, ddf)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples.

    Raises:
        ValueError: they differ in their kinds, their spacing, or in what is known about them.
    """
    first = samples[0]
    if any(s.kinds != first.kinds or s.spacing != first.spacing for s in samples):
        raise InputError(
            "samples of one batch need the same kinds and spacing, got "
            f"{[(s.kinds, s.spacing) for s in samples]}; use a batch size of 1"
        )
    return Batch(
        image=torch.stack([s.image for s in samples]),
        valid=torch.stack([s.valid for s in samples]),
        kinds=first.kinds,
        spacing=first.spacing,
        labels=_stacked([s.labels for s in samples]),
        ddf=_stacked([s.ddf for s in samples]),
    )


def _stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """The stack, or None where any is missing."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if len(present) == len(tensors) else None


class PaintedSamples(Dataset[Sample]):
    """Label maps, deformed by known fields and painted with random contrasts (METHOD 3).

    Convention:
        - ``ddf`` is the exact answer: ``labels of the reference = warp(labels of moving, ddf)``
        - sample ``i`` depends on ``seed`` and ``i`` alone

    Args:
        length: number of samples.
        shape: spatial shape, 2 or 3 numbers.
        modalities: images per sample.
        max_voxels: length of the longest displacement.
        spacing: voxel size in mm that the lattice is taken to have.
        seed: start of the randomness.
        group: so many samples in a row share their kinds (the batch size).
    """

    def __init__(
        self,
        length: int,
        shape: Sequence[int],
        *,
        modalities: int = 2,
        max_voxels: float = 6.0,
        spacing: float = 2.0,
        seed: int = 0,
        group: int = 1,
    ) -> None:
        if modalities < 2:
            raise ValueError(f"expected two or more modalities, got {modalities}")
        self.length = length
        self.shape = tuple(shape)
        self.modalities = modalities
        self.max_voxels = max_voxels
        self.spacing = spacing
        self.seed = seed
        self.group = group

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(index)
        kinds = self._kinds(index)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        labels = self._labels(generator)
        images, valid = [_painted(labels, kinds[0], generator)], []
        maps, fields = [labels], []
        for kind in kinds[1:]:
            velocity = random_velocity(self.shape, generator, self.max_voxels)
            moved = warp(labels[None].float(), integrate(velocity), mode="nearest", fill=None)
            # exp(v) made the moving map from the reference's; exp(−v) is the way back
            fields.append(integrate(-velocity)[0])
            maps.append(moved[0].long())
            images.append(_painted(maps[-1], kind, generator))
        for image in images:
            valid.append(random_field_of_view(self.shape, generator))
            image.masked_fill_(valid[-1] == 0, float(image.min()))
        return Sample(
            image=torch.cat(images)[:, 0],
            valid=torch.cat(valid)[:, 0],
            kinds=kinds,
            spacing=self.spacing,
            labels=torch.cat(maps),
            ddf=torch.stack(fields),
        )

    def _kinds(self, index: int) -> tuple[str, ...]:
        """The kinds of a sample's group, in random order."""
        generator = torch.Generator().manual_seed(self.seed + 7919 * (index // self.group + 1))
        drawn = torch.cat(
            [torch.randperm(len(_CHOICES), generator=generator) for _ in range(self.modalities)]
        )
        return tuple(_CHOICES[i] for i in drawn[: self.modalities].tolist())

    def _labels(self, generator: torch.Generator) -> Tensor:
        """Anatomy-like and random shapes, one as often as the other."""
        choice = int(torch.randint(2 * len(_BODIES), (1,), generator=generator))
        if choice < len(_BODIES):
            return body_label_map(self.shape, generator, kind=_BODIES[choice])
        return random_label_map(self.shape, generator)


def _painted(labels: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """``(1, 1, *S)`` in the manner of the kind, or in any, one as often as the other."""
    typical = bool(torch.rand(1, generator=generator) < 0.5)
    return paint(labels, generator, style=_STYLES[kind] if typical else "random")


class CaseSamples(Dataset[Sample]):
    """Patches of real cases, on an isotropic lattice of the reference (METHOD 2).

    Args:
        cases: their files.
        shape: spatial shape of a patch.
        preprocessing: what each image goes through; the same as in inference.
        spacing: mm.
        seed: start of the randomness that places the patches.
    """

    def __init__(
        self,
        cases: Sequence[CaseFiles],
        shape: Sequence[int],
        preprocessing: Compose,
        *,
        spacing: float = 2.0,
        seed: int = 0,
    ) -> None:
        self.cases = list(cases)
        self.shape = tuple(shape)
        self.preprocessing = preprocessing
        self.spacing = spacing
        self.seed = seed

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Sample:
        case = load_case(self.cases[index], self.preprocessing)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        affine = self._patch(case.fixed, generator)
        images = list(case.images.values())
        normalized = [_on_lattice(image, affine, self.shape) for image in images]
        fields = [_on_lattice(_field_of_view(s), affine, self.shape) for s in case.series.values()]
        return Sample(
            image=torch.cat(normalized),
            valid=(torch.cat(fields) > 0.5).float(),
            kinds=tuple(kind_of(image.modality) for image in images),
            spacing=self.spacing,
            labels=self._labels(case, affine),
            ddf=self._truth(case, affine),
        )

    def _patch(self, fixed: Image, generator: torch.Generator) -> Matrix:
        """``world_from_voxel`` of a patch somewhere in the reference's field of view."""
        affine, whole = rescaled_affine(fixed.affine, fixed.shape, self.spacing)
        room = torch.tensor([w - s for w, s in zip(whole, self.shape, strict=True)])
        # a patch larger than the image is centred on it
        place = torch.rand(len(whole), generator=generator) * room.clamp_min(0)
        start = torch.where(room > 0, place, room / 2).numpy().astype(np.float64)
        affine[:-1, -1] = apply_affine(affine, start)
        return affine

    def _labels(self, case: Case, affine: Matrix) -> Tensor | None:
        """The label maps, where each image has one."""
        maps = [
            _on_lattice(series.labels, affine, self.shape, nearest=True)
            for series in case.series.values()
            if series.labels is not None
        ]
        return torch.cat(maps).long() if len(maps) == len(case.series) else None

    def _truth(self, case: Case, affine: Matrix) -> Tensor | None:
        """The true fields in voxels of the patch, where each moving image has one."""
        truths = [case.series[key].displacement for key in case.moving]
        to_fixed = torch.from_numpy(np.linalg.inv(case.fixed.affine) @ affine)
        fields = [
            resample(truth[None].float(), to_fixed, self.shape, fill=None)
            for truth in truths
            if truth is not None
        ]
        if len(fields) < len(truths):
            return None
        return ddf_from_ddf_mm(torch.cat(fields), torch.from_numpy(affine))


def _field_of_view(series: Series) -> Image:
    """1 inside the field of view, 0 in padding."""
    if series.prepared is None:
        raise ValueError("expected preprocessing with FieldOfViewd and BodyMaskd, got one without")
    field = series.prepared.field_of_view.float()
    return series.image.with_array(field, units="mask", colour=None)


def _on_lattice(
    image: Image, affine: Matrix, shape: Sequence[int], *, nearest: bool = False
) -> Tensor:
    """``(1, *shape)``: the image read on a lattice by the headers; its lowest value outside."""
    to_image = torch.from_numpy(np.linalg.inv(image.affine) @ affine)
    lowest = min(0.0, float(image.array.min()))
    mode: Mode = "nearest" if nearest else "bilinear"
    return resample(image.array[None].float(), to_image, shape, mode=mode, fill=lowest)[0]

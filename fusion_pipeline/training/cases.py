"""Samples cut out of real cases, varied as scanners and patients vary."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fusion_pipeline.data import CaseFiles, InputError
from fusion_pipeline.geometry import resample, warp
from fusion_pipeline.modalities import modality_of
from fusion_pipeline.networks.kinds import kind_of
from fusion_pipeline.synthesis import (
    any_contrast,
    in_own_units,
    other_contrast,
    other_protocol,
    random_deformation,
    random_field_of_view,
)
from fusion_pipeline.synthesis.noise import chance, choice, uniform
from fusion_pipeline.training.batch import Sample
from fusion_pipeline.training.painted import counts_of, without_view
from fusion_pipeline.training.prepared_cases import LatticeCase, PreparedCases
from fusion_pipeline.training.turns import random_turn, turned_images

_OWN_CONTRASTS = 0.6  # share of moved pairs that are one image under two contrasts
_OTHER_SEQUENCE = 0.15  # share of MR images shown as another sequence would


@dataclass(frozen=True)
class _Plan:
    """What sample ``i`` is, decided before anything is read.

    Attributes:
        case: number of the case.
        channels: which of its images, the sample's reference first.
        own: True: the moving images are the reference's in other contrasts.
        kinds: kind of each image of the sample.
    """

    case: int
    channels: tuple[int, ...]
    own: bool
    kinds: tuple[str, ...]


class CaseSamples(Dataset[Sample]):
    """Windows of real cases at random places and zooms, on an isotropic lattice (METHOD 2).

    The images of a case that are aligned are its reference and those whose ``transform`` in the
    datalist is ``none``. With ``motion`` a sample is moved by a known field, which is then the
    truth; that needs aligned images, and of other cases one image is shown in two random contrasts.
    With ``aligned`` a sample has aligned images alone; with ``protocols`` as well, any image may be
    a sample by itself. Half of the samples are turned: mirrored, and where all sides are equal with
    axes exchanged.

    Args:
        prepared: the cases on their lattices.
        shape: spatial shape of a sample.
        windows: samples of each case in an epoch.
        modalities: images per sample, or several numbers to draw from; None: all of a case.
        motion: move the images by known fields; False: they stay as they were acquired.
        aligned: without ``motion``, use images together only where they are aligned.
        protocols: give each image by another protocol as well.
        zoom: smallest and largest voxel of a sample, in voxels of the lattice.
        max_voxels: length of the longest displacement.
        seed: start of the randomness; sample ``i`` depends on it and on ``i`` alone.

    Raises:
        InputError: aligned images are asked for, and a case has one alone.
    """

    def __init__(  # noqa: PLR0913 - each is a setting of its own; the bundle's config names them
        self,
        prepared: PreparedCases,
        shape: Sequence[int],
        *,
        windows: int = 1,
        modalities: int | Sequence[int] | None = None,
        motion: bool = False,
        aligned: bool = False,
        protocols: bool = False,
        zoom: tuple[float, float] = (1.0, 1.0),
        max_voxels: float = 6.5,
        seed: int = 0,
    ) -> None:
        self.prepared = prepared
        self.shape = tuple(shape)
        self.windows = windows
        self.modalities = None if modalities is None else counts_of(modalities)
        self.motion = motion
        self.aligned = aligned and not motion
        self.protocols = protocols
        self.zoom = zoom
        self.max_voxels = max_voxels
        self.seed = seed
        if self.aligned and not protocols:
            for reason in filter(None, map(why_not_together, prepared.cases)):
                raise InputError(reason)

    def __len__(self) -> int:
        return len(self.prepared) * self.windows

    def kinds(self, index: int) -> tuple[str, ...]:
        """The kinds of a sample; nothing is read."""
        return self._plan(index).kinds

    def batch_key(self, index: int) -> Hashable:
        """What samples of one batch share: kinds, and what is known; nothing is read."""
        plan = self._plan(index)
        return plan.kinds, self._truths(plan)

    def truths(self, index: int) -> frozenset[str]:
        """What a sample brings beside its images: ``ddf``, ``labels``; nothing is read."""
        return self._truths(self._plan(index))

    def _truths(self, plan: _Plan) -> frozenset[str]:
        """As `_chosen` and `_moved` take it over."""
        if self.motion:
            return frozenset({"ddf"})
        series = list(self.prepared.cases[plan.case].series.values())
        truths = set()
        if plan.channels[0] == 0 and all(one.displacement is not None for one in series[1:]):
            truths.add("ddf")
        if all(one.label is not None for one in series):
            truths.add("labels")
        return frozenset(truths)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        sample = self._drawn(self._plan(index), generator)
        if chance(generator, 0.5):
            sample = turned_images(sample, random_turn(self.shape, generator))
        return sample

    def _drawn(self, plan: _Plan, generator: torch.Generator) -> Sample:
        """A window of a case, as it lies."""
        case = self._window(self.prepared[plan.case], generator)
        sample = _chosen(case, plan)
        sample = self._moved(sample, plan, generator) if self.motion else sample
        return self._with_protocols(sample, generator) if self.protocols else sample

    def _plan(self, index: int) -> _Plan:
        """Which images of which case."""
        generator = torch.Generator().manual_seed(self.seed * 999_983 + 7919 * index + 1)
        number = index % len(self.prepared)
        files = self.prepared.cases[number]
        kinds = [kind_of(modality_of(key)) for key in files.series]
        count = len(kinds)
        if self.modalities is not None:
            count = min(count, self.modalities[choice(generator, len(self.modalities))])
        if not self.motion:
            channels = self._still(files, count, generator)
            return _Plan(number, channels, own=False, kinds=tuple(kinds[c] for c in channels))
        aligned = _aligned(files)
        if len(aligned) < count or chance(generator, _OWN_CONTRASTS):
            one = choice(generator, len(kinds))
            return _Plan(number, (one,) * count, own=True, kinds=(kinds[one],) * count)
        drawn = torch.randperm(len(aligned), generator=generator).tolist()[:count]
        channels = tuple(aligned[c] for c in drawn)
        return _Plan(number, channels, own=False, kinds=tuple(kinds[c] for c in channels))

    def _still(self, files: CaseFiles, count: int, generator: torch.Generator) -> tuple[int, ...]:
        """Images as acquired: the reference and others, or one alone that is aligned with none."""
        together = _aligned(files) if self.aligned else list(range(len(files.series)))
        apart = [c for c in range(len(files.series)) if c not in together]
        if len(together) < 2:
            return (choice(generator, len(files.series)),)
        if apart and self.protocols and chance(generator, len(apart) / len(files.series)):
            return (apart[choice(generator, len(apart))],)
        others = (1 + torch.randperm(len(together) - 1, generator=generator)).tolist()
        return tuple(together[c] for c in (0, *others[: count - 1]))

    def _window(self, case: LatticeCase, generator: torch.Generator) -> LatticeCase:
        """A part of the case around a place in a body, at a random zoom."""
        zoom = uniform(generator, *self.zoom)
        size = torch.tensor(case.image.shape[1:])
        body = case.body.any(0) if bool(case.body.any()) else case.valid.any(0)
        stride = tuple(slice(None, None, 4) for _ in size)
        places = body[stride].nonzero()
        places = places if len(places) else torch.zeros(1, len(size), dtype=torch.long)
        centre = places[choice(generator, len(places))] * 4.0
        half = zoom * (torch.tensor(self.shape) - 1) / 2
        room = (size - 1) - 2 * half
        # a window larger than the image is centred on it
        start = torch.where(room > 0, (centre - half).clamp_min(0).minimum(room), room / 2)
        # only what the window shows is read from the cache
        low = start.floor().long().clamp_min(0)
        high = (start + 2 * half).ceil().long() + 1
        box = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
        matrix = torch.eye(len(size) + 1, dtype=torch.float64)
        matrix[:-1, :-1] *= zoom
        matrix[:-1, -1] = start - low
        return _resampled(_part(case, box), matrix, self.shape, zoom)

    def _moved(self, sample: Sample, plan: _Plan, generator: torch.Generator) -> Sample:
        """Moving images moved by known fields, ends of fields of view cut off."""
        images, original, bodies = (
            list(x[:, None, None].unbind(0)) for x in (sample.image, *_own(sample))
        )
        if plan.own:
            images = [any_contrast(image, generator) for image in images]
            kinds = zip(images, sample.kinds, strict=True)
            original = [in_own_units(image, kind, generator) for image, kind in kinds]
        fields, views = [], list(sample.valid[:, None, None].unbind(0))
        for m in range(1, len(images)):
            move = random_deformation(self.shape, generator, self.max_voxels)
            images[m] = warp(images[m], move.inverse, fill=None)
            original[m] = warp(original[m], move.inverse, fill=None)
            views[m], bodies[m] = (
                warp(x, move.inverse, mode="nearest", fill=None) for x in (views[m], bodies[m])
            )
            fields.append(move.ddf)
        for m, view in enumerate(views):
            cut = chance(generator, 0.15 if m == 0 else 0.5)
            if cut:
                view = view * random_field_of_view(self.shape, generator)
            noise = uniform(generator, 0.0, 0.08) * torch.randn(view.shape, generator=generator)
            images[m] = without_view(images[m] + noise, view, generator)
            views[m], bodies[m] = view, bodies[m] * view
        return Sample(
            image=torch.cat(images)[:, 0].clamp(-4, 4),
            valid=torch.cat(views)[:, 0],
            kinds=sample.kinds,
            spacing=sample.spacing,
            original=torch.cat(original)[:, 0],
            body=torch.cat(bodies)[:, 0],
            ddf=torch.cat(fields),
        )

    def _with_protocols(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Each image by another protocol as well; an MR at times as another sequence."""
        images = list(sample.image[:, None, None].unbind(0))
        given, body = _own(sample)
        original = list(given[:, None, None].unbind(0))
        for m, kind in enumerate(sample.kinds):
            if kind == "mr" and chance(generator, _OTHER_SEQUENCE):
                images[m] = other_contrast(images[m], generator)
                original[m] = in_own_units(images[m], kind, generator)
        own = torch.cat(original)
        spacing = [sample.spacing] * len(self.shape)
        other = other_protocol(own, sample.kinds, body[:, None], generator, spacing=spacing)
        return replace(
            sample,
            image=torch.cat(images)[:, 0],
            original=own[:, 0],
            protocol=other[:, 0],
        )


def _own(sample: Sample) -> tuple[Tensor, Tensor]:
    """The images in own units, and the bodies."""
    if sample.original is None or sample.body is None:
        raise ValueError("expected a sample in own units with bodies, got one without")
    return sample.original, sample.body


def _aligned(files: CaseFiles) -> list[int]:
    """The reference and the images that the datalist calls aligned with it."""
    return [
        channel
        for channel, (key, series) in enumerate(files.series.items())
        if key == files.reference or series.transform == "none"
    ]


def why_not_together(files: CaseFiles) -> str:
    """Why no two images of a case can be used together, in one line; empty where they can."""
    if len(_aligned(files)) > 1:
        return ""
    key = next(key for key in files.series if key != files.reference)
    return (
        f"case {files.id!r}: expected two or more images that are aligned, got none that the "
        f"datalist calls so; write {key}_transform: none where it is, or register the case first"
    )


def _part(case: LatticeCase, box: tuple[slice, ...]) -> LatticeCase:
    """The voxels in a box; the affine stays the whole case's."""
    inside: tuple[slice, ...] = (slice(None), *box)
    return replace(
        case,
        image=case.image[inside],
        original=case.original[inside],
        valid=case.valid[inside],
        body=case.body[inside],
        labels=None if case.labels is None else case.labels[inside],
        ddf=None if case.ddf is None else case.ddf[(slice(None), *inside)],
    )


def _resampled(case: LatticeCase, matrix: Tensor, shape: Sequence[int], zoom: float) -> LatticeCase:
    """The case on another lattice: ``matrix`` says which voxel of the case each voxel is."""

    def linear(x: Tensor, fill: float | None) -> Tensor:
        return resample(x[None].float(), matrix, tuple(shape), fill=fill)[0]

    def nearest(x: Tensor) -> Tensor:
        return resample(x[None].float(), matrix, tuple(shape), mode="nearest", fill=0.0)[0]

    image, original = (
        torch.cat([linear(one[None], min(0.0, float(one.min()))) for one in images])
        for images in (case.image, case.original)
    )
    valid = nearest(case.valid) > 0.5
    labels = None if case.labels is None else nearest(case.labels).long()
    fields = None
    if case.ddf is not None:
        fields = torch.stack([linear(field, None) / zoom for field in case.ddf])
    return LatticeCase(
        id=case.id,
        image=image,
        original=original,
        valid=valid,
        body=(nearest(case.body) > 0.5) & valid,
        labels=labels,
        ddf=fields,
        kinds=case.kinds,
        affine=case.affine,
        spacing=case.spacing * zoom,
    )


def _chosen(case: LatticeCase, plan: _Plan) -> Sample:
    """The images that a plan names; a truth counts for those of the case's own reference."""
    picked = list(plan.channels)
    own_reference = picked[0] == 0 and not plan.own
    fields = (
        case.ddf[[c - 1 for c in picked[1:]]] if case.ddf is not None and own_reference else None
    )
    return Sample(
        image=case.image[picked].float(),
        valid=case.valid[picked].float(),
        kinds=plan.kinds,
        spacing=case.spacing,
        original=case.original[picked].float(),
        body=case.body[picked].float(),
        labels=None if case.labels is None else case.labels[picked].long(),
        ddf=fields,
    )

"""Judge a fused image against its sources (METHOD 5.3), so that no source is dropped.

SSIM, visual information and edge transfer are differentiable here, and end at each field of view;
those of `fusion_pipeline.metrics` are the literature's exact ones, which scores are compared by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from fusion_pipeline.geometry.filters import dilated, gradients
from fusion_pipeline.geometry.shares import range_by_share, softmax_by_share
from fusion_pipeline.losses.fusion_regions import Boxes, Region, regions_of
from fusion_pipeline.losses.fusion_source import SHOWN, Parts, Source, length_of

_WINDOW = 7  # voxels, as SSIM's
_WIDE = 21  # voxels: what surrounds a lesion or a bone
_IN_AIR = 0.05  # what air counts in SSIM
_LEAST_SHOWN = 1e-5  # of what a score is weighed by, on average over a region
# the same of information beside uptake: a few hot voxels of a region ask for nothing
_LEAST_INFORMATION = 1e-3
_WHOLE_WINDOW = 0.999  # share of a window that lies in a field of view

# of a source's brightness: leaves room for what the others show in bone, and for uptake beside fat
_OF_BONE, _OF_FAT, _OF_FAT_IN_PICTURES, _OF_UPTAKE = 0.7, 0.75, 0.65, 0.95
# what structure and edges of uptake count in volumes, or beside two anatomical images: they are a
# blur's, which asks for darkness around it
_OF_BLURRED = 0.4
# times that structure, information and edges of uptake count in volumes beside both a CT and an MR,
# which would outvote it: `benchmarks/fusion_constants.py`; more makes the tumour brighter, and
# costs both
UPTAKE_BESIDE_BOTH = 1.5
# What the order of HU counts, or in volumes with an MR that of the MR: in soft tissue HU's is
# mostly noise, and would hide what the MR shows there.
_CT_TONE, _MR_TONE = 1.8, 1.5
_FOR_SOFT_TISSUE = 4.0  # how much less salient a CT's soft tissue is beside an MR, in logits
_SOFT_INTENSITY = 3.0  # what the intensity counts of a CT beside an MR, which differ most in it
_UPTAKE_ASKS = 4.0  # for its contrast, where others ask once
_VOLUME = 5  # axes of a batch
_BINS = 128  # of the histogram by which values are ranked


@dataclass(frozen=True)
class FusionLossTerms:
    """The parts of L_fusion, each ``(B,)`` and each better when smaller.

    Attributes:
        structure: one minus SSIM.
        information: one minus the visual information kept.
        edges: one minus the edge transfer Q of Xydeas and Petrovic.
        tone: one minus the rank correlation with uptake, and with HU or in volumes that have an MR
            with that, in soft tissue.
        contrast: share of a source's contrast between 7 and 21 voxels that is lost, sign kept.
        gradient: distance from the strongest source gradient.
        intensity: distance from the more salient source.
        bright: how much darker than a share of them the fused image is where a CT shows bone, an
            MR beside it fat, or in volumes an emission image uptake.
        added: gradients that no source has, and values outside the sources' range.
    """

    structure: Tensor
    information: Tensor
    edges: Tensor
    tone: Tensor
    contrast: Tensor
    gradient: Tensor
    intensity: Tensor
    bright: Tensor
    added: Tensor


# Both chosen on training patients, see `docs/history/fusion.md`.
WEIGHTS: Mapping[str, float] = {
    "structure": 1.0,
    "information": 1.0,
    "edges": 1.6,
    "tone": 0.5,
    "contrast": 1.0,
    "gradient": 4.0,
    "intensity": 1.0,
    "bright": 2.0,
    "added": 10.0,
}
# Of volumes, whose window is known. There the contrast between 7 and 21 voxels lowered what it was
# to keep, of bone, fat and tumour; that they are bright keeps more.
WEIGHTS_OF_VOLUMES: Mapping[str, float] = {
    **WEIGHTS,
    "structure": 2.0,
    "information": 2.0,
    "edges": 1.2,
    "contrast": 0.0,
    "intensity": 1.5,
    "bright": 3.0,
    "added": 20.0,
}


class FusionLoss:
    """L_fusion of fused images of the same sources, which are measured once.

    Each of structure, information, edges and tone is one score per source. In each region where the
    same sources see something, it counts as ``(1 − worst) · mean + worst · that of the worst`` of
    what they lose. The worst is the one that loses most over its whole field of view, as a judge of
    each image sees it: a CT that goes on where an MR ends is kept there.

    Args:
        sources: ``(B, M, *S)`` in [0, 1], as a reader displays them.
        kinds: kind of each, ``ct``, ``mr`` or ``emission``.
        field_of_view: ``(B, M, *S)``: 0 outside each source's view, inside the share of its weight
            that the source keeps (`FusionNet`), up to 1: so far it is judged. All by default.
        worst: what the source that is kept worst counts beside the mean of all, 0 to 1.
        overlap: of each source the share of what it shows that lies where others are in view, if
            ``sources`` are but a part of the images; elsewhere it is kept whole. 1 by default.

    Attributes:
        weights: of the parts by name: `WEIGHTS_OF_VOLUMES` or, of pictures, `WEIGHTS`.

    Raises:
        ValueError: ``worst`` beyond 0 to 1.
    """

    def __init__(
        self,
        sources: Tensor,
        kinds: Sequence[str],
        field_of_view: Tensor | None = None,
        *,
        worst: float = 0.5,
        overlap: Sequence[float] | None = None,
    ) -> None:
        if not 0 <= worst <= 1:
            raise ValueError(f"expected worst between 0 and 1, got {worst}")
        self._worst = worst
        self._overlap = [1.0] * len(kinds) if overlap is None else list(overlap)
        kept = torch.ones_like(sources) if field_of_view is None else field_of_view.to(sources)
        in_view = (kept > 0).to(sources.dtype)
        images = sources * in_view
        self._share = kept / kept.amax(1, keepdim=True).clamp_min(1e-6)
        self._inside = in_view.amax(1, keepdim=True)
        # where all end, the fused image has to
        self._within = self._inside * _surrounded(self._inside)
        self._regions = regions_of(in_view, self._share)
        self._bounds = range_by_share(images, self._share)
        edged = self._share * _surrounded(in_view)
        self._vector, self._strongest = _strongest_gradient(images, edged)
        self._boxes = Boxes(images, _WINDOW), Boxes(images, _WIDE)
        shown = torch.where(images.amax(1, keepdim=True) > SHOWN, 1.0, _IN_AIR)
        near, wide = (box.mean(in_view) > _WHOLE_WINDOW for box in self._boxes)
        ordered = _asked_of_order(images, kinds, self._share)
        soft = _soft_tissue(images, kinds, self._share)
        asked = _asked_of_contrast(images, kinds, self._share, self._boxes[0])
        with_uptake = "emission" in kinds
        self._least_information = _LEAST_INFORMATION if with_uptake else _LEAST_SHOWN
        self._sources = [
            Source(
                image=images[:, m : m + 1],
                judged=self._share[:, m : m + 1] * near[:, m : m + 1],
                asked=asked[:, m : m + 1] * wide[:, m : m + 1],
                ordered=soft if kinds[m] == "mr" else ordered,
                edged=edged[:, m : m + 1],
                shown=shown,
                boxes=self._boxes,
                fades=kinds[m] == "emission",
            )
            for m in range(images.shape[1])
        ]
        # the window of a picture is not known
        volume = images.ndim == _VOLUME
        self.weights = WEIGHTS_OF_VOLUMES if volume else WEIGHTS
        self._bright = _bright(images, kinds, self._share)
        self._counts = _counts(kinds, volume)
        blurred = volume or sum(kind != "emission" for kind in kinds) > 1
        self._structure_counts = [
            count * _OF_BLURRED if kind == "emission" and blurred else count
            for kind, count in zip(kinds, self._counts, strict=True)
        ]
        # a picture's MR alone would not show what its CT does
        by_mr = volume and "mr" in kinds
        self._intensity_counts = _SOFT_INTENSITY if by_mr and "ct" in kinds else 1.0
        of_ct, of_mr = (0.0, _MR_TONE) if by_mr else (_CT_TONE, 0.0)
        counts = {"ct": of_ct, "emission": 1.0, "mr": of_mr}
        self._in_units = [m for m, kind in enumerate(kinds) if counts[kind]]
        self._tone_counts = [counts[kinds[m]] for m in self._in_units]
        self._salient = _salient(images, kinds, in_view, self._share, self._boxes[0])
        self._orders = [
            [_order(self._sources[m], region) for m in self._in_units] for region in self._regions
        ]

    def __call__(self, fused: Tensor, weights: Mapping[str, float] | None = None) -> Tensor:
        """The weighted sum of the parts.

        Args:
            fused: ``(B, 1, *S)`` in [0, 1].
            weights: of the parts by name, in place of ``self.weights``; what is not named has its
                own.

        Returns:
            ``(B,)``.
        """
        return weighted_sum(self.terms(fused), {**self.weights, **(weights or {})})

    def terms(self, fused: Tensor) -> FusionLossTerms:
        """The parts, unweighted.

        Args:
            fused: ``(B, 1, *S)`` in [0, 1].
        """
        mine = gradients(fused)
        length = length_of(mine)
        near, wide = self._boxes
        mean, square = near.mean(fused), near.mean(fused * fused)
        moments = mean, (square - mean * mean).clamp_min(0)
        band = mean - wide.mean(fused)
        low, high = self._bounds
        beyond = (fused - high).clamp_min(0) + (low - fused).clamp_min(0)
        excess = (length - self._strongest).clamp_min(0)
        covariances = [
            near.mean(fused * source.image) - mean * source.mean for source in self._sources
        ]
        pairs = list(zip(self._sources, covariances, strict=True))
        return FusionLossTerms(
            structure=self._lost([s.ssim(*moments, c) for s, c in pairs], self._structure_counts),
            information=self._lost(
                [s.information_kept(moments[1], c) for s, c in pairs],
                self._counts,
                least=self._least_information,
            ),
            edges=self._lost(
                [s.edges_kept(mine, length) for s in self._sources], self._structure_counts
            ),
            tone=self._lost_tone(fused),
            contrast=self._lost_contrast(band),
            gradient=_mean((mine - self._vector).abs().mean(1, keepdim=True), self._within),
            intensity=self._intensity_counts * _mean((fused - self._salient).abs(), self._inside),
            bright=self._bright_lost(fused),
            added=_mean(excess, self._within) + _mean(beyond, self._inside),
        )

    def _lost(
        self,
        scored: list[Parts],
        factors: Sequence[float],
        least: float = _LEAST_SHOWN,
    ) -> Tensor:
        """One minus a score, of all sources."""
        lost = []
        for region in self._regions:
            scores = []
            for part, whole in scored:
                top, bottom = (region.sum(t) for t in (part, whole))
                # a source that shows nothing here asks for nothing
                shows = bottom > least * region.size
                scores.append(torch.where(shows, top / bottom.clamp_min(1e-6), 1.0))
            lost.append(1 - torch.stack(scores, 1))
        return self._weighed(lost, range(len(factors)), factors)

    def _weighed(
        self, lost: Sequence[Tensor], which: Sequence[int], factors: Sequence[float]
    ) -> Tensor:
        """What some sources lose, ``(B, len(which))`` in each region, to their part of the loss.

        What they lose counts where they are in view together: over each one's whole field of view,
        the one that is alone elsewhere could be given up wherever it is not. Which of them is the
        worst is asked of the whole.
        """
        if not lost or not which:
            return self._share.new_zeros(len(self._share))
        columns = [torch.stack([region.counts[:, m] for region in self._regions]) for m in which]
        counts = torch.stack(columns, -1)
        part = torch.stack([region.part for region in self._regions])
        counted = counts * torch.stack(list(lost)) * counts.new_tensor(factors)
        mean = counted.sum(-1) / counts.sum(-1).clamp_min(1e-6)
        in_view = counts > 0
        met = part[..., None] * in_view * (in_view.sum(-1, keepdim=True) > 1)
        of_whole = (met * counted.detach()).sum(0) / met.sum(0).clamp_min(1e-6)
        of_whole = of_whole * counts.new_tensor([self._overlap[m] for m in which])
        worst = torch.where(in_view, of_whole, -1.0).argmax(-1, keepdim=True)
        most = counted.gather(-1, worst)[..., 0]
        return (((1 - self._worst) * mean + self._worst * most) * part).sum(0)

    def _lost_tone(self, fused: Tensor) -> Tensor:
        """One minus Spearman's correlation with each source, where that is brighter than air."""
        lost = []
        for region, orders in zip(self._regions, self._orders, strict=True):
            scores = []
            for order in orders:
                ranks = _ranks(fused, region.of(order.weight))
                mine = _centred(ranks, order.weight, region, order.size)
                variance = region.sum(order.weight * mine * mine)
                spread = (variance * order.variance + (1e-4 * order.size) ** 2).sqrt()
                score = region.sum(order.weight * mine * order.ranks) / spread
                shows = order.variance > _LEAST_SHOWN * region.size
                scores.append(torch.where(shows, score, 1.0))
            if scores:
                lost.append(1 - torch.stack(scores, 1))
        return self._weighed(lost, self._in_units, self._tone_counts)

    def _lost_contrast(self, band: Tensor) -> Tensor:
        """One minus what is kept of all that is asked for; who asks for little counts little."""
        parts = [source.contrast_kept(band) for source in self._sources]
        kept, asked = (torch.cat([p[n] for p in parts], 1).flatten(1).sum(1) for n in (0, 1))
        return torch.where(asked > 1e-6, 1 - kept / asked.clamp_min(1e-6), 0.0)

    def _bright_lost(self, fused: Tensor) -> Tensor:
        """How much darker than a share of a bright source the fused image is."""
        lost = fused.new_zeros(len(fused))
        for part, image, weight in self._bright:
            lost = lost + _mean((part * image - fused).clamp_min(0), weight)
        return lost


def _counts(kinds: Sequence[str], volume: bool) -> list[float]:
    """What the loss of each source counts."""
    counts = {"ct": 1.0, "mr": 1.0, "emission": 1.0}
    if volume and {"ct", "mr"} <= set(kinds):
        counts["emission"] = UPTAKE_BESIDE_BOTH
    return [counts[kind] for kind in kinds]


def _asked_of_contrast(images: Tensor, kinds: Sequence[str], share: Tensor, near: Boxes) -> Tensor:
    """How far each source asks for its contrast.

    Fat is bright in an MR and dark in a CT, and a reader looks at soft tissue in the MR: where one
    is in view, a CT asks for bone alone. A lesion is small beside all else, so uptake asks
    four times; in pictures not of bone, which would turn grey.
    """
    by_mr = _share_of_mr(kinds, share)
    soft = _soft_tissue(near.mean(images), kinds, share) if images.ndim != _VOLUME else 1.0
    parts = []
    for m, kind in enumerate(kinds):
        own = share[:, m : m + 1]
        if kind == "ct":
            own = own * (1 - by_mr * (1 - near.mean(images[:, m : m + 1]) ** 3))
        parts.append(_UPTAKE_ASKS * soft * own if kind == "emission" else own)
    return torch.cat(parts, 1)


def _asked_of_order(images: Tensor, kinds: Sequence[str], share: Tensor) -> Tensor:
    """Where the order of HU and uptake is asked for: of fat an MR says more than a CT beside it."""
    shown = images * share
    mrs = [shown[:, m : m + 1] for m, kind in enumerate(kinds) if kind == "mr"]
    if not mrs or "ct" not in kinds:
        return torch.ones_like(images[:, :1])
    return 1 - torch.cat(mrs, 1).amax(1, keepdim=True) ** 2


def _soft_tissue(images: Tensor, kinds: Sequence[str], share: Tensor) -> Tensor:
    """Where no CT shows bone."""
    shown = images * share
    cts = [shown[:, m : m + 1] for m, kind in enumerate(kinds) if kind == "ct"]
    if not cts:
        return torch.ones_like(images[:, :1])
    return 1 - torch.cat(cts, 1).amax(1, keepdim=True) ** 3


def _share_of_mr(kinds: Sequence[str], share: Tensor) -> Tensor:
    """``(B, 1, *S)``: how far an MR is in view."""
    mrs = [share[:, m : m + 1] for m, kind in enumerate(kinds) if kind == "mr"]
    return torch.cat(mrs, 1).amax(1, keepdim=True) if mrs else torch.zeros_like(share[:, :1])


def _bright(
    images: Tensor, kinds: Sequence[str], share: Tensor
) -> list[tuple[float, Tensor, Tensor]]:
    """What share of its brightness each image keeps, the image, and what a voxel counts.

    Bone of a CT; beside a CT fat of an MR, where the CT is dark, and in volumes uptake. An MR alone
    with uptake needs no help.
    """
    volume = images.ndim == _VOLUME
    shares = {"emission": _OF_UPTAKE} if volume else {}
    if "ct" in kinds:
        shares |= {"ct": _OF_BONE, "mr": _OF_FAT if volume else _OF_FAT_IN_PICTURES}
    bright = images * share
    return [
        (shares[kind], bright[:, m : m + 1], bright[:, m : m + 1] ** 3)
        for m, kind in enumerate(kinds)
        if kind in shares
    ]


class _Order(NamedTuple):
    """How the voxels of a source are ordered in a region.

    Attributes:
        ranks: ``(B, 1, *S)``, less their mean.
        weight: ``(B, 1, *S)``, what a voxel counts.
        size: ``(B,)``, the sum of the weights, at least 1.
        variance: ``(B,)``, that of the ranks, times the size.
    """

    ranks: Tensor
    weight: Tensor
    size: Tensor
    variance: Tensor


def _order(source: Source, region: Region) -> _Order:
    """Of one source; its values are not differentiated, but what a voxel counts may be."""
    weight = source.bright
    size = region.sum(weight).clamp_min(1)
    ranks = _centred(_ranks(source.image.detach(), region.of(weight)), weight, region, size)
    return _Order(ranks, weight, size, region.sum(weight * ranks * ranks))


def _centred(values: Tensor, weight: Tensor, region: Region, size: Tensor) -> Tensor:
    """Less their mean over a region."""
    mean = region.sum(values * weight) / size
    return values - mean.view(-1, *[1] * (values.ndim - 1))


def _ranks(values: Tensor, weight: Tensor) -> Tensor:
    """Ranks in 0..1 by a cumulative histogram; the slope is the density, so they differentiate."""
    scaled = values.clamp(0, 1) * (_BINS - 1e-3)
    # NaN has no rank; the other terms of the loss say so
    at = scaled.detach().nan_to_num().long()
    rows = []
    # the weights count voxels: only the values are differentiated
    for bins, counts in zip(at.flatten(1), weight.detach().flatten(1), strict=True):
        rows.append(torch.bincount(bins, counts, minlength=_BINS))
    histogram = torch.stack(rows)
    histogram = histogram / histogram.sum(1, keepdim=True).clamp_min(1e-6)
    below = histogram.cumsum(1) - histogram
    flat = at.flatten(1)
    start, density = (t.gather(1, flat).view_as(values) for t in (below, histogram))
    return start + density * (scaled - at)


def weighted_sum(terms: FusionLossTerms, weights: Mapping[str, float] | None = None) -> Tensor:
    """``Σ weight · part``, of each item of a batch.

    Args:
        terms: the parts.
        weights: by name, in place of `WEIGHTS`.

    Raises:
        ValueError: a name that is no part.
    """
    names = [field.name for field in fields(terms)]
    unknown = sorted(set(weights or {}) - set(names))
    if unknown:
        raise ValueError(f"expected weights of {', '.join(names)}, got {', '.join(unknown)}")
    given = {**WEIGHTS, **(weights or {})}
    parts = [given[name] * getattr(terms, name) for name in names if given[name]]
    return torch.stack(parts).sum(0) if parts else torch.zeros_like(terms.added)


def _surrounded(in_view: Tensor) -> Tensor:
    """Where the next voxels are in view as well, so that a difference is one of the image."""
    return 1 - dilated(1 - in_view, 1)


def _strongest_gradient(images: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient vector of the source where it is strongest, and its length."""
    best = torch.zeros_like(gradients(images[:, :1]))
    longest = torch.zeros_like(images[:, :1])
    for m in range(images.shape[1]):
        vector = gradients(images[:, m : m + 1]) * weight[:, m : m + 1]
        length = length_of(vector)
        best = torch.where(length > longest, vector, best)
        longest = torch.maximum(longest, length)
    return best, longest


def _salient(
    images: Tensor, kinds: Sequence[str], in_view: Tensor, share: Tensor, boxes: Boxes
) -> Tensor:
    """The intensity of the more salient source: bright, and rich in local contrast.

    A reader looks at soft tissue in the MR: beside one, a CT's counts for less.
    """
    covered = boxes.mean(in_view).clamp_min(1e-3)
    mean, square = (boxes.mean(t) / covered for t in (images, images * images))
    contrast = (square - mean * mean).clamp_min(1e-8).sqrt()
    score = 8.0 * (images + 2.0 * contrast)
    by_mr = _share_of_mr(kinds, share)
    soft = (_FOR_SOFT_TISSUE if images.ndim == _VOLUME else 0.0) * by_mr * (1 - mean**3)
    of_ct = [float(kind == "ct") for kind in kinds]
    score = score - soft * score.new_tensor(of_ct).view(1, -1, *[1] * (images.ndim - 2))
    return (softmax_by_share(score, share) * images).sum(1, keepdim=True)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of each item of the batch; 0 where there is no weight."""
    return (values * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1e-6)


__all__ = ["WEIGHTS", "WEIGHTS_OF_VOLUMES", "FusionLoss", "FusionLossTerms", "weighted_sum"]

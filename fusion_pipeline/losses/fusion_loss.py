"""Judge a fused image against its sources (METHOD 5.3), so that no source is dropped.

SSIM, visual information and edge transfer are differentiable here, and end at each field of view;
those of `fusion_pipeline.metrics` are the literature's exact ones, which scores are compared by.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusion_pipeline.geometry.filters import box_mean, dilated, gradients

_WINDOW = 7  # voxels, as SSIM's
_C1, _C2 = 0.01**2, 0.03**2
_NOISE = 0.02**2
_LEAST_SHOWN = 1e-5  # of what a score is weighed by, on average over a region
# the sigmoids of the edge transfer for an edge that is kept as it was
_FULL_STRENGTH, _SAME_DIRECTION = 0.99945, 0.97756

_Score = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class FusionLossTerms:
    """The parts of `fusion_loss`, each ``(B,)`` and each better when smaller.

    Attributes:
        structure: one minus SSIM, of all sources' mean and of the worst.
        information: one minus the visual information kept, likewise.
        edges: one minus the edge transfer Q of Xydeas and Petrovic, likewise.
        gradient: distance from the strongest source gradient.
        intensity: distance from the more salient source.
        added: gradients that no source has, and values outside the sources' range.
    """

    structure: Tensor
    information: Tensor
    edges: Tensor
    gradient: Tensor
    intensity: Tensor
    added: Tensor


def fusion_loss(
    fused: Tensor,
    sources: Tensor,
    field_of_view: Tensor | None = None,
    *,
    structure: float = 1.0,
    kept: float = 1.0,
    gradient: float = 4.0,
    intensity: float = 1.0,
    added: float = 10.0,
) -> Tensor:
    """``L_fusion`` (METHOD 5.3): structure, strongest gradient, intensity, nothing added.

    Args:
        fused: ``(B, 1, *S)`` in [0, 1].
        sources: ``(B, M, *S)`` harmonized, in [0, 1].
        field_of_view: ``(B, M, *S)``: 0 outside each source's view, inside the share of its weight
            that the source keeps (`FusionNet`), up to 1: so far it is judged.
        structure: weight of SSIM.
        kept: weight of visual information, and of the edge transfer.
        gradient: weight of the gradients, which are some hundredths in size.
        intensity: weight of the intensities.
        added: weight of what no source has.

    Returns:
        ``(B,)``.
    """
    terms = fusion_loss_terms(fused, sources, field_of_view)
    return (
        structure * terms.structure
        + kept * (terms.information + terms.edges)
        + gradient * terms.gradient
        + intensity * terms.intensity
        + added * terms.added
    )


def fusion_loss_terms(
    fused: Tensor, sources: Tensor, field_of_view: Tensor | None = None, *, worst: float = 0.5
) -> FusionLossTerms:
    """The parts of L_fusion, unweighted.

    Args:
        fused: ``(B, 1, *S)`` in [0, 1].
        sources: ``(B, M, *S)`` harmonized, in [0, 1].
        field_of_view: ``(B, M, *S)``, as in `fusion_loss`.
        worst: what the source that is kept worst counts beside the mean of all, 0 to 1.

    Raises:
        ValueError: ``worst`` beyond 0 to 1.
    """
    if not 0 <= worst <= 1:
        raise ValueError(f"expected worst between 0 and 1, got {worst}")
    kept = torch.ones_like(sources) if field_of_view is None else field_of_view.to(sources.dtype)
    share = kept / kept.amax(1, keepdim=True).clamp_min(1e-6)
    in_view = (kept > 0).to(sources.dtype)
    images = sources * in_view
    edged = share * _surrounded(in_view)
    vector, strongest = _strongest_gradient(images, edged)
    inside = in_view.amax(1, keepdim=True)
    within = inside * _surrounded(inside)  # where all end, the fused image has to
    mine = gradients(fused)
    excess = (_length(mine) - strongest).clamp_min(0)
    top, bottom = images.amax(1, keepdim=True), _lowest(images, in_view)
    beyond = (fused - top).clamp_min(0) + (bottom - fused).clamp_min(0)
    regions = _regions(in_view)

    def lost(score: _Score, judged: Tensor) -> Tensor:
        scored = [
            score(fused, *(t[:, m : m + 1] for t in (images, in_view, judged)))
            for m in range(images.shape[1])
        ]
        return _lost(scored, share, regions, worst)

    return FusionLossTerms(
        structure=lost(_ssim, share),
        information=lost(_information_kept, share),
        edges=lost(_edges_kept, edged),
        gradient=_mean((mine - vector).abs().mean(1, keepdim=True), within),
        intensity=_mean((fused - _salient(images, in_view, share)).abs(), inside),
        added=_mean(excess, within) + _mean(beyond, inside),
    )


def _regions(in_view: Tensor) -> list[Tensor]:
    """``(B, 1, *S)`` boolean each: where the same sources see something."""
    number = torch.zeros_like(in_view[:, :1])
    for m in range(in_view.shape[1]):
        number = 2 * number + in_view[:, m : m + 1]
    return [number == n for n in number.unique().tolist() if n > 0]


def _lost(
    scored: Sequence[tuple[Tensor, Tensor]],
    share: Tensor,
    regions: Sequence[Tensor],
    worst: float,
) -> Tensor:
    """One minus a score: of all sources' mean, and of the worst; the mean over the regions.

    Sources are weighed against each other where they are in view together. Over each one's whole
    field of view, the one that is alone elsewhere could be given up wherever it is not.

    Args:
        scored: per source, two maps ``(B, 1, *S)`` the ratio of whose sums is its score.
        share: ``(B, M, *S)`` what each keeps of its weight; so far it counts in a region.
        regions: see `_regions`.
        worst: what the worst source counts.
    """
    total = share.new_zeros(share.shape[0])
    every = (share > 0).any(1).flatten(1).sum(1).clamp_min(1)
    for region in regions:
        size = region.flatten(1).sum(1)
        counts = (share * region).flatten(2).sum(2) / size.clamp_min(1)[:, None]
        scores = []
        for part, whole in scored:
            top, bottom = ((t * region).flatten(1).sum(1) for t in (part, whole))
            # a source that shows nothing here asks for nothing
            shows = bottom > _LEAST_SHOWN * size
            scores.append(torch.where(shows, top / bottom.clamp_min(1e-6), 1.0))
        lost = counts * (1 - torch.stack(scores, 1))
        mean = lost.sum(1) / counts.sum(1).clamp_min(1e-6)
        total = total + ((1 - worst) * mean + worst * lost.amax(1)) * size / every
    return total


def _surrounded(in_view: Tensor) -> Tensor:
    """Where the next voxels are in view as well, so that a difference is one of the image."""
    return 1 - dilated(1 - in_view, 1)


def _ssim(fused: Tensor, source: Tensor, in_view: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Structural similarity, data range 1, where the source shows something."""
    (mf, ms), (vf, vs, cov) = _moments(fused, source, in_view)
    luminance = (2 * mf * ms + _C1) / (mf * mf + ms * ms + _C1)
    index = luminance * (2 * cov + _C2) / (vf + vs + _C2)
    counted = weight * _shown(fused, source)
    return index * counted, counted


def _information_kept(
    fused: Tensor, source: Tensor, in_view: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Visual information fidelity of the source in the fused image, on the finest scale."""
    _, (vf, vs, cov) = _moments(fused, source, in_view)
    gain = (cov / (vs + 1e-6)).clamp_min(0)
    left = (vf - gain * cov).clamp_min(0)
    vs = (vs - 1e-6).clamp_min(0)  # of an even source only rounding is left
    return torch.log1p(gain**2 * vs / (left + _NOISE)) * weight, torch.log1p(vs / _NOISE) * weight


def _edges_kept(
    fused: Tensor, source: Tensor, in_view: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Edge transfer: strength and direction of each edge of the source, weighed by its strength."""
    there, here = gradients(source), gradients(fused)
    strong, kept = _length(there), _length(here)
    ratio = torch.minimum(strong, kept) / torch.maximum(strong, kept)
    turn = torch.acos(
        ((there * here).sum(1, keepdim=True).abs() / (strong * kept)).clamp_max(0.999)
    )
    strength = torch.sigmoid(15 * (ratio - 0.5)) / _FULL_STRENGTH
    direction = torch.sigmoid(22 * (0.2 - turn / (torch.pi / 2))) / _SAME_DIRECTION
    # what is fainter than a grey level of 255 is no edge
    counted = (strong - 0.004).clamp_min(0) * weight
    return strength * direction * counted, counted


def _moments(
    a: Tensor, b: Tensor, in_view: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Local means, variances and covariance, within a field of view."""
    covered = _box(in_view).clamp_min(1e-3)
    a, b = a * in_view, b * in_view
    ma, mb, aa, bb, ab = (_box(t) / covered for t in (a, b, a * a, b * b, a * b))
    return (ma, mb), ((aa - ma * ma).clamp_min(0), (bb - mb * mb).clamp_min(0), ab - ma * mb)


def _box(image: Tensor) -> Tensor:
    """Mean over a window, over fewer voxels at the border; one axis after the other, to be fast."""
    return box_mean(image, _WINDOW)


def _shown(fused: Tensor, source: Tensor) -> Tensor:
    """Where either image is brighter than background; a little of the background as well."""
    return torch.where(torch.maximum(fused, source).detach() > 0.06, 1.0, 0.05)


def _strongest_gradient(images: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient vector of the source where it is strongest, and its length."""
    best = torch.zeros_like(gradients(images[:, :1]))
    longest = torch.zeros_like(images[:, :1])
    for m in range(images.shape[1]):
        vector = gradients(images[:, m : m + 1]) * weight[:, m : m + 1]
        length = _length(vector)
        best = torch.where(length > longest, vector, best)
        longest = torch.maximum(longest, length)
    return best, longest


def _salient(images: Tensor, in_view: Tensor, share: Tensor) -> Tensor:
    """The intensity of the more salient source: bright, and rich in local contrast."""
    covered = _box(in_view).clamp_min(1e-3)
    mean, square = (_box(t * in_view) / covered for t in (images, images * images))
    contrast = (square - mean * mean).clamp_min(1e-8).sqrt()
    score = 8.0 * (images + 2.0 * contrast) + share.clamp_min(1e-12).log()
    return (score.softmax(1) * images).sum(1, keepdim=True)


def _length(vectors: Tensor) -> Tensor:
    """Lengths along the channels; the root is safe to differentiate at 0."""
    return (vectors.square().sum(1, keepdim=True) + 1e-10).sqrt()


def _lowest(images: Tensor, in_view: Tensor) -> Tensor:
    """The darkest source in view; 0 where there is none."""
    lowest = images.masked_fill(in_view <= 0, 2.0).amin(1, keepdim=True)
    return torch.where(lowest > 1.0, torch.zeros_like(lowest), lowest)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of each item of the batch; 0 where there is no weight."""
    return (values * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1e-6)

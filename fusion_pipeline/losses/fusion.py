"""Judge a fused image against its sources (METHOD 5.3), so that no source is dropped."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fusion_pipeline.losses.harmonization import box_mean, gradients

_WINDOW = 7
_C1, _C2 = 0.01**2, 0.03**2
_NOISE = 0.02**2
# the sigmoids of the edge transfer for an edge that is kept as it was
_FULL_STRENGTH, _SAME_DIRECTION = 0.99945, 0.97756


@dataclass(frozen=True)
class FusionLossTerms:
    """The parts of `fusion_loss`, each ``(B,)`` and each better when smaller.

    Attributes:
        structure: one minus SSIM, of all sources and of the worst.
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
    valid: Tensor | None = None,
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
        valid: ``(B, M, *S)`` 0/1, fields of view.
        structure: weight of SSIM.
        kept: weight of visual information, and of the edge transfer.
        gradient: weight of the gradients, which are some hundredths in size.
        intensity: weight of the intensities.
        added: weight of what no source has.

    Returns:
        ``(B,)``.
    """
    terms = fusion_loss_terms(fused, sources, valid)
    return (
        structure * terms.structure
        + kept * (terms.information + terms.edges)
        + gradient * terms.gradient
        + intensity * terms.intensity
        + added * terms.added
    )


def fusion_loss_terms(
    fused: Tensor, sources: Tensor, valid: Tensor | None = None
) -> FusionLossTerms:
    """The parts of L_fusion, unweighted.

    Args:
        fused: ``(B, 1, *S)`` in [0, 1].
        sources: ``(B, M, *S)`` harmonized, in [0, 1].
        valid: ``(B, M, *S)`` 0/1, fields of view.
    """
    seen = torch.ones_like(sources) if valid is None else valid.to(sources.dtype)
    images = sources * seen
    vector, strongest = _strongest_gradient(images, seen)
    inside = seen.amax(1, keepdim=True)
    mine = gradients(fused)
    excess = (_length(mine) - strongest).clamp_min(0)
    top, bottom = images.amax(1, keepdim=True), _lowest(images, seen)
    beyond = (fused - top).clamp_min(0) + (bottom - fused).clamp_min(0)
    return FusionLossTerms(
        structure=_of_each_source(_ssim, fused, images, seen),
        information=_of_each_source(_information_kept, fused, images, seen),
        edges=_of_each_source(_edges_kept, fused, images, seen),
        gradient=_mean((mine - vector).abs().mean(1, keepdim=True), inside),
        intensity=_mean((fused - _salient(images, seen)).abs(), inside),
        added=_mean(excess + beyond, inside),
    )


def _of_each_source(
    score: Callable[[Tensor, Tensor, Tensor], Tensor], fused: Tensor, images: Tensor, seen: Tensor
) -> Tensor:
    """One minus a score, half of all sources' mean and half of the worst source."""
    scores = []
    for m in range(images.shape[1]):
        mask = seen[:, m : m + 1]
        kept = score(fused, images[:, m : m + 1], mask)
        # an absent source asks for nothing
        scores.append(torch.where(mask.flatten(1).amax(1) > 0, kept, torch.ones_like(kept)))
    each = torch.stack(scores, 1)
    return 1 - 0.5 * (each.mean(1) + each.amin(1))


def _ssim(fused: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """Structural similarity, data range 1, where the source shows something."""
    (mf, ms), (vf, vs, cov) = _moments(fused, source)
    luminance = (2 * mf * ms + _C1) / (mf * mf + ms * ms + _C1)
    index = luminance * (2 * cov + _C2) / (vf + vs + _C2)
    return _mean(index, mask * _shown(fused, source))


def _information_kept(fused: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """Visual information fidelity of the source in the fused image, on the finest scale."""
    _, (vf, vs, cov) = _moments(fused, source)
    gain = (cov / (vs + 1e-6)).clamp_min(0)
    left = (vf - gain * cov).clamp_min(0)
    kept = torch.log1p(gain**2 * vs / (left + _NOISE)) * mask
    there = torch.log1p(vs / _NOISE) * mask
    return kept.flatten(1).sum(1) / there.flatten(1).sum(1).clamp_min(1e-3)


def _edges_kept(fused: Tensor, source: Tensor, mask: Tensor) -> Tensor:
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
    weight = (strong - 0.004).clamp_min(0) * mask
    total = (strength * direction * weight).flatten(1).sum(1)
    return torch.where(
        weight.flatten(1).sum(1) > 0, total / weight.flatten(1).sum(1).clamp_min(1e-6), 1.0
    )


def _moments(a: Tensor, b: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Local means, variances and covariance."""
    ma, mb = _box(a), _box(b)
    variance_a = (_box(a * a) - ma * ma).clamp_min(0)
    variance_b = (_box(b * b) - mb * mb).clamp_min(0)
    return (ma, mb), (variance_a, variance_b, _box(a * b) - ma * mb)


def _box(image: Tensor) -> Tensor:
    """Mean over a window, over fewer voxels at the border; one axis after the other, to be fast."""
    return box_mean(image, _WINDOW)


def _shown(fused: Tensor, source: Tensor) -> Tensor:
    """Where either image is brighter than background; a little of the background as well."""
    return torch.where(torch.maximum(fused, source).detach() > 0.06, 1.0, 0.05)


def _strongest_gradient(images: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient vector of the source where it is strongest, and its length."""
    best = torch.zeros_like(gradients(images[:, :1]))
    longest = torch.zeros_like(images[:, :1])
    for m in range(images.shape[1]):
        vector = gradients(images[:, m : m + 1]) * seen[:, m : m + 1]
        length = _length(vector)
        best = torch.where(length > longest, vector, best)
        longest = torch.maximum(longest, length)
    return best, longest


def _salient(images: Tensor, seen: Tensor) -> Tensor:
    """The intensity of the more salient source: bright, and rich in local contrast."""
    contrast = torch.stack(
        [(_box(i * i) - _box(i) ** 2).clamp_min(1e-8).sqrt() for i in images.split(1, 1)], 1
    ).squeeze(2)
    score = (8.0 * (images + 2.0 * contrast)).masked_fill(seen <= 0, -100.0)
    return (score.softmax(1) * images).sum(1, keepdim=True)


def _length(vectors: Tensor) -> Tensor:
    """Lengths along the channels; the root is safe to differentiate at 0."""
    return (vectors.square().sum(1, keepdim=True) + 1e-10).sqrt()


def _lowest(images: Tensor, seen: Tensor) -> Tensor:
    """The darkest valid source; 0 where there is none."""
    lowest = images.masked_fill(seen <= 0, 2.0).amin(1, keepdim=True)
    return torch.where(lowest > 1.0, torch.zeros_like(lowest), lowest)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of each item of the batch; 0 where there is no weight."""
    return (values * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1e-6)

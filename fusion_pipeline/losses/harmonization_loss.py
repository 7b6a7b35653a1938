"""Agree with the reference, and stay what it was: the harmonization loss (METHOD 4.2 to 4.4)."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from types import MappingProxyType

import torch
from torch import Tensor

from fusion_pipeline.geometry.filters import averaged, box_mean, gradients

_WINDOW = 7  # voxels, as SSIM's
_HOT_SHARE = 0.02  # of the body: what counts as a lesion in an emission image
# How much of the input's separation of tissues and contrast of lesions an output has to have.
_LEAST_SEPARATION, _LEAST_CONTRAST = 0.95, 0.8
_LEAST_TO_LOSE = 0.1  # deviations: what lies closer together is noise
_LEAST_WHITE = 0.85  # what the brightest hundredth of a body reaches: the range is used

HARMONIZATION_WEIGHTS: Mapping[str, float] = MappingProxyType(
    {
        "protocol": 4.0,
        "agreement": 1.0,
        "likeness": 0.5,
        "edges": 2.0,
        "information": 1.0,
        "separation": 2.0,
        "contrast": 2.0,
        "spread": 1.0,
        "range": 2.0,
        "idempotence": 1.0,
    }
)


def intensity_agreement(fixed: Tensor, moving: Tensor, weight: Tensor | None = None) -> Tensor:
    """``L_norm = ‖I_r − I_m‖²₂`` (METHOD 4.2), as a weighted mean over the voxels.

    Args:
        fixed: ``(B, 1, *S)`` harmonized reference, in [0, 1].
        moving: ``(B, 1, *S)`` harmonized other image.
        weight: ``(B, 1, *S)`` ≥ 0; zero outside an image's field of view.

    Returns:
        ``(B,)`` in [0, 1].

    >>> intensity_agreement(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).tolist()
    [1.0]
    """
    return _mean((fixed - moving) ** 2, weight)


def edge_agreement(fixed: Tensor, moving: Tensor, weight: Tensor | None = None) -> Tensor:
    """``L_edge = ‖∇I_r − ∇I_m‖₁`` (METHOD 4.3), as a weighted mean over voxels and axes.

    Args:
        fixed: ``(B, 1, *S)`` harmonized reference, in [0, 1].
        moving: ``(B, 1, *S)`` harmonized other image.
        weight: ``(B, 1, *S)`` ≥ 0; zero outside an image's field of view.

    Returns:
        ``(B,)`` in [0, 2], gray levels per voxel.
    """
    difference = gradients(fixed - moving).abs().mean(1, keepdim=True)
    return _mean(difference, weight)


def edges_lost(output: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
    """One minus the cosine between the gradient fields of an image before and after a mapping.

    ``1 − Σ ∇o · ∇s / (‖∇o‖ ‖∇s‖)``: 0 for any rising straight line, 1 for a constant output.

    Args:
        output: ``(B, 1, *S)``.
        source: ``(B, 1, *S)`` what it was made from.
        mask: ``(B, 1, *S)`` 0/1.

    Returns:
        ``(B,)`` in [0, 2].
    """
    inside = _where(output, mask)
    after, before = gradients(output) * inside, gradients(source) * inside
    return 1 - _cosine(after, before)


def contrast_lost(
    output: Tensor, source: Tensor, mask: Tensor | None = None, slope: float = 0.06
) -> Tensor:
    """How far edges are flatter than ``slope`` times those of the input, weak edges included.

    The cosine of `edges_lost` is ruled by the strongest edges (bone); this is not. The default asks
    for half of the straight line's slope of 1/8.

    Args:
        output: ``(B, 1, *S)``.
        source: ``(B, 1, *S)`` what it was made from.
        mask: ``(B, 1, *S)`` 0/1.
        slope: gray levels of the output for one unit of the input.

    Returns:
        ``(B,)`` in [0, 1]: 0 where every edge has at least this slope, 1 for a constant.
    """
    after = _length(gradients(output))
    before = _length(gradients(source))
    missing = (1 - after / (slope * before + 1e-6)).clamp_min(0)
    return _mean(missing, _where(output, mask) * before.clamp_max(0.5))


def information_lost(output: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
    """One minus Pearson's correlation with the own input: 1 for a constant output.

    Args:
        output: ``(B, 1, *S)``.
        source: ``(B, 1, *S)`` what it was made from.
        mask: ``(B, 1, *S)`` 0/1.

    Returns:
        ``(B,)`` in [0, 2].
    """
    inside = _where(output, mask)
    return 1 - _cosine(_centred(output, inside), _centred(source, inside))


def spread_lost(output: Tensor, mask: Tensor | None = None, spread: float = 0.125) -> Tensor:
    """How far the standard deviation falls short of ``spread``, as a share of it.

    The default is what the straight line from [−4, 4] to [0, 1] gives a z-scored image: 1/8.

    Args:
        output: ``(B, 1, *S)``.
        mask: ``(B, 1, *S)`` 0/1: the body.
        spread: the deviation wanted.

    Returns:
        ``(B,)`` in [0, 1]: 0 where the spread is reached, 1 for a constant.
    """
    inside = _where(output, mask)
    variance = _mean(_centred(output, inside) ** 2, inside)
    return (1 - (variance + 1e-8).sqrt() / spread).clamp_min(0)


def shared_structure(
    fixed: Tensor, moving: Tensor, field_of_view: Tensor, floor: float = 0.2
) -> Tensor:
    """Where two images show the same structure: the square of their positive local correlation.

    (4.4) acts there. Rising curves cannot turn a contrast round, and pulling opposite edges
    together could only flatten both: they weigh ``floor``, as does what one image alone shows.

    Args:
        fixed: ``(B, 1, *S)`` normalized.
        moving: ``(B, 1, *S)`` normalized.
        field_of_view: ``(B, 1, *S)`` 0/1, both fields of view.
        floor: weight of voxels that share nothing.

    Returns:
        ``(B, 1, *S)`` in [0, 1], without gradient; 0 outside ``field_of_view``.
    """
    with torch.no_grad():
        share = box_mean(field_of_view, _WINDOW).clamp_min(1e-3)

        def mean(values: Tensor) -> Tensor:
            return box_mean(values * field_of_view, _WINDOW) / share

        a, b = fixed - mean(fixed), moving - mean(moving)
        # the constant keeps noise from correlating: a tenth of the body's deviation
        power = (mean(a * a) + 0.01) * (mean(b * b) + 0.01)
        similarity = (mean(a * b).clamp_min(0) ** 2 / power).clamp_max(1)
    return (floor + (1 - floor) * similarity) * field_of_view


def harmonization_loss(
    harmonized: Tensor,
    normalized: Tensor,
    field_of_view: Tensor | None = None,
    body: Tensor | None = None,
    *,
    beta: float = 0.5,
    likeness: float = 1.0,
    hold: float = 0.75,
    spread: float = 0.125,
) -> Tensor:
    """``L_norm + β L_edge`` over the moving images (METHOD 4.4), each image held to its own input.

    To (4.4) comes one minus the correlation with the reference, ``likeness``: (4.2) can be lowered
    by losing contrast, a correlation cannot. The holding terms are edges, contrast, information and
    spread lost, with the weight ``hold`` each. A constant costs ``4 hold + likeness``, while
    agreement never costs more than ``1 + 2 β + 2 likeness``: with ``4 hold ≥ 1 + 2 β + likeness``,
    as by default, no constant is cheaper than the straight line, whatever the images.

    Args:
        harmonized: ``(B, M, *S)`` in [0, 1], the reference first.
        normalized: ``(B, M, *S)`` what it was made from, z-scored.
        field_of_view: ``(B, M, *S)`` 0/1: where the images are compared.
        body: ``(B, M, *S)`` 0/1: where each is held to its own input; ``field_of_view`` by default.
        beta: weight of the edges in (4.4).
        likeness: weight of the correlation.
        hold: weight of each holding term.
        spread: standard deviation that each harmonized image should have.

    Returns:
        ``(B,)``.
    """
    in_view = torch.ones_like(harmonized) if field_of_view is None else field_of_view
    held = in_view if body is None else in_view * body
    count = harmonized.shape[1]
    total = harmonized.new_zeros(harmonized.shape[0])
    for m in range(count):
        output, source, mask = (t[:, m : m + 1] for t in (harmonized, normalized, held))
        lost = edges_lost(output, source, mask) + information_lost(output, source, mask)
        lost = lost + contrast_lost(output, source, mask)
        total = total + hold * (lost + spread_lost(output, mask, spread)) / count
    for m in range(1, count):
        pair = in_view[:, :1] * in_view[:, m : m + 1]
        weight = shared_structure(normalized[:, :1], normalized[:, m : m + 1], pair)
        fixed, moving = harmonized[:, :1], harmonized[:, m : m + 1]
        difference = intensity_agreement(fixed, moving, weight)
        difference = difference + beta * edge_agreement(fixed, moving, weight)
        difference = difference + likeness * information_lost(fixed, moving, pair)
        total = total + difference / (count - 1)
    return total


def harmonization_parts(
    harmonized: Tensor,
    other: Tensor,
    again: Tensor,
    images: Tensor,
    kinds: Sequence[str],
    valid: Tensor,
    body: Tensor,
) -> dict[str, Tensor]:
    """The parts of the loss that trains a harmonization; `HARMONIZATION_WEIGHTS` weighs them.

    ``protocol``: difference between two protocols of one anatomy (`protocol_difference`).
    ``agreement``: (4.4) on shared structure, and ``likeness``: one minus the correlation, over all
    pairs of modalities. ``edges``, ``information``, ``separation``, ``contrast``, ``spread``,
    ``range``: what each image lost of itself (separation and range of CT and MR, contrast of
    emission images). ``idempotence``: change by a second mapping.

    Args:
        harmonized: ``(B, M, *S)`` in [0, 1].
        other: ``(B, M, *S)`` in [0, 1], of the same anatomy under other protocols.
        again: ``(B, M, *S)`` in [0, 1], ``harmonized`` mapped once more; where a kind is not
            mapped twice, ``harmonized`` itself.
        images: ``(B, M, *S)`` in own units.
        kinds: kind of each of the M channels.
        valid: ``(B, M, *S)`` 0/1, fields of view.
        body: ``(B, M, *S)`` 0/1, bodies within the fields of view.

    Returns:
        Per part ``(B,)``, not weighted.

    Raises:
        ValueError: another number of kinds than of channels.
    """
    batch, count = images.shape[:2]
    if len(kinds) != count:
        raise ValueError(f"expected {count} kinds, one for each channel, got {len(kinds)}: {kinds}")
    names = [*kinds] * batch
    first, second, mapped, source, inside = (
        values.flatten(0, 1)[:, None] for values in (harmonized, other, again, images, body * valid)
    )
    standardized = _z_scored(source, inside)
    parts = {
        "protocol": protocol_difference(first, second, inside),
        "edges": edges_lost(first, standardized, inside),
        "information": information_lost(first, standardized, inside),
        "separation": _of_kinds(("ct", "mr"), names, separation_lost(first, standardized, inside)),
        "contrast": _of_kinds(("emission",), names, lesion_contrast_lost(first, source, inside)),
        "spread": spread_lost(first, inside),
        "range": _of_kinds(("ct", "mr"), names, range_lost(first, inside)),
        "idempotence": (_mean((mapped - first) ** 2, inside) + 1e-8).sqrt() - 1e-4,
    }
    means = {name: part.view(batch, count).mean(1) for name, part in parts.items()}
    return means | _agreement(harmonized, standardized.view_as(images), valid)


def _agreement(harmonized: Tensor, standardized: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """(4.4) and one minus the correlation, ``(B,)`` each, the mean over the pairs of modalities."""
    agreement = harmonized.new_zeros(len(harmonized))
    likeness = harmonized.new_zeros(len(harmonized))
    pairs = list(combinations(range(harmonized.shape[1]), 2))
    for m, n in pairs:
        a, b = (harmonized[:, k : k + 1] for k in (m, n))
        both = valid[:, m : m + 1] * valid[:, n : n + 1]
        weight = shared_structure(standardized[:, m : m + 1], standardized[:, n : n + 1], both)
        agreement = agreement + intensity_agreement(a, b, weight)
        agreement = agreement + 0.5 * edge_agreement(a, b, weight)
        likeness = likeness + information_lost(a, b, both)
    share = max(1, len(pairs))
    return {"agreement": agreement / share, "likeness": likeness / share}


def protocol_difference(first: Tensor, second: Tensor, body: Tensor) -> Tensor:
    """RMS difference over the body in deviations of the first; the mean of raw and smoothed.

    Args:
        first: ``(B, 1, *S)`` harmonized from one protocol.
        second: ``(B, 1, *S)`` harmonized from another.
        body: ``(B, 1, *S)`` 0/1.

    Returns:
        ``(B,)``.
    """
    spread = _mean(_centred(first, body) ** 2, body) + 1e-6
    difference = (first - second) * body
    raw = _mean(difference**2, body) / spread
    smooth = _mean(averaged(difference) ** 2, body) / spread
    return 0.5 * ((raw + 1e-8).sqrt() + (smooth + 1e-8).sqrt())


def range_lost(output: Tensor, body: Tensor) -> Tensor:
    """How far the brightest hundredth of the body falls short of 0.85.

    Args:
        output: ``(B, 1, *S)`` in [0, 1].
        body: ``(B, 1, *S)`` 0/1.

    Returns:
        ``(B,)`` in [0, 0.85].
    """
    ordered = torch.where(body > 0.5, output, 0.0).flatten(1).sort(1, descending=True).values
    count = (0.01 * (body > 0.5).flatten(1).sum(1)).long()
    return (_LEAST_WHITE - ordered.gather(1, count[:, None])[:, 0]).clamp_min(0)


def separation_lost(output: Tensor, source: Tensor, body: Tensor) -> Tensor:
    """How far the separation of two tissue classes falls short of the input's.

    Separation: difference of the classes' means over their pooled deviation. The classes are cut
    between their means in the input (Ridler and Calvard, "Picture thresholding using an iterative
    selection method", IEEE TSMC 1978).

    Args:
        output: ``(B, 1, *S)``.
        source: ``(B, 1, *S)`` what it was made from.
        body: ``(B, 1, *S)`` 0/1.

    Returns:
        ``(B,)`` in [0, 1]: 0 where 95 % are kept.
    """
    with torch.no_grad():
        level = _mean(source, body)
        for _ in range(10):
            high = body * (source > _column(level, source))
            level = (_mean(source, high) + _mean(source, body - high)) / 2
        high = body * (source > _column(level, source))
        low = body - high
        before = _separation(source, high, low)
    return _short_of(_LEAST_SEPARATION, _separation(output, high, low), before)


def lesion_contrast_lost(output: Tensor, source: Tensor, body: Tensor) -> Tensor:
    """How far the hottest voxels' contrast-to-noise falls short of four fifths of the input's.

    Args:
        output: ``(B, 1, *S)``.
        source: ``(B, 1, *S)`` uptake.
        body: ``(B, 1, *S)`` 0/1.

    Returns:
        ``(B,)`` in [0, 1].
    """
    with torch.no_grad():
        ordered = torch.where(body > 0.5, source, -torch.inf).flatten(1).sort(1, descending=True)
        count = (_HOT_SHARE * (body > 0.5).flatten(1).sum(1)).long().clamp_min(1)
        level = ordered.values.gather(1, count[:, None])[:, 0]
        hot = body * (source > _column(level, source))
        rest = body - hot
        before = _contrast(source, hot, rest)
    return _short_of(_LEAST_CONTRAST, _contrast(output, hot, rest), before)


def _short_of(share: float, after: Tensor, before: Tensor) -> Tensor:
    """How far ``after`` falls short of a share of ``before``; an image that had none loses none."""
    lost = (share - after / before.clamp_min(1e-3)).clamp(0, 1)
    return lost * (before > _LEAST_TO_LOSE)


def _separation(image: Tensor, high: Tensor, low: Tensor) -> Tensor:
    """Difference of the means over the pooled deviation."""
    spread = (_variance(image, high) + _variance(image, low)) / 2
    return (_mean(image, high) - _mean(image, low)) / (spread + 1e-6).sqrt()


def _contrast(image: Tensor, hot: Tensor, rest: Tensor) -> Tensor:
    """Difference of the means over the deviation of the rest."""
    # relative, since uptake may come in any unit
    floor = 1e-6 * _mean(image, rest) ** 2 + 1e-12
    return (_mean(image, hot) - _mean(image, rest)) / (_variance(image, rest) + floor).sqrt()


def _variance(image: Tensor, weight: Tensor) -> Tensor:
    """``(B,)`` within a mask."""
    return _mean(_centred(image, weight) ** 2, weight)


def _z_scored(image: Tensor, body: Tensor) -> Tensor:
    """Mean 0 and deviation 1 in the body, within ±4, without gradient."""
    with torch.no_grad():
        middle, spread = (_column(v, image) for v in (_mean(image, body), _variance(image, body)))
        return ((image - middle) / spread.sqrt().clamp_min(1e-12)).clamp(-4, 4)


def _of_kinds(kinds: Sequence[str], names: Sequence[str], values: Tensor) -> Tensor:
    """The values of some kinds of image; 0 for the others."""
    return values * values.new_tensor([float(name in kinds) for name in names])


def _column(values: Tensor, like: Tensor) -> Tensor:
    """``(B,)`` as ``(B, 1, …)``."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _where(image: Tensor, mask: Tensor | None) -> Tensor:
    """The mask, or everywhere."""
    return torch.ones_like(image[:, :1]) if mask is None else mask.to(image.dtype)


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Weighted mean of each item of the batch; 0 where there is no weight."""
    inside = _where(values, weight)
    return (values * inside).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp_min(1e-6)


def _length(vectors: Tensor) -> Tensor:
    """Lengths along the channels; the root is safe to differentiate at 0."""
    return (vectors.square().sum(1, keepdim=True) + 1e-10).sqrt()


def _centred(image: Tensor, inside: Tensor) -> Tensor:
    """The image minus its mean inside, 0 outside."""
    return (image - _column(_mean(image, inside), image)) * inside


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """``a · b / (|a| |b|)`` per item of the batch; 0 where either is (nearly) zero everywhere."""
    dot = (a * b).flatten(1).sum(1)
    power = (a * a).flatten(1).sum(1) * (b * b).flatten(1).sum(1)
    return dot / (power + 1e-8).sqrt()

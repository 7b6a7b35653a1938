"""Agree with the reference, and stay what it was: the harmonization loss (METHOD 4.2 to 4.4)."""

import torch
from torch import Tensor

from fusion_pipeline.geometry.filters import box_mean, gradients

_WINDOW = 7  # voxels, as SSIM's


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


def protocol_difference(first: Tensor, second: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference between one anatomy harmonized from two protocols.

    Args:
        first: ``(B, 1, *S)`` harmonized.
        second: ``(B, 1, *S)`` harmonized.
        mask: ``(B, 1, *S)`` 0/1.

    Returns:
        ``(B,)`` in [0, 1].
    """
    return _mean((first - second).abs(), mask)


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
    mean = _mean(image, inside).view(-1, *[1] * (image.ndim - 1))
    return (image - mean) * inside


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """``a · b / (|a| |b|)`` per item of the batch; 0 where either is (nearly) zero everywhere."""
    dot = (a * b).flatten(1).sum(1)
    power = (a * a).flatten(1).sum(1) * (b * b).flatten(1).sum(1)
    return dot / (power + 1e-8).sqrt()

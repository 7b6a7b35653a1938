"""The classical standard of each kind of image: what the harmonization does before it learns.

Everything is measured on a small lattice of the image, with plain tensor operations: batches, any
device, differentiable, and fit for an exported graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log as log_of

import torch
from monai.networks.layers.factories import Pool
from torch import Tensor
from torch.compiler import is_exporting

from fusion_pipeline.networks.intensity_map import IntensityMap, spline_weights
from fusion_pipeline.networks.kinds import KINDS

_CT, _MR, _EMISSION = (KINDS.index(kind) for kind in ("ct", "mr", "emission"))
# Where fat and muscle lie in the bodies of the training patients, HU.
_TISSUES_HU = (-105.0, 55.0)
_TISSUE_WIDTH_HU = 25.0
_LARGEST_SHIFT_HU = 40.0
# The CT curve: HU to the common scale.
_CURVE_HU = (-1000.0, -300.0, -150.0, 150.0, 500.0, 1500.0)
_CURVE = (0.0, 0.15, 0.25, 0.55, 0.75, 1.0)
# MR: these quantiles of the body go to these values.
_QUANTILES = (0.25, 0.95)
_LEVELS = (0.35, 0.85)
_EXPONENTS = (0.4, 2.5)
_UPTAKE_EXPONENT = 0.7
# White, in body means: the geometric mean of a usual value and of the brightest voxels, so that a
# brain without a lesion uses the range as well, and a point spread moves white half as far.
_UPTAKE_QUANTILE, _USUAL_WHITE = 0.999, 6.5
_UPTAKE_WHITE = (3.0, 8.0)
_AIR_TO_BRIGHT = 0.08
_BIAS_CLASSES = 3
_BIAS_ROUNDS = 4
_LEAST_SIGNAL = 0.05  # of the body's 90th percentile: darker voxels do not tell the bias
_LARGEST_LOG_BIAS = 1.0
_BEYOND = 1e30  # above every value; exported graphs do not take an infinity alike
_LEAST_WIDTH = 1e-6  # of black: eight steps of a float32


@dataclass(frozen=True)
class Lattice:
    """A small copy of each image.

    Attributes:
        values: ``(B, 1, *s)`` means in own units of what is in view.
        view: ``(B, 1, *s)`` share of each block that is in view.
        body: ``(B, 1, *s)`` share that is body, in view.
        bright: ``(B, 1, *s)`` share in view of what is brighter than air. An MR is measured there:
            where a receive field is weak, a body mask can lose half of the body.
        order: ``(B, n)`` indices that sort ``values``, and all that rises with them.
    """

    values: Tensor
    view: Tensor
    body: Tensor
    bright: Tensor
    order: Tensor

    def measured(self, kinds: Tensor) -> Tensor:
        """Where each kind of image is measured, ``(B, 1, *s)``."""
        return torch.where(_column(kinds == _MR, self.body), self.bright, self.body)


def lattice_of(
    image: Tensor, field_of_view: Tensor | None, body: Tensor | None, size: int
) -> Lattice:
    """Block means, at most ``size`` along each axis; the body by a threshold where none is given.

    Args:
        image: ``(B, 1, *S)`` in own units.
        field_of_view: ``(B, 1, *S)`` 0/1; everything if None.
        body: ``(B, 1, *S)`` 0/1.
        size: the longest side.
    """
    shape = tuple(min(n, size) for n in image.shape[2:])
    view = torch.ones_like(image) if field_of_view is None else field_of_view.to(image.dtype)
    share = cell_means(view, shape)
    values = cell_means(image * view, shape) / share.clamp_min(1e-6)
    order = values.flatten(1).sort(1).indices
    bright = _foreground(values, share, order)
    inside = bright if body is None else cell_means(body.to(image.dtype) * view, shape)
    # partial volume at the skin and an empty mask: what is at least half body, else all in view
    inside = inside * (inside > 0.5)
    empty = inside.flatten(1).sum(1) < 1
    inside = torch.where(_column(empty, inside), share, inside)
    return Lattice(values, share, inside, bright, order)


def standard_map(lattice: Lattice, kinds: Tensor, log_bias: Tensor) -> IntensityMap:
    """The classical standard of each image, with the straight line for a learned curve.

    Args:
        lattice: the small copies.
        kinds: ``(B,)`` index of each image's kind in `KINDS`.
        log_bias: ``(B, 1, *cells)`` control points of the bias that is divided out first.
    """
    black = black_of(lattice, kinds)
    shape, cells = lattice.values.shape[2:], log_bias.shape[2]
    field = _blended(log_bias, [spline_weights(0, n, n, cells, log_bias) for n in shape])
    above = ((lattice.values - _column(black, field)) * torch.exp(-field)).clamp_min(0)
    order = above.flatten(1).sort(1).indices
    width, exponent = _landmarks(above, lattice.measured(kinds), order)
    in_hu = is_hounsfield(lattice) & (kinds == _CT)
    emission = kinds == _EMISSION
    mean = _mean(above, lattice.body).clamp_min(1e-20)
    brightest = weighted_quantiles(above, lattice.body, (_UPTAKE_QUANTILE,), order)[:, 0]
    uptake = mean * (_USUAL_WHITE * brightest / mean).clamp_min(1e-6).sqrt().clamp(*_UPTAKE_WHITE)
    width = torch.where(emission, uptake, width)
    exponent = torch.where(emission, torch.full_like(exponent, _UPTAKE_EXPONENT), exponent)
    span = _CURVE_HU[-1] - _CURVE_HU[0]
    shift = calibration_shift(lattice)
    black = torch.where(in_hu, _CURVE_HU[0] + shift, black)
    width = torch.where(in_hu, torch.full_like(width, span), width)
    exponent = torch.where(in_hu, torch.ones_like(exponent), exponent)
    # an image of one value has no contrast: white still has to be another number than black
    width = torch.maximum(width, _LEAST_WIDTH * black.abs()).clamp_min(1e-20)
    hu = black.new_tensor([(v - _CURVE_HU[0]) / span for v in _CURVE_HU])
    line = torch.linspace(0, 1, len(_CURVE), device=hu.device, dtype=hu.dtype)
    curve = black.new_tensor(_CURVE)
    return IntensityMap(
        black=black,
        white=black + width,
        exponent=exponent,
        knots=torch.where(in_hu[:, None], hu, line),
        heights=torch.where(in_hu[:, None], curve, line),
        rise=torch.ones_like(black)[:, None],
        log_bias=log_bias,
    )


def is_hounsfield(lattice: Lattice) -> Tensor:
    """Whether the values can be HU, ``(B,)``: air near −1000, the body's median near water."""
    lowest = lattice.values.masked_fill(lattice.view < 0.5, _BEYOND).flatten(1).amin(1)
    middle = weighted_quantiles(lattice.values, lattice.body, (0.5,), lattice.order)[:, 0]
    return (lowest < -200) & (lowest > -4000) & (middle.abs() < 600)


def calibration_shift(lattice: Lattice) -> Tensor:
    """How many HU fat and muscle lie above their usual values, ``(B,)``; 0 where there are none."""
    body = lattice.body.flatten(1).sum(1)
    total, evidence = torch.zeros_like(body), torch.zeros_like(body)
    for usual in _TISSUES_HU:
        centre = torch.full_like(body, usual)
        for _ in range(10):
            distance = (lattice.values - _column(centre, lattice.values)) / _TISSUE_WIDTH_HU
            weight = lattice.body * torch.exp(-0.5 * distance**2)
            amount = weight.flatten(1).sum(1)
            mean = (weight * lattice.values).flatten(1).sum(1) / amount.clamp_min(1e-3)
            centre = torch.where(amount > 1, mean, centre)
        share = amount / body.clamp_min(1)
        total, evidence = total + share * (centre - usual), evidence + share
    shift = total / (evidence + 0.02)
    return shift.clamp(-_LARGEST_SHIFT_HU, _LARGEST_SHIFT_HU)


def black_of(lattice: Lattice, kinds: Tensor) -> Tensor:
    """The value that becomes black, ``(B,)``: the air's, 0 for emission images."""
    body = lattice.measured(kinds)
    outside = lattice.view * (body <= 0)
    in_view = outside * (lattice.view > 0.99)
    air = weighted_quantiles(lattice.values, in_view, (0.25,), lattice.order)[:, 0]
    darkest = weighted_quantiles(lattice.values, body, (0.002,), lattice.order)[:, 0]
    share = outside.flatten(1).sum(1) / lattice.view.flatten(1).sum(1).clamp_min(1)
    black = torch.where(share > 0.02, torch.minimum(air, darkest), darkest)
    return torch.where(kinds == _EMISSION, black.clamp(max=0), black)


def bias_of(lattice: Lattice, kinds: Tensor, cells: int) -> Tensor:
    """Control points of the log bias of each MR, ``(B, 1, *cells)``; 0 for other kinds.

    What is left of the logarithm after tissue classes is smooth: the classes are found by soft
    k-means, the rest is averaged in cells, again and again.

    References:
        Wells et al., "Adaptive segmentation of MRI data", IEEE TMI 1996.
    """
    black = black_of(lattice, kinds)
    above = (lattice.values - _column(black, lattice.values)).clamp_min(0)
    scale = weighted_quantiles(above, lattice.bright, (0.9,), lattice.order)[:, 0].clamp_min(1e-20)
    unit = above / _column(scale, above)
    weight = lattice.bright * (unit > _LEAST_SIGNAL)
    log = torch.log(unit.clamp_min(_LEAST_SIGNAL / 2))
    at = [(k + 0.5) / _BIAS_CLASSES for k in range(_BIAS_CLASSES)]
    marks = weighted_quantiles(log, weight, [*at, 0.1, 0.9], lattice.order)
    centres = marks[:, :-2]
    width = ((marks[:, -1] - marks[:, -2]) / (2 * _BIAS_CLASSES)).clamp_min(0.02)
    bases = [spline_weights(0, n, n, cells, log) for n in log.shape[2:]]
    control = log.new_zeros(len(log), 1, *[cells] * len(bases))
    rest = log
    for _ in range(_BIAS_ROUNDS):
        centres, expected = _classified(rest, weight, centres, width)
        control = control + _smooth_cells(rest - expected, weight, cells)
        control = control - _column(control.flatten(1).mean(1), control)
        rest = log - _blended(control, bases)
    control = control.clamp(-_LARGEST_LOG_BIAS, _LARGEST_LOG_BIAS)
    return control * _column((kinds == _MR).to(log.dtype), control)


def _classified(
    values: Tensor, weight: Tensor, centres: Tensor, width: Tensor
) -> tuple[Tensor, Tensor]:
    """Two rounds of soft k-means: the centres ``(B, classes)``, and the expected values."""
    shape = (len(values), -1, *[1] * (values.ndim - 2))
    member = values.new_zeros(())
    for _ in range(2):
        distance = (values - centres.view(shape)) / _column(width, values)
        near = torch.exp(-0.5 * distance**2) + 1e-9
        member = near / near.sum(1, keepdim=True)
        counted = member * weight
        amount = counted.flatten(2).sum(2).clamp_min(1e-3)
        centres = (counted * values).flatten(2).sum(2) / amount
    return centres, (member * centres.view(shape)).sum(1, keepdim=True)


def _smooth_cells(values: Tensor, weight: Tensor, cells: int) -> Tensor:
    """Weighted means in cells, shared with the neighbouring cells; 0 where there is no weight."""
    counts = [cells] * (values.ndim - 2)
    sums = cell_means(torch.cat([values * weight, weight]), counts)
    at = torch.arange(cells, device=values.device)
    kernel = (1 - 0.5 * (at[:, None] - at).abs()).clamp_min(0).to(values.dtype)
    for _ in counts:
        sums = torch.tensordot(sums, kernel, dims=([2], [1]))
    totals, amounts = sums.chunk(2)
    return totals / (amounts + 0.02)


def _landmarks(above: Tensor, body: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Width and exponent that bring two quantiles of the body to their levels."""
    marks = weighted_quantiles(above, body, _QUANTILES, order).clamp_min(1e-20)
    ratio = torch.log(marks[:, 0] / marks[:, 1]).clamp_max(-1e-3)
    wanted = log_of(_LEVELS[0] / _LEVELS[1])
    exponent = (wanted / ratio).clamp(*_EXPONENTS)
    return marks[:, 1] * _LEVELS[1] ** (-1 / exponent), exponent


def weighted_quantiles(
    values: Tensor, weight: Tensor, shares: Sequence[float], order: Tensor
) -> Tensor:
    """Quantiles of the values where there is weight.

    Args:
        values: ``(B, 1, *s)``.
        weight: ``(B, 1, *s)`` ≥ 0.
        shares: 0..1.
        order: ``(B, n)`` indices that sort the values.

    Returns:
        ``(B, len(shares))``; without any weight, the largest value.
    """
    ordered = values.flatten(1).gather(1, order)
    below = weight.flatten(1).gather(1, order).cumsum(1)
    total = below[:, -1:]
    columns = []
    for share in shares:
        index = (below < share * total).sum(1, keepdim=True)
        columns.append(ordered.gather(1, index.clamp_max(ordered.shape[1] - 1)))
    return torch.cat(columns, 1)


def _foreground(values: Tensor, view: Tensor, order: Tensor) -> Tensor:
    """What is brighter than air, by its share of the way from the darkest to a bright value."""
    marks = weighted_quantiles(values, view, (0.01, 0.95), order)
    level = marks[:, 0] + _AIR_TO_BRIGHT * (marks[:, 1] - marks[:, 0])
    return view * (values > _column(level, values))


def cell_means(values: Tensor, cells: Sequence[int]) -> Tensor:
    """Adaptive average pooling; as products of matrices in a graph, since ONNX lacks it."""
    if not is_exporting():
        return Pool[Pool.ADAPTIVEAVG, len(cells)](tuple(cells))(values)
    for size, count in zip(values.shape[2:], cells, strict=True):
        cell, voxel = torch.arange(count)[:, None], torch.arange(size)
        # first ≤ voxel < end with first = ⌊cell · size / count⌋, end = ⌈(cell + 1) · size / count⌉
        inside = ((voxel + 1) * count > cell * size) & (voxel * count < (cell + 1) * size)
        weights = inside.to(values)
        weights = weights / weights.sum(1, keepdim=True)
        values = torch.tensordot(values, weights, dims=([2], [1]))
    return values


def _blended(control: Tensor, bases: Sequence[Tensor]) -> Tensor:
    """Control points ``(B, 1, *cells)`` as a field ``(B, 1, *s)``."""
    for weights in bases:
        control = torch.tensordot(control, weights, dims=([2], [1]))
    return control


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """``(B,)`` weighted means."""
    return (values * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1e-6)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """``(B,)`` as ``(B, 1, …)``."""
    return values.view(-1, *[1] * (like.ndim - 1))

"""The mapping of an image to the common scale: bias field, standard, increasing curve; invertible.

``u = ((x − black) · exp(−bias) / (white − black)) ^ exponent``, then ``y = curve(standard(u))``.
All of it rises with the value, so edges of the output lie where edges of the input lie (METHOD
4.1), and each part has its inverse in closed form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

# Above this the standard bends towards 1, so that no bright value is cut off.
_KNEE = 0.9


@dataclass(frozen=True)
class IntensityMap:
    """How each image of a batch is mapped to [0, 1].

    Attributes:
        black: ``(B,)`` value that becomes 0, in the unit of the image.
        white: ``(B,)`` value that the standard puts at 1 before its curve.
        exponent: ``(B,)`` of the power curve.
        knots: ``(B, P)`` where the standard's own curve has its knots, from 0.
        heights: ``(B, P)`` its values there, from 0. Beyond the last knot its last piece goes on.
        rise: ``(B, K)`` rise of the learned curve between knots that lie evenly from 0 to 1;
            positive, with the sum 1.
        log_bias: ``(B, 1, *cells)`` control points of the cubic B-spline of the log bias.
    """

    black: Tensor
    white: Tensor
    exponent: Tensor
    knots: Tensor
    heights: Tensor
    rise: Tensor
    log_bias: Tensor

    def __call__(self, image: Tensor, *, first: int = 0, length: int | None = None) -> Tensor:
        """The harmonized image.

        Args:
            image: ``(B, 1, *S)`` in own units, or a slab of it along the first spatial axis.
            first: where the slab begins along the first axis, in voxels of the whole image.
            length: how long the whole image is along the first axis; the slab itself by default.

        Returns:
            ``(B, 1, *S)`` in [0, 1].
        """
        flat = (-1, *[1] * (image.ndim - 1))
        bias = _spline_field(self.log_bias, image.shape[2:], first, length)
        width = (self.white - self.black).view(flat)
        unit = ((image - self.black.view(flat)) * torch.exp(-bias) / width).clamp_min(0)
        return _risen(self.standard(unit), self.rise)

    def standard(self, unit: Tensor) -> Tensor:
        """The standard's curve alone.

        Args:
            unit: ``(B, 1, *S)``, 0 at black and 1 at white, ≥ 0.

        Returns:
            ``(B, 1, *S)`` in [0, 1).
        """
        flat = (-1, *[1] * (unit.ndim - 1))
        # the power's slope at 0 is infinite for exponents below 1
        powered = (unit + 1e-6) ** self.exponent.view(flat) - 1e-6 ** self.exponent.view(flat)
        return _kneed(_interpolated(powered, self.knots, self.heights))

    def inverse(self, harmonized: Tensor, *, first: int = 0, length: int | None = None) -> Tensor:
        """The values in own units: HU, a.u., SUV; what lay below black comes back as black.

        Args:
            harmonized: ``(B, 1, *S)`` in [0, 1], or a slab of it.
            first: as in the call.
            length: as in the call.

        Returns:
            ``(B, 1, *S)``.
        """
        flat = (-1, *[1] * (harmonized.ndim - 1))
        value = _unkneed(_unrisen(harmonized, self.rise))
        powered = _interpolated(value, self.heights, self.knots)
        exponent = self.exponent.view(flat)
        unit = (powered + 1e-6**exponent).clamp_min(0) ** (1 / exponent) - 1e-6
        bias = _spline_field(self.log_bias, harmonized.shape[2:], first, length)
        width = (self.white - self.black).view(flat)
        return unit.clamp_min(0) * torch.exp(bias) * width + self.black.view(flat)

    def bias(self, shape: Sequence[int]) -> Tensor:
        """The bias field as a factor, ``(B, 1, *shape)``."""
        return torch.exp(_spline_field(self.log_bias, shape, 0, None))

    def item(self, index: int) -> "IntensityMap":
        """The mapping of one image of the batch."""
        one = slice(index, index + 1)
        return IntensityMap(**{f.name: getattr(self, f.name)[one] for f in fields(self)})

    def to(self, target: torch.device | str) -> "IntensityMap":
        """The same on another device."""
        return IntensityMap(**{f.name: getattr(self, f.name).to(target) for f in fields(self)})

    def as_dict(self) -> dict[str, Any]:
        """Nested lists of floats, for JSON."""
        return {f.name: getattr(self, f.name).detach().cpu().tolist() for f in fields(self)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "IntensityMap":
        """The mapping that `as_dict` wrote.

        Raises:
            KeyError: a part is missing.
        """
        return cls(**{f.name: torch.tensor(record[f.name]) for f in fields(cls)})


def _kneed(values: Tensor) -> Tensor:
    """The straight line up to the knee, then a hyperbola towards 1."""
    room = 1 - _KNEE
    above = 1 - room**2 / (room + (values - _KNEE).clamp_min(0))
    return torch.where(values > _KNEE, above, values)


def _unkneed(values: Tensor) -> Tensor:
    """The inverse of `_kneed`; what has reached 1 comes back as a large value."""
    room = 1 - _KNEE
    above = _KNEE - room + room**2 / (1 - values).clamp(1e-5, room)
    return torch.where(values > _KNEE, above, values)


def _risen(values: Tensor, rise: Tensor) -> Tensor:
    """``Σ_k rise_k · clamp(K v − k, 0, 1)``."""
    count = rise.shape[1]
    shape = (-1, *[1] * (values.ndim - 1))
    total = torch.zeros_like(values)
    for k in range(count):
        total = total + rise[:, k].view(shape) * (count * values - k).clamp(0, 1)
    return total


def _unrisen(values: Tensor, rise: Tensor) -> Tensor:
    """The inverse of `_risen`."""
    count = rise.shape[1]
    shape = (-1, *[1] * (values.ndim - 1))
    heights = rise.cumsum(1)
    total = torch.zeros_like(values)
    for k in range(count):
        below = 0 if k == 0 else heights[:, k - 1].view(shape)
        total = total + ((values - below) / rise[:, k].view(shape)).clamp(0, 1) / count
    return total


def _interpolated(values: Tensor, knots: Tensor, heights: Tensor) -> Tensor:
    """Piecewise linear from (knots) to (heights), both from 0; the last piece goes on."""
    shape = (-1, *[1] * (values.ndim - 1))
    total = torch.zeros_like(values)
    pieces = knots.shape[1] - 1
    for k in range(pieces):
        first = knots[:, k].view(shape)
        width = (knots[:, k + 1] - knots[:, k]).view(shape)
        slope = (heights[:, k + 1] - heights[:, k]).view(shape) / width
        part = (values - first).clamp_min(0)
        total = total + slope * (part if k == pieces - 1 else torch.minimum(part, width))
    return total


def _spline_field(cells: Tensor, shape: Sequence[int], first: int, length: int | None) -> Tensor:
    """Control points ``(B, 1, *cells)`` as a field ``(B, 1, *shape)``."""
    field = cells
    for axis, count in enumerate(shape):
        begin, whole = (first, length or count) if axis == 0 else (0, count)
        weights = spline_weights(begin, count, whole, cells.shape[2 + axis], cells)
        field = torch.tensordot(field, weights, dims=([2], [1]))
    return field


def spline_weights(first: int, count: int, length: int, cells: int, like: Tensor) -> Tensor:
    """Cubic B-spline weights of evenly spaced control points at each voxel.

    Args:
        first: the first voxel.
        count: how many voxels.
        length: voxels of the whole image.
        cells: control points.
        like: its dtype and device.

    Returns:
        ``(count, cells)``; rows sum to 1.
    """
    at = torch.arange(first, first + count, device=like.device)
    position = (at + 0.5) / length * cells - 0.5
    base = position.floor()
    t = position - base
    pieces = torch.stack(
        [
            (1 - t) ** 3 / 6,
            (3 * t**3 - 6 * t**2 + 4) / 6,
            (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
            t**3 / 6,
        ],
        dim=1,
    )
    index = (base.long()[:, None] + torch.arange(-1, 3, device=like.device)).clamp(0, cells - 1)
    weights = torch.zeros(count, cells, device=like.device).scatter_add_(1, index, pieces)
    return weights.to(like.dtype)

"""Harmonize by smooth, spatially varying, increasing tone curves: a bilateral grid (METHOD 4.1)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn
from torch.compiler import is_exporting

from fusion_pipeline.networks.kinds import KINDS, kind_indices

LOWEST, HIGHEST = -4.0, 4.0
_FLOOR = 0.05


class HarmonizationNet(nn.Module):
    """A learned intensity mapping ``I_norm = G(I)`` that cannot invent structure (METHOD 4.1).

    A small network reads local histograms of the image and predicts, on a coarse lattice of cells,
    how steep an increasing curve is between neighbouring knots. The curves are blended between the
    cells by cubic B-splines and applied to the image at full resolution, so that edges of the
    output lie where edges of the input lie. Each curve rises from 0 at −4 to 1 at +4 and nowhere
    less than a twentieth as steeply as the straight line: no contrast is lost altogether.
    Untrained, the network is the straight line ``(I + 4) / 8``.

    Args:
        spatial_dims: 2 or 3.
        channels: width of the small network.
        intervals: pieces of each curve.
        cells: control cells along each axis of the image.
        small_size: the longest side of the copy that the histograms are taken from, in voxels.

    References:
        Gharbi et al., "Deep bilateral learning for real-time image enhancement", ACM TOG 2017.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        channels: int = 32,
        intervals: int = 16,
        cells: int = 5,
        small_size: int = 64,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"expected 2 or 3 spatial dimensions, got {spatial_dims}")
        self.spatial_dims, self.intervals = spatial_dims, intervals
        self.cells, self.small_size = cells, small_size
        conv = Conv[Conv.CONV, spatial_dims]
        self.kind = nn.Embedding(len(KINDS), channels)
        self.stem = conv(intervals + 2, channels, 1)
        self.local = nn.ModuleList([conv(channels, channels, 3, padding=1) for _ in range(2)])
        self.shared = nn.Sequential(
            nn.Linear(intervals + 1 + channels, channels),
            nn.LeakyReLU(0.1),
            nn.Linear(channels, channels),
        )
        self.mix = conv(channels, channels, 1)
        self.head = conv(channels, intervals, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, image: Tensor, kinds: str | Sequence[str], field_of_view: Tensor | None = None
    ) -> Tensor:
        """Map normalized images to a common scale.

        Args:
            image: ``(B, 1, *S)`` z-scored, in [−4, 4].
            kinds: ``ct``, ``mr`` or ``emission``: one for all, or one for each image of the batch.
            field_of_view: ``(B, 1, *S)`` 0/1; what lies outside does not count, and is 0 in the
                result.

        Returns:
            ``(B, 1, *S)`` in [0, 1].
        """
        out = apply_curves(image, self.curves(image, kinds, field_of_view))
        return out if field_of_view is None else out * field_of_view

    def curves(
        self, image: Tensor, kinds: str | Sequence[str], field_of_view: Tensor | None = None
    ) -> Tensor:
        """The rise of each curve from knot to knot, in each cell.

        Args:
            image: as in `forward`.
            kinds: as in `forward`.
            field_of_view: as in `forward`.

        Returns:
            ``(B, intervals, *cells)``, positive, summing to 1 over the intervals.
        """
        self._check(image)
        index = torch.tensor(kind_indices(kinds, image.shape[0]), device=image.device)
        histogram, coverage = self._histograms(image, field_of_view)
        flat = (image.shape[0], -1, *[1] * self.spatial_dims)
        kind = self.kind(index)
        features = self.stem(torch.cat([histogram, coverage], 1)) + kind.view(flat)
        for conv in self.local:
            features = features + conv(F.leaky_relu(features, 0.1))
        axes = tuple(range(2, image.ndim))
        share = (histogram * coverage).sum(axes) / coverage.sum(axes).clamp_min(1e-6)
        shared = self.shared(torch.cat([share, kind], 1)).view(flat)
        features = F.leaky_relu(self.mix(F.leaky_relu(features, 0.1)) + shared, 0.1)
        features = _cell_means(features, [self.cells] * self.spatial_dims)
        rise = self.head(features).softmax(1)
        return (1 - _FLOOR) * rise + _FLOOR / self.intervals

    def _check(self, image: Tensor) -> None:
        """Refuse what is not one channel of the right dimension."""
        if image.ndim != self.spatial_dims + 2 or image.shape[1] != 1:
            raise ValueError(
                f"expected an image (B, 1, *S) with {self.spatial_dims} spatial axes, "
                f"got {tuple(image.shape)}"
            )

    def _histograms(self, image: Tensor, field_of_view: Tensor | None) -> tuple[Tensor, Tensor]:
        """Soft histograms of the voxels in view in twice as many cells as there are curves."""
        size = tuple(min(n, self.small_size) for n in image.shape[2:])
        in_view = torch.ones_like(image) if field_of_view is None else field_of_view.to(image.dtype)
        share = _cell_means(in_view, size)
        values = _cell_means(image * in_view, size) / share.clamp_min(1e-6)
        step = (HIGHEST - LOWEST) / self.intervals
        knots = torch.linspace(LOWEST, HIGHEST, self.intervals + 1, device=image.device)
        distance = (values - knots.view(1, -1, *[1] * self.spatial_dims)) / step
        hats = (1 - distance.abs()).clamp_min(0) * share
        cells = [2 * self.cells] * self.spatial_dims
        coverage = _cell_means(share, cells)
        return _cell_means(hats, cells) / coverage.clamp_min(1e-6), coverage


def apply_curves(
    image: Tensor, curves: Tensor, *, first: int = 0, length: int | None = None
) -> Tensor:
    """Read each voxel's curve at the voxel's value: ``Σ_k rise_k(x) · clamp((I(x) − t_k) / Δ)``.

    Args:
        image: ``(B, 1, *S)``, or a slab of it along the first spatial axis.
        curves: ``(B, K, *cells)`` from `HarmonizationNet.curves`.
        first: where the slab begins along the first axis, in voxels of the whole image.
        length: how long the whole image is along the first axis; the slab itself by default.

    Returns:
        ``(B, 1, *S)`` in [0, 1].

    >>> straight = torch.full((1, 4, 2, 2), 0.25)
    >>> apply_curves(torch.tensor([[[[-4.0, 0.0], [2.0, 9.0]]]]), straight).flatten().tolist()
    [0.0, 0.5, 0.75, 1.0]
    """
    rise = curves
    for axis, count in enumerate(image.shape[2:]):
        begin, whole = (first, length or count) if axis == 0 else (0, count)
        weights = _spline_weights(begin, count, whole, curves.shape[2 + axis]).to(rise)
        rise = torch.tensordot(rise, weights, dims=([2], [1]))
    intervals = curves.shape[1]
    step = (HIGHEST - LOWEST) / intervals
    total = torch.zeros_like(image)
    for k in range(intervals):
        part = ((image - (LOWEST + k * step)) / step).clamp(0, 1)
        total = total + rise[:, k : k + 1] * part
    return total.clamp(0, 1)


def _cell_means(values: Tensor, cells: Sequence[int]) -> Tensor:
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


def _spline_weights(first: int, count: int, length: int, cells: int) -> Tensor:
    """Cubic B-spline weights of the cells at each voxel, ``(count, cells)``; rows sum to 1."""
    position = (torch.arange(first, first + count) + 0.5) / length * cells - 0.5
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
    index = (base.long()[:, None] + torch.arange(-1, 3)).clamp(0, cells - 1)
    return torch.zeros(count, cells).scatter_add_(1, index, pieces)

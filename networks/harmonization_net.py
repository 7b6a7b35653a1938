"""Harmonize by one increasing curve and one smooth bias field per image (METHOD 4.1)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from fusion_pipeline.networks.intensity_map import IntensityMap
from fusion_pipeline.networks.intensity_standard import (
    Lattice,
    bias_of,
    cell_means,
    lattice_of,
    standard_map,
)
from fusion_pipeline.networks.kinds import KINDS, kind_indices

# The least slope of a learned curve, as a share of the straight line's: no contrast is lost.
_FLOOR = 0.2
# The learned part of a log bias stays within this: a factor of 1.6.
_LARGEST_LOG_BIAS = 0.5


class HarmonizationNet(nn.Module):
    """A learned intensity mapping ``I_norm = G(I)`` that cannot invent structure (METHOD 4.1).

    Untrained, it is the classical standard of each kind (`intensity_standard.standard_map`). MR:
    the bias field divided out, and a power curve through two landmarks. CT: a fixed curve of HU
    after fat and muscle are set right. Uptake: a concave curve of its ratio to the body's mean.
    A small network reads local histograms of that. It predicts, per image, how steep an increasing
    curve is between neighbouring knots and, for MR, what is left of the bias field. It reads a
    small copy; the mapping is applied at full resolution and has an exact inverse (`IntensityMap`).

    Args:
        spatial_dims: 2 or 3.
        channels: width of the small network.
        intervals: pieces of each curve.
        cells: control points of the bias field along each axis.
        small_size: the longest side of the copy that is measured on, in voxels.

    References:
        Nyúl, Udupa and Zhang, "New variants of a method of MRI scale standardization", IEEE TMI
        2000 (landmarks). Gharbi et al., "Deep bilateral learning for real-time image enhancement",
        ACM TOG 2017 (curves from a small copy).
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        channels: int = 32,
        intervals: int = 16,
        cells: int = 5,
        small_size: int = 40,
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
            nn.Linear(intervals + 1 + channels, 2 * channels),
            nn.LeakyReLU(0.1),
            nn.Linear(2 * channels, channels),
        )
        self.mix = conv(channels, channels, 1)
        self.bias_head = conv(channels, 1, 1)
        self.curve_head = nn.Linear(channels, intervals)
        for head in (self.bias_head, self.curve_head):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(
        self,
        image: Tensor,
        kinds: str | Sequence[str],
        field_of_view: Tensor | None = None,
        body: Tensor | None = None,
    ) -> Tensor:
        """Map images to a common scale.

        Args:
            image: ``(B, 1, *S)`` in own units: HU, a.u., SUV. A CT that is not in HU counts as a
                picture. MR and pictures may come with any gain and offset, uptake with any gain.
            kinds: ``ct``, ``mr`` or ``emission``: one for all, or one for each image of the batch.
            field_of_view: ``(B, 1, *S)`` 0/1; what lies outside does not count, and is 0 in the
                result.
            body: ``(B, 1, *S)`` 0/1, where CT and uptake are measured; by a threshold if None.

        Returns:
            ``(B, 1, *S)`` in [0, 1].
        """
        out = self.mapping(image, kinds, field_of_view, body)(image)
        return out if field_of_view is None else out * field_of_view

    def mapping(
        self,
        image: Tensor,
        kinds: str | Sequence[str],
        field_of_view: Tensor | None = None,
        body: Tensor | None = None,
    ) -> IntensityMap:
        """How each image is mapped: to apply slab by slab, to invert, to draw and to save.

        Arguments as in `forward`.
        """
        self._check(image)
        index = torch.tensor(kind_indices(kinds, image.shape[0]), device=image.device)
        lattice = lattice_of(image, field_of_view, body, self.small_size)
        log_bias = bias_of(lattice, index, self.cells)
        standard = standard_map(lattice, index, log_bias)
        logits, rest = self._predicted(standard(lattice.values), lattice, index)
        log_bias = log_bias + rest * (index == KINDS.index("mr")).to(rest.dtype).view(
            -1, *[1] * (rest.ndim - 1)
        )
        rise = (1 - _FLOOR) * logits.softmax(1) + _FLOOR / self.intervals
        # the landmarks are measured again, on what the whole bias leaves
        return replace(standard_map(lattice, index, log_bias), rise=rise)

    def _predicted(self, unit: Tensor, lattice: Lattice, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the curve ``(B, intervals)`` and log bias ``(B, 1, *cells)``."""
        knots = torch.linspace(0, 1, self.intervals + 1, device=unit.device, dtype=unit.dtype)
        flat = (unit.shape[0], -1, *[1] * self.spatial_dims)
        hats = (1 - (unit - knots.view(1, *flat[1:])).abs() * self.intervals).clamp_min(0)
        fine = [2 * self.cells] * self.spatial_dims
        body = lattice.measured(kinds)
        coverage = cell_means(body, fine)
        histogram = cell_means(hats * body, fine) / coverage.clamp_min(1e-3)
        kind = self.kind(kinds)
        features = self.stem(torch.cat([histogram, coverage], 1)) + kind.view(flat)
        for conv in self.local:
            features = features + conv(F.leaky_relu(features, 0.1))
        axes = tuple(range(2, unit.ndim))
        total = coverage.sum(axes).clamp_min(1e-6)
        share = (histogram * coverage).sum(axes) / total
        shared = self.shared(torch.cat([share, kind], 1))
        features = F.leaky_relu(self.mix(F.leaky_relu(features, 0.1)) + shared.view(flat), 0.1)
        pooled = (features * coverage).sum(axes) / total
        rest = self.bias_head(cell_means(features, [self.cells] * self.spatial_dims))
        return self.curve_head(pooled + shared), _LARGEST_LOG_BIAS * torch.tanh(rest)

    def _check(self, image: Tensor) -> None:
        """Refuse what is not one channel of the right dimension."""
        if image.ndim != self.spatial_dims + 2 or image.shape[1] != 1:
            raise ValueError(
                f"expected an image (B, 1, *S) with {self.spatial_dims} spatial axes, "
                f"got {tuple(image.shape)}"
            )

"""How much of one source a fused image keeps: structure, information, edges, contrast."""

import torch
from torch import Tensor

from fusion_pipeline.geometry.filters import gradients
from fusion_pipeline.losses.fusion_regions import Boxes

_C1, _C2 = 0.01**2, 0.03**2
_NOISE = 0.02**2
SHOWN = 0.06  # what is no brighter is air: 15 grey values of 255
# the sigmoids of the edge transfer for an edge that is kept as it was
_FULL_STRENGTH, _SAME_DIRECTION = 0.99945, 0.97756

Parts = tuple[Tensor, Tensor]  # a ratio whose sums over a region are a score


class Source:
    """One source: what does not change while the fused image does."""

    def __init__(
        self,
        image: Tensor,
        judged: Tensor,
        asked: Tensor,
        ordered: Tensor,
        edged: Tensor,
        shown: Tensor,
        boxes: tuple[Boxes, Boxes],
        fades: bool,
    ) -> None:
        near, wide = boxes
        self.image, self.mean = image, near.mean(image)
        self._variance = (near.mean(image * image) - self.mean**2).clamp_min(0)
        self.bright = (image > SHOWN) * judged * ordered
        self._ssim_weight = judged * shown
        of_noise = (self._variance - 1e-6).clamp_min(0)  # of an even source only rounding is left
        # the single grey levels of an image where nothing is taken up are no information
        informed = judged * (self.mean / SHOWN - 1).clamp(0, 1) if fades else judged
        self._of_noise, self._informed = of_noise, informed
        self._information = torch.log1p(of_noise / _NOISE) * informed
        self._vector = gradients(image)
        self._length = length_of(self._vector)
        # what is fainter than a grey level of 255 is no edge
        self._edge_weight = (self._length - 0.004).clamp_min(0) * edged
        band = self.mean - wide.mean(image)
        self._asked, self._contrast = torch.sign(band) * asked, band.abs() * asked

    def ssim(self, mean: Tensor, variance: Tensor, covariance: Tensor) -> Parts:
        """Structural similarity, data range 1, where any source shows something."""
        luminance = (2 * mean * self.mean + _C1) / (mean * mean + self.mean**2 + _C1)
        index = luminance * (2 * covariance + _C2) / (variance + self._variance + _C2)
        return index * self._ssim_weight, self._ssim_weight

    def information_kept(self, variance: Tensor, covariance: Tensor) -> Parts:
        """Visual information fidelity of the source in the fused image, on the finest scale."""
        gain = (covariance / (self._variance + 1e-6)).clamp_min(0)
        left = (variance - gain * covariance).clamp_min(0)
        kept = torch.log1p(gain**2 * self._of_noise / (left + _NOISE))
        return kept * self._informed, self._information

    def edges_kept(self, vector: Tensor, length: Tensor) -> Parts:
        """Edge transfer: strength and direction of each edge, weighed by its strength."""
        ratio = torch.minimum(self._length, length) / torch.maximum(self._length, length)
        cosine = (self._vector * vector).sum(1, keepdim=True).abs() / (self._length * length)
        turn = torch.acos(cosine.clamp_max(0.999))
        strength = torch.sigmoid(15 * (ratio - 0.5)) / _FULL_STRENGTH
        direction = torch.sigmoid(22 * (0.2 - turn / (torch.pi / 2))) / _SAME_DIRECTION
        return strength * direction * self._edge_weight, self._edge_weight

    def contrast_kept(self, band: Tensor) -> Parts:
        """``Σ min(b_f · sign(b), |b|) / Σ |b|`` with ``b`` the mean of 7 less that of 21 voxels."""
        return torch.minimum(band * self._asked, self._contrast), self._contrast


def length_of(vectors: Tensor) -> Tensor:
    """Lengths along the channels; the root is safe to differentiate at 0."""
    return (vectors.square().sum(1, keepdim=True) + 1e-10).sqrt()


__all__ = ["SHOWN", "Parts", "Source", "length_of"]

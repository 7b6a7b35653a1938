"""Where a fused image is judged: windows around each voxel, and what the same sources see."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fusion_pipeline.geometry.filters import box_sum_adjoint


class Boxes:
    """Means over a window around each voxel, over fewer voxels at the border."""

    def __init__(self, like: Tensor, window: int) -> None:
        self._window = min(window, *(n - 1 + n % 2 for n in like.shape[2:]))
        ones = torch.ones_like(like[:1, :1])
        self._inverse = 1 / box_sum_adjoint(ones, self._window)

    def mean(self, image: Tensor) -> Tensor:
        """``(B, C, *S)`` to the same shape."""
        return box_sum_adjoint(image, self._window) * self._inverse


@dataclass(frozen=True)
class Region:
    """Where the same sources see something.

    Attributes:
        mask: ``(B, 1, *S)`` 0/1; None: everything.
        size: ``(B,)`` voxels.
        part: ``(B,)`` its share of all that any source sees.
        counts: ``(B, M)`` what each source keeps of its weight, on average.
    """

    mask: Tensor | None
    size: Tensor
    part: Tensor
    counts: Tensor

    def sum(self, values: Tensor) -> Tensor:
        """``(B, 1, *S)`` summed over the region, ``(B,)``."""
        return self.of(values).flatten(1).sum(1)

    def of(self, values: Tensor) -> Tensor:
        """The values inside, 0 outside."""
        return values if self.mask is None else values * self.mask


def regions_of(in_view: Tensor, share: Tensor) -> list[Region]:
    """Where the same sources see something; not where none does."""
    number = torch.zeros_like(in_view[:, :1])
    for m in range(in_view.shape[1]):
        number = 2 * number + in_view[:, m : m + 1]
    every = (number > 0).flatten(1).sum(1).clamp_min(1)
    numbers = [n for n in number.unique().tolist() if n > 0]
    regions = []
    for n in numbers:
        mask = (number == n).to(in_view.dtype)
        size = mask.flatten(1).sum(1)
        counts = (share * mask).flatten(2).sum(2) / size.clamp_min(1)[:, None]
        whole = bool((mask > 0).all())
        regions.append(Region(None if whole else mask, size, size / every, counts))
    return regions


__all__ = ["Boxes", "Region", "regions_of"]

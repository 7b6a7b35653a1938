"""What goes into a transform (MetaTensor, ndarray, tensor) and what comes out: plain float32."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from torch import Tensor

ImageLike = Tensor | npt.NDArray[np.generic]


def plain(image: ImageLike) -> Tensor:
    """A plain float32 tensor: a MetaTensor costs ten times as much per small operation."""
    if isinstance(image, MetaTensor):
        return image.as_tensor().float()
    return torch.as_tensor(image).float()


def plain_mask(mask: ImageLike | None, image: Tensor) -> Tensor:
    """A boolean mask ``(1, *S)`` for ``image``; everything where there is none or an empty one.

    Raises:
        ValueError: the spatial shapes differ.
    """
    if mask is None:
        return torch.ones_like(image[:1], dtype=torch.bool)
    out = plain(mask) > 0.5
    if out.shape[1:] != image.shape[1:]:
        raise ValueError(
            f"a mask needs the image's spatial shape {tuple(image.shape[1:])}, "
            f"got {tuple(out.shape[1:])}"
        )
    return out if bool(out.any()) else torch.ones_like(out)


def spacing_per_axis(spacing: Sequence[float], image: Tensor) -> tuple[float, ...]:
    """One positive voxel size for each spatial axis of ``(C, *S)``.

    Raises:
        ValueError: another number of sizes, or one that is not positive.
    """
    sizes = tuple(float(size) for size in spacing)
    if len(sizes) != image.ndim - 1 or min(sizes) <= 0:
        raise ValueError(
            f"expected one positive spacing for each of {image.ndim - 1} axes, got {sizes}"
        )
    return sizes

"""The border of the transforms: MetaTensor, ndarray or tensor in, plain tensors inside.

A MetaTensor costs about ten times as much per small operation, so each transform works on a plain
float32 tensor (`plain`) and gives the result the affine and the history of its input (`like`).
"""

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor, get_track_meta
from torch import Tensor

ImageLike = Tensor | npt.NDArray[np.generic]
# The code of UCUM, which DICOM uses, for a quantity without a unit.
NO_UNIT = "1"


def plain(image: ImageLike) -> Tensor:
    """A plain float32 tensor on the image's device."""
    if isinstance(image, MetaTensor):
        return image.as_tensor().float()
    return torch.as_tensor(image).float()


def like(out: Tensor, image: ImageLike, units: str | None = None) -> Tensor:
    """``out`` as ``image`` came: a MetaTensor of the same affine, meta and history, or plain.

    Args:
        out: what a transform computed.
        image: what it was given.
        units: what ``meta["units"]`` says afterwards, where it is there; None leaves it.
    """
    if not isinstance(image, MetaTensor) or not get_track_meta():
        return out
    made = MetaTensor(out).copy_meta_from(image)
    made.meta = deepcopy(image.meta)  # MONAI changes some entries (pixdim) in place
    if units is not None and "units" in made.meta:
        made.meta["units"] = units
    return made


def plain_mask(mask: ImageLike | None, image: Tensor) -> Tensor:
    """A boolean mask ``(1, *S)`` for ``image``; everything where there is none or an empty one.

    Raises:
        ValueError: the spatial shapes differ.
    """
    if mask is None:
        return torch.ones_like(image[:1], dtype=torch.bool)
    out = (plain(mask) > 0.5).to(image.device)
    if out.shape[1:] != image.shape[1:]:
        raise ValueError(
            f"a mask needs the image's spatial shape {tuple(image.shape[1:])}, "
            f"got {tuple(out.shape[1:])}"
        )
    return out if bool(out.any()) else torch.ones_like(out)


def check_same_lattice(image: ImageLike, mask: ImageLike | None) -> None:
    """Refuse a mask whose affine says that its voxels lie elsewhere than the image's.

    Raises:
        ValueError: both have an affine, and the affines differ.
    """
    if not isinstance(image, MetaTensor) or not isinstance(mask, MetaTensor):
        return
    # float32 headers and chains of transforms agree to far better than this part of a voxel
    tolerance = 1e-3 * float(min(spacing_of_image(image, None)))
    if not torch.allclose(image.affine, mask.affine, rtol=1e-5, atol=tolerance):
        raise ValueError(
            "expected a mask on the image's lattice, got another affine: give the image and its "
            "mask to the same spatial transforms, or make the mask after them"
        )


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


def spacing_of_image(image: ImageLike, spacing: Sequence[float] | None) -> Sequence[float]:
    """The spacing asked for, else that of the image's affine: the lengths of its columns in mm.

    Raises:
        ValueError: neither is there.
    """
    if spacing is not None:
        return spacing
    if not isinstance(image, MetaTensor):
        raise ValueError(
            "expected a MetaTensor or a spacing, got an image that does not know its own"
        )
    columns = image.affine.numpy()[:-1, : image.ndim - 1]
    return [float(size) for size in np.linalg.norm(columns, axis=0)]

"""What kind of image it is, and whether a CT is in Hounsfield units: asked here only."""

from typing import Literal

import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor
from torch import Tensor

from fusion_pipeline.transforms.arrays import ImageLike

Modality = Literal["ct", "mr", "pet", "spect"]
EMISSION = ("pet", "spect")
# HU. Air is -1000 by definition; scanners stop at -1024, and noise spreads it.
_AIR_HU = (-1100.0, -850.0)
# HU. Fat to blood with contrast, and their noise.
_TISSUE_HU = (-200.0, 200.0)
# HU. Cortical bone and metal; stored values, which mostly are HU + 1024, have all tissue there.
_DENSE_HU = 700.0
# HU. Fat, which is in each body; the darkest of a CT that is cropped inside the body.
_FAT_HU = -50.0
_FEW = 0.005  # share of an image that is not there by chance: a hand in a scanner's field of view
_CROP_DENSE = 0.05  # share of dense bone in a CT without air, at most
_FLOOR = 0.01  # share of the lowest value where a window, and no body, ends
_SAMPLE = 200_000  # voxels: a share of half a percent is sure to a tenth of itself
_MODALITIES: tuple[Modality, ...] = ("ct", "mr", "pet", "spect")


def checked_modality(modality: str) -> Modality:
    """``modality`` itself, if it is one.

    Raises:
        ValueError: it is not.
    """
    for name in _MODALITIES:
        if modality == name:
            return name
    raise ValueError(f"expected a modality of {', '.join(_MODALITIES)}, got {modality!r}")


def modality_of(image: ImageLike, given: str | None) -> Modality:
    """The modality given, else the one that the image's ``meta["modality"]`` names.

    Raises:
        ValueError: neither is there, or meta names another.
    """
    if given is not None:
        return checked_modality(given)
    if isinstance(image, MetaTensor) and "modality" in image.meta:
        return checked_modality(image.meta["modality"])
    what = "a MetaTensor without it" if isinstance(image, MetaTensor) else "an image without meta"
    raise ValueError(
        f"expected a modality of {', '.join(_MODALITIES)}: give it to the transform, or in the "
        f"image's meta['modality']; got None and {what}"
    )


def units_of(image: ImageLike) -> str | None:
    """What ``meta["units"]`` says; None where nothing does."""
    return image.meta.get("units") if isinstance(image, MetaTensor) else None


def is_in_hu(
    image: Tensor | npt.NDArray[np.generic], modality: Modality, units: str | None = None
) -> bool:
    """Whether an image is a CT in Hounsfield units.

    Args:
        image: values.
        modality: of the image.
        units: ``HU`` or others; where None, the values decide, see `looks_like_hu`.
    """
    if modality != "ct":
        return False
    return looks_like_hu(image) if units is None else units == "HU"


def looks_like_hu(ct: Tensor | npt.NDArray[np.generic]) -> bool:
    """Whether the values of a CT are Hounsfield units: air near -1000 and tissue near 0.

    A CT that is cropped inside the body has no air: then fat, tissue and hardly anything denser
    count, if the values do not end on a floor as those of a window do. A CT scaled to -1..1,
    z-scored or in stored values is not in HU, even if some of its values are negative.

    Args:
        ct: any shape; NaN and infinity are left out.

    >>> looks_like_hu(np.r_[np.full(60, -1000.0), np.full(40, 30.0)])
    True
    >>> looks_like_hu(np.r_[np.full(60, -1.0), np.full(40, 0.03)])
    False
    """
    values = sampled(ct)
    if values.size == 0:
        return False
    tissue = _share(values, *_TISSUE_HU)
    dense = float(np.mean(values > _DENSE_HU))
    if tissue < _FEW or dense > tissue:
        return False
    if _share(values, *_AIR_HU) >= _FEW:
        return True
    fat = float(np.percentile(values, 100 * _FEW)) <= _FAT_HU
    floor = np.count_nonzero(values == values.min()) > max(1, _FLOOR * values.size)
    return fat and not floor and dense <= _CROP_DENSE


def sampled(image: Tensor | npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Some 200 000 finite values of an image, evenly spaced (all of a smaller one)."""
    values = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    flat = values.ravel(order="K")
    part = flat[:: flat.size // _SAMPLE | 1]  # odd: an even step would meet few columns
    return np.asarray(part[np.isfinite(part)], dtype=np.float32)


def _share(values: npt.NDArray[np.float32], low: float, high: float) -> float:
    """How much of the values lies between two limits."""
    return float(np.mean((values >= low) & (values <= high)))

"""What kind of image it is, and whether a CT is in Hounsfield units: asked here only."""

from typing import Literal

import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor
from torch import Tensor

from fusion_pipeline.transforms.arrays import ImageLike

Modality = Literal["ct", "mr", "pet", "spect"]
EMISSION = ("pet", "spect")
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
        units: ``HU`` or others. Where None, a CT with a negative value counts as HU: air is −1000
            there, while pictures of a CT have no negative values.
    """
    if modality != "ct":
        return False
    return float(image.min()) < 0 if units is None else units == "HU"

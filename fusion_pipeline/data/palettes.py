"""Colour maps of emission images: uptake to colours, and coloured pictures back to uptake."""

from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusion_pipeline.data.refusals import quiet, refusal

Array = npt.NDArray[np.float32]
# The palettes of DICOM PS3.6 Annex B, by pydicom, and the common ones of matplotlib.
_DICOM = {
    "hot_iron": "HOT_IRON",
    "pet_rainbow": "PET",
    "hot_metal_blue": "HOT_METAL_BLUE",
    "pet_20_step": "PET_20_STEP",
}
_MATPLOTLIB = ("hot", "inferno", "jet", "turbo", "nipy_spectral", "gist_ncar", "rainbow")
COLOUR_MAPS = (*_DICOM, *_MATPLOTLIB)
# RMS distance of a picture's colours from a map, in grey levels, up to which it is that map's;
# JPEG and rounding leave 5, another map 40 and more.
_CLOSE = 15.0
_COLOURED = 24  # difference of a pixel's channels, grey levels, from which it has a hue
_TOLD_BY = 4000  # pixels, evenly taken


def check_colour_map(name: str) -> str:
    """The name itself, if there is such a colour map.

    Raises:
        InputError: there is none.
    """
    if name not in COLOUR_MAPS:
        raise refusal("colour_map", f"one of {', '.join(COLOUR_MAPS)}", repr(name), "choose one")
    return name


@cache
def palette(name: str) -> Array:
    """The colours of a map.

    Returns:
        ``(256, 3)`` 0..255, from no uptake to the most.
    """
    check_colour_map(name)
    ramp = np.arange(256, dtype=np.uint8)
    if name in _DICOM:
        from pydicom.pixels import apply_color_lut  # late, as matplotlib: half a second each

        with quiet():  # pydicom complains of its own palette's name
            return apply_color_lut(ramp[None], palette=_DICOM[name])[0].astype(np.float32)
    import matplotlib as mpl

    return np.asarray(255 * mpl.colormaps[name](ramp)[:, :3], dtype=np.float32)


def coloured(uptake: Tensor, name: str) -> Tensor:
    """Colours of uptake.

    Args:
        uptake: ``(1, *S)`` in 0..1.
        name: one of `COLOUR_MAPS`.

    Returns:
        ``(3, *S)`` 0..255.
    """
    table = torch.from_numpy(palette(name)).to(uptake.device)
    return table[(uptake[0].clamp(0, 1) * 255).round().long()].movedim(-1, 0)


def uptake_of(colour: Tensor) -> tuple[Tensor, str] | None:
    """Uptake of a pseudo-coloured picture, where its colour map can be told.

    Args:
        colour: ``(3, *S)`` 0..255.

    Returns:
        ``(1, *S)`` 0..255 and the name of the map; None where the colours lie on none of
        `COLOUR_MAPS`, or the picture is grey.
    """
    pixels = colour.flatten(1).T.float()
    hued = pixels[(pixels.amax(1) - pixels.amin(1)) > _COLOURED]
    if len(hued) == 0:
        return None
    sample = hued[:: max(1, len(hued) // _TOLD_BY)]
    best, name = min((_distance(sample, name), name) for name in COLOUR_MAPS)
    if best > _CLOSE:
        return None
    table = torch.from_numpy(palette(name))
    nearest = torch.cat([torch.cdist(part, table).argmin(1) for part in pixels.split(65536)])
    return nearest.float().view(1, *colour.shape[1:]), name


def _distance(pixels: Tensor, name: str) -> float:
    """Root mean square distance of pixels from the nearest colours of a map."""
    nearest = torch.cdist(pixels, torch.from_numpy(palette(name))).amin(1)
    return float(nearest.square().mean().sqrt())


__all__ = ["COLOUR_MAPS", "check_colour_map", "coloured", "palette", "uptake_of"]

"""Anatomy in grey with the uptake in colour: the standard picture of PET/CT and PET/MR."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fusion_pipeline.data.palettes import coloured
from fusion_pipeline.geometry.parts import in_parts

_LUMA = (0.299, 0.587, 0.114)  # Rec. 601
_FIRST, _FULL = 0.1, 0.6  # uptake, as displayed, where the colour begins, and where it is full
_LIFT = 0.75  # share of the map's own luminance where the colour is full


def fused_colour(
    images: Sequence[Tensor],
    weights: Tensor,
    fused: Tensor,
    kinds: Sequence[str],
    colour_map: str,
) -> Tensor | None:
    """Anatomy with the hue of the uptake: ``rgb = L' + s · α · (lut(u) − luma(lut(u)))``.

    ``L' = (1 − ¾ α) · L + ¾ α · luma(lut(u))``. ``L`` is the luminance of the fused anatomy, ``u``
    the uptake as displayed, ``α`` the opacity: 0 up to an uptake of 0.1, 1 from 0.6, smooth
    between. ``s`` ≤ 1 is the largest that keeps all channels in range, so that the luminance is
    exact and anatomy can be read under the colour.

    Args:
        images: M of ``(*S)`` in [0, 1], as a reader displays them.
        weights: ``(M, *S)`` of the fused image.
        fused: ``(1, *S)`` in [0, 1].
        kinds: kind of each image.
        colour_map: one of `COLOUR_MAPS`.

    Returns:
        ``(3, *S)`` uint8; None without an emission image.
    """
    if "emission" not in kinds:
        return None

    def painted(weights: Tensor, fused: Tensor, *images: Tensor) -> Tensor:
        return _painted([one[0] for one in images], weights, fused, kinds, colour_map)

    sources = (one[None] for one in images)
    return in_parts(painted, 3, weights, fused, *sources, dtype=torch.uint8)


def _painted(
    images: Sequence[Tensor],
    weights: Tensor,
    fused: Tensor,
    kinds: Sequence[str],
    colour_map: str,
) -> Tensor:
    """See `fused_colour`."""
    functional = [m for m, kind in enumerate(kinds) if kind == "emission"]
    uptake = torch.stack([images[m] for m in functional]).amax(0, keepdim=True)
    anatomical = [m for m, kind in enumerate(kinds) if kind != "emission"]
    grey = _anatomy([images[m] for m in anatomical], [weights[m] for m in anatomical], fused)
    lut = coloured(uptake, colour_map) / 255
    own = sum(w * channel for w, channel in zip(_LUMA, lut, strict=True))[None]
    rise = ((uptake - _FIRST) / (_FULL - _FIRST)).clamp(0, 1)
    opacity = rise * rise * (3 - 2 * rise)
    luminance = (1 - _LIFT * opacity) * grey + _LIFT * opacity * own
    chroma = opacity * (lut - own)
    room = torch.where(chroma > 0, 1 - luminance, luminance) / chroma.abs().clamp_min(1e-6)
    fits = room.amin(0, keepdim=True).clamp(0, 1)
    return (255 * (luminance + fits * chroma).clamp(0, 1)).round().to(torch.uint8)


def _anatomy(images: Sequence[Tensor], weights: Sequence[Tensor], fused: Tensor) -> Tensor:
    """``(1, *S)``: the anatomical images by their weights; the fused image without any."""
    if not images:
        return fused
    if len(images) == 1:
        return images[0][None]
    shown = torch.stack(list(images))
    shares = torch.stack(list(weights)) + 1e-6 * (shown > 0)
    return (shares * shown).sum(0, keepdim=True) / shares.sum(0, keepdim=True).clamp_min(1e-12)


__all__ = ["fused_colour"]

"""`CheckImaged`: what an image is (modality, units, fill value), decided once, after reading."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms.transform import MapTransform, Transform
from torch import Tensor

from fusion_pipeline.data.checks import Array, check_affine, check_shape, check_values
from fusion_pipeline.data.image import (
    UNITS,
    Identity,
    fill_value_of,
    meta_tensor,
)
from fusion_pipeline.data.padding import certain, impossible_constants, is_impossible
from fusion_pipeline.data.palettes import uptake_of
from fusion_pipeline.data.pictures import luma
from fusion_pipeline.data.refusals import refusal
from fusion_pipeline.data.suv import unbelievable_suv
from fusion_pipeline.modalities import MODALITIES, Modality, modality_of, other_kind
from fusion_pipeline.transforms.dictionary import padding_key
from fusion_pipeline.transforms.modality import looks_like_hu, sampled

Mask = npt.NDArray[np.bool_]
_DARKEST = 1.0  # percent of a CT that is not in HU: its air

_DICOM_NAMES: dict[Modality, tuple[str, ...]] = {
    "ct": ("CT",),
    "mr": ("MR",),
    "pet": ("PT", "NM"),
    "spect": ("NM", "PT"),
}


class CheckImage(Transform):
    """Check an image and say what it is: the decisions about a file that depend on its modality.

    - grid: an affine that can be inverted, voxels of clinical size, at least 2 along each axis
    - values: padding, NaN and infinity become the fill value; a constant image is refused
    - CT: ``HU`` where air is near -1000 and tissue near 0, else ``a.u.`` with a warning; the fill
      value is -1000, or the darkest percent of the image
    - PET: SUV where the DICOM header allows it
    - colour: the luma (Rec. 601) is what the stages work on; of a PET or SPECT the uptake, where
      its colour map can be told, else the luma and a warning

    Raises:
        InputError: the image cannot be used.
    """

    def __call__(self, img: MetaTensor, key: str) -> MetaTensor:
        """Check one image.

        Args:
            img: ``(1, *S)`` or ``(3, *S)``, as `LoadImaged` gives it.
            key: image key, such as ``ct`` or ``mr_t1``.

        Returns:
            ``(1, *S)`` float32; ``meta`` gains ``modality``, ``units``, ``fill_value`` and
            ``warnings`` (all of the image so far).
        """
        return self.with_padding(img, key)[0]

    def with_padding(self, img: MetaTensor, key: str) -> tuple[MetaTensor, MetaTensor | None]:
        """The same, and ``(1, *S)`` bool where the image is padding; None where nothing is."""
        affine = img.affine.numpy()
        place = _place(img)
        values = img.as_tensor().float()
        modality = modality_of(key)
        messages = [*img.meta.get("warnings", ()), *_other_modality(img, modality, key, place)]
        grey, colours = _grey(values, modality, place)
        array, messages = grey[0].numpy(), messages + colours
        messages += check_affine(affine, place) + check_shape(array.shape, place)
        scale, units, notes = _emission_units(img, modality, place)
        array = array if scale == 1 else array * np.float32(scale)
        if units == "SUV" and img.meta.get("suv_units"):
            array, units, notes = _believed_suv(array, img, notes, place)
        padding = _Padding.of(array, img.meta.get("padding"))
        if modality == "ct" and img.meta.get("units") != "a.u.":  # what the source says counts
            units, notes = _ct_units(padding.rest(array), units, array.ndim, place)
        fill = _fill_value(padding.rest(array), modality, units)
        array, repaired = padding.replaced(array, units, fill, place)
        checked = meta_tensor(
            torch.from_numpy(np.ascontiguousarray(array))[None],
            affine,
            modality=modality,
            units=units,
            fill_value=fill,
            **(Identity.from_meta(img.meta) or Identity()).as_meta(),
            filename_or_obj=str(img.meta.get("filename_or_obj", "")),
            warnings=[*messages, *repaired, *notes],
        )
        where = padding.where(array, units)
        return checked, None if where is None else meta_tensor(
            torch.from_numpy(where)[None], affine
        )


@dataclass(frozen=True)
class _Padding:
    """Voxels ``(*S)`` that hold no data; None where there is no such voxel.

    Attributes:
        no_number: NaN or infinite.
        impossible: a constant that no tissue has.
        noted: the header's padding value.
    """

    no_number: Mask | None
    impossible: Mask | None
    noted: Mask | None

    @classmethod
    def of(cls, array: Array, noted: Mask | None) -> "_Padding":
        """Of an image, and what its reader says."""
        ends = float(array.min()), float(array.max())
        finite = None if np.isfinite(ends).all() else np.isfinite(array)
        if finite is None and not is_impossible(*ends):  # as nearly always: two passes, not four
            return cls(None, None, noted)
        impossible = impossible_constants(array, finite) if _any(finite) else None
        return cls(None if finite is None else ~finite, impossible, noted)

    def where(self, array: Array, units: str) -> Mask | None:
        """All of it."""
        noted = None if self.noted is None else certain(self.noted, array, units)
        some = [m for m in (self.no_number, self.impossible, noted) if m is not None]
        return np.logical_or.reduce(some) if some and any(m.any() for m in some) else None

    def rest(self, array: Array) -> Array:
        """The values that are data, in any order."""
        where = self.where(array, "")
        return array if where is None else array[~where]

    def replaced(
        self, array: Array, units: str, fill: float, place: str
    ) -> tuple[Array, list[str]]:
        """The image with the fill value in its place, checked; and a word on missing numbers."""
        where = self.where(array, units)
        messages = check_values(array, None if where is None else ~where, place)
        if where is None:
            return array, messages
        if self.no_number is not None:
            bad = int(np.count_nonzero(self.no_number))
            messages = [f"{place}: {bad} NaN or infinite voxels were set to {fill:g}.", *messages]
        return np.where(where, np.float32(fill), array), messages


class CheckImaged(MapTransform):
    """`CheckImage` for dictionaries.

    Args:
        keys: images.
        key_name: entry of the dictionary that names the image key of the case (``mr_t1``).
        colour_postfix: the colour of a picture is kept at ``<key>_<colour_postfix>``.
        spatial_dims: of the images that the networks are made for; None: 2 or 3.
        allow_missing_keys: skip keys that a dictionary does not have.
    """

    def __init__(
        self,
        keys: KeysCollection,
        key_name: str = "key",
        colour_postfix: str = "colour",
        spatial_dims: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = CheckImage()
        self.key_name = key_name
        self.colour_postfix = colour_postfix
        self.spatial_dims = spatial_dims

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check each key; what is padding is put at ``padding_of_<key>``."""
        out = dict(data)
        for key in self.key_iterator(out):
            _check_dims(out[key], self.spatial_dims)
            if len(out[key]) == 3:
                out[f"{key}_{self.colour_postfix}"] = out[key]
            out[key], padding = self.transform.with_padding(out[key], out[self.key_name])
            if padding is not None:
                out[padding_key(key)] = padding
        return out


def _grey(values: Tensor, modality: Modality, place: str) -> tuple[Tensor, list[str]]:
    """One channel, and what is to be said of it."""
    if len(values) == 1:
        return values, []
    if modality not in ("pet", "spect"):
        return luma(values), []
    uptake = uptake_of(values)
    if uptake is None:
        return luma(values), [
            f"{place}: the colours lie on no colour map that could be told; their brightness is "
            "taken for the uptake, which can be wrong."
        ]
    return uptake[0], [f"{place}: the colours are those of {uptake[1]}; read back as uptake."]


def _place(img: MetaTensor) -> str:
    """Where the image came from, for messages."""
    return f"({img.meta.get('filename_or_obj') or 'image in memory'})"


def _check_dims(img: MetaTensor, wanted: int | None) -> None:
    """Refuse pictures where the networks are made for volumes, and the other way round."""
    given = img.ndim - 1
    if wanted not in (None, given):
        place = _place(img)
        advice = f"use a bundle for {given}D input"
        raise refusal(place, f"{wanted}D images for this bundle", f"{given}D", advice)


def _other_modality(img: MetaTensor, modality: Modality, key: str, place: str) -> list[str]:
    """Warn when a DICOM header, or the meta of an image in memory, says another modality.

    Raises:
        InputError: it says a kind of image that is not read, such as ultrasound.
    """
    came = img.meta.get("dicom_modality")
    if came and came not in _DICOM_NAMES[modality]:
        if (other := other_kind(came)) is not None:
            expected = f"a series of modality {' or '.join(_DICOM_NAMES[modality])}"
            raise refusal(place, expected, f"{came} ({other[0]})", other[1])
        return [f"{place}: the file says modality {came}, the key says {key}."]
    said = img.meta.get("modality", modality)
    if said in MODALITIES and said != modality:
        return [f"{place}: the meta says modality {said}, the key says {key}."]
    return []


def _emission_units(
    img: MetaTensor, modality: Modality, place: str
) -> tuple[float, str, list[str]]:
    """The factor to the stored values, the units then, and what is to be said of them."""
    units = str(img.meta.get("units", ""))
    if modality == "pet" and img.meta.get("suv_units"):
        factor, notes = float(img.meta["suv_factor"]), list(img.meta["suv_warnings"])
        return factor, str(img.meta["suv_units"]), notes
    if units and units not in UNITS:
        note = f"{place}: expected units of {', '.join(UNITS)}, got {units}; taken as a.u."
        return 1.0, "a.u.", [note]
    if modality == "pet" and not units and img.ndim > 3:
        lack = "not in the file" if img.meta.get("filename_or_obj") else "missing (meta 'units')"
        return 1.0, "a.u.", [f"{place}: PET units are {lack}; the values are taken as they are."]
    return 1.0, units or "a.u.", []


def _believed_suv(
    array: Array, img: MetaTensor, notes: list[str], place: str
) -> tuple[Array, str, list[str]]:
    """SUV that a scan can have; else the values as they are stored, and why."""
    brightest = float(array.max())
    # an image without any value above 0 is refused or told of elsewhere
    reason = unbelievable_suv(brightest) if brightest > 0 else ""
    if not reason:
        return array, "SUV", notes
    stored = str(img.meta["suv_stored"])
    left = "are kept" if stored == "a.u." else f"stay in {stored}"
    note = f"{place}: no SUV, because {reason}; the values {left}."
    return array / np.float32(img.meta["suv_factor"]), stored, [note]


def _ct_units(values: Array, units: str, dims: int, place: str) -> tuple[str, list[str]]:
    """``HU`` where the values say so; of a volume that is none a warning, a picture rarely is."""
    if looks_like_hu(values):
        return ("HU" if units == "a.u." else units), []
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return "a.u.", []
    low, high = float(finite.min()), float(finite.max())
    if dims == 2 and low >= 0:
        return "a.u.", []
    note = (
        f"{place}: values from {low:g} to {high:g} do not look like HU (air is -1000, tissue near "
        "0); they are taken as a.u."
    )
    return "a.u.", [note]


def _fill_value(values: Array, modality: Modality, units: str) -> float:
    """What lies outside an image: of a CT in other units than HU the darkest that it has."""
    if modality != "ct" or units == "HU":
        return fill_value_of(units)
    finite = sampled(values)
    if finite.size == 0 or finite.min() >= 0:
        return fill_value_of(units)
    # some stray voxels below the air, such as one of -1, are not the air
    return float(np.percentile(finite, _DARKEST))


def _any(mask: Mask | None) -> bool:
    """Whether a mask, None everywhere, has a voxel."""
    return mask is None or bool(mask.any())


__all__ = ["CheckImage", "CheckImaged"]

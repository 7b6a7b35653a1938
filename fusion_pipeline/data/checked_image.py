"""`CheckImaged`: what an image is (modality, units, fill value), decided once, after reading."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms.transform import MapTransform, Transform

from fusion_pipeline.data.checks import check_affine, check_shape, repair_values
from fusion_pipeline.data.image import (
    MODALITIES,
    UNITS,
    Identity,
    Modality,
    fill_value_of,
    is_in_hu,
    meta_tensor,
    modality_of,
)
from fusion_pipeline.data.pictures import luma
from fusion_pipeline.data.refusals import refusal

_DICOM_NAMES: dict[Modality, tuple[str, ...]] = {
    "ct": ("CT",),
    "mr": ("MR",),
    "pet": ("PT", "NM"),
    "spect": ("NM", "PT"),
}


class CheckImage(Transform):
    """Check an image and say what it is: the decisions about a file that depend on its modality.

    - grid: an affine that can be inverted, voxels of clinical size, at least 2 along each axis
    - values: NaN and infinity become the fill value; a constant image is refused
    - CT: ``HU`` where its air lies below 0, else ``a.u.`` with a warning; fill value -1000 or 0
    - PET: SUV where the DICOM header allows it
    - colour: the luma (Rec. 601) is what the stages work on

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
        affine = img.affine.numpy()
        place = _place(img)
        values = img.as_tensor().float()
        modality = modality_of(key)
        messages = [*img.meta.get("warnings", ()), *_other_modality(img, modality, key, place)]
        array = (luma(values) if len(values) == 3 else values)[0].numpy()
        messages += check_affine(affine, place) + check_shape(array.shape, place)
        scale, units, notes = _emission_units(img, modality, place)
        array = array if scale == 1 else array * np.float32(scale)
        if modality == "ct":
            units, notes = _ct_units(array, units, place)
        array, repaired = repair_values(array, fill_value_of(units), place)
        return meta_tensor(
            torch.from_numpy(np.ascontiguousarray(array))[None],
            affine,
            modality=modality,
            units=units,
            fill_value=fill_value_of(units),
            **(Identity.from_meta(img.meta) or Identity()).as_meta(),
            filename_or_obj=str(img.meta.get("filename_or_obj", "")),
            warnings=[*messages, *repaired, *notes],
        )


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
        """Check each key."""
        out = dict(data)
        for key in self.key_iterator(out):
            _check_dims(out[key], self.spatial_dims)
            if len(out[key]) == 3:
                out[f"{key}_{self.colour_postfix}"] = out[key]
            out[key] = self.transform(out[key], out[self.key_name])
        return out


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
    """Warn when a DICOM header, or the meta of an image in memory, says another modality."""
    came = img.meta.get("dicom_modality")
    if came and came not in _DICOM_NAMES[modality]:
        return [f"{place}: the DICOM header says modality {came}, the key says {key}."]
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


def _ct_units(array: np.ndarray, units: str, place: str) -> tuple[str, list[str]]:
    """``HU`` where the air says so; of a volume that is none a warning, a picture rarely is."""
    if is_in_hu(torch.from_numpy(array)):
        return ("HU" if units == "a.u." else units), []
    finite = array[np.isfinite(array)]
    if array.ndim == 2 or finite.size == 0:
        return "a.u.", []
    low, high = float(finite.min()), float(finite.max())
    note = f"{place}: values from {low:g} to {high:g} do not look like HU (air is -1000)."
    return "a.u.", [note]


__all__ = ["CheckImage", "CheckImaged"]

"""Datalists as the Medical Segmentation Decathlon and MONAI's tools have them, turned into ours."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from fusion_pipeline.data.refusals import refusal

# what stands in `modality` there, in small letters and without what follows a blank or bracket
_KEYS = {
    "ct": "ct",
    "cbct": "cbct",
    "pet": "pet",
    "spect": "spect",
    "mr": "mr",
    "mri": "mr",
    "t1": "mr_t1",
    "t1w": "mr_t1",
    "t1gd": "mr_t1gd",
    "t1ce": "mr_t1ce",
    "t2": "mr_t2",
    "t2w": "mr_t2",
    "flair": "mr_flair",
    "adc": "mr_adc",
    "dwi": "mr_dwi",
}


def is_decathlon(entry: object) -> bool:
    """Whether an entry has ``image`` in place of keys of modalities."""
    return isinstance(entry, Mapping) and "image" in entry


def from_decathlon(entry: Mapping[str, Any], modality: object, place: str) -> dict[str, Any]:
    """One entry with a key for each image.

    Args:
        entry: ``{"image": [path, path], "label": path}``; further keys of ours are taken over.
        modality: of the datalist: ``{"0": "CT", "1": "MRI"}``, by the position in ``image``.
        place: for messages.

    Returns:
        ``{"id": ..., "ct": path, "mr": path, "ct_label": path}``; without an id the name of the
        first file; the label is that of the first image.

    Raises:
        InputError: one image (of several channels) for all, or modalities that say nothing.
    """
    images = entry["image"]
    if not isinstance(images, list) or len(images) < 2:
        raise refusal(
            place,
            'a list of two or more files in "image"',
            repr(images),
            "split a file of several channels into one file for each modality",
        )
    names = modality if isinstance(modality, Mapping) else {}
    keys = [_key(str(names.get(str(n), ""))) for n in range(len(images))]
    if None in keys or len(set(keys)) < len(keys):
        raise refusal(
            place,
            f'different modalities of {", ".join(_KEYS)} in "modality", for each of "image"',
            repr(modality),
            'write {"modality": {"0": "CT", "1": "MRI"}}',
        )
    stem = re.sub(r"(\.nii)?\.\w+$", "", PurePosixPath(str(images[0])).name)
    named = dict(zip([str(key) for key in keys], images, strict=True))
    others = {key: value for key, value in entry.items() if key not in ("image", "label")}
    label = {f"{keys[0]}_label": entry["label"]} if entry.get("label") else {}
    return {"id": stem, "reference": keys[0], **named, **label, **others}


def _key(name: str) -> str | None:
    """``T1w (pre)`` is ``mr_t1``."""
    return _KEYS.get(re.split(r"[\s(,]", name.strip().lower())[0])


__all__ = ["from_decathlon", "is_decathlon"]

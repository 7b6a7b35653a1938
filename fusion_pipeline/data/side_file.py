"""The JSON file that BIDS and dcm2niix write beside a NIfTI file: modality and units."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusion_pipeline.data.checks import RawImage
from fusion_pipeline.data.refusals import READ_ERRORS

_LARGEST = 1 << 20  # bytes; dcm2niix writes some thousands
_MODALITIES = ("CT", "MR", "PT", "NM", "US")  # DICOM's words, which dcm2niix copies
# as BIDS (PET) and dcm2niix spell them
_UNITS: Mapping[str, str] = {
    **dict.fromkeys(("bq/ml", "bqml"), "Bq/ml"),
    **dict.fromkeys(("counts", "cnts"), "counts"),
    **dict.fromkeys(("suv", "g/ml", "gml"), "SUV"),
}


def with_side_file(raw: RawImage, path: Path) -> RawImage:
    """An image with what its side file says and its header does not.

    Args:
        raw: the image.
        path: of the NIfTI file; ``a.json`` stands beside ``a.nii`` or ``a.nii.gz``.

    Returns:
        The image, ``dicom_modality`` and ``units`` filled in where they were empty.
    """
    said = _read(path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json"))
    modality = str(said.get("Modality", "")).strip().upper()
    units = _UNITS.get(str(said.get("Units", "")).strip().lower(), "")
    return replace(
        raw,
        dicom_modality=raw.dicom_modality or (modality if modality in _MODALITIES else ""),
        units=raw.units or (units if modality in ("PT", "NM") else ""),
    )


def _read(path: Path) -> Mapping[str, Any]:
    """An object in JSON; empty where there is none."""
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except READ_ERRORS:
        return {}
    return content if isinstance(content, dict) else {}


__all__ = ["with_side_file"]

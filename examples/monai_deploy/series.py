"""Which series of a study become a case: one of each modality, the one with most slices."""

from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

KEYS = {"CT": "ct", "MR": "mr", "PT": "pet", "NM": "spect"}


def case_of_study(folder: Path) -> dict[str, str]:
    """A case for `FusionPipeline` from a folder of DICOM files.

    Args:
        folder: holds the study, at any depth.

    Returns:
        Per image key ``folder::SeriesInstanceUID``.

    Raises:
        ValueError: fewer than two modalities.
    """
    slices: dict[tuple[str, str], int] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except InvalidDicomError:
            continue
        key = KEYS.get(str(header.get("Modality", "")))
        if key is not None:
            series = (key, str(header.SeriesInstanceUID))
            slices[series] = slices.get(series, 0) + int(header.get("NumberOfFrames", 1) or 1)
    longest: dict[str, str] = {}
    for key, uid in sorted(slices, key=lambda one: (slices[one], one)):
        longest[key] = f"{folder}::{uid}"
    if len(longest) < 2:
        raise ValueError(
            f"{folder}: expected series of two modalities of {', '.join(KEYS)}, got "
            f"{', '.join(longest) or 'none'}; send the whole study"
        )
    return longest

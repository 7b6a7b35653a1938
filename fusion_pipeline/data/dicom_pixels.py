"""Pixels of DICOM files in the modality's units: decoding, bits, modality tables, rescale."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk
from pydicom import Dataset
from pydicom.pixels import apply_modality_lut, get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from fusion_pipeline.data.checks import slope_notes
from fusion_pipeline.data.dicom_files import DicomFile
from fusion_pipeline.data.dimensions import CONTRAST
from fusion_pipeline.data.frames import Frame
from fusion_pipeline.data.image import InputError
from fusion_pipeline.data.padding import stored_padding
from fusion_pipeline.data.refusals import READ_ERRORS, muted, one_line, refusal
from fusion_pipeline.data.stored_voxels import in_c_order

_HOUNSFIELD = ("", "HU")  # a CT's rescale gives HU unless the header says otherwise
_UNSPECIFIED = "US"
# words of ImageType for parts of complex values whose brightness is no tissue's
_NO_MAGNITUDE = frozenset(
    ("P", "PHASE", "PHASE MAP", "P_FFE", "P_SE", "R", "REAL", "I", "IMAGINARY")
)
Pixels = npt.NDArray[Any]


def volume_of(
    files: Sequence[DicomFile], frames: Sequence[Frame], place: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None, list[str]]:
    """Values of a stack in the modality's units, and where the headers' padding value stands.

    Args:
        files: of the series.
        frames: the slices in order; each names its file.
        place: name of the image in messages.

    Returns:
        ``(columns, rows, slices)`` twice; None where no voxel is padding. What is to be said.

    Raises:
        InputError: a file cannot be decoded.
    """
    columns, rows = frames[0].size
    volume = np.empty((0, rows, columns), dtype=np.float32)
    where: dict[int, Pixels] = {}
    wanted: dict[int, list[int]] = {}
    cut = ""
    for k, frame in enumerate(frames):
        wanted.setdefault(frame.file, []).append(k)
    for index, slices in wanted.items():
        file = files[index]
        if not cut and _has_bits_beyond(file.header):
            cut = file.path.name
        stored = stored_pixels(file, place)
        if not len(volume):  # sizes that the first file does not have are not taken from memory
            volume = np.empty((len(frames), *stored.shape[1:]), dtype=np.float32)
        table = bool(file.header.get("ModalityLUTSequence"))
        for k in slices:
            frame = frames[k]
            pixels = stored[frame.number]
            padding = stored_padding(file.header, pixels)
            if padding is not None and padding.any():
                where[k] = padding
            volume[k] = (
                apply_modality_lut(pixels, file.header)
                if table
                else pixels.astype(np.float64) * frame.slope + frame.intercept
            )
    notes = [
        f"{place}: pixels have bits above those that the header counts (BitsStored), such as in "
        f"{cut}, and no overlay explains them; they were cut off."
    ]
    values = in_c_order(volume.transpose(2, 1, 0))
    return values, _stacked(where, volume.shape), notes if cut else []


def _stacked(masks: Mapping[int, Pixels], shape: Sequence[int]) -> npt.NDArray[np.bool_] | None:
    """Masks of some slices as a volume ``(columns, rows, slices)``; None without any."""
    if not masks:
        return None
    whole = np.zeros(shape, bool)
    for k, mask in masks.items():
        whole[k] = mask
    return np.ascontiguousarray(whole.transpose(2, 1, 0))


def stored_pixels(file: DicomFile, place: str) -> Pixels:
    """Decode by pydicom; what it has no decoder for (lossless JPEG), by SimpleITK.

    The header gives its encoded pixels away: a second call needs the file's header anew.

    Returns:
        ``(frames, rows, columns)``, the bits above BitsStored cut off.

    Raises:
        InputError: damaged, or a compression that none of both knows.
    """
    syntax = UID("")
    try:
        dataset = file.header
        syntax = _transfer_syntax(dataset)
        if syntax == DeflatedExplicitVRLittleEndian:  # its elements cannot be read one by one
            dataset = pydicom.dcmread(file.path)
        options = as_pixel_options(dataset)
        if not syntax.is_encapsulated:
            _check_no_more(dataset, file.path.name, place)
        array = np.asarray(get_decoder(syntax).as_array(dataset, **options)[0])
        dataset.pop("PixelData", None)  # a series' encoded pixels are not gathered in memory
    except InputError:
        raise
    except READ_ERRORS as error:
        array = _decoded_by_itk(file, syntax, place, error)
    array = array if array.ndim == 3 else array[None]
    return _within_bits(array, file.header) if syntax.is_encapsulated else array


def _check_no_more(header: Dataset, name: str, place: str) -> None:
    """Refuse plain pixels of which half a slice or more is left over: their sizes do not fit.

    Some scanners pad their pixels.
    """
    slice_bytes = int(header.Rows) * int(header.Columns) * int(header.BitsAllocated) // 8
    expected = slice_bytes * int(header.get("NumberOfFrames") or 1)
    given = len(header.get("PixelData") or b"")
    if given - expected >= max(2, slice_bytes // 2):
        came = f"{given} in {name}"
        advice = "rows, columns, frames or bits in its header may be wrong; export it again"
        raise refusal(place, f"{expected} bytes of pixels", came, advice)


def notes_on_pixels(files: Sequence[DicomFile], frames: Sequence[Frame], place: str) -> list[str]:
    """A word on pixels packed with losses, on phases, and on a scale that turns them over."""
    notes = []
    header = files[frames[0].file].header
    if str(header.get("LossyImageCompression") or "") == "01":
        ratio = header.get("LossyImageCompressionRatio")
        ratios = [ratio] if ratio is None or not isinstance(ratio, Sequence) else list(ratio)
        by = f" ({ratios[-1]:g} : 1)" if ratios and ratios[-1] else ""
        notes.append(f"{place}: the pixels were compressed with losses{by}; values are not exact.")
    contrast = frames[0].labels.get(CONTRAST, "")
    if set(contrast.split("/")) & _NO_MAGNITUDE:
        notes.append(
            f"{place}: the header says that the values are no magnitude (ImageType {contrast})."
        )
    return notes + slope_notes(min(frame.slope for frame in frames), place)


def check_rescale(frames: Sequence[Frame], files: Sequence[DicomFile], place: str) -> None:
    """Refuse a stack of which some slices have a rescale and others none, or one of zeros.

    Slices without one beside slices of slope 1 and intercept 0 are the same.

    Raises:
        InputError: there are such slices.
    """
    for frame in frames:
        if not np.isfinite([frame.slope, frame.intercept]).all() or frame.slope == 0:
            name = files[frame.file].path.name
            came = (
                f"RescaleSlope {frame.slope:g} and RescaleIntercept {frame.intercept:g} in {name}"
            )
            raise refusal(place, "a rescale that keeps values apart", came, "export it again")
    with_table = [bool(files[frame.file].header.get("ModalityLUTSequence")) for frame in frames]
    if any(with_table):
        if not all(with_table):
            odd = frames[with_table.index(False)]
            raise _half_scaled(odd, files, "ModalityLUTSequence", place)
        return
    for name, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        lacking = [frame for frame in frames if name in frame.lacks]
        values = {frame.slope if default else frame.intercept for frame in frames}
        if lacking and values != {default}:
            raise _half_scaled(lacking[0], files, " and ".join(lacking[0].lacks), place)


def ct_units(headers: Sequence[Dataset], place: str) -> tuple[str, list[str]]:
    """What the values of a CT are, where its header says that they are not HU.

    Returns:
        Empty where they are HU or nothing else is said, else ``a.u.``; and a sentence then.
    """
    kinds = {_rescale_type(header) for header in headers}
    others = sorted(kinds - {*_HOUNSFIELD, _UNSPECIFIED})
    if others:
        note = f"{place}: the CT's values are {', '.join(others)} (RescaleType) and not HU."
        return "a.u.", [note]
    if _UNSPECIFIED in kinds:
        return "", [
            f"{place}: the header leaves the unit of the CT's values open (RescaleType US); they "
            "are taken as HU only if they look like it."
        ]
    return "", []


def _rescale_type(header: Dataset) -> str:
    """What a modality table or the rescale gives, where the header says so."""
    table = (header.get("ModalityLUTSequence") or [None])[0]
    if table is not None:
        return str(table.get("ModalityLUTType") or _UNSPECIFIED).strip().upper()
    groups = [
        (header.get(name) or [Dataset()])[0].get("PixelValueTransformationSequence")
        for name in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
    ]
    given = next((group[0] for group in groups if group), header)
    return str(given.get("RescaleType") or "").strip().upper()


def _half_scaled(frame: Frame, files: Sequence[DicomFile], lacks: str, place: str) -> InputError:
    """The refusal of a slice that is not scaled as the others."""
    came = f"{files[frame.file].path.name} without {lacks}, which other slices have"
    return refusal(place, "one rescale rule in all slices", came, "export the series again")


def _transfer_syntax(dataset: Dataset) -> UID:
    """As the file says; of a file without meta elements, as it was read."""
    meta = getattr(dataset, "file_meta", None)
    if meta is not None and meta.get("TransferSyntaxUID"):
        return UID(meta.TransferSyntaxUID)
    implicit, little = dataset.original_encoding
    if not little:
        return ExplicitVRBigEndian
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def _has_bits_beyond(header: Dataset) -> bool:
    """Whether plain 16-bit pixels have bits above BitsStored that are neither sign nor overlay."""
    stored, raw = int(header.get("BitsStored") or 16), header.get("PixelData") or b""
    overlays = any((group, 0x0010) in header for group in range(0x6000, 0x6020, 2))
    if stored >= 16 or int(header.get("BitsAllocated") or 0) != 16 or overlays:
        return False
    if _transfer_syntax(header) not in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        return False
    signed = int(header.get("PixelRepresentation") or 0) == 1
    pixels = np.frombuffer(raw[: len(raw) // 2 * 2], "<i2" if signed else "<u2")
    ends = (-(1 << (stored - 1)) if signed else 0), 1 << stored  # some writers extend no sign
    return bool(pixels.size and (pixels.min() < ends[0] or pixels.max() >= ends[1]))


def _within_bits(array: Pixels, header: Dataset) -> Pixels:
    """Cut off the bits above BitsStored: overlays lie there, and some decoders leave them."""
    stored, width = int(header.get("BitsStored") or 0), 8 * array.dtype.itemsize
    if array.dtype.kind not in "iu" or not 0 < stored < width:
        return array
    shift = width - stored
    return (array << shift) >> shift  # an arithmetic shift keeps the sign


def _decoded_by_itk(file: DicomFile, syntax: UID, place: str, error: Exception) -> Pixels:
    """Stored pixels of a compressed single-frame file; ITK has applied the rescale by then."""
    header = file.header
    # SimpleITK pads what is cut short of plain pixels with noise
    if syntax.is_encapsulated and int(header.get("NumberOfFrames") or 1) == 1:
        try:
            with muted():
                image = sitk.ReadImage(str(file.path), sitk.sitkFloat64)
            slope = float(header.get("RescaleSlope") or 1.0)
            values = (
                sitk.GetArrayFromImage(image) - float(header.get("RescaleIntercept") or 0.0)
            ) / slope
            signed = int(header.get("PixelRepresentation") or 0) == 1
            return np.rint(values).astype(np.int32 if signed else np.uint32)
        except READ_ERRORS:
            pass
    came = f"{file.path.name}, which cannot be decoded ({one_line(error)})"
    raise refusal(place, "whole DICOM slices", came, "copy the series again") from error


__all__ = ["check_rescale", "ct_units", "notes_on_pixels", "stored_pixels", "volume_of"]

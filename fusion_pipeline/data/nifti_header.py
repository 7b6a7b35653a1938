"""What a NIfTI header says of an image's place and units, and where it contradicts itself."""

from pathlib import Path
from typing import IO, cast

import nibabel as nib
import numpy as np
from isal import igzip

from fusion_pipeline.data.checks import CLINICAL_MM, slope_notes
from fusion_pipeline.data.itk_text import MM_PER_UNIT
from fusion_pipeline.data.refusals import READ_ERRORS, refusal
from fusion_pipeline.geometry import apply_affine, spacing_of
from fusion_pipeline.geometry.affines import Matrix

NIFTI1_BYTES = 348  # of a header, which its first number says
NIFTI2_BYTES = 540
_PIXDIM = {NIFTI1_BYTES: (76, "f4"), NIFTI2_BYTES: (104, "f8")}  # first byte and type
_SFORM_CODE = {NIFTI1_BYTES: (254, "i2"), NIFTI2_BYTES: (348, "i4")}
_GZIP = b"\x1f\x8b"  # first bytes
_STATISTICS = range(2, 25)  # intent codes of nifti1.h: correlation to log10 of a p-value
_LABELS = (1002, 1003)  # indices of labels, or of NeuroNames
_SIZES_AGREE = 0.01  # of a voxel size: writers round


def is_packed(path: Path) -> bool:
    """Whether a file is gzip, whatever its name says.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(2) == _GZIP


def opened(path: Path) -> IO[bytes]:
    """The file, unpacked where it is gzip.

    Raises:
        OSError: it cannot be read.
    """
    return cast("IO[bytes]", igzip.open(path)) if is_packed(path) else path.open("rb")


def header_size(path: Path) -> int:
    """348 or 540, by the file's first number; 0 of a file that is no NIfTI.

    Raises:
        OSError, EOFError, IsalError: it cannot be read.
    """
    with opened(path) as file:
        first = file.read(4)
    sizes = {int.from_bytes(first, order) for order in ("little", "big")}
    return next((size for size in _PIXDIM if size in sizes), 0)


def size_notes(path: Path, dims: int, place: str) -> list[str]:
    """A word on voxel sizes below zero, of which nibabel takes the size alone, and on lacking ones.

    Args:
        path: a file that nibabel has read.
        dims: axes of the image.
        place: its name in messages.
    """
    size = header_size(path)
    if size == 0:
        return []
    start, kind = _PIXDIM[size]
    with opened(path) as file:
        raw = file.read(size)
    order = "<" if int.from_bytes(raw[:4], "little") == size else ">"
    sizes = np.frombuffer(raw, f"{order}{kind}", 8, start)[1 : dims + 1]
    start, kind = _SFORM_CODE[size]
    sform = np.frombuffer(raw, f"{order}{kind}", 1, start)[0]
    if sform <= 0 and not (np.isfinite(sizes) & (sizes != 0)).all():
        return [f"{place}: the header has no voxel sizes; voxel sizes are guesses."]
    if not (sizes < 0).any():
        return []
    return [
        f"{place}: the header has negative voxel sizes ({_by_mm(sizes)} mm); their sign is ignored."
    ]


def nifti_affine(
    header: nib.Nifti1Header, shape: tuple[int, ...], place: str
) -> tuple[Matrix, list[str]]:
    """The sform if set, else the qform, else the header's voxel sizes; in mm."""
    sform, qform = header.get_sform(coded=True)[0], _qform(header)
    messages = []
    if sform is not None and qform is not None and not _is_invertible(sform):
        sform = None
        messages.append(f"{place}: the header's sform maps to no volume; the qform is used.")
    if sform is not None:
        affine = sform
        messages += _sform_notes(sform, qform, header, shape, place)
    elif qform is not None:
        affine = qform
    else:
        affine = header.get_base_affine()
        messages.append(
            f"{place}: the header has neither sform nor qform; "
            "orientation and position are guesses."
        )
    affine, scaled = _in_mm(np.asarray(affine, dtype=np.float64), header, place)
    return affine, messages + scaled


def value_notes(image: nib.Nifti1Pair, place: str) -> list[str]:
    """A word where the header says that the values are no image's, or turns them over.

    Args:
        image: as nibabel has opened it.
        place: its name in messages.
    """
    notes = []
    code, name = int(image.header["intent_code"]), str(image.header.get_intent("label")[0])
    if code in _STATISTICS or code in _LABELS:
        kind = "labels" if code in _LABELS else "a statistic"
        notes.append(f"{place}: the header says that the values are {kind} ({name}), no image.")
    return notes + slope_notes(getattr(image.dataobj, "slope", 1.0), place)


def _sform_notes(
    sform: Matrix,
    qform: Matrix | None,
    header: nib.Nifti1Header,
    shape: tuple[int, ...],
    place: str,
) -> list[str]:
    """A word where the header's other numbers disagree with the sform."""
    if qform is not None:
        gap = _corner_distance(sform, qform, shape)
        if gap <= 0.1 * _smallest(sform):
            return []
        return [
            f"{place}: the header's sform and qform disagree by up to {gap:.1f} mm; "
            "the sform is used."
        ]
    d = min(3, len(shape))
    sizes, noted = spacing_of(sform)[:d], np.abs(header["pixdim"][1 : d + 1].astype(float))
    # 0 stands for a size that nobody filled in
    if (
        not np.isfinite(noted).all()
        or (noted == 0).any()
        or np.allclose(noted, sizes, _SIZES_AGREE)
    ):
        return []
    return [
        f"{place}: the header's sform has voxels of {_by_mm(sizes)} mm and its pixdim says "
        f"{_by_mm(noted)}; the sform is used."
    ]


def _by_mm(sizes: Matrix) -> str:
    """Voxel sizes in a message."""
    return " x ".join(f"{size:g}" for size in sizes)


def _is_invertible(affine: Matrix) -> bool:
    """Whether an affine maps to a volume."""
    return bool(np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 0)


def _qform(header: nib.Nifti1Header) -> Matrix | None:
    """The qform, or None when unset or broken."""
    try:
        qform = header.get_qform(coded=True)[0]
    except READ_ERRORS:
        return None
    return None if qform is None else np.asarray(qform, dtype=np.float64)


def _smallest(affine: Matrix) -> float:
    """Smallest voxel size."""
    return float(spacing_of(affine).min())


def _corner_distance(a: Matrix, b: Matrix, shape: tuple[int, ...]) -> float:
    """Largest distance in mm between the two places of a grid's corner."""
    size = (*shape, 1)[:3]
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in size], indexing="ij"), -1).reshape(-1, 3)
    gaps = np.linalg.norm(apply_affine(a, corners) - apply_affine(b, corners), axis=1)
    return float(gaps.max())


def _in_mm(affine: Matrix, header: nib.Nifti1Header, place: str) -> tuple[Matrix, list[str]]:
    """Convert metres and microns, unless the voxels then have no clinical size."""
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError:
        unit = "unknown"
    factor = MM_PER_UNIT.get(unit, 1.0)
    return believed_mm(affine, np.diag([factor, factor, factor, 1.0]) @ affine, f"{unit}s", place)


def believed_mm(affine: Matrix, scaled: Matrix, unit: str, place: str) -> tuple[Matrix, list[str]]:
    """The affine in mm where its unit gives voxels of clinical size, else as it is; and a word."""
    if np.array_equal(affine, scaled):
        return affine, []
    sizes = spacing_of(scaled)
    if np.all((sizes >= CLINICAL_MM[0]) & (sizes <= CLINICAL_MM[1])):
        return scaled, [f"{place}: lengths given in {unit} were converted to mm."]
    return affine, [
        f"{place}: the header says {unit}, which gives voxels of {np.round(sizes, 6).tolist()} "
        "mm; the lengths are taken as mm."
    ]


def plane_affine(affine: Matrix, place: str) -> Matrix:
    """The 3 x 3 part of the affine of a 2D image that lies in the world's x-y plane."""
    if len(affine) == 3:
        return affine
    in_plane = np.abs(affine[2, :2]).max() < 1e-3 * np.abs(affine[:2, :2]).max()
    if not in_plane and np.isfinite(affine).all():
        raise refusal(
            place,
            "a 2D image in the world's x-y plane",
            "one in another plane",
            "give the volume, or a picture (PNG)",
        )
    return np.asarray(affine[np.ix_([0, 1, 3], [0, 1, 3])])


__all__ = [
    "NIFTI1_BYTES",
    "NIFTI2_BYTES",
    "believed_mm",
    "header_size",
    "is_packed",
    "nifti_affine",
    "opened",
    "plane_affine",
    "size_notes",
    "value_notes",
]

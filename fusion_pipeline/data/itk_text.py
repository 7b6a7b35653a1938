"""What an NRRD or MetaImage header says and ITK does not hand on: units, scale, what it lacks."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusion_pipeline.data.refusals import one_line, refusal
from fusion_pipeline.geometry.affines import Matrix

_LONGEST = 1 << 16  # bytes of a header that are read
# mm, by the words that writers use; MetaIO itself knows "?", "um", "mm" and "cm"
MM_PER_UNIT: Mapping[str, float] = {
    **dict.fromkeys(("", "?", "mm", "millimeter", "millimetre"), 1.0),
    **dict.fromkeys(("um", "µm", "μm", "micron", "micrometer", "micrometre"), 1e-3),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-6),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 10.0),
    **dict.fromkeys(("m", "meter", "metre"), 1e3),
    **dict.fromkeys(("in", "inch", "inche"), 25.4),
}
# spaces whose axes are a patient's; "scanner-xyz" and "3D-right-handed" are not
_PATIENT_SPACES = re.compile(
    r"(left|right)-(posterior|anterior)-superior(-time)?|[LR][AP]ST?", re.IGNORECASE
)
_AXES = ("transformmatrix", "orientation", "rotation")  # MetaImage's names of the axes' directions
_MODALITIES = {"MET_MOD_CT": "CT", "MET_MOD_MR": "MR", "MET_MOD_NM": "NM", "MET_MOD_US": "US"}
_UNIT = 1e-3  # of an axis of length 1: writers round
_QUOTED = re.compile(r'"([^"]*)"')


@dataclass(frozen=True)
class ItkText:
    """Facts of a text header.

    Attributes:
        mm: lengths of 1 along each world axis, in mm; empty where no unit is named.
        unit: the unit's name.
        slope: of the values.
        offset: of the values.
        modality: DICOM's word for the kind of image, where the header names one.
        messages: what the header lacks, and what was made of it.
    """

    mm: tuple[float, ...] = ()
    unit: str = "mm"
    slope: float = 1.0
    offset: float = 0.0
    modality: str = ""
    messages: tuple[str, ...] = ()

    def scaled(self, affine: Matrix) -> Matrix:
        """An affine whose lengths are in the header's unit, in mm."""
        return affine if not self.mm else np.diag([*self.mm[: len(affine) - 1], 1.0]) @ affine


def read_itk_text(
    path: Path, dims: int, place: str, fields: Mapping[str, str] | None = None
) -> ItkText:
    """Read the text of a header that ITK has accepted.

    Args:
        path: NRRD or MetaImage, its data attached or not.
        dims: axes of the image.
        fields: of the header, where they were read before.
        place: its name in messages.

    Raises:
        InputError: lengths in a unit that is none of length, or a scale of values that is none.
    """
    nrrd = path.suffix.lower() in (".nrrd", ".nhdr")
    fields = itk_fields(path)[0] if fields is None else fields
    return _nrrd(fields, dims, place) if nrrd else _metaimage(fields, dims, place)


def itk_fields(path: Path) -> tuple[dict[str, str], int]:
    """Names in lower case and values of an NRRD or MetaImage header, and the byte behind it.

    Raises:
        OSError: it cannot be read.
        ValueError: it says one thing twice, and differently.
    """
    nrrd = path.suffix.lower() in (".nrrd", ".nhdr")
    with path.open("rb") as file:
        raw = file.read(_LONGEST)
    fields: dict[str, str] = {}
    end = 0
    for line in raw.split(b"\n"):
        end += len(line) + 1
        name, mark, value = line.partition(b":" if nrrd else b"=")
        if nrrd and not line.strip():
            break
        if mark and not value.startswith(b"="):  # NRRD's key:=value is free text
            key = name.decode("latin-1").strip().lower()
            text = value.decode("utf-8", "replace").strip()
            if fields.setdefault(key, text) != text and key.isalpha():  # no comment
                raise ValueError(f"{key} is given twice")
            if key == "elementdatafile":
                break
    return fields, end


def _nrrd(fields: Mapping[str, str], dims: int, place: str) -> ItkText:
    """Of an NRRD header."""
    named = _QUOTED.findall(fields.get("space units", "")) or (
        [] if "space directions" in fields else _QUOTED.findall(fields.get("units", ""))
    )
    mm = tuple(_in_mm(unit, place) for unit in named[:dims])
    if len(mm) < dims or (len(set(mm)) > 1 and "space units" not in fields):
        mm = ()
    # a plane has no patient's space in NRRD, and ITK writes its dimension alone
    flat = dims == 2 and "space dimension" in fields
    oriented = flat or _PATIENT_SPACES.fullmatch(fields.get("space", "")) is not None
    lacks = [] if oriented else ["anatomical orientation"]
    lacks += [] if "space origin" in fields or flat else ["position"]
    sizes = fields.get("space directions", fields.get("spacings", "nan"))
    sized = "nan" not in sizes.lower() and not _without_direction(fields, dims)
    lacks += [] if sized else ["voxel sizes"]
    messages = _lacking(lacks, place) + _negative(fields.get("spacings", ""), place)
    messages += _quantized(fields, place)
    return ItkText(mm, _one(named), messages=tuple(messages))


def _without_direction(fields: Mapping[str, str], dims: int) -> bool:
    """An axis of space has no direction, so that ITK takes voxels of 1 along it."""
    given = re.findall(r"none|\([^)]*\)", fields.get("space directions", ""))
    return bool(given) and len(given) - given.count("none") < dims


def _quantized(fields: Mapping[str, str], place: str) -> list[str]:
    """A word on values that stand for others, which ITK does not compute."""
    ends = [fields.get(f"old{gap}{end}") for end in ("min", "max") for gap in (" ", "")]
    low, high = ends[0] or ends[1], ends[2] or ends[3]
    if low is None or high is None:
        return []
    return [
        f"{place}: the header says that the values stand for {low} to {high} (old min, old max); "
        "they are taken as they are."
    ]


def _metaimage(fields: Mapping[str, str], dims: int, place: str) -> ItkText:
    """Of a MetaImage header."""
    unit = fields.get("distanceunits", "")
    mm = (_in_mm(unit, place),) * dims if unit else ()
    has = set(fields)
    lacks = [] if set(_AXES) & has else ["orientation"]
    lacks += [] if {"offset", "position", "origin"} & has else ["position"]
    sizes = {"elementspacing", "elementsize"} & has
    lacks += [] if sizes else ["voxel sizes"]
    messages = _lacking(lacks, place) + _negative(fields.get("elementspacing", ""), place)
    messages += _stretched(
        next((fields[name] for name in _AXES if name in fields), ""), dims, place
    )
    _check_byte_order(fields, place)
    slope = _number(fields, "ElementToIntensityFunctionSlope", 1.0, place)
    offset = _number(fields, "ElementToIntensityFunctionOffset", 0.0, place)
    if slope == 0:
        name = "a slope of values that is not 0"
        raise refusal(place, name, "ElementToIntensityFunctionSlope = 0", "correct the header")
    modality = _MODALITIES.get(fields.get("modality", "").upper(), "")
    return ItkText(mm, unit or "mm", slope, offset, modality, tuple(messages))


def _check_byte_order(fields: Mapping[str, str], place: str) -> None:
    """Refuse a header that gives its byte order twice, once each."""
    orders = {
        fields[name].lower()[:1]
        for name in ("binarydatabyteordermsb", "elementbyteordermsb")
        if name in fields
    }
    if len(orders) > 1:
        came = "BinaryDataByteOrderMSB and ElementByteOrderMSB that differ"
        raise refusal(place, "one byte order", came, "correct the header")


def _in_mm(unit: str, place: str) -> float:
    """A unit of length."""
    word = unit.strip().strip('"').lower()
    singular = word.removesuffix("s") if len(word) > len("cms") else word  # "s" is a second
    factor = MM_PER_UNIT.get(word, MM_PER_UNIT.get(singular))
    if factor is None:
        came = repr(one_line(unit, 40))
        raise refusal(place, "lengths in mm, um, cm or m", came, "correct the unit in the header")
    return factor


def _one(names: Sequence[str]) -> str:
    """The names of units in a message."""
    return ", ".join(dict.fromkeys(names)) or "mm"


def _lacking(lacks: Sequence[str], place: str) -> list[str]:
    """A word on what is not in the header."""
    if not lacks:
        return []
    what = " and ".join([", ".join(lacks[:-1]), lacks[-1]] if len(lacks) > 1 else lacks)
    verb = "is a guess" if len(lacks) == 1 and lacks[0] != "voxel sizes" else "are guesses"
    return [f"{place}: the header has no {what}; {what} {verb}."]


def _negative(sizes: str, place: str) -> list[str]:
    """A word on voxel sizes below zero."""
    if not any(word.startswith("-") for word in sizes.split()):
        return []
    return [
        f"{place}: the header has negative voxel sizes ({sizes}); these axes are taken as flipped."
    ]


def _stretched(axes: str, dims: int, place: str) -> list[str]:
    """A word on axes that are not of length 1, beside voxel sizes of their own."""
    try:
        lengths = np.linalg.norm(np.array(axes.split(), float).reshape(dims, dims), axis=1)
    except ValueError:
        return []
    if not axes or np.allclose(lengths, 1, atol=_UNIT):
        return []
    said = " x ".join(f"{length:g}" for length in lengths)
    return [
        f"{place}: the header's axes are {said} long beside its voxel sizes; the voxel sizes are "
        "multiplied by that."
    ]


def _number(fields: Mapping[str, str], name: str, default: float, place: str) -> float:
    """A finite number."""
    text = fields.get(name.lower(), "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        came = f"{name} = {one_line(text, 40)}"
        raise refusal(place, "a scale of values in numbers", came, "correct the header")
    return value


__all__ = ["MM_PER_UNIT", "ItkText", "itk_fields", "read_itk_text"]

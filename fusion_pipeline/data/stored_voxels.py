"""Whether a file holds the voxels that its header promises: no more, no fewer, none damaged."""

import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fusion_pipeline.data.refusals import refusal

_CHUNK = 1 << 20  # bytes
_TIGHTEST = 1032  # bytes that deflate packs into one, at most
_ADVICE = "the header's sizes or its type of voxels may be wrong; write it again"


def check_no_more(extra: int, shape: tuple[int, ...], itemsize: int, place: str) -> None:
    """Refuse a file with so many bytes behind its voxels that a further slice fits in.

    Such a file has more slices, volumes or bytes a voxel than its header says. A few bytes behind
    the voxels are padding.

    Args:
        extra: bytes behind the voxels.
        shape: of the voxels, as the header says.
        itemsize: bytes of a voxel, as the header says.
        place: name of the image in messages.

    Raises:
        InputError: a further slice fits in.
    """
    if extra < math.prod(shape[:2]) * itemsize:
        return
    expected = math.prod(shape) * itemsize
    raise refusal(place, f"{expected} bytes of voxels", f"{expected + extra}", _ADVICE)


def drained(file: IO[bytes]) -> int:
    """Count the bytes that are left in a file; gzip checks its sum at the end.

    Raises:
        OSError, EOFError, zlib.error: it is damaged.
    """
    count = 0
    while chunk := file.read(_CHUNK):
        count += len(chunk)
    return count


def check_itk_voxels(
    path: Path,
    fields: Mapping[str, str],
    start: int,
    shape: tuple[int, ...],
    itemsize: int,
    place: str,
) -> None:
    """Refuse plain voxels of an NRRD or MetaImage that are more than its header says.

    Args:
        path: of the header.
        fields: of the header, by names in lower case.
        start: byte behind the header.
        shape: as the header says.
        itemsize: bytes of a voxel.
        place: name of the image in messages.

    Raises:
        InputError: they are more, or a list of files that ITK reads wrongly.
    """
    nrrd = path.suffix.lower() in (".nrrd", ".nhdr")
    name = _data_file(fields, nrrd)
    if name.upper().startswith("LIST"):
        _check_list(path, nrrd, place)
    skip = fields.get("byte skip" if nrrd else "headersize", "0")
    packed = fields.get("encoding", "") != "raw" if nrrd else is_compressed(fields)
    several = name.upper().startswith("LIST") or "%" in name
    if packed or several or not skip.isdecimal() or fields.get("line skip", "0") != "0":
        return
    if not nrrd and fields.get("binarydata", "true").lower()[:1] not in ("t", "1"):
        raise refusal(place, "voxels in binary form", "BinaryData = False", "write it again")
    file = path if _is_local(name) else path.parent / name
    if not file.is_file():
        advice = "copy that file beside the header"
        raise refusal(place, f"its voxels in {name}", "no such file", advice)
    begin = int(skip) + (start if _is_local(name) else 0)
    expected = math.prod(shape) * itemsize
    extra = file.stat().st_size - begin - expected
    if extra < 0:
        came = f"{max(expected + extra, 0)} bytes of voxels where the header promises {expected}"
        raise refusal(place, "a whole file", came, "copy it again")
    check_no_more(extra, shape, itemsize, place)


def is_compressed(fields: Mapping[str, str]) -> bool:
    """Whether a MetaImage's voxels are packed."""
    return fields.get("compresseddata", "").lower() in ("true", "t", "1")


def unpacked(
    path: Path,
    fields: Mapping[str, str],
    start: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    place: str,
) -> npt.NDArray[Any]:
    """Voxels of a packed MetaImage, ``(*S)``.

    ITK takes what is packed without its size or its checksum: a damaged file, or one whose header
    lacks `CompressedDataSize`, gives whatever lay in memory.

    Args:
        path: of the header.
        fields: of the header, by names in lower case.
        start: byte behind the header.
        shape: as the header says.
        dtype: of a voxel, with its byte order.
        place: name of the image in messages.

    Raises:
        InputError: more or fewer voxels than the header says.
        OSError, zlib.error: the packed voxels are damaged.
    """
    name = _data_file(fields, nrrd=False)
    if name.upper().startswith("LIST") or "%" in name:
        advice = "write it as one file"
        raise refusal(place, "one file of packed voxels", "several", advice)
    with (path if _is_local(name) else path.parent / name).open("rb") as file:
        file.seek(start if _is_local(name) else 0)
        packed = file.read()
    expected = math.prod(shape) * dtype.itemsize
    # room for all at once, but for no more than can be packed so tightly; zlib or gzip
    room = min(expected, _TIGHTEST * len(packed))
    raw = zlib.decompress(packed, wbits=47, bufsize=room + 1)
    if len(raw) < expected:
        came = f"{len(raw)} bytes of voxels where the header promises {expected}"
        raise refusal(place, "a whole MetaImage file", came, "copy the file again")
    check_no_more(len(raw) - expected, shape, dtype.itemsize, place)
    return np.frombuffer(raw, dtype, math.prod(shape)).reshape(shape, order="F")


def _data_file(fields: Mapping[str, str], nrrd: bool) -> str:
    """What the header says of where the voxels are; empty or LOCAL: behind it."""
    if nrrd:
        return fields.get("data file", fields.get("datafile", ""))
    return fields.get("elementdatafile", "")


def _is_local(name: str) -> bool:
    """The voxels lie behind the header."""
    return name.upper() in ("", "LOCAL")


def _check_list(path: Path, nrrd: bool, place: str) -> None:
    """Refuse a list of files whose last line does not end, which MetaIO does not read."""
    if nrrd or path.read_bytes().endswith((b"\n", b"\r")):
        return
    came = "a list of files whose last line has no end"
    raise refusal(place, "a whole MetaImage header", came, "add a line break at its end")


__all__ = ["check_itk_voxels", "check_no_more", "drained", "is_compressed", "unpacked"]

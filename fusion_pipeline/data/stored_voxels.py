"""The voxels that a file's header promises: no more, no fewer, none damaged."""

import bz2
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from fusion_pipeline.data.refusals import refusal

_CHUNK = 1 << 20  # bytes
_BLOCK = (16, 32)  # rows and planes turned at once: as many cache lines of 64 bytes are 32 KiB
_OTHER = "text"
_NRRD_PACKING = {"raw": "", "gzip": "deflate", "gz": "deflate", "bzip2": "bzip2", "bz2": "bzip2"}
_GZIP, _BZIP2 = b"\x1f\x8b", b"BZh"  # first bytes
_COLUMNS = 512  # lines of voxels that are looked at
# times, in mean and in spread; in 178 images of shared/data/open 2.5 and 1.3 at most
_SMOOTHER = np.array([5.0, 2.0])
_FLOATS = (1e-6, 1e7)  # what an image in floating-point numbers holds besides 0
_BESIDE = "copy that file beside the header"
_ADVICE = "the header's sizes or its type of voxels may be wrong; write it again"


def check_no_more(
    extra: int, shape: tuple[int, ...], itemsize: int, place: str, *, least: bool = False
) -> None:
    """Refuse a file with so many bytes behind its voxels that a further slice fits in.

    Such a file has more slices, volumes or bytes a voxel than its header says. A few bytes behind
    the voxels are padding.

    Args:
        extra: bytes behind the voxels.
        shape: of the voxels, as the header says.
        itemsize: bytes of a voxel, as the header says.
        place: name of the image in messages.
        least: there may be still more of them.

    Raises:
        InputError: a further slice fits in.
    """
    if extra < math.prod(shape[:2]) * itemsize:
        return
    expected = math.prod(shape) * itemsize
    came = f"{expected + extra}{' or more' if least else ''}"
    raise refusal(place, f"{expected} bytes of voxels", came, _ADVICE)


def drained(file: IO[bytes]) -> int:
    """Count the bytes that are left in a file; gzip checks its sum at the end.

    Raises:
        OSError, EOFError, IsalError: it is damaged.
    """
    count = 0
    while chunk := file.read(_CHUNK):
        count += len(chunk)
    return count


def in_c_order(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Contiguous float32 in the machine's byte order, the last axis fastest.

    Files have the first axis fastest. A volume is turned in blocks that fit into the processor's
    first cache, since else each value of a row costs a cache line of its own.

    Args:
        array: ``(*S)``, in any order.
    """
    with np.errstate(all="ignore"):
        if array.ndim != 3 or array.flags.c_contiguous:
            return np.ascontiguousarray(array, dtype=np.float32)
        turned = np.empty(array.shape, np.float32)
        rows, planes = _BLOCK
        for z in range(0, array.shape[2], planes):
            for y in range(0, array.shape[1], rows):
                block = np.s_[:, y : y + rows, z : z + planes]
                turned[block] = array[block]
        return turned


class StoredVoxels(NamedTuple):
    """Voxels as a file stores them.

    Attributes:
        array: ``(*S)``.
        notes: what is to be said of them.
    """

    array: npt.NDArray[Any]
    notes: list[str]


def read_voxels(
    path: Path,
    fields: Mapping[str, str],
    start: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    place: str,
) -> StoredVoxels | None:
    """Voxels of an NRRD or MetaImage; None where ITK has to read them.

    ITK takes what is packed in a MetaImage without its size or its checksum: a damaged file, or one
    whose header lacks `CompressedDataSize`, gives whatever lay in memory. It is silent about voxels
    beyond those that the header counts; it lacks bzip2, and some types of voxels. Left to it
    are voxels as text, in several files, or behind lines or an unknown number of bytes.

    Args:
        path: of the header.
        fields: of the header, by names in lower case.
        start: byte behind the header.
        shape: as the header says.
        dtype: of a voxel, with its byte order.
        place: name of the image in messages.

    Raises:
        InputError: more or fewer voxels than the header says, or a header that ITK reads wrongly.
        OSError, IsalError: the packed voxels are damaged.
    """
    name = _data_file(fields, _is_nrrd(path))
    packing = _packing(path, fields, place)
    skip = fields.get("byte skip" if _is_nrrd(path) else "headersize", "0")
    skips = not skip.isdecimal() or fields.get("line skip", "0") != "0"
    if packing == _OTHER or skips or _in_several(name):
        return None
    file = path if _is_local(name) else path.parent / name
    if not file.is_file():
        raise refusal(place, f"its voxels in {name}", "no such file", _BESIDE)
    begin = start if _is_local(name) else 0
    expected = math.prod(shape) * dtype.itemsize
    with file.open("rb") as stream:
        stream.seek(begin + (0 if packing else int(skip)))
        if not packing:
            extra = file.stat().st_size - stream.tell() - expected
            raw = stream.read(expected) if extra >= 0 else b""
        else:  # what is skipped is packed, too; no more is taken from memory than one slice more
            room = int(skip) + expected + math.prod(shape[:2]) * dtype.itemsize
            raw = _unpack(stream.read(), room, bzip2=packing == "bzip2")[int(skip) :]
            extra = len(raw) - expected
    if extra < 0:
        came = f"{max(expected + extra, 0)} bytes of voxels where the header promises {expected}"
        raise refusal(place, "a whole file", came, "copy it again")
    check_no_more(extra, shape, dtype.itemsize, place, least=bool(packing))
    array = np.frombuffer(raw, dtype, math.prod(shape)).reshape(shape, order="F")
    check_type(array, dtype, place)
    notes = []
    if extra and not _is_local(name):
        notes.append(
            f"{place}: {name} has {extra} bytes more than the header counts; if they lie before "
            "the voxels, the image is shifted."
        )
    return StoredVoxels(array, notes)


def check_type(array: npt.NDArray[Any], dtype: np.dtype[Any], place: str) -> None:
    """Refuse integers that are none: floats, or smooth only in another byte order.

    So look voxels whose type or byte order is not what the header says, as in headers that were
    written by hand.

    Args:
        array: ``(*S)``, values as they are stored.
        dtype: of a voxel as the header says.
        place: name of the image in messages.

    Raises:
        InputError: the header's type or byte order is wrong.
    """
    if dtype.kind not in "iu" or array.ndim < 2:
        return
    columns = array.reshape(len(array), -1, order="F")
    some = columns[:, :: columns.shape[1] // _COLUMNS + 1]
    some = some.astype(dtype.newbyteorder("="), order="C")
    other = ""
    if some.dtype.itemsize > 2:
        other = "as floating-point numbers" if _are_floats(some) else ""
    elif _smoother(some):
        other = "with another byte order"
    if other:
        came = f"ones that make an image only {other}"
        advice = "correct the type of voxels or the byte order in the header"
        raise refusal(place, "voxels as the header says", came, advice)


def _are_floats(some: npt.NDArray[Any]) -> bool:
    """All integers but 0 are enormous, and the bits of believable floating-point numbers."""
    kind = np.dtype(f"f{some.dtype.itemsize}")
    ends = np.array(_FLOATS, kind).view(f"i{some.dtype.itemsize}")
    bits = some & np.iinfo(ends.dtype).max  # without the sign; -0.0 is 0, too
    bits = bits[bits != 0]
    return bool(bits.size and (bits >= ends[0]).all() and (bits <= ends[1]).all())


def _smoother(some: npt.NDArray[Any]) -> bool:
    """Whether the other byte order makes a far smoother image, in both means.

    Another sign is not tried: a body in a background that is negative is smoother without it.
    """
    if some.dtype.itemsize == 1:
        return False
    other = np.maximum(_roughness(some.byteswap()), 1e-9)
    return bool((_roughness(some) > _SMOOTHER * other).all())


def _roughness(columns: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Mean and quadratic mean of the steps along the first axis, by the voxels' deviation."""
    values = columns.astype(np.float32)
    steps = np.abs(np.diff(values, axis=0))
    sizes = np.array([steps.mean(), steps.std()], dtype=np.float64)
    return sizes / max(float(values.std()), 1e-6)


def _packing(path: Path, fields: Mapping[str, str], place: str) -> str:
    """``deflate``, ``bzip2``, or empty where the voxels are plain; `_OTHER` is ITK's.

    Raises:
        InputError: what ITK reads wrongly.
    """
    nrrd = _is_nrrd(path)
    several = _in_several(_data_file(fields, nrrd))
    if nrrd:
        return _NRRD_PACKING.get(fields.get("encoding", "").lower(), _OTHER)
    if fields.get("compresseddata", "").lower() in ("true", "t", "1"):
        if several:
            advice = "write it as one file"
            raise refusal(place, "one file of packed voxels", "several", advice)
        return "deflate"
    if several and not path.read_bytes().endswith((b"\n", b"\r")):
        came = "a list of files whose last line has no end"
        raise refusal(place, "a whole MetaImage header", came, "add a line break at its end")
    if not several and fields.get("binarydata", "true").lower()[:1] not in ("t", "1"):
        raise refusal(place, "voxels in binary form", "BinaryData = False", "write it again")
    return ""


def _unpack(packed: bytes, room: int, *, bzip2: bool) -> bytes:
    """What was packed in one part or several, up to ``room`` bytes; checked to its end.

    Raises:
        OSError, IsalError: it is damaged.
        EOFError: it is cut short.
    """
    parts: list[bytes] = []
    while True:
        # zlib's or gzip's
        one = bz2.BZ2Decompressor() if bzip2 else isal_zlib.decompressobj(wbits=47)
        parts.append(one.decompress(packed, room))
        room -= len(parts[-1])
        if not one.eof and room > 0:
            raise EOFError("incomplete or truncated stream of packed voxels")
        packed = one.unused_data
        if room <= 0 or not packed.startswith(_BZIP2 if bzip2 else _GZIP):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _data_file(fields: Mapping[str, str], nrrd: bool) -> str:
    """What the header says of where the voxels are; empty or LOCAL: behind it."""
    if nrrd:
        return fields.get("data file", fields.get("datafile", ""))
    return fields.get("elementdatafile", "")


def _is_nrrd(path: Path) -> bool:
    """The header is an NRRD's, by its name."""
    return path.suffix.lower() in (".nrrd", ".nhdr")


def _in_several(name: str) -> bool:
    """The voxels lie in several files."""
    return name.upper().startswith("LIST") or "%" in name


def _is_local(name: str) -> bool:
    """The voxels lie behind the header."""
    return name.upper() in ("", "LOCAL")


__all__ = ["StoredVoxels", "check_no_more", "check_type", "drained", "in_c_order", "read_voxels"]

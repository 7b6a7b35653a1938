"""The start of a registration, as other programs write it: one affine, of ITK or as a matrix."""

from pathlib import Path

import numpy as np

from fusion_pipeline.data.checks import SINGULAR
from fusion_pipeline.data.image import InputError
from fusion_pipeline.data.itk_transforms import read_transform
from fusion_pipeline.data.refusals import one_line, refusal
from fusion_pipeline.geometry.affines import Matrix

_ITK_SUFFIXES = (".tfm", ".h5", ".hdf5", ".mat", ".xfm")
_ITK_MARK = "#Insight Transform File"
_ADVICE = "export a rigid or affine transform (.tfm, .h5, .txt), or write a matrix as text"


def read_initial_transform(path: str | Path, spatial_dims: int, *, place: str) -> Matrix:
    """Read an affine from points of the reference to points of the moving image.

    Convention:
        - direction: fixed to moving, as SimpleITK's and ANTs' resampling takes it
        - an ITK file is in LPS mm, as ITK writes it; of a composite the whole counts
        - a matrix as text, ``(d + 1, d + 1)`` numbers in rows, is in RAS mm, as
          ``moving_from_fixed`` of ``report.json``

    Args:
        path: ``.tfm``, ``.h5``, ``.mat`` or ``.txt`` of ITK, or a matrix as text.
        spatial_dims: 2 or 3, of the images.
        place: its name in messages.

    Returns:
        ``(d + 1, d + 1)`` moving_from_fixed, RAS mm.

    Raises:
        InputError: it cannot be read, is not affine, mirrors, or has other dimensions.
    """
    path = Path(path)
    text = "" if path.suffix.lower() in _ITK_SUFFIXES else _text(path, place)
    if not text or text.startswith(_ITK_MARK):
        matrix = _of_itk(path, place)
    else:
        matrix = _of_text(text, spatial_dims, place)
    if len(matrix) != spatial_dims + 1:
        came = f"one for {len(matrix) - 1}D"
        raise refusal(place, f"a transform for {spatial_dims}D images", came, _ADVICE)
    if not np.isfinite(matrix).all():
        raise refusal(place, "finite numbers", "NaN or infinity among them", _ADVICE)
    if np.linalg.det(matrix[:-1, :-1]) < SINGULAR:
        came = "one that mirrors or flattens them"
        raise refusal(place, "a transform that keeps bodies as they are", came, _ADVICE)
    return matrix


def _text(path: Path, place: str) -> str:
    """The content of a text file."""
    try:
        return path.read_text(encoding="utf-8-sig").lstrip()
    except FileNotFoundError as error:
        raise refusal(place, "a transform", "no such file", "check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise refusal(place, "an ITK transform or a matrix", one_line(error), _ADVICE) from error


def _of_itk(path: Path, place: str) -> Matrix:
    """An affine file of ITK, in RAS mm."""
    world_map = read_transform(path, place=place)
    if bool(world_map.ddf_mm.any()):
        raise refusal(place, "an affine transform", "one with a displacement field", _ADVICE)
    return world_map.moving_from_fixed


def _of_text(text: str, spatial_dims: int, place: str) -> Matrix:
    """Rows of numbers, apart by spaces or commas; lines that begin with # are comments."""
    n = spatial_dims + 1
    lines = [one for one in text.splitlines() if one.strip() and not one.lstrip().startswith("#")]
    try:
        rows = [[float(cell) for cell in line.replace(",", " ").split()] for line in lines]
    except ValueError as error:
        raise _no_matrix(n, "other text", place) from error
    if [len(row) for row in rows] != [n] * n:
        came = f"{len(rows)} rows of {', '.join(str(len(row)) for row in rows) or 'no'} numbers"
        raise _no_matrix(n, came, place)
    if not np.allclose(rows[-1], [0.0] * spatial_dims + [1.0], rtol=0, atol=1e-9):
        raise _no_matrix(n, f"the last row {' '.join(f'{x:g}' for x in rows[-1])}", place)
    return np.array(rows, dtype=np.float64)


def _no_matrix(n: int, came: str, place: str) -> InputError:
    """The refusal of what is no affine matrix."""
    last = " ".join(["0"] * (n - 1) + ["1"])
    return refusal(place, f"{n} rows of {n} numbers, the last {last}", came, _ADVICE)


__all__ = ["read_initial_transform"]

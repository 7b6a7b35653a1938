"""Files of points: CSV, and the two formats of 3D Slicer; rewritten with other positions."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusion_pipeline.data.image import InputError
from fusion_pipeline.data.reading import read_landmarks
from fusion_pipeline.data.refusals import one_line, refusal
from fusion_pipeline.data.writing import written_whole
from fusion_pipeline.geometry import apply_affine, lps_from_ras
from fusion_pipeline.geometry.affines import Matrix

POINT_SUFFIXES = (".csv", ".fcsv", ".mrk.json")
# 3D Slicer up to 4.10 wrote numbers
_SYSTEMS = {"0": "RAS", "1": "LPS", "RAS": "RAS", "LPS": "LPS"}
# what is defined by its control points alone; planes and ROIs have axes beside them
_MARKUPS = ("Fiducial", "Line", "Angle", "Curve", "ClosedCurve")


@dataclass(frozen=True)
class PointFile:
    """Points of a file, and how to write it anew with all else as it is.

    Attributes:
        points: ``(n, d)`` RAS mm.
        suffix: one of `POINT_SUFFIXES`.
        rewritten: points ``(n, d)`` RAS mm → the text of the file with them.
    """

    points: Matrix
    suffix: str
    rewritten: Callable[[Matrix], str]

    def write(self, points: Matrix, path: str | Path) -> None:
        """Write the file with other positions, in its own coordinate system.

        Args:
            points: ``(n, d)`` RAS mm.
            path: of the new file.

        Raises:
            InputError: it cannot be written.
        """
        with written_whole(path) as aside:
            aside.write_text(self.rewritten(points), encoding="utf-8")


def read_points(path: str | Path) -> PointFile:
    """Read a file of points.

    Args:
        path: ``.csv`` with ``x,y[,z]`` in RAS mm, or markups of 3D Slicer (``.fcsv``,
            ``.mrk.json``) in RAS or LPS, as they say.

    Raises:
        InputError: no such file, or not such points.
    """
    path = Path(path)
    place = f"points ({path})"
    name = path.name.lower()
    suffix = next((one for one in POINT_SUFFIXES if name.endswith(one)), None)
    if suffix is None:
        came = path.suffix or "a name without a suffix"
        raise refusal(place, " or ".join(POINT_SUFFIXES), came, "convert the file")
    if suffix == ".csv":
        return PointFile(read_landmarks(path, place=place), suffix, _csv)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise refusal(place, "a file of points", "no such file", "check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise refusal(place, "a text file", one_line(error), "export it anew") from error
    return _fcsv(text, place) if suffix == ".fcsv" else _markups(text, place)


def _csv(points: Matrix) -> str:
    """A header and a line for each point."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow("xyz"[: points.shape[1]])
    rows.writerows([[f"{value:.6f}" for value in point] for point in points])
    return out.getvalue()


def _fcsv(text: str, place: str) -> PointFile:
    """Rows ``id,x,y,z,…`` after comments, one of which names the coordinate system."""
    system = "RAS"
    lines = text.splitlines()
    rows: list[tuple[int, list[str]]] = []
    for number, line in enumerate(lines):
        if line.startswith("#"):
            name, _, value = line[1:].partition("=")
            if name.strip() == "CoordinateSystem":
                system = _system(value, place)
        elif line.strip():
            rows.append((number, next(csv.reader([line]))))
    try:
        given = np.array([[float(cell) for cell in row[1:4]] for _, row in rows], dtype=np.float64)
    except ValueError as error:
        raise _malformed(place, one_line(error)) from error
    ras = _checked(given, place)

    def rewritten(points: Matrix) -> str:
        fresh = list(lines)
        for (number, row), point in zip(rows, _in_system(points, system), strict=True):
            out = io.StringIO()
            csv.writer(out, lineterminator="").writerow([row[0], *_texts(point), *row[4:]])
            fresh[number] = out.getvalue()
        return "\n".join(fresh) + "\n"

    return PointFile(_in_system(ras, system), ".fcsv", rewritten)


def _markups(text: str, place: str) -> PointFile:
    """3D Slicer's JSON: ``markups`` with ``controlPoints`` each."""
    try:
        content = json.loads(text)
        systems = [_system(str(m["coordinateSystem"]), place) for m in content["markups"]]
        kinds = {str(m["type"]) for m in content["markups"]}
        given = [_positions(m) for m in content["markups"]]
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise _malformed(place, one_line(f"{type(error).__name__}: {error}")) from error
    if not kinds <= set(_MARKUPS):
        came = ", ".join(sorted(kinds - set(_MARKUPS)))
        raise refusal(place, "markups of " + ", ".join(_MARKUPS), came, "apply it to labels")
    ras = [_in_system(_checked(p, place), s) for p, s in zip(given, systems, strict=True)]

    def rewritten(points: Matrix) -> str:
        fresh: dict[str, Any] = json.loads(text)
        start = 0
        for markup, system, old in zip(fresh["markups"], systems, given, strict=True):
            some = _in_system(points[start : start + len(old)], system)
            start += len(old)
            for control, point in zip(markup["controlPoints"], some, strict=True):
                control["position"] = [float(value) for value in point]
            # lengths and angles of the old positions
            markup.pop("measurements", None)
        return json.dumps(fresh, indent=1)

    return PointFile(np.concatenate(ras), ".mrk.json", rewritten)


def _positions(markup: dict[str, Any]) -> Matrix:
    """``(n, 3)`` as they are written."""
    return np.array([c["position"] for c in markup["controlPoints"]], dtype=np.float64)


def _system(text: str, place: str) -> str:
    """RAS or LPS."""
    try:
        return _SYSTEMS[text.strip().upper()]
    except KeyError:
        came = f"the coordinate system {one_line(text.strip())}"
        raise refusal(place, "RAS or LPS", came, "export it in one of these") from None


def _in_system(points: Matrix, system: str) -> Matrix:
    """RAS to a system or back: each is its own inverse."""
    return points if system == "RAS" else apply_affine(lps_from_ras(points.shape[1]), points)


def _texts(point: Matrix) -> list[str]:
    return [f"{value:.6f}" for value in point]


def _checked(points: Matrix, place: str) -> Matrix:
    """Points of three finite numbers."""
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        came = "no point" if not points.size else "others"
        raise _malformed(place, came)
    return points


def _malformed(place: str, came: str) -> InputError:
    return refusal(place, "points of three numbers in mm", came, "export it from 3D Slicer anew")


__all__ = ["POINT_SUFFIXES", "PointFile", "read_points"]

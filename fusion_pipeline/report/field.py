"""Pictures of the mapping: displacement, volume change, estimated error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fusion_pipeline.geometry import WorldMap
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.report import pictures
from fusion_pipeline.report.facts import label, length_unit
from fusion_pipeline.report.frames import (
    ColourBar,
    Frame,
    FrameTable,
    Heading,
    arrows,
    plane_heading,
)
from fusion_pipeline.report.looks import Look, look_at
from fusion_pipeline.report.pictures import Picture
from fusion_pipeline.report.planes import Pixels, Plane, read
from fusion_pipeline.result import CaseResult

_STILL_MM = 0.01
_Row = tuple[Heading, Sequence[Frame]]


@dataclass(frozen=True)
class Field:
    """The mapping on one plane.

    Attributes:
        displacement: ``(H, W, d)`` RAS mm, from the reference to the moving image.
        determinant: ``(H, W)`` Jacobian determinant of the whole mapping.
    """

    displacement: Matrix
    determinant: Pixels


def field_table(result: CaseResult, key: str, planes: Sequence[Plane]) -> FrameTable | None:
    """Displacement, Jacobian and, where there is one, the error map: a row each.

    Args:
        result: the case.
        key: the moving image.
        planes: where to look; a column each.

    Returns:
        None when nothing moved.
    """
    registration = result.registrations[key]
    fields = [field_on(registration.map, plane) for plane in planes]
    longest = max(float(np.percentile(_length(f), 99.5)) for f in fields)
    if longest < _STILL_MM:
        return None
    fixed = result.case.fixed
    looks = [look_at(fixed, fixed, plane) for plane in planes]
    unit = length_unit(fixed)
    limit = _round_up(longest)
    magnification = _magnification(limit, planes[0])
    rows: list[_Row] = [
        (
            Heading("Displacement"),
            _displacement_frames(fields, looks, planes, limit, magnification),
        ),
        (Heading("Volume change"), _volume_frames(fields, looks, planes)),
    ]
    bars = [
        ColourBar("displacement", pictures.bar_uri("viridis"), ("0", f"{limit:g} {unit}")),
        ColourBar("volume, moving / reference", pictures.bar_uri("bwr"), ("½", "1", "2")),
    ]
    if registration.evidence.error_map_mm is not None:
        error, affine = registration.evidence.error_map_mm, registration.map.working_affine
        frames, top = _error_frames(error, affine, looks, planes)
        rows.append((Heading("Estimated error"), frames))
        bars.append(
            ColourBar("estimated error", pictures.bar_uri("magma"), ("0", f"{top:g} {unit}"))
        )
    columns = [plane_heading(plane) for plane in planes]
    return FrameTable(columns, rows, _caption(key, magnification), bars=bars)


def _caption(key: str, magnification: float) -> str:
    """How to read the pictures of the field."""
    return (
        f"Arrows ({magnification:g} × true length) point from the reference to the same content "
        f"in {label(key)}. Volume change is the Jacobian determinant; "
        "a fold would be a black spot ringed in yellow."
    )


def _displacement_frames(
    fields: Sequence[Field],
    looks: Sequence[Look],
    planes: Sequence[Plane],
    limit: float,
    magnification: float,
) -> list[Frame]:
    """Length in colour, direction as arrows."""
    return [
        Frame(
            _tinted(look, _length(field) / limit, "viridis"),
            plane,
            arrows(field.displacement * magnification, look.present, plane),
        )
        for look, field, plane in zip(looks, fields, planes, strict=True)
    ]


def _volume_frames(
    fields: Sequence[Field], looks: Sequence[Look], planes: Sequence[Plane]
) -> list[Frame]:
    """Jacobian determinants with the reference's outline."""
    return [
        Frame(
            _with_outline(pictures.jacobian_picture(field.determinant, look.present), look, plane),
            plane,
        )
        for look, field, plane in zip(looks, fields, planes, strict=True)
    ]


def field_on(mapping: WorldMap, plane: Plane) -> Field:
    """The mapping on a plane; its Jacobian by central differences of the working lattice."""
    points = plane.points
    d = points.shape[-1]
    steps = mapping.working_affine[:d, :d].T
    slopes = [(mapping.points(points + s) - mapping.points(points - s)) / 2 for s in steps]
    volume = np.linalg.det(np.stack(slopes, axis=-2)) / np.linalg.det(steps)
    return Field(mapping.points(points) - points, volume.astype(np.float32))


def _error_frames(
    error: Tensor, affine: Matrix, looks: Sequence[Look], planes: Sequence[Plane]
) -> tuple[list[Frame], float]:
    """The register stage's own estimate of its error, over the reference."""
    values = [read(error[None], affine, plane.points) for plane in planes]
    top = _round_up(max(float(np.nanpercentile(v, 99)) for v in values))
    return [
        Frame(_tinted(look, np.nan_to_num(v) / top, "magma"), plane)
        for look, v, plane in zip(looks, values, planes, strict=True)
    ], top


def _tinted(look: Look, unit: Pixels, colormap: str) -> Picture:
    """A colour map of values 0..1, shaded by the grey reference."""
    shade = 0.55 + 0.45 * look.unit[..., None]
    colour = pictures.coloured(np.clip(unit, 0, 1), colormap) * shade
    return pictures.blend(look.picture, colour, look.present)


def _with_outline(picture: Picture, look: Look, plane: Plane) -> Picture:
    """The reference's edges in faint grey, for orientation."""
    edges = pictures.edges_of(look.unit, look.present, plane.mm_per_pixel)
    return pictures.contours(picture, edges, (0.55, 0.57, 0.6))


def _length(field: Field) -> Pixels:
    """Displacement's length in mm, ``(H, W)``."""
    return np.linalg.norm(field.displacement, axis=-1).astype(np.float32)


def _round_up(value: float) -> float:
    """The next round number, at least 0.5: the end of a scale."""
    value = max(value, 0.5)
    power = 10.0 ** math.floor(math.log10(value))
    return next(f * power for f in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if f * power >= value * 0.999)


def _magnification(limit: float, plane: Plane) -> float:
    """How much longer than true the arrows are drawn: the longest takes a tenth of the picture."""
    room = 0.1 * max(plane.shape) * plane.mm_per_pixel
    return next((f for f in (10.0, 5.0, 3.0, 2.0) if f * limit <= room), 1.0)

"""Pictures of the mapping: displacement, volume change, estimated error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
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
from fusion_pipeline.report.looks import Look, covered_by, look_at
from fusion_pipeline.report.pictures import Mask, Picture
from fusion_pipeline.report.planes import Pixels, Plane, read
from fusion_pipeline.result import CaseResult

_STILL_MM = 0.01
ERROR_TOP = 10.0  # mm, of every error map: cases can then be compared by eye
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
    fields = [smooth_field_on(registration.map, plane) for plane in planes]
    lengths = np.concatenate([_length(f).ravel() for f in fields])
    if np.percentile(lengths, 99.5) < _STILL_MM:
        return None
    fixed = result.case.fixed
    looks = [look_at(fixed, fixed, plane) for plane in planes]
    unit = length_unit(fixed)
    limit = displacement_top(lengths)
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
    errors = _error_rows(result, key, fields, looks, planes)
    if errors:
        bars.append(ColourBar("error", pictures.bar_uri("magma"), ("0", f"{ERROR_TOP:g} {unit}")))
    rows.extend(errors)
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


def smooth_field_on(mapping: WorldMap, plane: Plane) -> Field:
    """The same, computed twice per cell of the working lattice and linear between.

    The mapping is linear between the points of its lattice: more pixels would tell nothing.
    """
    d = plane.points.shape[-1]
    spacing = float(np.linalg.norm(mapping.working_affine[:d, :d], axis=0).min())
    every = max(1, int(0.5 * spacing / plane.mm_per_pixel))
    if every == 1:
        return field_on(mapping, plane)
    coarse = field_on(mapping, replace(plane, points=plane.points[::every, ::every]))
    index = np.indices(plane.shape) / every
    parts = [*np.moveaxis(coarse.displacement, -1, 0), coarse.determinant]
    fine = [ndimage.map_coordinates(part, index, order=1, mode="nearest") for part in parts]
    return Field(np.stack(fine[:-1], axis=-1), fine[-1].astype(np.float32))


def _error_rows(
    result: CaseResult,
    key: str,
    fields: Sequence[Field],
    looks: Sequence[Look],
    planes: Sequence[Plane],
) -> list[_Row]:
    """The estimated error and, where it is known, the true one, over the reference."""
    registration, truth = result.registrations[key], result.case.series[key].displacement
    rows: list[_Row] = []
    overlaps = [covered_by(result, key, plane.points) for plane in planes]
    if registration.evidence.error_map_mm is not None:
        error, affine = registration.evidence.error_map_mm[None], registration.map.working_affine
        estimates = [read(error, affine, plane.points) for plane in planes]
        rows.append((Heading("Estimated error"), _error_frames(estimates, overlaps, looks, planes)))
    if truth is not None:
        differences = [
            _length(replace(f, displacement=f.displacement - vectors_on(truth, result, plane)))
            for f, plane in zip(fields, planes, strict=True)
        ]
        rows.append((Heading("True error"), _error_frames(differences, overlaps, looks, planes)))
    return rows


def vectors_on(truth: Tensor, result: CaseResult, plane: Plane) -> Matrix:
    """A true displacement ``(d, *S)`` mm on a plane, ``(H, W, d)``; NaN outside the reference."""
    parts = [read(part[None], result.case.fixed.affine, plane.points) for part in truth]
    return np.stack(parts, axis=-1).astype(np.float64)


def _error_frames(
    errors: Sequence[Pixels],
    overlaps: Sequence[Mask],
    looks: Sequence[Look],
    planes: Sequence[Plane],
) -> list[Frame]:
    """Errors on one fixed scale, where both images are; elsewhere the reference alone."""
    frames = []
    for error, overlap, look, plane in zip(errors, overlaps, looks, planes, strict=True):
        inside = replace(look, present=look.present & overlap & np.isfinite(error))
        frames.append(Frame(_tinted(inside, np.nan_to_num(error) / ERROR_TOP, "magma"), plane))
    return frames


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


def displacement_top(lengths: Pixels) -> float:
    """A round end for a scale of displacements; the few longest may lie above it.

    Args:
        lengths: mm; none at all gives the shortest scale.
    """
    return _round_up(float(np.percentile(lengths, 99.5)) if lengths.size else 0.0)


def _round_up(value: float) -> float:
    """The next round number, at least 0.5: the end of a scale."""
    value = max(value, 0.5)
    power = 10.0 ** math.floor(math.log10(value))
    return next(f * power for f in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if f * power >= value * 0.999)


def _magnification(limit: float, plane: Plane) -> float:
    """How much longer than true the arrows are drawn: the longest takes a tenth of the picture."""
    room = 0.1 * max(plane.shape) * plane.mm_per_pixel
    return next((f for f in (10.0, 5.0, 3.0, 2.0) if f * limit <= room), 1.0)

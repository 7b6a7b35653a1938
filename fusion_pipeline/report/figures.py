"""The pictures of the page: alignment of each moving image, harmonization and fusion."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusion_pipeline.data import Image
from fusion_pipeline.fuse import Fusion
from fusion_pipeline.report import pictures
from fusion_pipeline.report.facts import label
from fusion_pipeline.report.field import field_table
from fusion_pipeline.report.frames import (
    ColourBar,
    Frame,
    FrameTable,
    Heading,
    Legend,
    plane_heading,
)
from fusion_pipeline.report.looks import (
    Look,
    colour_at,
    covered_by,
    look_after,
    look_at,
    planes_for,
)
from fusion_pipeline.report.pictures import Picture, Window
from fusion_pipeline.report.planes import Plane, coarse_content, read
from fusion_pipeline.result import CaseResult

_FUSED_WINDOW = Window(0.0, 1.0)


@dataclass(frozen=True)
class AlignmentFigures:
    """The pictures of one moving image.

    Attributes:
        compared: before and after registration, in each plane.
        field: the mapping; None where nothing moved.
    """

    compared: FrameTable
    field: FrameTable | None


def alignment_figures(result: CaseResult, key: str, *, pixels: int) -> AlignmentFigures:
    """Before and after of one moving image, in each plane, and the field that lies between.

    Args:
        result: the case.
        key: the moving image.
        pixels: longer side of each picture.
    """
    planes = planes_for(result, pixels)
    fixed, moving = result.case.fixed, result.case.images[key]
    overlaid = pictures.is_emission(moving) != pictures.is_emission(fixed)
    compared = "Overlay" if overlaid else "Checkerboard"
    outlined = f"{label(fixed.key)} outlines on {label(key)}"
    table = FrameTable(
        [
            Heading(f"{what}, {when}")
            for what in (compared, outlined)
            for when in ("before", "after")
        ],
        [(plane_heading(plane), _alignment_row(result, key, plane)) for plane in planes],
        _alignment_caption(fixed, moving, overlaid=overlaid),
        bars=[_uptake_bar(moving if pictures.is_emission(moving) else fixed)] if overlaid else [],
    )
    return AlignmentFigures(table, field_table(result, key, planes))


def _alignment_caption(fixed: Image, moving: Image, *, overlaid: bool) -> str:
    """How to read the pictures of an alignment."""
    shown = (
        "PET and SPECT are coloured over the anatomy."
        if overlaid
        else f"Tiles: grey = {label(fixed.key)}, warm tint = {label(moving.key)}; "
        "borders should run on across tiles. Dimmed: outside the moving image."
    )
    windows = f"{label(fixed.key)} {window_text(fixed)}; {label(moving.key)} {window_text(moving)}"
    return f"{shown} Before: initial alignment, from the image headers. Windows: {windows}"


def _uptake_bar(image: Image) -> ColourBar:
    """The colours of a PET or SPECT over the anatomy."""
    window = pictures.window_of(image)
    ticks = [f"{value:.3g}" for value in (window.low, (window.low + window.high) / 2, window.high)]
    return ColourBar(
        f"{label(image.key)}, {window.units}",
        pictures.bar_uri("inferno", pictures.UPTAKE_START),
        ticks,
    )


def fusion_tables(result: CaseResult, *, pixels: int) -> list[FrameTable]:
    """Harmonized images; then the fused image, and where each voxel came from."""
    planes = planes_for(result, pixels)
    tables = []
    if result.harmonization.images:
        keys = tuple(result.harmonization.images)
        rows = [(plane_heading(p), [_harmonized_frame(result, k, p) for k in keys]) for p in planes]
        headings = [Heading(f"{label(k)}, harmonized") for k in keys]
        tables.append(FrameTable(headings, rows, "One scale for all: 0 to 1."))
    if result.fusion is not None:
        tables.append(_fused_table(result, result.fusion, planes))
    return tables


def _fused_table(result: CaseResult, fusion: Fusion, planes: Sequence[Plane]) -> FrameTable:
    """The fused image, its sources by colour, and the weights."""
    in_colour = [] if fusion.colour is None else ["Fused, uptake in colour"]
    weights = [f"Weight of {label(k)}" for k in result.modalities]
    return FrameTable(
        [Heading(name) for name in (*in_colour, "Fused", "Sources by colour", *weights)],
        [(plane_heading(p), _fused_row(fusion, p)) for p in planes],
        _fusion_caption(fusion),
        _shares_legend(result, fusion),
        [ColourBar("weight", pictures.bar_uri("viridis"), ("0", "0.5", "1"))],
    )


def _shares_legend(result: CaseResult, fusion: Fusion) -> Legend:
    """The colour of each modality, and its mean weight over the reference's body."""
    body = coarse_content(result.case.fixed).points[None]
    entries = []
    for n, (key, weight) in enumerate(zip(result.modalities, fusion.weights, strict=True)):
        share = float(np.nanmean(read(weight[None], fusion.fused.affine, body)))
        entries.append((f"{label(key)} {100 * share:.0f} %", _modality_colour(n)))
    return Legend("Mean share within the body:", entries)


def _fusion_caption(fusion: Fusion) -> str:
    """What the weights are, and between which of its values the fused image is shown."""
    window = _FUSED_WINDOW
    text = (
        "Weights are positive and sum to one at each voxel. "
        f"The fused image is shown from {window.low:.2f} to {window.high:.2f}."
    )
    if fusion.colour is None:
        return text
    return f"{text} In colour: luminance by the fused anatomy, hue and opacity by the uptake."


def glance_table(result: CaseResult, *, pixels: int) -> FrameTable:
    """One row: the fused image in colour, the reference, each other image, the fused image."""
    plane = planes_for(result, pixels)[0]
    fixed, fusion = result.case.fixed, result.fusion
    shown = [("Fused, uptake in colour", frame) for frame in _colour_frames(fusion, plane)]
    picture = _in_colour_or(look_at(fixed, fixed, plane).picture, fixed, plane)
    alone = not result.case.moving
    shown.append((f"{label(fixed.key)}{'' if alone else ' (reference)'}", Frame(picture, plane)))
    for key in result.case.moving:
        picture = _in_colour_or(look_after(result, key, plane).picture, result.aligned(key), plane)
        moved = ", registered" if key in result.registrations else ""
        shown.append((f"{label(key)}{moved}", Frame(picture, plane)))
    if fusion is not None:
        shown.append(("Fused", Frame(_fused_picture(fusion, plane), plane)))
    columns = [Heading(name) for name, _ in shown]
    return FrameTable(columns, [(plane_heading(plane), [frame for _, frame in shown])])


def _in_colour_or(picture: Picture, image: Image, plane: Plane) -> Picture:
    """A colour picture as it is, any other as ``picture``."""
    colour = colour_at(image, plane)
    return picture if colour is None else colour


def window_text(image: Image) -> str:
    """The display window in words."""
    return str(pictures.window_of(image))


def _alignment_row(result: CaseResult, key: str, plane: Plane) -> list[Frame]:
    """Before and after, as checkerboard or overlay, then as outlines."""
    fixed_image, moving_image = result.case.fixed, result.case.images[key]
    fixed = look_at(fixed_image, fixed_image, plane)
    looks = (look_at(moving_image, moving_image, plane), look_after(result, key, plane))
    mixed = [_mixed(fixed, moving, plane, fixed_image, moving_image) for moving in looks]
    edges = pictures.edges_of(fixed.unit, fixed.present, plane.mm_per_pixel)
    emission = pictures.is_emission(moving_image)
    colour = pictures.EDGE_COLOUR_ON_WHITE if emission else pictures.EDGE_COLOUR
    outlined = [pictures.contours(moving.picture, edges, colour) for moving in looks]
    return [Frame(picture, plane) for picture in (*mixed, *outlined)]


def _mixed(
    fixed: Look, moving: Look, plane: Plane, fixed_image: Image, moving_image: Image
) -> Picture:
    """Both images in one picture."""
    emissions = pictures.is_emission(fixed_image), pictures.is_emission(moving_image)
    if emissions == (False, True):
        return pictures.emission_overlay(fixed.picture, moving.unit, moving.present)
    if emissions == (True, False):
        return pictures.emission_overlay(moving.picture, fixed.unit, fixed.present)
    tile = max(8, round(max(plane.shape) / 12))
    return pictures.checkerboard(fixed.picture, moving.picture, moving.present, tile)


def _harmonized_frame(result: CaseResult, key: str, plane: Plane) -> Frame:
    """A harmonized image on a plane, within its modality's field of view."""
    image = result.harmonization.images[key]
    values = read(image.array, image.affine, plane.points)
    present = np.isfinite(values)
    if key != result.case.reference:
        present &= covered_by(result, key, plane.points)
    return Frame(pictures.grey(Window(0.0, 1.0).unit(values), present), plane)


def _fused_picture(fusion: Fusion, plane: Plane) -> Picture:
    """The fused image in grey."""
    fused = fusion.fused
    values = read(fused.array, fused.affine, plane.points)
    return pictures.grey(_FUSED_WINDOW.unit(values), np.isfinite(values))


def _colour_frames(fusion: Fusion | None, plane: Plane) -> list[Frame]:
    """The fused image in colour, where there is an emission image."""
    colour = None if fusion is None else fusion.colour
    picture = None if colour is None else colour_at(colour, plane)
    return [] if picture is None else [Frame(picture, plane)]


def _fused_row(fusion: Fusion, plane: Plane) -> list[Frame]:
    """The fused image, its sources by colour, and each weight map."""
    fused = fusion.fused
    values = read(fused.array, fused.affine, plane.points)
    unit, present = _FUSED_WINDOW.unit(values), np.isfinite(values)
    weights = [read(w[None], fused.affine, plane.points) for w in fusion.weights]
    colours = [_modality_colour(n) for n in range(len(weights))]
    sources = pictures.mixture(unit, np.stack(weights), colours)
    shown = [
        _fused_picture(fusion, plane),
        pictures.on_page(sources, present),
        *[pictures.on_page(pictures.coloured(w, "viridis"), present) for w in weights],
    ]
    return [*_colour_frames(fusion, plane), *[Frame(picture, plane) for picture in shown]]


def _modality_colour(n: int) -> tuple[float, ...]:
    """The colour of the modality in channel ``n`` of the weights."""
    return pictures.MODALITY_COLOURS[n % len(pictures.MODALITY_COLOURS)]

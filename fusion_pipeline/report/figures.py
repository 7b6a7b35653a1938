"""The report's sections of pictures: alignment of each moving image, harmonization and fusion."""

from collections.abc import Sequence
from html import escape

import numpy as np

from fusion_pipeline.data import Image
from fusion_pipeline.report import pictures
from fusion_pipeline.report.field import field_section
from fusion_pipeline.report.looks import (
    Look,
    colour_at,
    covered_by,
    look_after,
    look_at,
    planes_for,
)
from fusion_pipeline.report.page import Cell, colour_bar, label, legend, planes_table
from fusion_pipeline.report.pictures import Picture, Window
from fusion_pipeline.report.planes import Plane, coarse_content, read
from fusion_pipeline.result import CaseResult

_ALIGNMENT_TITLES = ("before", "after")


def alignment_section(result: CaseResult, key: str, *, pixels: int) -> str:
    """Before and after of one moving image, in each plane, and the field that lies between.

    Args:
        result: the case.
        key: the moving image.
        pixels: longer side of each picture.

    Returns:
        HTML.
    """
    planes = planes_for(result, key, pixels)
    rows = [(plane, _alignment_row(result, key, plane)) for plane in planes]
    fixed, moving = result.case.fixed, result.case.images[key]
    emission = pictures.is_emission(moving) != pictures.is_emission(fixed)
    first = "Overlay" if emission else "Checkerboard"
    outline = f"{label(fixed.key)} outlines on {label(key)}"
    titles = [f"{what}, {when}" for what in (first, outline) for when in _ALIGNMENT_TITLES]
    shown = (
        "PET and SPECT are coloured over the anatomy."
        if emission
        else f"Tiles: grey = {label(fixed.key)}, warm tint = {label(key)}; "
        "borders should run on across tiles. Dimmed: outside the moving image."
    )
    windows = f"{label(fixed.key)} {window_text(fixed)}; {label(key)} {window_text(moving)}"
    caption = f"{shown} Before: placed by the file headers alone. Windows: {windows}"
    return planes_table(titles, rows, escape(caption)) + field_section(result, key, planes)


def fusion_section(result: CaseResult, *, pixels: int) -> str:
    """Harmonized images, the fused image, and where each voxel came from."""
    key = _telling_key(result)
    planes = planes_for(result, key, pixels)
    keys = result.modalities
    harmonized = [(plane, [_unit_cell(result, k, plane) for k in keys]) for plane in planes]
    fused = [(plane, _fused_row(result, plane)) for plane in planes]
    colours = [(label(k), pictures.MODALITY_COLOURS[i % 6]) for i, k in enumerate(keys)]
    shares = _mean_shares(result)
    entries = [
        (f"{name} {100 * share:.0f} %", colour)
        for (name, colour), share in zip(colours, shares, strict=True)
    ]
    titles = ["Fused", "Sources by colour", *[f"Weight of {label(k)}" for k in keys]]
    return (
        planes_table(
            [f"{label(k)}, harmonized" for k in keys], harmonized, "One scale for all: 0 to 1."
        )
        + planes_table(titles, fused, _fusion_caption(result))
        + legend("Mean share within the body:", entries)
        + colour_bar("weight", pictures.bar_uri("viridis"), ("0", "0.5", "1"))
    )


def _fusion_caption(result: CaseResult) -> str:
    """What the weights are, and between which of its values the fused image is shown."""
    window = _fused_window(result.fusion.fused)
    return (
        "Weights are positive and sum to one at each voxel. "
        f"The fused image is shown from {window.low:.2f} to {window.high:.2f}."
    )


def glance_section(result: CaseResult, *, pixels: int) -> str:
    """One row: the reference, each registered image, and the fused image."""
    key = _telling_key(result)
    plane = planes_for(result, key, pixels)[0]
    fixed = result.case.fixed
    cells = [Cell(_or_colour(look_at(fixed, fixed, plane).picture, fixed, plane))]
    titles = [f"{label(fixed.key)} (reference)"]
    for k in result.registrations:
        picture = look_after(result, k, plane).picture
        cells.append(Cell(_or_colour(picture, result.registered_images[k], plane)))
        titles.append(f"{label(k)}, registered")
    cells.append(_fused_row(result, plane)[0])
    return planes_table([*titles, "Fused"], [(plane, cells)], "")


def _telling_key(result: CaseResult) -> str:
    """The moving image that decides where the shared planes lie: PET or SPECT, if any."""
    moving = result.case.moving
    return next((k for k, i in moving.items() if pictures.is_emission(i)), next(iter(moving)))


def _or_colour(picture: Picture, image: Image, plane: Plane) -> Picture:
    """A colour picture as it is, any other as ``picture``."""
    colour = colour_at(image, plane)
    return picture if colour is None else colour


def window_text(image: Image) -> str:
    """The display window in words."""
    return str(pictures.window_of(image))


def _alignment_row(result: CaseResult, key: str, plane: Plane) -> list[Cell]:
    """Before and after, as checkerboard or overlay, then as outlines."""
    fixed_image, moving_image = result.case.fixed, result.case.images[key]
    fixed = look_at(fixed_image, fixed_image, plane)
    looks = (look_at(moving_image, moving_image, plane), look_after(result, key, plane))
    mixed = [_mixed(fixed, moving, plane, fixed_image, moving_image) for moving in looks]
    edges = pictures.edges_of(fixed.unit, fixed.present, plane.mm_per_pixel)
    emission = pictures.is_emission(moving_image)
    colour = pictures.EDGE_COLOUR_ON_WHITE if emission else pictures.EDGE_COLOUR
    outlined = [pictures.contours(moving.picture, edges, colour) for moving in looks]
    return [Cell(picture) for picture in (*mixed, *outlined)]


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


def _unit_cell(result: CaseResult, key: str, plane: Plane) -> Cell:
    """A harmonized image on a plane, where its modality has something to say."""
    image = result.harmonization.images[key]
    values = read(image.array, image.affine, plane.points)
    present = np.isfinite(values)
    if key in result.registrations:
        present &= covered_by(result, key, plane.points)
    return Cell(pictures.grey(Window(0.0, 1.0).unit(values), present))


def _fused_row(result: CaseResult, plane: Plane) -> list[Cell]:
    """The fused image, its sources by colour, and each weight map."""
    fused = result.fusion.fused
    values = read(fused.array, fused.affine, plane.points)
    unit, present = _fused_window(fused).unit(values), np.isfinite(values)
    weights = [read(w[None], fused.affine, plane.points) for w in result.fusion.weights]
    colours = [pictures.MODALITY_COLOURS[i % 6] for i in range(len(weights))]
    sources = pictures.mixture(unit, np.stack(weights), colours)
    shown = [
        _or_colour(pictures.grey(unit, present), fused, plane),
        pictures.on_page(sources, present),
        *[pictures.on_page(pictures.coloured(w, "viridis"), present) for w in weights],
    ]
    return [Cell(picture) for picture in shown]


def _fused_window(fused: Image) -> Window:
    """From the air's value, which is not 0 after harmonization, to the brightest structures."""
    thin = tuple(slice(None, None, max(1, n // 96)) for n in fused.shape)
    low, high = np.percentile(fused.array[0][thin].float().numpy(), [1.0, 99.8])
    return Window(float(low), float(max(high, low + 1e-3)))


def _mean_shares(result: CaseResult) -> Sequence[float]:
    """Mean weight of each modality over the reference's body."""
    body = coarse_content(result.case.fixed).points[None]
    affine = result.fusion.fused.affine
    return [float(np.nanmean(read(w[None], affine, body))) for w in result.fusion.weights]

"""How the images of a case look on one plane, and which planes are worth a look."""

from dataclasses import dataclass

import numpy as np
import torch

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import apply_affine, inside, inverse_affine
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.report import pictures
from fusion_pipeline.report.pictures import Mask, Picture
from fusion_pipeline.report.planes import (
    Pixels,
    Plane,
    busiest_point,
    coarse_content,
    content_box,
    hottest_point,
    planes_through,
    read,
)
from fusion_pipeline.result import CaseResult

_ENOUGH = 0.02  # share of the body


@dataclass(frozen=True)
class Look:
    """One image of the case on one plane.

    Attributes:
        unit: ``(H, W)`` 0..1 in the display window; 0 where the image is not.
        present: where the image is.
        picture: ready to show; PET and SPECT in inverted grey.
    """

    unit: Pixels
    present: Mask
    picture: Picture


def planes_for(result: CaseResult, pixels: int) -> tuple[Plane, ...]:
    """The planes that all pictures of the page show.

    Args:
        result: the case.
        pixels: longer side of each picture.
    """
    return planes_through(shared_point(result), *content_box(result.case.fixed), pixels=pixels)


def shared_point(result: CaseResult) -> Matrix:
    """The hottest spot of a PET or SPECT, else where the images overlap most: ``(d,)`` RAS mm."""
    images = result.case.images
    others = [*result.case.moving] or [result.case.reference]
    key = next((k for k in others if pictures.is_emission(images[k])), others[0])
    fixed = result.case.fixed
    body = coarse_content(fixed).points
    # a spot that every image sees says more than the hottest bladder at the edge of one
    covered = {k: covered_by(result, k, body) for k in others}
    common = np.logical_and.reduce(list(covered.values()))
    choice = common if common.sum() > _ENOUGH * len(body) else covered[key]
    body = body[choice] if choice.any() else body
    shown = result.aligned(key)
    values = read(shown.array, shown.affine, body[None])[0]
    return hottest_point(body, values) if pictures.is_emission(shown) else busiest_point(body)


def covered_by(result: CaseResult, key: str, points: Matrix) -> Mask:
    """Which points of the reference's world lie in an image, after registration."""
    return _within(result.case.images[key], result.map_of(key).points(points))


def look_at(image: Image, shown_as: Image, plane: Plane, present: Mask | None = None) -> Look:
    """An image on a plane, windowed as ``shown_as`` is; PET and SPECT in inverted grey."""
    values = read(image.array, image.affine, plane.points)
    there = np.isfinite(values) if present is None else np.isfinite(values) & present
    unit = np.where(there, pictures.window_of(shown_as).unit(values), 0).astype(np.float32)
    shown = 1 - unit if pictures.is_emission(image) else unit
    return Look(unit, there, pictures.grey(shown, there))


def look_after(result: CaseResult, key: str, plane: Plane) -> Look:
    """A moving image after the stages on a plane, only where it has something to say."""
    present = covered_by(result, key, plane.points)
    return look_at(result.aligned(key), result.case.images[key], plane, present)


def _within(image: Image, points: Matrix) -> Mask:
    """Which points of the world lie in an image."""
    voxels = apply_affine(inverse_affine(image.affine), points)
    return np.asarray(inside(torch.from_numpy(voxels), image.shape).numpy())


def colour_at(image: Image, plane: Plane) -> Picture | None:
    """A colour picture on a plane, as it is; None for a grey image."""
    if image.colour is None:
        return None
    channels = [read(channel[None].float(), image.affine, plane.points) for channel in image.colour]
    picture = np.asarray(np.stack(channels, axis=-1) / 255, dtype=np.float32)
    return pictures.on_page(picture, np.isfinite(channels[0]))

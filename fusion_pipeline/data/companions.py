"""Masks, label maps and landmarks: whether they can belong to their image."""

from collections.abc import Sequence

import nibabel as nib
import numpy as np

from fusion_pipeline.data.image import Image
from fusion_pipeline.data.refusals import refusal
from fusion_pipeline.geometry import apply_affine, inverse_affine, lps_from_ras, spacing_of
from fusion_pipeline.geometry.affines import Matrix

_SAME_VOXELS = 0.5  # of the image's shortest voxel side: a corner that is nearer is the same
_POINTS = 200_000  # marked voxels that are looked at
_MOSTLY = 0.5  # of what a map marks: less in its image is said


def check_grid(image: Image, affine: Matrix, shape: tuple[int, ...], place: str) -> list[str]:
    """Compare a map's grid with its image's, where both have one shape.

    A map of the image's shape was mostly drawn on the image. Another affine then is a lost or a
    mirrored header; or it is another series with as many voxels, which is only said.

    Args:
        image: the image.
        affine: of the map.
        shape: of the map.
        place: name of the map in messages.

    Returns:
        A sentence, or nothing.

    Raises:
        InputError: the map has no position of its own, or LPS and RAS were mixed up.
    """
    turned, along = _turned(affine, shape, image.affine)
    if along != image.shape:
        return []
    limit = _SAME_VOXELS * float(image.spacing.min())
    apart = _apart(image.affine, turned, along)
    if apart <= limit:
        return []
    wrong = ""
    mirrored = lps_from_ras(len(shape)) @ image.affine
    if shape == image.shape and _apart(mirrored, affine, shape) <= limit:
        wrong = f"that of {image.key} mirrored in x and y, as if LPS were RAS"
    elif _is_bare(affine) and not _is_bare(image.affine):
        wrong = "one of 1 mm voxels at the origin, as if its header were lost"
    if wrong:
        raise refusal(
            place,
            f"the affine of {image.key}, whose shape it has",
            wrong,
            f"save it with the header of {image.key}",
        )
    return [
        f"{place}: has the shape of {image.key} and another affine (corners up to {apart:.1f} mm "
        "apart); it lies where its own header says."
    ]


def check_marked(image: Image, labels: Image, place: str) -> list[str]:
    """Refuse a map that marks nothing within its image, and say if it marks mostly other space.

    Args:
        image: the image.
        labels: the map, 1 and above marked.
        place: name of the map in messages.

    Raises:
        InputError: nothing marked lies in the image.
    """
    marked = np.argwhere(labels.array[0].numpy() >= 1)[:: _step(labels)]
    inside = _inside(apply_affine(labels.affine, marked.astype(np.float64)), image)
    share = float(inside.mean())
    if share == 0:
        expected = f"a map that marks something in {image.key}"
        came = f"one whose marked voxels all lie outside {image.key}"
        raise refusal(place, expected, came, f"draw it on {image.key}, or correct its header")
    if share < _MOSTLY:
        return [f"{place}: only {100 * share:.0f} % of what it marks lies in {image.key}."]
    return []


def check_points(image: Image, points: Matrix, place: str) -> list[str]:
    """Refuse landmarks that all lie outside their image, and count those that do.

    Args:
        image: the image.
        points: ``(n, d)`` RAS mm.
        place: name of the points in messages.

    Raises:
        InputError: no point lies in the image.
    """
    outside = ~_inside(points, image)
    if not outside.any():
        return []
    if not outside.all():
        count = f"{int(outside.sum())} of {len(points)} points"
        return [f"{place}: {count} lie outside {image.key}."]
    signs = lps_from_ras(points.shape[1]).diagonal()[:-1]
    advice = "give RAS mm (not voxel indices)"
    if _inside(points * signs, image).all():
        advice = "negate x and y: they seem to be LPS mm"
    elif _inside(apply_affine(image.affine, points), image).all():
        advice = "give RAS mm: these seem to be voxel indices"
    raise refusal(place, f"points in {image.key}, RAS mm", "all of them outside it", advice)


def _turned(
    affine: Matrix, shape: tuple[int, ...], target: Matrix
) -> tuple[Matrix, tuple[int, ...]]:
    """A grid with its axes flipped and swapped to run along those of another."""
    here, there = (nib.orientations.io_orientation(a) for a in (affine, target))
    turn = nib.orientations.ornt_transform(here, there)
    order = np.argsort(turn[:, 0])
    return (
        affine @ nib.orientations.inv_ornt_aff(turn, shape),
        tuple(shape[int(axis)] for axis in order),
    )


def _apart(a: Matrix, b: Matrix, shape: Sequence[int]) -> float:
    """Largest distance in mm between the two positions of a grid's corner."""
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), -1)
    voxels = corners.reshape(-1, len(shape)).astype(np.float64)
    return float(np.linalg.norm(apply_affine(a, voxels) - apply_affine(b, voxels), axis=1).max())


def _is_bare(affine: Matrix) -> bool:
    """Voxels of 1 mm along the world's axes, the first at the origin: what no header gives."""
    d = len(affine) - 1
    axes = np.allclose(np.abs(affine[:d, :d]), np.eye(d)) and np.allclose(spacing_of(affine), 1)
    return bool(axes and not affine[:d, d].any())


def _step(labels: Image) -> int:
    """Every how many marked voxels are looked at."""
    return int((labels.array >= 1).sum()) // _POINTS + 1


def _inside(points: Matrix, image: Image) -> np.ndarray:
    """Which points ``(n, d)`` lie in an image, half a voxel around its centres included."""
    voxels = apply_affine(inverse_affine(image.affine), points)
    within = (voxels >= -0.5) & (voxels <= np.asarray(image.shape) - 0.5)
    return np.asarray(within.all(-1))


__all__ = ["check_grid", "check_marked", "check_points"]

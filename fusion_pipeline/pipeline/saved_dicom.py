"""A saved result on DICOM contours and segments."""

from pathlib import Path

import numpy as np

from fusion_pipeline.data.dicom import SeriesHeaders
from fusion_pipeline.data.refusals import refusal
from fusion_pipeline.dicom.objects import target_series
from fusion_pipeline.dicom.segments import SegmentedImage
from fusion_pipeline.dicom.structures import StructureSet
from fusion_pipeline.geometry import apply_affine, inverse_affine, spacing_of
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.pipeline.saved import Grid, SavedRegistration


def warp_rtstruct(
    saved: SavedRegistration,
    path: str | Path,
    onto: str,
    target: str | Path,
    *,
    inverse: bool = False,
) -> list[str]:
    """Bring an RT Structure Set over: new contours on the slices of another series.

    Args:
        saved: the result.
        path: of the set; drawn in the world of the moving image, with ``inverse`` in that of the
            reference.
        onto: DICOM series that the contours go to, of the reference, with ``inverse`` of the moving
            image.
        target: file that is written.
        inverse: from the reference to the moving image.

    Returns:
        A sentence for each structure of which nothing is left on the slices.

    Raises:
        InputError: no such set or series, or a set that lies elsewhere.
    """
    given = StructureSet.read(path)
    series = _series(onto)
    source = saved.reference_grid if inverse else saved.moving_grid
    points = np.concatenate([c.points for some in given.contours.values() for c in some])
    _check_inside(points, source, f"RTSTRUCT ({path})")

    def to_target(here: Matrix) -> Matrix:
        return saved.points(here, inverse=inverse)

    from_target = (saved.inverse_map if inverse else saved.map).points
    contours = given.warped(series, from_target, to_target, float(spacing_of(source.affine).max()))
    given.write(contours, series, target)
    names = given.names()
    return [
        f"RTSTRUCT ({path}): nothing of {names.get(number) or number} lies on the slices of {onto}."
        for number, some in given.contours.items()
        if some and not contours[number]
    ]


def warp_seg(
    saved: SavedRegistration,
    path: str | Path,
    onto: str,
    target: str | Path,
    *,
    inverse: bool = False,
) -> None:
    """Bring the segments of a DICOM Segmentation over, each voxel from the nearest one.

    Args:
        saved: the result.
        path: of the segmentation.
        onto: DICOM series that the segments go to.
        target: file that is written.
        inverse: from the reference to the moving image.

    Raises:
        InputError: no such segmentation or series.
    """
    given = SegmentedImage.read(path)
    series = _series(onto)
    grid = Grid(series.affine, series.shape)
    labels = [
        saved.warp(one, onto=grid, inverse=inverse, nearest=True)
        for one in given.labels(saved.reference if inverse else saved.key)
    ]
    given.write(labels, series, target)


def _series(onto: str) -> SeriesHeaders:
    """The slices of the target."""
    return target_series(onto, f"--onto ({onto})")


def _check_inside(points: Matrix, grid: Grid, place: str) -> None:
    """Refuse contours none of which lies in the image that they should be drawn on."""
    voxels = apply_affine(inverse_affine(grid.affine), points)
    if not ((voxels > -1) & (voxels < np.array(grid.shape))).all(1).any():
        raise refusal(
            place,
            "contours in the image that the registration starts from",
            "none there",
            "use --inverse for contours of the reference, or name another --key",
        )


__all__ = ["warp_rtstruct", "warp_seg"]

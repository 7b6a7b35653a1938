"""A saved result, applied: other images, labels and points of the patient brought over."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusion_pipeline.data import Image, InputError, read_image, read_transform
from fusion_pipeline.geometry import WorldMap
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.pipeline.folder import REPORT
from fusion_pipeline.register import warped


@dataclass(frozen=True)
class Grid:
    """Where voxels lie.

    Attributes:
        affine: ``(d + 1, d + 1)`` world_from_voxel, RAS mm.
        shape: spatial shape.
    """

    affine: Matrix
    shape: tuple[int, ...]

    @classmethod
    def of_file(cls, path: str | Path, key: str) -> "Grid":
        """The grid of any image that the pipeline reads.

        Args:
            path: the file or DICOM folder.
            key: image key, such as ``ct``.
        """
        image = read_image(str(path), key)[0]
        return cls(image.affine, image.shape)


@dataclass(frozen=True)
class SavedRegistration:
    """The registration of one image, as a run left it.

    Forward is what the run did: from the moving image to the reference. Inverse is the way back.

    Attributes:
        key: key of the moving image.
        reference: key of the reference.
        map: from the reference's world to the moving one's.
        inverse_map: the way back.
        reference_grid: the reference's own.
        moving_grid: the moving image's, in canonical axes.
    """

    key: str
    reference: str
    map: WorldMap
    inverse_map: WorldMap
    reference_grid: Grid
    moving_grid: Grid

    @classmethod
    def load(cls, folder: str | Path, key: str | None = None) -> "SavedRegistration":
        """Read it from the folder of a case.

        Args:
            folder: what ``fusion-pipeline run`` left: ``<output>/<id>``.
            key: the moving image; None: the only one.

        Raises:
            InputError: no such folder or key, or a folder of an earlier version.
        """
        folder = Path(folder)
        try:
            report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
            files, grids = report["files"]["transform"], report["grids"]
            inverses, reference = report["files"]["transform_inverse"], report["reference"]
        except FileNotFoundError as error:
            raise InputError(
                f"result {folder}: expected the folder of a case with {REPORT}, got none; name "
                "<output>/<id> of a run"
            ) from error
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"result {folder}: expected a report with transforms, got one of a run without a "
                "register stage (--only), an older or a damaged one; run the case again"
            ) from error
        key = _one_of(files, key, folder)
        return cls(
            key,
            reference,
            read_transform(folder / files[key]),
            read_transform(folder / inverses[key]),
            _grid(grids[reference]),
            _grid(grids[key]),
        )

    def warp(
        self,
        image: Image,
        *,
        onto: Grid | None = None,
        inverse: bool = False,
        nearest: bool = False,
    ) -> Image:
        """Bring an image over, in one interpolation.

        Args:
            image: in the world of the moving image; with ``inverse`` in that of the reference.
            onto: the grid that is wanted; None: the reference's, with ``inverse`` the moving
                image's.
            inverse: from the reference to the moving image.
            nearest: for labels.

        Returns:
            The image on the grid, in its own units; ``image.fill_value`` outside.
        """
        grid = onto or (self.moving_grid if inverse else self.reference_grid)
        there = self.inverse_map if inverse else self.map
        if image.spatial_dims != there.spatial_dims or len(grid.shape) != there.spatial_dims:
            raise InputError(
                f"{image.path or image.key}: expected {there.spatial_dims} axes, as the result "
                f"has, got {image.spatial_dims} on a grid of {len(grid.shape)}; choose another file"
            )
        return warped(there, image, grid.affine, grid.shape, nearest=nearest)

    def points(self, points: Sequence[float] | Matrix, *, inverse: bool = False) -> Matrix:
        """Bring points over; exact, by iteration where the map has to be inverted.

        Args:
            points: ``(n, d)`` RAS mm in the moving image; with ``inverse`` in the reference.
            inverse: from the reference to the moving image.

        Returns:
            ``(n, d)`` RAS mm.
        """
        given = np.asarray(points, dtype=np.float64)
        d = self.map.spatial_dims
        if given.ndim != 2 or given.shape[1] != d:
            raise InputError(
                f"points: expected {d} numbers each, as the result has axes, got an array of shape "
                f"{given.shape}; choose another file"
            )
        return self.map.points(given) if inverse else self.map.inverse_points(given)


def _one_of(files: dict[str, str], key: str | None, folder: Path) -> str:
    """The key that is meant."""
    if key is None and len(files) == 1:
        return next(iter(files))
    if key not in files:
        came = "none" if key is None else repr(key)
        raise InputError(
            f"result {folder}: expected the key of a moving image ({', '.join(files)}), got {came};"
            " name one"
        )
    return key


def _grid(record: dict[str, list[float]]) -> Grid:
    shape = tuple(int(n) for n in record["shape"])
    return Grid(np.array(record["affine"], dtype=np.float64), shape)


__all__ = ["Grid", "SavedRegistration"]

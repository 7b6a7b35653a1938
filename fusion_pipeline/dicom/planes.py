"""A grid as DICOM has it: slices of rows and columns at right angles, each with its position."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fusion_pipeline.data.refusals import refusal
from fusion_pipeline.geometry import apply_affine, lps_from_ras, spacing_of
from fusion_pipeline.geometry.affines import Matrix

REPRESENTED_MM = 0.01  # mm; what positions that are read back may differ by


@dataclass(frozen=True)
class Planes:
    """The slices of a volume, in order along their normal.

    Convention:
        - axes 0, 1, 2 of a volume are DICOM's columns, rows and slices
        - positions and directions in LPS mm

    Attributes:
        shape: of the volume ``(columns, rows, slices)``.
        orientation: direction cosines of the row, then of the column ``(6,)``.
        spacing: mm between rows, between columns ``(2,)``.
        positions: centre of the first pixel of each slice ``(slices, 3)``.
        backwards: the volume's slices run against the normal.
    """

    shape: tuple[int, ...]
    orientation: Matrix
    spacing: Matrix
    positions: Matrix
    backwards: bool

    @classmethod
    def of(cls, affine: Matrix, shape: tuple[int, ...], place: str) -> "Planes":
        """The slices of a grid.

        Args:
            affine: ``(4, 4)`` world_from_voxel, RAS mm.
            shape: of the volume.
            place: name of the image in messages.

        Raises:
            InputError: rows and columns do not meet at right angles, so that a pixel would lie more
                than `REPRESENTED_MM` elsewhere; or no volume.
        """
        if len(shape) != 3:
            came = f"{len(shape)} axes"
            raise refusal(place, "a volume for DICOM", came, "leave --dicom out for pictures")
        lps = lps_from_ras(3) @ affine
        spacing = spacing_of(lps)
        row = lps[:3, 0] / spacing[0]
        column = lps[:3, 1] / spacing[1]
        right = column - (column @ row) * row
        right /= np.linalg.norm(right)
        # of the last row, which is the farthest off
        off = float(np.linalg.norm(column - right)) * spacing[1] * (shape[1] - 1)
        if off > REPRESENTED_MM:
            came = f"a sheared grid (pixels up to {off:.2g} mm off)"
            advice = "resample the reference, or leave --dicom out"
            raise refusal(place, "rows and columns at right angles for DICOM", came, advice)
        corners = np.zeros((shape[2], 3))
        corners[:, 2] = np.arange(shape[2])
        positions = apply_affine(lps, corners)
        backwards = bool(np.cross(row, right) @ lps[:3, 2] < 0)
        return cls(
            tuple(shape),
            np.concatenate([row, right]),
            spacing[[1, 0]],
            positions[::-1] if backwards else positions,
            backwards,
        )

    @property
    def normal(self) -> Matrix:
        """Of the slices: row times column."""
        return np.asarray(np.cross(self.orientation[:3], self.orientation[3:]))

    @property
    def step(self) -> float:
        """Mm between two slices along the normal."""
        if len(self.positions) < 2:
            return 1.0
        ends = self.positions[-1] - self.positions[0]
        return float(ends @ self.normal) / (len(self.positions) - 1)

    def frames(self, array: Tensor) -> npt.NDArray[np.float32]:
        """A volume ``(columns, rows, slices)`` as ``(slices, rows, columns)``, in their order."""
        frames = array.detach().cpu().numpy().transpose(2, 1, 0)
        return np.ascontiguousarray(frames[::-1] if self.backwards else frames)


__all__ = ["REPRESENTED_MM", "Planes"]

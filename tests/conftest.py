"""Phantoms that show a swapped axis: never cubic, isotropic or axis-aligned."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import apply_affine, identity_points, rigid_matrix
from fusion_pipeline.geometry.affines import Matrix

SHAPE = (20, 24, 28)
SPACING = (1.0, 1.5, 3.0)
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def shared_data() -> Path:
    """The folder of real images; a test that asks for it is skipped where they are not."""
    folder = SHARED / "data" / "open"
    if not folder.is_dir():
        pytest.skip("needs the real images of ../shared")
    return folder


@pytest.fixture
def oblique_affine() -> Matrix:
    """A turned, anisotropic lattice whose first axis runs to the left."""
    turn = rigid_matrix((20.0, -12.0, 33.0), (4.0, -7.0, 11.0), (0.0, 0.0, 0.0))
    return np.asarray(turn @ np.diag([-SPACING[0], SPACING[1], SPACING[2], 1.0]))


@pytest.fixture
def oblique_image(oblique_affine: Matrix) -> Image:
    """Two blobs of different size on a background of another slope along each axis."""
    points = identity_points(SHAPE).numpy()
    world = apply_affine(oblique_affine, points)
    centre = apply_affine(oblique_affine, (np.asarray(SHAPE) - 1) / 2)
    blobs = sum(
        height * np.exp(-0.5 * (((world - centre - shift) / width) ** 2).sum(-1))
        for shift, width, height in (((3, -6, 9), 6.0, 500.0), ((-4, 5, -14), 9.0, 300.0))
    )
    values = blobs + points @ np.array([1.0, 0.7, 0.4])
    return Image(torch.from_numpy(values).float()[None], oblique_affine, "mr", path="oblique.nii")

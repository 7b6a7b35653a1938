"""Each line of docs/conventions.md, pinned by the test that it names."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from data_phantoms import case_of

from fusion_pipeline.data import Image
from fusion_pipeline.data.writing import write_displacement, write_image
from fusion_pipeline.geometry import (
    WorldMap,
    apply_affine,
    compose,
    ddf_from_ddf_mm,
    ddf_mm_from_ddf,
    identity_points,
    integrate,
    jacobian_determinant,
    lps_from_ras,
    resample,
    resize,
    rigid_matrix,
    sample,
    spacing_of,
    warp,
)
from fusion_pipeline.register import Evidence, Registration

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (7, 8, 9)
# another slope along each axis: a swap shows
RAMP = (identity_points(SHAPE) * torch.tensor([1.0, 10.0, 100.0])).sum(-1)[None, None]


def constant(*vector: float) -> torch.Tensor:
    """A field that is the same everywhere."""
    return torch.tensor(vector).reshape(1, -1, 1, 1, 1).expand(1, 3, *SHAPE).clone()


def inner(tensor: torch.Tensor, margin: int = 2) -> torch.Tensor:
    """Away from the border."""
    return tensor[..., margin:-margin, margin:-margin, margin:-margin]


def test_convention_axes(oblique_affine):
    array = torch.zeros(1, 1, *SHAPE)
    array[0, 0, 5, 2, 3] = 1.0
    assert sample(array, torch.tensor([[[[[5.0, 2.0, 3.0]]]]])).item() == 1
    for axis in range(3):
        step = apply_affine(oblique_affine, np.eye(3)[axis]) - oblique_affine[:3, 3]
        assert step == pytest.approx(oblique_affine[:3, axis])
    assert spacing_of(oblique_affine) == pytest.approx([1.0, 1.5, 3.0])


def test_convention_ras_inside_lps_outside(tmp_path, oblique_affine):
    assert lps_from_ras(3).diagonal().tolist() == [-1, -1, 1, 1]
    ras = torch.stack([torch.full(SHAPE, v) for v in (1.0, 2.0, 4.0)])
    write_displacement(ras, oblique_affine, tmp_path / "d.nii.gz")
    field = sitk.ReadImage(str(tmp_path / "d.nii.gz"))
    assert field.GetPixel(1, 2, 3) == pytest.approx((-1.0, -2.0, 4.0))
    point = apply_affine(oblique_affine, [1, 2, 3]) * [-1, -1, 1]
    assert field.TransformIndexToPhysicalPoint((1, 2, 3)) == pytest.approx(point, abs=1e-4)


def test_convention_ddf_is_pull_back_in_voxels():
    warped = warp(RAMP, constant(1.0, 0.0, 0.0))
    assert warped[0, 0, 2, 3, 4] == RAMP[0, 0, 3, 3, 4]
    warped = warp(RAMP, constant(0.0, -0.5, 2.0))
    assert inner(warped - RAMP).unique().tolist() == [pytest.approx(-5 + 200)]


def test_convention_ddf_lives_on_the_fixed_grid():
    assert warp(RAMP, torch.zeros(1, 3, 4, 5, 6)).shape == (1, 1, 4, 5, 6)


def test_convention_ddf_mm_is_the_same_in_world_mm(oblique_affine):
    affine = torch.from_numpy(oblique_affine)
    ddf = constant(1.0, -2.0, 0.5)
    mm = ddf_mm_from_ddf(ddf, affine)
    expected = oblique_affine[:3, :3] @ [1, -2, 0.5]
    assert mm[0, :, 3, 3, 3].numpy() == pytest.approx(expected, abs=1e-5)
    assert torch.allclose(ddf_from_ddf_mm(mm, affine), ddf, atol=1e-5)


def test_convention_velocity_is_stationary():
    velocity = constant(0.5, -0.25, 1.0)
    assert torch.allclose(integrate(velocity), velocity, atol=1e-5)


def test_convention_compose_goes_first_then_second():
    first, second = constant(1.0, 0.0, 0.0), torch.zeros(1, 3, *SHAPE)
    second[:, 1] = 0.2 * identity_points(SHAPE)[..., 0]
    both = warp(RAMP, compose(first, second))
    assert torch.allclose(inner(both), inner(warp(warp(RAMP, second), first)), atol=1e-3)
    assert not torch.allclose(inner(both), inner(warp(RAMP, compose(second, first))), atol=1)


def test_convention_jacobian_is_the_change_of_volume():
    grown = identity_points(SHAPE) * torch.tensor([0.1, -0.2, 0.5])
    determinant = jacobian_determinant(grown.movedim(-1, 0)[None])
    assert determinant.unique().numpy() == pytest.approx(1.1 * 0.8 * 1.5, abs=1e-5)


def test_convention_align_corners():
    points = identity_points(SHAPE)[None]
    assert torch.allclose(sample(RAMP, points), RAMP, atol=1e-3)
    larger = resize(RAMP, (13, 15, 17))
    for corner in ((0, 0, 0), (-1, -1, -1), (0, -1, 0)):
        assert larger[(0, 0, *corner)] == RAMP[(0, 0, *corner)]


def test_convention_outside_is_half_a_voxel_away():
    ones = torch.ones(1, 1, *SHAPE)
    line = torch.tensor([-0.6, -0.4, 6.4, 6.6])
    points = torch.stack([line, torch.full((4,), 3.0), torch.full((4,), 3.0)], -1)
    values = sample(ones, points.reshape(1, 4, 1, 1, 3), fill=-7.0)
    assert values.flatten().tolist() == [-7, 1, 1, -7]
    image = sitk.GetImageFromArray(np.ones(SHAPE[::-1], np.float32))
    itk = [
        sitk.Resample(
            image, (1, 1, 1), sitk.Transform(), sitk.sitkLinear, (x, 3.0, 3.0), (1, 1, 1),
            np.eye(3).ravel().tolist(), -7.0,
        ).GetPixel(0, 0, 0)
        for x in line.tolist()
    ]  # fmt: skip
    assert itk == [-7, 1, 1, -7]


def test_convention_fields_continue_their_border():
    constant_step = constant(3.0, 0.0, 0.0)
    assert torch.equal(compose(constant_step, constant_step), 2 * constant_step)


def test_convention_matrices_cancel(oblique_affine):
    world_from_voxel = oblique_affine
    moving_from_world = rigid_matrix((5.0, 6.0, 7.0), (1.0, 2.0, 3.0), (0.0, 4.0, 0.0))
    moving_from_voxel = moving_from_world @ world_from_voxel
    point = [3.0, 4.0, 5.0]
    stepwise = apply_affine(moving_from_world, apply_affine(world_from_voxel, point))
    assert apply_affine(moving_from_voxel, point) == pytest.approx(stepwise)
    shifted = np.eye(4)
    shifted[0, 3] = 1.0
    read = resample(RAMP, torch.from_numpy(shifted), SHAPE)
    assert read[0, 0, 2, 2, 2] == RAMP[0, 0, 3, 2, 2]


def test_convention_deformation_first_then_affine():
    turn = rigid_matrix((0.0, 0.0, 90.0), (10.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    ddf_mm = constant(1.0, 0.0, 0.0)[0]
    found = WorldMap(turn, ddf_mm, np.eye(4))
    point, step = np.array([2.0, 3.0, 4.0]), np.array([1.0, 0.0, 0.0])
    expected = apply_affine(turn, point + step)
    assert found.points(point) == pytest.approx(expected)
    assert found.points(point) != pytest.approx(apply_affine(turn, point) + step)


def test_convention_outside_values_and_nearest_labels(oblique_image):
    fixed = oblique_image
    shift = np.eye(4)
    shift[:3, 3] = 30.0
    found = Registration(WorldMap(shift, torch.zeros(3, 2, 2, 2), fixed.affine), Evidence("rigid"))
    ct = Image(fixed.array - 900, fixed.affine, "ct", "HU")
    assert found.warp(ct, fixed).array.min() == -1000
    stored = ct.with_array(fixed.array, units="a.u.")
    assert found.warp(stored, fixed).array.min() == 0  # its air is no -1000
    assert found.warp(fixed, fixed).array.min() == 0
    small = np.eye(4)
    small[0, 3] = 0.4
    label = fixed.with_array((fixed.array > 100).float() * 3)
    nudged = Registration(WorldMap(small, torch.zeros(3, 2, 2, 2), fixed.affine), Evidence("rigid"))
    assert set(nudged.warp(label, fixed, nearest=True).array.unique().tolist()) <= {0.0, 3.0}


def test_convention_floats(tmp_path, oblique_image):
    assert oblique_image.affine.dtype == np.float64
    assert apply_affine(oblique_image.affine, torch.zeros(3)).dtype == np.float64
    write_image(oblique_image, tmp_path / "image.nii.gz")
    written = nib.load(tmp_path / "image.nii.gz")
    assert written.get_data_dtype() == np.float32
    assert written.affine == pytest.approx(oblique_image.affine, abs=1e-5)


def test_convention_pictures_lie_in_lps():
    picture = Image(torch.zeros(1, 5, 4), np.diag([-1.0, -1.0, 1.0]), "mr")
    lps = lps_from_ras(2) @ picture.affine
    assert apply_affine(lps, [3, 2]).tolist() == [3, 2]


def test_convention_the_reference_comes_first(oblique_image):
    images = {"ct": oblique_image, "mr": oblique_image, "pet": oblique_image}
    case = case_of("a", "ct", images)
    assert list(case.moving) == ["mr", "pet"]
    assert case.fixed is case.images["ct"]


def test_convention_words():
    sources = [
        p
        for top in ("fusion_pipeline", "networks", "transforms")
        for p in (ROOT / top).rglob("*.py")
    ]
    assert len(sources) > 20
    for path in sources:
        words = set(re.findall(r"[A-Za-z_]\w*", path.read_text("utf-8")))
        assert not {w for w in words if re.fullmatch(r"\w*dvf\w*", w, re.IGNORECASE)}, path


def test_the_page_and_the_tests_name_each_other():
    page = (ROOT / "docs" / "conventions.md").read_text("utf-8")
    named = set(re.findall(r"`(test_convention_\w+)`", page))
    written = {name for name in globals() if name.startswith("test_convention_")}
    assert named == written

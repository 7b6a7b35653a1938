import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from fusion_pipeline.geometry import (
    apply_affine,
    lps_from_ras,
    rescaled_affine,
    rigid_matrix,
    spacing_of,
)


def oblique(spacing, degrees, origin):
    """A world_from_voxel with turned axes."""
    d = len(spacing)
    affine = rigid_matrix(degrees, [0.0] * d, [0.0] * d)
    affine[:d, :d] *= spacing
    affine[:d, d] = origin
    return affine


AFFINES = {
    "2d": oblique((1.0, 2.5), [25.0], (7.0, -30.0)),
    "3d": oblique((1.0, 1.5, 3.0), [10.0, -20.0, 35.0], (-40.0, 12.0, 90.0)),
}
SHAPES = {"2d": (20, 24), "3d": (20, 24, 28)}


@pytest.fixture(params=["2d", "3d"])
def case(request):
    return AFFINES[request.param], SHAPES[request.param]


def itk_image(affine, shape):
    """The same lattice in SimpleITK: LPS, one column of the direction for each axis."""
    d = len(shape)
    lps = lps_from_ras(d) @ affine
    image = sitk.Image([int(n) for n in shape], sitk.sitkFloat64)
    image.SetSpacing(spacing_of(affine).tolist())
    image.SetDirection((lps[:d, :d] / spacing_of(affine)).ravel().tolist())
    image.SetOrigin(lps[:d, d].tolist())
    return image


def test_world_of_a_voxel_equals_simpleitk(case):
    affine, shape = case
    image = itk_image(affine, shape)
    voxel = [3, 17, 5][: len(shape)]
    expected = image.TransformIndexToPhysicalPoint(voxel)
    lps = apply_affine(lps_from_ras(len(shape)) @ affine, voxel)
    np.testing.assert_allclose(lps, expected, rtol=1e-10)


def test_spacing_is_the_length_of_a_step(case):
    affine, shape = case
    for axis in range(len(shape)):
        step = np.eye(len(shape))[axis]
        length = np.linalg.norm(apply_affine(affine, step) - apply_affine(affine, 0 * step))
        assert spacing_of(affine)[axis] == pytest.approx(length)


def test_apply_affine_takes_any_leading_axes_and_products_cancel(case):
    affine, shape = case
    points = np.random.default_rng(0).normal(size=(3, 4, len(shape)))
    back = apply_affine(np.linalg.inv(affine), apply_affine(affine, points))
    np.testing.assert_allclose(back, points, atol=1e-9)
    other = rigid_matrix([5.0] * (1 if len(shape) == 2 else 3), shape, shape)
    both = apply_affine(other @ affine, points)
    np.testing.assert_allclose(both, apply_affine(other, apply_affine(affine, points)))


def test_lps_flips_the_first_two_axes_and_is_its_own_inverse():
    assert apply_affine(lps_from_ras(2), [1.0, 2.0]).tolist() == [-1, -2]
    assert apply_affine(lps_from_ras(3), [1.0, 2.0, 3.0]).tolist() == [-1, -2, 3]
    np.testing.assert_array_equal(lps_from_ras(3) @ lps_from_ras(3), np.eye(4))


@pytest.mark.parametrize("spacing", [0.7, 2.0, 4.0, 100.0])
def test_rescaled_lattice_is_isotropic_and_covers_the_old_one(case, spacing):
    affine, shape = case
    d = len(shape)
    new, new_shape = rescaled_affine(affine, shape, spacing)
    np.testing.assert_allclose(spacing_of(new), spacing)
    directions = [a[:d, :d] / spacing_of(a) for a in (affine, new)]
    np.testing.assert_allclose(*directions, atol=1e-12)
    outer = np.array([np.full(d, -0.5), np.array(shape) - 0.5])
    corners = apply_affine(np.linalg.inv(new) @ affine, outer)
    assert (corners[0] >= -0.5 - 1e-4).all()
    assert (corners[1] <= np.array(new_shape) - 0.5 + 1e-4).all()
    assert (np.array(new_shape) <= np.ceil(spacing_of(affine) * shape / spacing)).all()
    centres = [
        apply_affine(a, (np.array(s) - 1) / 2) for a, s in ((affine, shape), (new, new_shape))
    ]
    np.testing.assert_allclose(*centres, atol=1e-9)


def test_rescaling_to_the_same_spacing_changes_nothing():
    affine = oblique((1.5, 1.5, 1.5), [10.0, -20.0, 35.0], (-40.0, 12.0, 90.0))
    new, shape = rescaled_affine(affine, (20, 24, 28), 1.5)
    assert shape == (20, 24, 28)
    np.testing.assert_allclose(new, affine, atol=1e-12)


def test_rigid_rotation_equals_scipy_about_fixed_axes_in_order():
    degrees = [10.0, -20.0, 35.0]
    expected = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    found = rigid_matrix(degrees, [0.0] * 3, [0.0] * 3)
    np.testing.assert_allclose(found[:3, :3], expected, atol=1e-12)


@pytest.mark.parametrize("d", [2, 3])
def test_rigid_matrix_keeps_the_centre_then_translates(d):
    centre, translation = np.array([5.0, -3.0, 8.0])[:d], np.array([1.0, 2.0, -4.0])[:d]
    matrix = rigid_matrix([30.0] * (1 if d == 2 else 3), translation, centre)
    np.testing.assert_allclose(apply_affine(matrix, centre), centre + translation)
    np.testing.assert_allclose(matrix[:d, :d] @ matrix[:d, :d].T, np.eye(d), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1)


def test_rigid_2d_equals_simpleitk():
    itk = sitk.Euler2DTransform((4.0, 7.0), np.deg2rad(25.0), (2.0, -3.0))
    matrix = rigid_matrix([25.0], [2.0, -3.0], [4.0, 7.0])
    point = (11.0, -6.0)
    np.testing.assert_allclose(apply_affine(matrix, point), itk.TransformPoint(point))


def test_one_angle_too_few_is_refused():
    with pytest.raises(ValueError, match="zip"):
        rigid_matrix([10.0], [0.0] * 3, [0.0] * 3)

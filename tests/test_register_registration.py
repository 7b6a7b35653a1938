import dataclasses

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from register_cases import LPS, itk_affine, itk_field, itk_image

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import apply_affine, identity_points, rigid_matrix
from fusion_pipeline.register import Registration


def lattice(d, kind):
    """An affine and a shape; anisotropic, turned or flipped."""
    shape = {2: (31, 26), 3: (20, 24, 17)}[d]
    spacing = [1.7, 2.3, 3.1][:d]
    angles = [25.0] if d == 2 else [20.0, -12.0, 33.0]
    turn = rigid_matrix(angles if kind == "oblique" else [0.0] * len(angles), [0.0] * d, [0.0] * d)
    signs = [-1.0, 1.0, -1.0][:d] if kind == "flipped" else [1.0] * d
    affine = turn @ np.diag([*(np.asarray(signs) * spacing), 1.0])
    affine[:d, d] = np.arange(5.0, 5.0 + d) - affine[:d, :d] @ ((np.asarray(shape) - 1) / 2)
    return affine, shape


def content(affine, shape, seed=0):
    """Smooth hills in the world: three of different width."""
    world = apply_affine(affine, identity_points(shape, dtype=torch.float64).numpy())
    rng = np.random.default_rng(seed)
    out = np.zeros(shape)
    for width in (7.0, 9.0, 12.0):
        place = np.arange(5.0, 5.0 + len(shape)) + rng.uniform(-9, 9, len(shape))
        out += 300 * np.exp(-0.5 * (((world - place) / width) ** 2).sum(-1))
    return out


def image(d, kind, key="mr", seed=0):
    affine, shape = lattice(d, kind)
    return Image(torch.from_numpy(content(affine, shape, seed)).float()[None], affine, key)


def registration(d):
    """A turn, a stretch, and waves of up to 4 mm on an oblique lattice of its own."""
    affine, shape = lattice(d, "oblique")
    angles = [7.0] if d == 2 else [5.0, -3.0, 8.0]
    matrix = rigid_matrix(angles, [3.0, -2.0, 4.0][:d], np.arange(5.0, 5.0 + d).tolist())
    matrix[:d, :d] *= 1.04
    world = apply_affine(affine, identity_points(shape).numpy())
    waves = [(3.0 + c) * np.sin(world @ np.linspace(0.05, 0.11, d) + c) for c in range(d)]
    return Registration(matrix, torch.from_numpy(np.stack(waves)).float(), affine, "deformable")


@pytest.mark.parametrize("d", [2, 3])
class TestAgainstItk:
    def test_points_go_where_the_field_and_then_the_matrix_send_them(self, d):
        found = registration(d)
        both = sitk.CompositeTransform(
            [itk_affine(found.moving_from_fixed), itk_field(found.ddf_mm, found.working_affine)]
        )
        share = np.random.default_rng(1).uniform(0.1, 0.9, (40, d))
        voxels = share * (np.asarray(found.ddf_mm.shape[1:]) - 1)
        points = apply_affine(found.working_affine, voxels)
        lps = LPS[d][:d, :d]
        expected = np.array([both.TransformPoint((lps @ p).tolist()) for p in points]) @ lps
        np.testing.assert_allclose(found.moving_points(points), expected, atol=1e-3)

    @pytest.mark.parametrize("fixed_kind", ["straight", "flipped", "oblique"])
    @pytest.mark.parametrize("moving_kind", ["flipped", "oblique"])
    @pytest.mark.parametrize("nearest", [False, True])
    def test_the_displacement_warps_as_resample_does(self, d, fixed_kind, moving_kind, nearest):
        fixed, moving, found = image(d, fixed_kind), image(d, moving_kind, seed=4), registration(d)
        expected = sitk.Resample(
            itk_image(moving.array[0].double().numpy(), moving.affine),
            itk_image(fixed.array[0].double().numpy(), fixed.affine),
            itk_field(found.displacement_mm(fixed), fixed.affine),
            sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear,
            moving.fill_value,
        )
        warped = found.warp(moving, fixed, nearest=nearest)
        assert warped.shape == fixed.shape
        np.testing.assert_array_equal(warped.affine, fixed.affine)
        assert warped.key == moving.key
        difference = np.abs(warped.array[0].numpy() - sitk.GetArrayFromImage(expected).T)
        body = fixed.array[0].numpy() > 0.1 * float(fixed.array.max())
        limit = 0.005 * float(moving.array.max() - moving.array.min())
        if nearest:  # on the seam between two voxels either may be read
            assert (difference[body] > limit).mean() < 0.002
        else:
            assert difference[body].max() < limit


@pytest.mark.parametrize("d", [2, 3])
class TestLaws:
    def test_the_size_of_a_slab_changes_nothing(self, d, monkeypatch):
        fixed, moving, found = image(d, "oblique"), image(d, "flipped", seed=4), registration(d)
        whole = found.displacement_mm(fixed), found.warp(moving, fixed).array
        for size in (1, 3 * int(np.prod(fixed.shape[1:]))):
            monkeypatch.setattr("fusion_pipeline.register.registration._SLAB_VOXELS", size)
            torch.testing.assert_close(found.displacement_mm(fixed), whole[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(found.warp(moving, fixed).array, whole[1], atol=1e-3, rtol=0)

    def test_the_field_is_the_way_of_the_points(self, d):
        """Far from the world's origin as well, where float32 has few digits left."""
        found, fixed = registration(d), image(d, "oblique")
        far = np.eye(d + 1)
        far[:d, d] = 8000.0
        back = np.linalg.inv(far)
        found = dataclasses.replace(
            found,
            moving_from_fixed=far @ found.moving_from_fixed @ back,
            working_affine=far @ found.working_affine,
        )
        fixed = fixed.with_array(fixed.array, affine=far @ fixed.affine)
        world = apply_affine(
            fixed.affine, identity_points(fixed.shape, dtype=torch.float64).numpy()
        )
        expected = torch.from_numpy(found.moving_points(world) - world).movedim(-1, 0).float()
        torch.testing.assert_close(found.displacement_mm(fixed), expected, atol=1e-3, rtol=0)

    def test_no_map_on_one_grid_is_the_identity(self, d):
        fixed = image(d, "oblique")
        still = Registration(np.eye(d + 1), torch.zeros(d, *[2] * d), fixed.affine, "none")
        assert float(still.displacement_mm(fixed).abs().max()) == 0.0
        torch.testing.assert_close(still.warp(fixed, fixed).array, fixed.array, atol=1e-2, rtol=0)

    def test_the_deformation_comes_before_the_matrix(self, d):
        turn = rigid_matrix([90.0] if d == 2 else [0.0, 0.0, 90.0], [0.0] * d, [0.0] * d)
        field = torch.zeros(d, *[4] * d)
        field[0] = 5.0
        found = Registration(turn, field, np.eye(d + 1), "deformable")
        point = np.zeros(d)
        point[:2] = 1.0
        expected = np.array([-1.0, 6.0, 0.0])[:d]
        np.testing.assert_allclose(found.moving_points(point), expected, atol=1e-5)

    def test_points_of_any_leading_shape(self, d):
        found = registration(d)
        points = np.random.default_rng(2).uniform(-10, 20, (3, 4, d))
        nested = found.moving_points(points)
        assert nested.shape == points.shape
        assert nested.dtype == np.float64
        np.testing.assert_allclose(nested[2, 1], found.moving_points(points[2, 1]), atol=1e-9)

    def test_beyond_the_working_lattice_the_border_goes_on(self, d):
        field = torch.full((d, *[3] * d), 2.5)
        found = Registration(np.eye(d + 1), field, np.eye(d + 1), "deformable")
        far = np.full(d, 100.0)
        np.testing.assert_allclose(found.moving_points(far), far + 2.5, atol=1e-5)

    def test_outside_the_moving_image_is_its_air(self, d):
        fixed, moving = image(d, "straight"), image(d, "oblique", key="ct")
        moving = moving.with_array(moving.array - 900)
        away = np.eye(d + 1)
        away[0, d] = 500.0
        found = Registration(away, torch.zeros(d, *[2] * d), fixed.affine, "rigid")
        assert float(moving.fill_value) == -1000.0
        assert bool((found.warp(moving, fixed).array == moving.fill_value).all())


def test_colours_move_with_their_picture():
    fixed, moving, found = image(2, "flipped"), image(2, "oblique", seed=4), registration(2)
    shades = torch.cat([moving.array, 0.5 * moving.array, 9 - moving.array])
    warped = found.warp(moving.with_array(moving.array, colour=shades), fixed)
    assert warped.colour is not None
    assert warped.colour.shape == (3, *fixed.shape)
    inside = warped.array[0] > 1.0
    torch.testing.assert_close(warped.colour[0], warped.array[0])
    torch.testing.assert_close(warped.colour[1], 0.5 * warped.array[0])
    torch.testing.assert_close(
        warped.colour[2][inside], 9 - warped.array[0][inside], atol=1e-3, rtol=0
    )

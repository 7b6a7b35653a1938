import dataclasses

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from register_cases import LPS, itk_affine, itk_field, itk_image

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import (
    WorldMap,
    apply_affine,
    ddf_from_ddf_mm,
    identity_points,
    jacobian_determinant,
    rigid_matrix,
)
from fusion_pipeline.register import Evidence, Registration


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
    return Registration(
        WorldMap(matrix, torch.from_numpy(np.stack(waves)).float(), affine), Evidence("deformable")
    )


@pytest.mark.parametrize("d", [2, 3])
class TestAgainstItk:
    def test_points_go_where_the_field_and_then_the_matrix_send_them(self, d):
        found = registration(d)
        both = sitk.CompositeTransform(
            [
                itk_affine(found.map.moving_from_fixed),
                itk_field(found.map.ddf_mm, found.map.working_affine),
            ]
        )
        share = np.random.default_rng(1).uniform(0.1, 0.9, (40, d))
        voxels = share * (np.asarray(found.map.ddf_mm.shape[1:]) - 1)
        points = apply_affine(found.map.working_affine, voxels)
        lps = LPS[d][:d, :d]
        expected = np.array([both.TransformPoint((lps @ p).tolist()) for p in points]) @ lps
        np.testing.assert_allclose(found.map.points(points), expected, atol=1e-3)

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
            monkeypatch.setattr("fusion_pipeline.geometry.world_map.PART_VOXELS", size)
            torch.testing.assert_close(found.displacement_mm(fixed), whole[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(found.warp(moving, fixed).array, whole[1], atol=1e-3, rtol=0)

    def test_the_field_is_the_way_of_the_points(self, d):
        """Far from the world's origin as well, where float32 has few digits left."""
        found, fixed = registration(d), image(d, "oblique")
        far = np.eye(d + 1)
        far[:d, d] = 8000.0
        back = np.linalg.inv(far)
        moved = dataclasses.replace(
            found.map,
            moving_from_fixed=far @ found.map.moving_from_fixed @ back,
            working_affine=far @ found.map.working_affine,
        )
        found = dataclasses.replace(found, map=moved)
        fixed = fixed.with_array(fixed.array, affine=far @ fixed.affine)
        world = apply_affine(
            fixed.affine, identity_points(fixed.shape, dtype=torch.float64).numpy()
        )
        expected = torch.from_numpy(found.map.points(world) - world).movedim(-1, 0).float()
        torch.testing.assert_close(found.displacement_mm(fixed), expected, atol=1e-3, rtol=0)

    def test_no_map_on_one_grid_is_the_identity(self, d):
        fixed = image(d, "oblique")
        still = Registration(
            WorldMap(np.eye(d + 1), torch.zeros(d, *[2] * d), fixed.affine), Evidence("none")
        )
        assert float(still.displacement_mm(fixed).abs().max()) == 0.0
        torch.testing.assert_close(still.warp(fixed, fixed).array, fixed.array, atol=1e-2, rtol=0)

    def test_the_deformation_comes_before_the_matrix(self, d):
        turn = rigid_matrix([90.0] if d == 2 else [0.0, 0.0, 90.0], [0.0] * d, [0.0] * d)
        field = torch.zeros(d, *[4] * d)
        field[0] = 5.0
        found = Registration(WorldMap(turn, field, np.eye(d + 1)), Evidence("deformable"))
        point = np.zeros(d)
        point[:2] = 1.0
        expected = np.array([-1.0, 6.0, 0.0])[:d]
        np.testing.assert_allclose(found.map.points(point), expected, atol=1e-5)

    def test_points_of_any_leading_shape(self, d):
        found = registration(d)
        points = np.random.default_rng(2).uniform(-10, 20, (3, 4, d))
        nested = found.map.points(points)
        assert nested.shape == points.shape
        assert nested.dtype == np.float64
        np.testing.assert_allclose(nested[2, 1], found.map.points(points[2, 1]), atol=1e-9)

    def test_beyond_the_working_lattice_the_border_goes_on(self, d):
        field = torch.full((d, *[3] * d), 2.5)
        found = Registration(WorldMap(np.eye(d + 1), field, np.eye(d + 1)), Evidence("deformable"))
        far = np.full(d, 100.0)
        np.testing.assert_allclose(found.map.points(far), far + 2.5, atol=1e-5)

    def test_outside_the_moving_image_is_its_air(self, d):
        fixed, moving = image(d, "straight"), image(d, "oblique", key="ct")
        moving = moving.with_array(moving.array - 900, units="HU")
        away = np.eye(d + 1)
        away[0, d] = 500.0
        found = Registration(
            WorldMap(away, torch.zeros(d, *[2] * d), fixed.affine), Evidence("rigid")
        )
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


@pytest.mark.parametrize("d", [2, 3])
class TestInverse:
    @staticmethod
    def strong(d):
        """A turn, a shear, and waves of up to 11 mm that stretch and squeeze, but do not fold."""
        affine, shape = lattice(d, "oblique")
        angles = [40.0] if d == 2 else [25.0, -30.0, 40.0]
        matrix = rigid_matrix(angles, [30.0, -20.0, 14.0][:d], [0.0] * d)
        matrix[0, 1] += 0.2
        matrix[:d, :d] *= 1.1
        world = apply_affine(affine, identity_points(shape, dtype=torch.float64).numpy())
        waves = [
            (11.0 - 2 * c) * np.sin(0.045 * world[..., (c + 1) % d] + 0.03 * world[..., c] + c)
            for c in range(d)
        ]
        field = torch.from_numpy(np.stack(waves)).float()
        voxels = ddf_from_ddf_mm(field[None].double(), torch.from_numpy(affine))
        slope = jacobian_determinant(voxels)
        assert 0 < float(slope.min()) < 0.6  # truly strong, and no fold
        assert float(slope.max()) > 1.3
        return WorldMap(matrix, field, affine)

    @staticmethod
    def points(found):
        size = np.asarray(found.ddf_mm.shape[1:])
        voxels = np.random.default_rng(1).uniform(1, size - 2, (4000, found.spatial_dims))
        return apply_affine(found.working_affine, voxels)

    def test_there_and_back_is_where_it_was(self, d):
        found = self.strong(d)
        points = self.points(found)
        there = found.points(points)
        assert np.linalg.norm(there - points, axis=1).min() > 5
        error = np.linalg.norm(found.inverse().points(there) - points, axis=1)
        assert error.max() < 0.05

    def test_back_and_there_is_where_it_was(self, d):
        found = self.strong(d)
        moving = found.points(self.points(found))
        error = np.linalg.norm(found.points(found.inverse().points(moving)) - moving, axis=1)
        assert error.max() < 0.05

    def test_nodes_lie_closer_where_the_tolerance_asks_for_it(self, d):
        found = self.strong(d)
        rough, fine = found.inverse(tolerance_mm=5.0), found.inverse(tolerance_mm=1e-6)
        assert np.prod(fine.ddf_mm.shape) > 2.5**d * np.prod(rough.ddf_mm.shape)
        points = self.points(found)
        there = found.points(points)
        errors = [np.linalg.norm(m.points(there) - points, axis=1).mean() for m in (rough, fine)]
        assert errors[1] < 0.5 * errors[0]

    def test_points_come_back_without_a_lattice(self, d):
        found = self.strong(d)
        points = self.points(found)
        np.testing.assert_allclose(found.inverse_points(found.points(points)), points, atol=1e-3)
        one = found.points(points[0])
        np.testing.assert_allclose(found.inverse_points(one), points[0], atol=1e-3)

    def test_of_an_affine_alone_is_exact(self, d):
        found = self.strong(d)
        found = dataclasses.replace(found, ddf_mm=torch.zeros_like(found.ddf_mm))
        points = 300.0 * np.random.default_rng(3).standard_normal((50, d))
        np.testing.assert_allclose(found.inverse().points(found.points(points)), points, atol=1e-6)

    def test_an_image_warped_there_and_back_is_the_same(self, d):
        found, still = self.strong(d), image(d, "oblique")
        back = found.inverse()
        affine = found.moving_from_fixed @ still.affine
        reach = np.asarray(still.shape) // 2  # a grid that holds all that is moved
        affine = affine @ np.block(
            [[np.eye(d), -reach[:, None]], [np.zeros((1, d)), np.ones((1, 1))]]
        )
        shape = [int(n) for n in still.shape + 2 * reach]
        there = back.warp(still.array, still.affine, affine, shape)
        again = found.warp(there, affine, still.affine, still.shape)
        inner = (slice(None), *[slice(2, -2)] * d)
        error = (again - still.array)[inner].abs().mean()
        changed = (there[(slice(None), *map(slice, reach, reach + still.shape))] - still.array)[
            inner
        ]
        assert error < 0.1 * changed.abs().mean()


@pytest.mark.parametrize("d", [2, 3])
def test_the_identity_moves_nothing(d):
    still, fixed = WorldMap.identity(d), image(d, "oblique")
    points = 200.0 * np.random.default_rng(0).standard_normal((20, d))
    np.testing.assert_array_equal(still.points(points), points)
    assert still.spatial_dims == d
    assert float(still.displacement_mm(fixed.affine, fixed.shape).abs().max()) == 0.0


def test_a_saved_map_is_an_itk_field(tmp_path):
    fixed, found = image(3, "oblique"), registration(3)
    found.save(tmp_path / "map.nii.gz", fixed)
    field = sitk.ReadImage(str(tmp_path / "map.nii.gz"), sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(field)
    points = apply_affine(fixed.affine, np.array([[4.0, 5.0, 6.0], [11.0, 17.0, 9.0]]))
    lps = LPS[3][:3, :3]
    moved = np.array([transform.TransformPoint((lps @ p).tolist()) for p in points]) @ lps
    np.testing.assert_allclose(moved, found.map.points(points), atol=1e-3)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("order", ["own", "turned round", "other axes", "across"])
def test_a_dense_field_is_what_the_map_says_of_each_voxel(d, order):
    world_map = registration(d).map
    grid, shape = lattice(d, "plain" if order == "across" else "oblique")
    grid[:d, :d] *= 0.7
    if order == "turned round":
        grid[:d, d] += grid[:d, :d] @ [shape[0] - 1.0, *[0.0] * (d - 1)]
        grid[:d, 0] *= -1
    if order == "other axes":  # in 3D not their own inverse
        grid[:, :d], shape = np.roll(grid[:, :d], 1, 1), (*shape[-1:], *shape[:-1])
    world = apply_affine(grid, identity_points(shape, dtype=torch.float64).numpy())
    known = np.moveaxis(world_map.points(world) - world, -1, 0)
    dense = world_map.displacement_mm(grid, shape).numpy()
    assert dense == pytest.approx(known, abs=1e-4)

"""The report looks at the right place, the right way up."""

import numpy as np
import pytest
import torch

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import apply_affine, identity_points
from fusion_pipeline.report.planes import (
    busiest_point,
    coarse_content,
    content_box,
    hottest_point,
    planes_through,
    read,
)

LOW, HIGH = np.array([-30.0, -40.0, -50.0]), np.array([50.0, 20.0, 70.0])


def test_axial_is_seen_from_the_feet_coronal_from_the_front_sagittal_from_the_left():
    axial, coronal, sagittal = planes_through((1.0, 2.0, 3.0), LOW, HIGH, pixels=60)

    # RAS: large x is right, large y anterior, large z superior
    assert (axial.letters, coronal.letters, sagittal.letters) == ("RLAP", "RLSI", "APSI")
    for plane, column_axis, row_axis in ((axial, 0, 1), (coronal, 0, 2), (sagittal, 1, 2)):
        columns, rows = plane.points[0, :, column_axis], plane.points[:, 0, row_axis]
        assert columns[0] == HIGH[column_axis]
        assert rows[0] == HIGH[row_axis]
        assert (np.diff(columns) < 0).all()
        assert (np.diff(rows) < 0).all()


def test_pixels_are_square_and_planes_meet_in_the_point():
    point = (1.0, 2.0, 3.0)
    for plane in planes_through(point, LOW, HIGH, pixels=60):
        steps = -np.diff(plane.points[0, :, plane.column_axis])
        assert steps == pytest.approx(plane.mm_per_pixel)
        assert -np.diff(plane.points[:, 0, plane.row_axis]) == pytest.approx(plane.mm_per_pixel)
        assert max(plane.shape) == 60
        across = 3 - plane.column_axis - plane.row_axis
        assert (plane.points[..., across] == point[across]).all()


def test_a_ramp_of_the_world_is_read_exactly_through_an_oblique_affine(oblique_affine):
    shape = (20, 24, 28)
    slopes = np.array([1.0, -2.0, 0.5])
    world = apply_affine(oblique_affine, identity_points(shape).numpy())
    array = torch.from_numpy(world @ slopes).float()[None]
    image = Image(array, oblique_affine, "mr")
    middle = apply_affine(oblique_affine, (np.asarray(shape) - 1) / 2)
    for plane in planes_through(middle, *content_box(image), pixels=50):
        values = read(array, oblique_affine, plane.points)
        inner = np.isfinite(values)
        voxels = apply_affine(np.linalg.inv(oblique_affine), plane.points)
        inner &= ((voxels >= 0) & (voxels <= np.asarray(shape) - 1)).all(-1)
        assert inner.mean() > 0.2
        assert values[inner] == pytest.approx((plane.points @ slopes)[inner], abs=0.02)


def test_outside_the_image_is_nan(oblique_image):
    far = np.full((2, 3, 3), 1e4)
    assert np.isnan(read(oblique_image.array, oblique_image.affine, far)).all()


def test_a_picture_keeps_its_columns_and_rows():
    array = torch.arange(12.0).reshape(1, 4, 3)
    affine = np.diag([-1.0, -1.0, 1.0])
    (plane,) = planes_through((0.0, 0.0), np.array([-3.0, -2.0]), np.zeros(2), pixels=4)
    assert plane.letters == ""
    assert read(array, affine, plane.points).tolist() == array[0].T.tolist()


def test_content_is_the_foreground_and_the_box_stays_in_the_field_of_view():
    array = torch.full((1, 30, 20, 10), -1000.0)
    array[:, 10:20, 8:15, 4:10] = 50.0
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    image = Image(array, affine, "ct", "HU")
    content = coarse_content(image)
    assert content.values.min() == 50
    assert content.points.min(0).tolist() == [20, 16, 20]
    low, high = content_box(image)
    assert low == pytest.approx([12, 8, 12])
    assert high[:2] == pytest.approx([46, 36])
    assert 45 < high[2] < 47.5


def test_a_flat_image_is_all_content():
    assert len(coarse_content(Image(torch.zeros(1, 5, 6), np.eye(3), "mr")).points) == 30


def test_of_two_legs_the_sagittal_plane_cuts_one():
    grid = np.stack(np.meshgrid(*[np.arange(-60.0, 61, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    legs = grid[np.abs(np.abs(grid[:, 0]) - 35) < 20]
    assert abs(abs(busiest_point(legs)[0]) - 35) < 20


def test_the_hottest_point_is_the_spot_and_not_the_end():
    grid = np.stack(np.meshgrid(*[np.arange(-60.0, 61, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    spot = np.array([12.0, -8.0, 20.0])
    values = 5 * np.exp(-0.5 * (np.linalg.norm(grid - spot, axis=1) / 8) ** 2)
    values += 50 * (grid[:, 2] > 58)
    assert hottest_point(grid, values.astype(np.float32)) == pytest.approx(spot, abs=1)


def test_one_point_is_its_own_hottest():
    assert hottest_point(np.ones((1, 3)), np.ones(1, np.float32)).tolist() == [1, 1, 1]

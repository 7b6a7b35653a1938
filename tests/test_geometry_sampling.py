import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from fusion_pipeline.geometry import (
    PointReader,
    identity_points,
    inside,
    lps_from_ras,
    resample,
    resize,
    rigid_matrix,
    sample,
    spacing_of,
)
from fusion_pipeline.geometry.sampling import sample_along_axes

SHAPES = [(9, 12), (7, 9, 11)]


@pytest.fixture(params=SHAPES, ids=["2d", "3d"])
def shape(request):
    return request.param


def noise(shape, batch=1, channels=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn((batch, channels, *shape), generator=g)


def points_around(shape, n=200, seed=0):
    """(1, n, 1[, 1], d): inside, and up to two voxels outside."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-2, np.array(shape) + 1, (n, len(shape)))
    return torch.from_numpy(points).float().reshape(1, n, *[1] * (len(shape) - 1), len(shape))


def oblique(spacing, degrees, origin):
    d = len(spacing)
    affine = rigid_matrix(degrees, [0.0] * d, [0.0] * d)
    affine[:d, :d] *= spacing
    affine[:d, d] = origin
    return affine


def itk_image(array, affine):
    """A (*S) array in SimpleITK: its axes are reversed, its world is LPS."""
    d = array.ndim
    lps = lps_from_ras(d) @ affine
    image = sitk.GetImageFromArray(array.T.astype(np.float64))
    image.SetSpacing(spacing_of(affine).tolist())
    image.SetDirection((lps[:d, :d] / spacing_of(affine)).ravel().tolist())
    image.SetOrigin(lps[:d, d].tolist())
    return image


def test_identity_points_run_along_each_axis_in_order(shape):
    points = identity_points(shape)
    assert points.shape == (*shape, len(shape))
    for index in (tuple(0 for _ in shape), tuple(n - 1 for n in shape), (3, 5, 2)[: len(shape)]):
        assert points[index].tolist() == list(index)
    assert identity_points(shape, dtype=torch.float64).dtype == torch.float64


def test_inside_ends_half_a_voxel_outside_the_outermost_centres(shape):
    d = len(shape)
    size = torch.tensor(shape).float()
    assert inside(torch.stack([-0.5 * torch.ones(d), size - 0.5]), shape).all()
    for axis in range(d):
        step = torch.eye(d)[axis]
        assert not inside(-0.51 * step, shape)
        assert not inside((size[axis] - 0.49) * step, shape)


@pytest.mark.parametrize(("mode", "order"), [("bilinear", 1), ("nearest", 0)])
def test_sample_equals_scipy_and_goes_on_beyond_the_border(shape, mode, order):
    image, points = noise(shape), points_around(shape)
    flat = points.reshape(-1, len(shape)).T.double().numpy()
    expected = ndimage.map_coordinates(
        image[0, 0].double().numpy(), flat, order=order, mode="nearest"
    )
    found = sample(image, points, mode=mode)
    np.testing.assert_allclose(found.flatten().numpy(), expected, atol=2e-5)


def test_sample_fills_outside_only(shape):
    image, points = noise(shape), points_around(shape)
    found = sample(image, points, fill=-9.0).flatten()
    within = inside(points, shape).flatten()
    assert (found[~within] == -9).all()
    torch.testing.assert_close(found[within], sample(image, points).flatten()[within])
    assert 0 < within.sum() < within.numel()


def test_sample_reads_every_channel_and_batch_item_at_its_own_points(shape):
    image = noise(shape, batch=2, channels=3)
    points = torch.cat([points_around(shape, seed=s) for s in (0, 1)])
    found = sample(image, points, fill=0.0)
    for b in (0, 1):
        for c in (0, 1, 2):
            alone = sample(image[b : b + 1, c : c + 1], points[b : b + 1], fill=0.0)
            torch.testing.assert_close(found[b, c], alone[0, 0])


def test_a_half_precision_image_is_read_at_float32_points():
    image = torch.arange(600.0).reshape(1, 1, 600, 1).expand(1, 1, 600, 3).contiguous().half()
    points = torch.tensor([513.0, 1.0]).reshape(1, 1, 1, 2)
    found = sample(image, points)
    assert found.dtype == torch.float16
    assert found.item() == 513


def test_a_single_voxel_along_an_axis_is_read_everywhere():
    image = torch.arange(5.0).reshape(1, 1, 5, 1)
    points = torch.tensor([[2.0, 0.0], [2.0, 0.4], [2.5, -0.4]]).reshape(1, 3, 1, 2)
    points.requires_grad_()
    found = sample(image, points, fill=-1.0)
    assert found.flatten().tolist() == [2, 2, 2.5]
    found.sum().backward()
    assert torch.isfinite(points.grad).all()


def test_sample_has_gradients_for_image_and_points(shape):
    image = noise(shape).requires_grad_()
    points = points_around(shape).requires_grad_()
    sample(image, points).sum().backward()
    assert image.grad.abs().sum() > 0
    assert (points.grad.abs().sum((0, *range(2, points.ndim - 1))).amax(0) > 0).all()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_resample_equals_simpleitk_on_oblique_lattices(dims, mode):
    shape, target = (13, 11, 9)[:dims], (10, 14, 12)[:dims]
    array = noise(shape)[0, 0].double().numpy()
    angles = [[25.0], [10.0]] if dims == 2 else [[10.0, -20.0, 35.0], [-5.0, 12.0, 8.0]]
    image_affine = oblique((1.0, 1.5, 3.0)[:dims], angles[0], (-6.0, 2.0, 9.0)[:dims])
    target_affine = oblique((1.3, 0.9, 2.0)[:dims], angles[1], (-4.0, 3.0, 14.0)[:dims])
    reference = itk_image(np.zeros(target), target_affine)
    interpolator = sitk.sitkLinear if mode == "bilinear" else sitk.sitkNearestNeighbor
    moved = sitk.Resample(
        itk_image(array, image_affine), reference, sitk.Transform(), interpolator, -7.0
    )
    expected = sitk.GetArrayFromImage(moved).T
    image_from_target = torch.from_numpy(np.linalg.inv(image_affine) @ target_affine)
    image = torch.from_numpy(array)[None, None]
    found = resample(image, image_from_target, target, mode=mode, fill=-7.0)[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert 0.1 < (expected == -7).mean() < 0.9


def test_resample_by_the_identity_changes_nothing_and_takes_one_matrix_each(shape):
    d = len(shape)
    image = noise(shape, batch=2)
    torch.testing.assert_close(resample(image, torch.eye(d + 1), shape), image)
    moved = torch.eye(d + 1, dtype=torch.float64).repeat(2, 1, 1)
    moved[1, 0, d] = 2.0
    found = resample(image, moved, shape)
    torch.testing.assert_close(found[0], image[0])
    torch.testing.assert_close(found[1, :, :-2], image[1, :, 2:])


def test_a_large_origin_costs_no_digits():
    """Voxel to world to voxel with an origin of kilometres, as float64 matrices keep it."""
    affine = oblique((1.0, 1.5), [25.0], (4e6, -3e6))
    image = noise((9, 12))
    there_and_back = torch.from_numpy(np.linalg.inv(affine) @ affine)
    torch.testing.assert_close(resample(image, there_and_back, (9, 12)), image, atol=1e-4, rtol=0)


@pytest.mark.parametrize("new", [(5, 18), (9, 12), (1, 6)])
def test_resize_equals_scipy_zoom_from_corner_to_corner(new):
    image = noise((9, 12))
    at = np.meshgrid(
        *(np.linspace(0, o - 1, n) if n > 1 else [0.0] for o, n in zip((9, 12), new, strict=True)),
        indexing="ij",
    )
    for mode, order in (("bilinear", 1), ("nearest", 0)):
        expected = ndimage.map_coordinates(image[0, 0].numpy(), at, order=order, mode="nearest")
        found = resize(image, new, mode=mode)
        assert found.shape == (1, 1, *new)
        np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-5)


def test_resize_keeps_corners_in_3d_and_labels_as_labels():
    image = noise((7, 9, 11), batch=2, channels=2)
    found = resize(image, (4, 12, 5))
    corners = (..., [0, -1, 0], [0, -1, -1], [0, -1, 0])
    torch.testing.assert_close(found[corners], image[corners])
    labels = (image > 0).float() * 3
    turned = resize(labels, (4, 12, 5), mode="nearest")
    assert set(turned.unique().tolist()) == {0, 3}
    torch.testing.assert_close(turned[corners], labels[corners])


def test_resize_to_the_same_shape_is_the_image_itself(shape):
    image = noise(shape)
    assert resize(image, shape) is image


@pytest.mark.parametrize("size", [(9, 12), (7, 9, 11), (5, 1, 6)])
@pytest.mark.parametrize(("step", "first"), [(0.37, -2.0), (-1.3, 9.2), (1.0, 0.0), (4.0, 3.0)])
def test_along_axes_is_read_what_sample_reads(size, step, first):
    image = noise(size, channels=3)
    # of unequal length, turned round, and beyond the border on both sides
    positions = [first + 0.1 * axis + step * np.arange(n) for axis, n in enumerate((10, 7, 13))]
    positions = positions[: len(size)]
    grid = torch.from_numpy(np.stack(np.meshgrid(*positions, indexing="ij"), -1))
    read = sample_along_axes(image[0], positions)
    torch.testing.assert_close(read, sample(image, grid[None])[0], atol=1e-5, rtol=1e-5)


def test_the_own_lattice_is_read_as_it_is(shape):
    image = noise(shape, channels=2)[0]
    assert torch.equal(sample_along_axes(image, [np.arange(n) for n in shape]), image)


@pytest.mark.parametrize("size", [(9, 12), (7, 9, 11), (5, 1, 6)])
def test_a_point_reader_reads_what_sample_reads(size):
    image = noise(size, channels=5)
    points = points_around(size).reshape(-1, len(size))
    read = PointReader(image)(points)
    assert read.shape == (len(points), 5)
    torch.testing.assert_close(read, sample(image, points[None])[0].T, atol=1e-5, rtol=1e-5)


def test_a_point_reader_has_the_slopes_of_sample(shape):
    image, weights = noise(shape, channels=4), noise((200,), channels=4, seed=1)[0].T
    points = points_around(shape).reshape(-1, len(shape)).requires_grad_(True)
    (slopes,) = torch.autograd.grad((PointReader(image)(points) * weights).sum(), points)
    (known,) = torch.autograd.grad((sample(image, points[None])[0].T * weights).sum(), points)
    torch.testing.assert_close(slopes, known, atol=1e-4, rtol=1e-4)
    assert bool((slopes[points[:, 0] < 0, 0] == 0).all())  # the border goes on, level


def test_what_the_axes_add_is_summed_in_the_matrix_own_type():
    ramp = torch.arange(8.0).reshape(1, 1, 8, 1, 1).expand(1, 1, 8, 3, 3)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[0, 0], matrix[0, 3] = 1e5, 2.3 - 1e5  # voxel 1 of the target lies at 2.3
    read = resample(ramp, matrix, (2, 3, 3), fill=None)[0, 0, 1]
    assert torch.allclose(read, torch.tensor(2.3), atol=1e-5)

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage
from scipy.linalg import expm

from fusion_pipeline.geometry import (
    compose,
    ddf_from_ddf_mm,
    ddf_mm_from_ddf,
    identity_points,
    integrate,
    invert,
    jacobian_determinant,
    lps_from_ras,
    resize_ddf,
    rigid_matrix,
    spacing_of,
    warp,
)

SHAPES = [(18, 23), (16, 19, 22)]


@pytest.fixture(params=SHAPES, ids=["2d", "3d"])
def shape(request):
    return request.param


def noise(shape, batch=1, channels=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn((batch, channels, *shape), generator=g)


def smooth_field(shape, seed=0, size=1.5):
    """(1, d, *S): sums of slow waves, another along each axis; slopes below 1/2."""
    d = len(shape)
    x = identity_points(shape).movedim(-1, 0)
    phase = 6 * torch.rand((d, d), generator=torch.Generator().manual_seed(seed))
    waves = [
        sum(torch.sin(x[k] / (4 + k) + phase[c, k]) for k in range(d)) / d * size for c in range(d)
    ]
    return torch.stack(waves)[None]


def affine_field(matrix, shape, shift=0.0):
    """(1, d, *S): x goes to matrix x about the centre, then the shift."""
    centred = identity_points(shape) - (torch.tensor(shape) - 1) / 2
    linear = torch.as_tensor(np.asarray(matrix), dtype=torch.float32) - torch.eye(len(shape))
    return (centred @ linear.T + torch.as_tensor(shift)).movedim(-1, 0)[None]


def inner(tensor, margin=5):
    return tensor[(..., *[slice(margin, -margin)] * (tensor.ndim - 2))]


def norm(field):
    return field.norm(dim=1)


class TestWarp:
    @pytest.mark.parametrize("mode", ["bilinear", "nearest"])
    def test_zero_field_is_the_identity(self, shape, mode):
        image = noise(shape, batch=2, channels=3)
        field = torch.zeros(2, len(shape), *shape)
        torch.testing.assert_close(warp(image, field, mode=mode), image, atol=1e-4, rtol=0)

    def test_channel_c_pulls_along_tensor_axis_2_plus_c(self, shape):
        image = noise(shape)
        for axis in range(len(shape)):
            field = torch.zeros(1, len(shape), *shape)
            field[:, axis] = 2.0
            n = shape[axis] - 2
            found = warp(image, field).narrow(2 + axis, 0, n)
            torch.testing.assert_close(found, image.narrow(2 + axis, 2, n), atol=1e-4, rtol=0)

    def test_a_ramp_is_warped_exactly(self, shape):
        slopes = torch.tensor([1.0, -2.0, 0.5][: len(shape)])
        ramp = (identity_points(shape) @ slopes)[None, None]
        field = smooth_field(shape)
        expected = ramp + (field.movedim(1, -1) @ slopes)[None]
        torch.testing.assert_close(inner(warp(ramp, field)), inner(expected), atol=1e-4, rtol=1e-4)

    def test_equals_scipy_with_fill(self, shape):
        image, field = noise(shape), 3 * smooth_field(shape)
        points = (identity_points(shape).movedim(-1, 0) + field[0]).double().numpy()
        expected = ndimage.map_coordinates(
            image[0, 0].double().numpy(), points, order=1, mode="nearest"
        )
        size = np.reshape(shape, (-1, *[1] * len(shape)))
        expected[((points < -0.5) | (points > size - 0.5)).any(0)] = -9
        found = warp(image, field, fill=-9.0)[0, 0].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)

    def test_the_field_gives_the_shape_and_points_may_be_kept(self, shape):
        image = noise(shape)
        target = tuple(n - 3 for n in shape)
        field = smooth_field(target)
        found = warp(image, field)
        assert found.shape == (1, 1, *target)
        assert torch.equal(warp(image, field, points=identity_points(target)), found)

    @pytest.mark.parametrize("axes", [(0, 1), (1, 2), (0, 2)])
    def test_a_quarter_turn_of_an_odd_cube_is_a_permutation(self, axes):
        shape = (7, 7, 7)
        image = noise(shape)
        matrix = np.eye(3)
        a, b = axes
        matrix[[a, b]] = 0
        matrix[a, b], matrix[b, a] = -1, 1
        found = warp(image, affine_field(matrix, shape))
        expected = torch.rot90(image, -1, (2 + a, 2 + b))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)

    def test_batch_equals_each_alone(self, shape):
        images = noise(shape, batch=2)
        fields = torch.cat([smooth_field(shape, s) for s in (0, 1)])
        alone = [warp(images[i : i + 1], fields[i : i + 1]) for i in (0, 1)]
        torch.testing.assert_close(warp(images, fields), torch.cat(alone))

    def test_gradient_of_a_ramp_is_its_slope(self, shape):
        slopes = torch.tensor([1.0, -2.0, 0.5][: len(shape)])
        ramp = (identity_points(shape) @ slopes)[None, None]
        field = (0.3 * smooth_field(shape)).requires_grad_()
        inner(warp(ramp, field)).sum().backward()
        for axis, slope in enumerate(slopes):
            found = inner(field.grad)[0, axis]
            torch.testing.assert_close(found, slope.expand_as(found), atol=1e-3, rtol=1e-3)

    def test_wrong_number_of_channels_is_refused(self):
        with pytest.raises(
            ValueError, match=r"a 3D image needs a field of 3 channels, got image \(1, 1, 4, 5, 6\)"
        ):
            warp(noise((4, 5, 6)), torch.zeros(1, 2, 4, 5, 6))


class TestCompose:
    def test_affine_fields_multiply(self, shape):
        d = len(shape)
        rng = np.random.default_rng(0)
        first, second = (np.eye(d) + 0.05 * rng.normal(size=(d, d)) for _ in range(2))
        found = compose(affine_field(first, shape), affine_field(second, shape))
        expected = affine_field(second @ first, shape)
        torch.testing.assert_close(inner(found), inner(expected), atol=1e-3, rtol=0)

    def test_one_warp_equals_two(self, shape):
        first, second = smooth_field(shape, 0), smooth_field(shape, 1)
        image = (identity_points(shape) @ torch.tensor([1.0, -2.0, 0.5][: len(shape)]))[None, None]
        both = warp(warp(image, second), first)
        found = warp(image, compose(first, second))
        torch.testing.assert_close(inner(found), inner(both), atol=1e-3, rtol=0)
        other_order = warp(image, compose(second, first))
        assert (inner(other_order) - inner(both)).abs().max() > 0.1

    def test_zero_changes_nothing(self, shape):
        field = smooth_field(shape)
        for found in (compose(field, 0 * field), compose(0 * field, field)):
            torch.testing.assert_close(found, field, atol=1e-4, rtol=0)


class TestInvert:
    def test_there_and_back_again(self, shape):
        field = smooth_field(shape)
        inverse = invert(field)
        for found in (compose(inverse, field), compose(field, inverse)):
            assert inner(norm(found)[:, None]).max() < 0.1  # voxels, of up to 2; interpolated
        assert norm(field).max() > 1

    def test_an_affine_field_has_the_inverse_matrix(self, shape):
        d = len(shape)
        matrix = np.eye(d) + 0.05 * np.random.default_rng(0).normal(size=(d, d))
        found = invert(affine_field(matrix, shape))
        expected = affine_field(np.linalg.inv(matrix), shape)
        torch.testing.assert_close(inner(found), inner(expected), atol=1e-3, rtol=0)


class TestIntegrate:
    def test_constant_velocity_is_its_own_displacement(self, shape):
        velocity = torch.tensor([1.0, -2.0, 0.5][: len(shape)]).reshape(1, -1, *[1] * len(shape))
        velocity = velocity.expand(1, len(shape), *shape)
        torch.testing.assert_close(integrate(velocity), velocity, atol=1e-4, rtol=0)

    def test_linear_velocity_integrates_to_the_matrix_exponential(self, shape):
        d = len(shape)
        generator = 0.15 * np.random.default_rng(1).normal(size=(d, d))
        found = integrate(affine_field(np.eye(d) + generator, shape))
        expected = affine_field(expm(generator), shape)
        torch.testing.assert_close(inner(found, 6), inner(expected, 6), atol=0.03, rtol=0.02)

    def test_minus_the_velocity_gives_the_inverse(self, shape):
        velocity = smooth_field(shape)
        forward, backward = integrate(velocity), integrate(-velocity)
        assert inner(norm(compose(forward, backward))[:, None]).max() < 0.1

    def test_a_steep_velocity_does_not_fold(self, shape):
        velocity = smooth_field(shape, size=12.0)
        assert (jacobian_determinant(velocity) <= 0).any()
        assert (inner(jacobian_determinant(integrate(velocity))[:, None], 2) > 0).all()


class TestJacobian:
    def test_affine_field_has_the_determinant_of_its_matrix(self, shape):
        d = len(shape)
        matrix = np.eye(d) + 0.3 * np.random.default_rng(0).normal(size=(d, d))
        found = jacobian_determinant(affine_field(matrix, shape))
        assert found.shape == (1, *shape)
        expected = torch.full_like(found, float(np.linalg.det(matrix)))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

    def test_mirror_is_minus_one(self):
        found = jacobian_determinant(affine_field(np.diag([1.0, -1.0, 1.0]), (6, 7, 8)))
        torch.testing.assert_close(found, -torch.ones_like(found), atol=1e-5, rtol=0)

    def test_equals_simpleitk(self, shape):
        field = smooth_field(shape)
        vectors = field[0].double().numpy()
        image = sitk.GetImageFromArray(vectors.transpose(), isVector=True)
        expected = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(image)).T
        found = jacobian_determinant(field)[:, None]
        np.testing.assert_allclose(
            inner(found, 1)[0, 0].numpy(), expected[(slice(1, -1),) * len(shape)], atol=1e-4
        )

    def test_each_batch_item_has_its_own(self, shape):
        fields = torch.cat([smooth_field(shape, s) for s in (0, 1)])
        alone = torch.cat([jacobian_determinant(field[None]) for field in fields])
        torch.testing.assert_close(jacobian_determinant(fields), alone)


class TestUnits:
    def test_resized_field_moves_the_same_distance(self):
        """A stretch about the first voxel stays that stretch: corners are kept on corners."""
        shape, new = (9, 13, 11), (17, 7, 11)
        slopes = torch.tensor([0.2, -0.1, 0.3])
        field = (identity_points(shape) * slopes).movedim(-1, 0)[None]
        expected = (identity_points(new) * slopes).movedim(-1, 0)[None]
        torch.testing.assert_close(resize_ddf(field, new), expected, atol=1e-5, rtol=0)

    def test_resizing_there_and_back(self, shape):
        field = smooth_field(shape)
        finer = tuple(2 * n - 1 for n in shape)
        back = resize_ddf(resize_ddf(field, finer), shape)
        torch.testing.assert_close(back, field, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("dims", [2, 3])
    def test_millimetres_warp_the_same_in_simpleitk(self, dims):
        """ITK moves points by LPS mm vectors: diag(−1, −1, 1) times ours."""
        shape = (13, 15, 11)[:dims]
        affine = rigid_matrix([25.0] if dims == 2 else [10.0, -20.0, 35.0], [0] * dims, [0] * dims)
        affine[:dims, :dims] *= (1.0, 1.5, 3.0)[:dims]
        affine[:dims, dims] = (-40.0, 12.0, 90.0)[:dims]
        image, field = noise(shape), smooth_field(shape)
        ddf_mm = ddf_mm_from_ddf(field.double(), torch.from_numpy(affine))[0].numpy()
        lps = np.einsum("ab,b...->...a", lps_from_ras(dims)[:dims, :dims], ddf_mm)
        vectors = sitk.GetImageFromArray(np.moveaxis(lps.T, 0, -1), isVector=True)
        picture = sitk.GetImageFromArray(image[0, 0].double().numpy().T)
        world = lps_from_ras(dims) @ affine
        for lattice in (vectors, picture):
            lattice.SetSpacing(spacing_of(affine).tolist())
            lattice.SetDirection((world[:dims, :dims] / spacing_of(affine)).ravel().tolist())
            lattice.SetOrigin(world[:dims, dims].tolist())
        vectors = sitk.Cast(vectors, sitk.sitkVectorFloat64)
        moved = sitk.Resample(
            picture, picture, sitk.DisplacementFieldTransform(vectors), sitk.sitkLinear, -7.0
        )
        expected = sitk.GetArrayFromImage(moved).T
        found = warp(image, field, fill=-7.0)[0, 0].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)

    def test_back_from_millimetres(self, shape):
        d = len(shape)
        affine = torch.from_numpy(rigid_matrix([25.0] * (1 if d == 2 else 3), [0] * d, [0] * d))
        affine[:d, :d] *= torch.tensor([1.0, 1.5, 3.0][:d])
        field = smooth_field(shape)
        back = ddf_from_ddf_mm(ddf_mm_from_ddf(field, affine), affine)
        torch.testing.assert_close(back, field, atol=1e-5, rtol=0)

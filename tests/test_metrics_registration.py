import warnings

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from skimage.metrics import normalized_mutual_information as skimage_nmi

from fusion_pipeline.geometry import identity_points, integrate, invert
from fusion_pipeline.losses import mind_ssc
from fusion_pipeline.metrics import (
    dice,
    dice_per_label,
    folded_fraction,
    hd95,
    hd95_per_label,
    inverse_consistency,
    log_jacobian_std,
    mind_distance,
    normalized_mutual_information,
    target_registration_error,
)

SPACING = (1.0, 1.5, 3.0)


def ellipsoid(centre, radii, shape=(20, 24, 28)):
    grid = np.indices(shape)
    c, r = (np.reshape(v, (-1, *[1] * len(shape))) for v in (centre, radii))
    return (((grid - c) / r) ** 2).sum(0) < 1


def smooth_field(shape, seed=0, size=1.5):
    d = len(shape)
    x = identity_points(shape).movedim(-1, 0)
    phase = torch.rand((d, d), generator=torch.Generator().manual_seed(seed)) * 6
    waves = [sum(torch.sin(x[k] / 4 + phase[c, k]) for k in range(d)) / d * size for c in range(d)]
    return torch.stack(waves)[None]


def affine_field(matrix, shape):
    """(1, d, *S): x ↦ matrix x about the centre."""
    centred = identity_points(shape) - (torch.tensor(shape) - 1) / 2
    return (centred @ (torch.as_tensor(matrix) - torch.eye(len(shape))).T).movedim(-1, 0)[None]


class TestPoints:
    def test_error_is_the_distance_in_mm(self):
        found = target_registration_error([[0, 0, 0], [1, 2, 3]], [[1, 2, 2], [1, 2, 7]])
        assert found.tolist() == [3, 4]

    def test_shapes_are_checked(self):
        with pytest.raises(ValueError, match=r"points \(n, d\), got \(2, 3\), \(3, 3\)"):
            target_registration_error(np.zeros((2, 3)), np.zeros((3, 3)))
        with pytest.raises(ValueError, match=r"got \(3,\), \(3,\)"):
            target_registration_error(np.zeros(3), np.zeros(3))


class TestDice:
    def test_equals_monai_for_each_label(self):
        rng = np.random.default_rng(0)
        a, b = rng.integers(0, 4, (2, 9, 10, 11))
        one_hot = [torch.from_numpy(np.stack([x == k for k in (1, 2, 3)]))[None] for x in (a, b)]
        expected = compute_dice(*one_hot)[0].tolist()
        found = dice_per_label(a, b)
        assert list(found) == [1, 2, 3]
        assert list(found.values()) == pytest.approx(expected)

    @pytest.mark.parametrize("shape", [(5, 6), (4, 5, 6)])
    def test_a_region_against_none_overlaps_nowhere(self, shape):
        whole, none = np.ones(shape), np.zeros(shape)
        assert dice(whole, none) == dice(none, whole) == 0  # MONAI has no answer to the first
        assert np.isnan(dice(none, none))

    def test_absent_labels(self):
        found = dice_per_label(np.array([[1, 1]]), np.array([[0, 0]]), labels=[1, 5])
        assert found[1] == 0
        assert np.isnan(found[5])

    def test_booleans_and_tensors(self):
        a = torch.tensor([[True, True, False]])
        assert dice_per_label(a, a) == {1: 1.0}
        assert dice(a, a) == 1
        assert dice(a, ~a) == 0
        assert np.isnan(dice(0 * a, 0 * a))

    def test_shapes_are_checked(self):
        with pytest.raises(ValueError, match=r"on one grid, got \(2, 3\) and \(3, 2\)"):
            dice(np.zeros((2, 3)), np.zeros((3, 2)))


class TestHausdorff:
    @pytest.mark.parametrize("shift", [(0, 0, 0), (2, 0, 0), (1, 3, 2)])
    def test_equals_monai(self, shift):
        a = ellipsoid((9, 11, 13), (6, 8, 5))
        b = ellipsoid(np.add((9, 11, 13), shift), (7, 6, 9))
        given = [torch.from_numpy(x)[None, None] for x in (a, b)]
        expected = compute_hausdorff_distance(*given, percentile=95, spacing=SPACING).item()
        assert hd95(a, b, SPACING) == pytest.approx(expected, rel=1e-5)

    def test_equals_monai_in_2d(self):
        a, b = ellipsoid((9, 11), (6, 8), (20, 24)), ellipsoid((11, 10), (8, 5), (20, 24))
        given = [torch.from_numpy(x)[None, None] for x in (a, b)]
        expected = compute_hausdorff_distance(*given, percentile=95, spacing=(1.0, 2.5)).item()
        assert hd95(a, b, (1.0, 2.5)) == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_two_parallel_plates_are_their_distance_apart_in_mm(self, axis):
        a, b = np.zeros((2, 10, 11, 12), bool)
        np.moveaxis(a, axis, 0)[2] = np.moveaxis(b, axis, 0)[5] = True
        assert hd95(a, b, SPACING) == pytest.approx(3 * SPACING[axis])

    def test_symmetric_and_blind_to_one_far_voxel(self):
        a, b = ellipsoid((9, 11, 13), (6, 8, 5)), ellipsoid((10, 12, 12), (5, 9, 7))
        assert hd95(a, b, SPACING) == hd95(b, a, SPACING)
        far = a.copy()
        far[0, 0, 0] = True
        assert hd95(far, a, SPACING) == 0

    def test_the_region_ends_at_the_lattice(self):
        a = np.ones((6, 7), bool)
        b = np.zeros((6, 7), bool)
        b[:, :1] = True
        assert hd95(a, b, (1.0, 2.0)) == pytest.approx(12)

    def test_monai_warns_nobody(self):
        a = ellipsoid((9, 11, 13), (6, 8, 5))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pytest's settings spare MONAI's
            assert hd95(a, a, SPACING) == 0
            assert dice(a, a) == 1

    def test_each_label_by_itself(self):
        a, b = np.zeros((2, 10, 11, 12), int)
        a[2], b[5] = 1, 1
        a[:, 1], b[:, 2] = 4, 4
        a[0, 0, 0] = 9
        found = hd95_per_label(a, b, SPACING)
        assert list(found) == [1, 4, 9]
        assert found[4] == pytest.approx(1.5)
        assert np.isnan(found[9])
        assert list(hd95_per_label(a, b, SPACING, [4])) == [4]

    def test_empty_regions_have_no_distance(self):
        assert np.isnan(hd95(np.zeros((4, 5)), np.ones((4, 5)), (1.0, 1.0)))

    def test_errors(self):
        with pytest.raises(ValueError, match=r"expected 2 spacings for \(4, 5\), got \[1.0\]"):
            hd95(np.ones((4, 5)), np.ones((4, 5)), [1.0])


class TestFields:
    @pytest.mark.parametrize("shape", [(12, 15), (10, 12, 14)])
    def test_affine_fields_neither_fold_nor_vary(self, shape):
        d = len(shape)
        field = affine_field(torch.eye(d) + 0.2 * torch.randn(d, d), shape)
        assert folded_fraction(field).item() == 0
        assert log_jacobian_std(field).item() == pytest.approx(0, abs=1e-5)

    def test_mirroring_folds_everywhere(self):
        field = affine_field(torch.diag(torch.tensor([-1.0, 1, 1])), (10, 12, 14))
        assert folded_fraction(field).item() == 1

    def test_a_crease_folds_where_it_is(self):
        field = torch.zeros(2, 2, 10, 12)
        field[1, 0, 4:] = -3.0  # rows 3 and 4 see a slope of −1.5
        assert folded_fraction(field).tolist() == pytest.approx([0, 0.2])
        mask = torch.zeros(2, 1, 10, 12)
        mask[:, :, 3] = 1
        assert folded_fraction(field, mask).tolist() == [0, 1]
        assert torch.isfinite(log_jacobian_std(field)).all()

    def test_spread_equals_simpleitk_and_mask_is_obeyed(self):
        field = smooth_field((10, 12, 14))
        image = sitk.GetImageFromArray(field[0].permute(3, 2, 1, 0).double().numpy(), isVector=True)
        determinant = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(image))
        inner = np.log(determinant.transpose(2, 1, 0))[1:-1, 1:-1, 1:-1]
        mask = torch.zeros(1, 1, 10, 12, 14)
        mask[..., 1:-1, 1:-1, 1:-1] = 1
        assert log_jacobian_std(field, mask).item() == pytest.approx(inner.std(), rel=1e-4)
        assert log_jacobian_std(field).item() != pytest.approx(inner.std(), rel=1e-4)

    def test_inverse_consistency_is_in_mm(self):
        there = torch.zeros(1, 3, 20, 22, 24)
        there[:, 2] = 2.0
        assert inverse_consistency(there, -there, SPACING).item() == 0
        assert inverse_consistency(there, 0 * there, SPACING).item() == pytest.approx(6)
        assert inverse_consistency(there, -there / 2, SPACING).item() == pytest.approx(3)

    def test_voxels_that_leave_the_lattice_do_not_count(self):
        there = torch.zeros(2, 2, 10, 12)
        there[0, 1, :, 6:] = 50.0
        there[1] = 50.0
        found = inverse_consistency(there, torch.zeros_like(there), (1.0, 1.0))
        assert found[0].item() == 0
        assert torch.isnan(found[1])

    def test_an_inverse_is_consistent(self):
        forward = integrate(smooth_field((20, 22, 24)))
        with_inverse = inverse_consistency(forward, invert(forward), SPACING).item()
        assert with_inverse < 0.05 * inverse_consistency(forward, 0 * forward, SPACING).item()


class TestSimilarity:
    @pytest.mark.parametrize("bins", [16, 64])
    def test_nmi_equals_scikit_image(self, bins):
        rng = np.random.default_rng(0)
        a = rng.normal(size=(20, 24, 28))
        b = a**2 + 0.5 * rng.normal(size=a.shape)
        expected = skimage_nmi(a, b, bins=bins)
        assert normalized_mutual_information(a, b, bins=bins) == pytest.approx(expected)
        mask = a > 0.3
        found = normalized_mutual_information(torch.from_numpy(a), b, mask, bins=bins)
        assert found == pytest.approx(skimage_nmi(a[mask], b[mask], bins=bins))

    def test_nmi_of_constants_and_of_nothing_is_one(self):
        flat = np.ones((4, 5))
        assert normalized_mutual_information(flat, flat) == 1
        assert (
            normalized_mutual_information(flat, np.random.default_rng(0).normal(size=(4, 5))) == 1
        )
        assert normalized_mutual_information(flat, flat, np.zeros((4, 5))) == 1

    def test_nmi_of_an_inverted_image_is_two(self):
        a = np.random.default_rng(0).normal(size=(20, 24))
        assert normalized_mutual_information(a, -3 * a) == pytest.approx(2)

    @pytest.mark.parametrize("shape", [(12, 15), (10, 12, 14)])
    def test_mind_distance(self, shape):
        g = torch.Generator().manual_seed(0)
        a, b = (torch.randn((2, 1, *shape), generator=g) for _ in range(2))
        assert mind_distance(a, 5 - 3 * a).tolist() == pytest.approx([0, 0], abs=1e-5)
        expected = (mind_ssc(a) - mind_ssc(b)).abs().flatten(1).mean(1)
        torch.testing.assert_close(mind_distance(a, b), expected)
        mask = torch.zeros(2, 1, *shape)
        mask[..., 2:9, 3:8] = 1
        hidden = torch.where(mask > 0, a, torch.full_like(a, 1e3))
        torch.testing.assert_close(mind_distance(hidden, b, mask), mind_distance(a, b, mask))
        part = (mind_ssc(a, mask=mask) - mind_ssc(b, mask=mask)).abs().mean(1)[mask[:, 0] > 0]
        found = mind_distance(a, b, mask).mean()
        assert found.item() == pytest.approx(part.mean().item(), rel=1e-5)

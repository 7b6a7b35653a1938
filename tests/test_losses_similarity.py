"""Box means and mutual information: laws, and another library as witness."""

import numpy as np
import pytest
import torch
from skimage.metrics import normalized_mutual_information as skimage_nmi
from torch.nn.functional import avg_pool2d, avg_pool3d

from fusion_pipeline.geometry import identity_points
from fusion_pipeline.geometry.filters import averaged, box_sum, box_sum_same
from fusion_pipeline.losses import mutual_information

SHAPES = [(20, 24), (13, 11, 15)]


def _noise(shape, seed=0, batch=1):
    return torch.randn((batch, 1, *shape), generator=torch.Generator().manual_seed(seed))


def _smooth(shape, seed=0, batch=1):
    pool = avg_pool2d if len(shape) == 2 else avg_pool3d
    return 3 * pool(_noise(shape, seed, batch), 5, stride=1, padding=2)


@pytest.fixture(params=SHAPES, ids=["2d", "3d"])
def shape(request):
    return request.param


class TestBoxSum:
    @pytest.mark.parametrize("width", [1, 2, 3, 5, 7, 9])
    def test_equals_pooling(self, width):
        values = _noise((10, 11, 12), batch=2)
        expected = avg_pool3d(values, width, stride=1) * width**3
        torch.testing.assert_close(box_sum(values, width), expected, atol=1e-4, rtol=1e-4)

    def test_same_keeps_the_shape_and_adds_nothing_beyond(self):
        ones = torch.ones(1, 1, 4, 5)
        assert box_sum_same(ones, 3)[0, 0, 0].tolist() == [4, 6, 6, 6, 4]

    def test_averages_keep_constants_and_slopes(self, shape):
        d = len(shape)
        flat = torch.full((1, d, *shape), 1.7)
        torch.testing.assert_close(averaged(flat), flat)
        slope = identity_points(shape).movedim(-1, 0)[None]
        inner = (slice(None), slice(None), *[slice(2, -2)] * d)
        torch.testing.assert_close(averaged(slope)[inner], slope[inner], atol=1e-4, rtol=1e-5)
        assert float(averaged(_noise(shape)).std()) < 0.5 * float(_noise(shape).std())
        torch.testing.assert_close(
            averaged(_noise(shape), 2), averaged(averaged(_noise(shape))), atol=0, rtol=0
        )


def _check_gradient(measure, a, b, tolerance):
    """The slope along a random direction; the detached scales cancel or change slowly."""
    for which, image in enumerate((a, b)):
        (gradient,) = torch.autograd.grad(measure(a, b).sum(), image)
        direction = gradient / gradient.norm()
        ends = []
        for sign in (1, -1):
            moved = [a, b]
            moved[which] = image.detach() + sign * 0.01 * direction
            ends.append(measure(*moved).item())
        assert (ends[0] - ends[1]) / 0.02 == pytest.approx(gradient.norm().item(), rel=tolerance)


class TestMutualInformation:
    def test_joint_normal_images_reach_the_closed_form(self):
        """I = −½ log(1 − ρ²) for jointly normal values; smoothing the histogram takes a little."""
        rho, n = 0.8, (1, 1, 300, 400)
        g = torch.Generator().manual_seed(0)
        a, e = torch.randn(n, generator=g), torch.randn(n, generator=g)
        b = rho * a + (1 - rho**2) ** 0.5 * e
        found = mutual_information(a, b, bins=64, normalized=False).item()
        assert found == pytest.approx(-0.5 * np.log(1 - rho**2), rel=0.1)

    def test_near_scikit_image(self, shape):
        a = _smooth((60, 70), 0)
        b = a.square() + 0.2 * _smooth((60, 70), 1)
        expected = skimage_nmi(a[0, 0].numpy(), b[0, 0].numpy(), bins=16)
        found = mutual_information(a, b, bins=32).item()
        assert found == pytest.approx(expected, abs=0.1)

    @pytest.mark.parametrize("normalized", [True, False])
    def test_independent_images_share_nothing(self, normalized):
        found = mutual_information(
            _noise((60, 50, 40)), _noise((60, 50, 40), 1), normalized=normalized
        )
        assert found.item() == pytest.approx(float(normalized), abs=0.01)

    @pytest.mark.parametrize(("gain", "offset"), [(3.0, 100.0), (-0.1, 2.0)])
    def test_blind_to_gain_offset_and_inversion(self, shape, gain, offset):
        a, b = _smooth(shape), _smooth(shape).square()
        torch.testing.assert_close(
            mutual_information(gain * a + offset, b), mutual_information(a, b), atol=1e-3, rtol=0
        )

    def test_falls_as_the_images_move_apart(self):
        a = _smooth((60, 70))
        values = [mutual_information(a, a.square().roll(k, -1)).item() for k in (0, 1, 2, 6)]
        assert values == sorted(values, reverse=True)

    def test_symmetric_and_batch_equals_each_alone(self, shape):
        a, b = _smooth(shape, batch=2), _smooth(shape, 1, batch=2).abs()
        found = mutual_information(a, b)
        assert found.shape == (2,)
        torch.testing.assert_close(mutual_information(b, a), found)
        alone = [mutual_information(a[i : i + 1], b[i : i + 1]) for i in (0, 1)]
        torch.testing.assert_close(torch.cat(alone), found)

    @pytest.mark.parametrize("samples", [None, 50])
    def test_only_voxels_in_the_mask_are_used(self, shape, samples):
        a, b, mask = _smooth(shape), _smooth(shape).square(), torch.zeros(1, 1, *shape)
        mask[..., 2:9, 3:8] = 1
        outside = torch.where(mask > 0, a, torch.full_like(a, 1e4))
        seeded = [torch.Generator().manual_seed(3) for _ in range(2)]
        one, two = (
            mutual_information(x, b, mask, samples=samples, generator=g)
            for x, g in zip((a, outside), seeded, strict=True)
        )
        assert torch.equal(one, two)

    def test_samples_estimate_the_whole(self):
        a, b = _smooth((200, 210)), _smooth((200, 210)).square()
        whole = mutual_information(a, b).item()
        part = mutual_information(a, b, samples=20000, generator=torch.Generator().manual_seed(0))
        assert part.item() == pytest.approx(whole, abs=0.03)
        assert part.item() != whole
        assert mutual_information(a, b, samples=a.numel()).item() == whole

    def test_samples_without_generator(self):
        image = _noise((9, 10))
        assert torch.isfinite(mutual_information(image, image, samples=20)).all()

    @pytest.mark.parametrize("normalized", [True, False])
    def test_constant_images_share_nothing_and_have_finite_gradients(self, shape, normalized):
        flat, image = torch.full((1, 1, *shape), 5.0, requires_grad=True), _noise(shape)
        for other in (image, flat):
            value = mutual_information(flat, other, normalized=normalized)
            (gradient,) = torch.autograd.grad(value.sum(), flat)
            assert value.item() == pytest.approx(float(normalized), abs=1e-4)
            assert torch.isfinite(gradient).all()

    @pytest.mark.parametrize("normalized", [True, False])
    def test_empty_mask_shares_nothing(self, shape, normalized):
        image = _noise(shape).requires_grad_()
        mask = torch.zeros(1, 1, *shape)
        value = mutual_information(image, image, mask, normalized=normalized)
        value.sum().backward()
        assert value.item() == float(normalized)
        assert (image.grad == 0).all()

    @pytest.mark.parametrize("normalized", [True, False])
    def test_gradient_equals_finite_differences_in_both(self, normalized):
        a, b = _smooth((25, 30)).requires_grad_(), _smooth((25, 30)).square().requires_grad_()
        keep_range = torch.ones_like(a)
        for image in (a, b):  # the bins' range is not part of the gradient
            keep_range.view(-1)[image.argmin()] = keep_range.view(-1)[image.argmax()] = 0
        a, b = a.detach().requires_grad_(), b.detach().requires_grad_()

        def measure(x, y):
            fixed = [
                torch.where(keep_range > 0, v, o.detach())
                for v, o in zip((x, y), (a, b), strict=True)
            ]
            return mutual_information(*fixed, bins=16, normalized=normalized)

        _check_gradient(measure, a, b, tolerance=0.05)

    def test_autocast_changes_nothing(self, shape):
        a, b = _smooth(shape), _smooth(shape).square()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = mutual_information(a, b)
        assert torch.equal(found, mutual_information(a, b))

    def test_few_bins_are_refused(self):
        with pytest.raises(ValueError, match="at least 5 bins, got 4"):
            mutual_information(_noise((5, 5)), _noise((5, 5)), bins=4)

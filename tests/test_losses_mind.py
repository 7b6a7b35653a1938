from itertools import product

import numpy as np
import pytest
import torch

from fusion_pipeline.losses.mind import mind_ssc

SHAPES = [(9, 11), (7, 8, 9)]


def _noise(shape, seed=0):
    return torch.randn((1, 1, *shape), generator=torch.Generator().manual_seed(seed))


def _pairs(dims, dilation):
    """In the documented order of the channels."""
    unit = dilation * np.eye(dims, dtype=int)
    for a in range(dims):
        for b in range(a + 1, dims):
            yield from ((unit[a], unit[b]), (-unit[b], -unit[a]))
            yield from ((-unit[a], unit[b]), (-unit[b], unit[a]))


def _by_loops(image, radius, dilation, mask=None, floor=1e-3):
    """Straight from the paper's definition, voxel by voxel, float64."""
    shape, dims = image.shape, image.ndim
    mask = np.ones(shape, bool) if mask is None else mask
    patch = np.array(list(product(range(-radius, radius + 1), repeat=dims)))
    pairs = list(_pairs(dims, dilation))
    at = lambda array, p: array[tuple(np.clip(p, 0, np.array(shape) - 1).T)]  # noqa: E731
    distance = np.full((len(pairs), *shape), np.nan)
    for x in np.ndindex(*shape):
        for c, (p, q) in enumerate(pairs):
            one, two = np.array(x) + p + patch, np.array(x) + q + patch
            both = at(mask, one) & at(mask, two)
            if both.any():
                distance[(c, *x)] = np.mean((at(image, one) - at(image, two))[both] ** 2)
    hidden = np.isnan(distance).all(0)
    distance[:, hidden] = 0.0
    distance = np.where(np.isnan(distance), np.nanmean(distance, 0), distance)
    variance = distance.mean(0)
    typical = variance[mask].mean()
    variance = np.clip(variance, typical * floor, typical * 1000)
    return np.exp((distance.min(0) - distance) / variance) * mask


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("radius", "dilation"), [(1, 2), (1, 1), (2, 3)])
def test_equals_loops_over_the_definition(shape, radius, dilation):
    image = _noise(shape)
    expected = _by_loops(image[0, 0].double().numpy(), radius, dilation)
    found = mind_ssc(image, radius=radius, dilation=dilation)
    assert found.shape == (1, 4 if len(shape) == 2 else 12, *shape)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=2e-4, atol=1e-5)


def test_a_floor_silences_faint_noise_and_keeps_edges():
    image = 0.02 * _noise((24, 24))
    image[..., 12:] += 1.0
    expected = _by_loops(image[0, 0].double().numpy(), 1, 2, floor=0.1)
    found, usual = mind_ssc(image, floor=0.1), mind_ssc(image)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=2e-4, atol=1e-5)
    flat, edge = (..., slice(0, 7)), (..., slice(11, 13))
    assert float(usual[flat].mean()) < 0.75 < 0.95 < float(found[flat].mean())
    torch.testing.assert_close(found[edge], usual[edge], atol=0.02, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_mask_equals_loops_over_the_voxels_inside(shape):
    image, mask = _noise(shape), torch.zeros(1, 1, *shape)
    mask[..., 1:6, 2:8] = 1
    mask[..., 3, 4] = 0
    expected = _by_loops(image[0, 0].double().numpy(), 1, 2, mask[0, 0].bool().numpy())
    found = mind_ssc(image, mask=mask)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=2e-4, atol=1e-5)
    hidden = torch.where(mask > 0, image, torch.full_like(image, 1e4))
    assert torch.equal(mind_ssc(hidden, mask=mask), found)


def test_full_mask_equals_no_mask():
    image = _noise((7, 8, 9))
    torch.testing.assert_close(mind_ssc(image, mask=torch.ones_like(image)), mind_ssc(image))


def test_a_mask_and_patches_of_more_voxels_than_a_byte_counts_equal_loops():
    image, mask = _noise((9, 8, 7)), torch.ones(1, 1, 9, 8, 7)
    mask[:, :, 4, 3:6] = 0
    expected = _by_loops(image[0, 0].double().numpy(), 3, 2, mask[0, 0].bool().numpy())
    found = mind_ssc(image, mask=mask, radius=3)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("gain", "offset"), [(3.0, 5.0), (-2.0, 1.0), (-0.01, -1.0)])
def test_blind_to_gain_offset_and_inversion(shape, gain, offset):
    image = _noise(shape)
    torch.testing.assert_close(
        mind_ssc(gain * image + offset), mind_ssc(image), atol=2e-4, rtol=1e-3
    )


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_moves_with_the_image(axis):
    image = torch.nn.functional.pad(_noise((6, 7, 8)), [6] * 6)  # a roll is a shift
    moved = mind_ssc(image.roll(2, axis))
    inner = (..., slice(3, -3), slice(3, -3), slice(3, -3))
    torch.testing.assert_close(moved[inner], mind_ssc(image).roll(2, axis)[inner])


def test_batch_equals_each_alone():
    images = torch.cat([_noise((7, 8, 9)), 100 * _noise((7, 8, 9), seed=1)])
    alone = torch.cat([mind_ssc(image[None]) for image in images])
    torch.testing.assert_close(mind_ssc(images), alone)


@pytest.mark.parametrize("shape", SHAPES)
def test_constant_image_has_a_finite_descriptor_and_gradient(shape):
    image = torch.full((1, 1, *shape), 3.0, requires_grad=True)
    mind_ssc(image).sum().backward()
    assert torch.isfinite(image.grad).all()
    assert (mind_ssc(image) == 1).all()


def test_gradient_reaches_every_voxel():
    image = _noise((7, 8, 9)).requires_grad_()
    mind_ssc(image).square().sum().backward()
    assert (image.grad != 0).all()


def test_empty_mask_gives_zeros():
    image = _noise((7, 8, 9))
    assert (mind_ssc(image, mask=torch.zeros_like(image)) == 0).all()


def test_a_mask_far_inside_the_image_equals_loops():
    """Two images whose masks lie in different corners of one box."""
    images = torch.cat([_noise((17, 14)), 3 * _noise((17, 14)).flip(2)])
    masks = torch.zeros_like(images)
    masks[0, :, 5:10, 4:9] = 1
    masks[1, :, 7:13, 6:11] = 1
    found = mind_ssc(images, mask=masks)
    for image, mask, one in zip(images, masks, found, strict=True):
        expected = _by_loops(image[0].double().numpy(), 1, 2, mask[0].numpy() > 0)
        np.testing.assert_allclose(one.numpy(), expected, rtol=2e-4, atol=1e-5)


def test_one_mask_serves_a_batch():
    images = torch.cat([_noise((9, 11)), _noise((9, 11)).flip(3)])
    mask = torch.zeros(1, 1, 9, 11)
    mask[..., 2:7, 3:9] = 1
    found = mind_ssc(images, mask=mask)
    for n in (0, 1):
        torch.testing.assert_close(found[n : n + 1], mind_ssc(images[n : n + 1], mask=mask))


def test_derivatives_pass_through_a_mask():
    image = _noise((7, 8)).double().requires_grad_(True)
    mask = torch.zeros(1, 1, 7, 8)
    mask[..., 1:6, 2:7] = 1
    weights = _noise((4, 7, 8)).reshape(1, 4, 7, 8)

    def value(x):
        return (mind_ssc(x, mask=mask) * weights).sum()

    (slope,) = torch.autograd.grad(value(image), image)
    assert float((slope * (1 - mask)).abs().max()) == 0
    step = torch.zeros_like(image)
    step[0, 0, 3, 4] = 1e-2
    with torch.no_grad():
        expected = (value(image + step) - value(image - step)) / 2e-2
    assert float(slope[0, 0, 3, 4]) == pytest.approx(float(expected), rel=0.05, abs=1e-3)

"""Weights of images whose fields of view end in different places."""

import pytest
import torch

from fusion_pipeline.geometry.shares import masked_softmax, range_by_share, softmax_by_share


def _drawn(seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    scores = 4 * torch.randn(2, count, 7, 5, generator=generator)
    return scores, torch.rand(2, count, 7, 5, generator=generator)


def test_all_in_view_is_the_softmax():
    scores, _ = _drawn(0)
    torch.testing.assert_close(softmax_by_share(scores, torch.ones_like(scores)), scores.softmax(1))


def test_it_is_the_integral_over_shares():
    """By midpoints of 2,000 thresholds."""
    scores, share = _drawn(1)
    part = share / share.amax(1, keepdim=True)
    expected = torch.zeros_like(scores)
    for threshold in (torch.arange(2000) + 0.5) / 2000:
        expected += masked_softmax(scores, (part > threshold).float()) / 2000
    torch.testing.assert_close(softmax_by_share(scores, share), expected, atol=2e-3, rtol=0)


def test_a_strong_image_fades_in_proportion_to_its_share():
    scores = torch.tensor([0.0, 8.0]).view(1, 2, 1).expand(1, 2, 11)
    share = torch.stack([torch.ones(11), torch.linspace(0, 1, 11)])[None]
    weights = softmax_by_share(scores, share)
    torch.testing.assert_close(weights[0, 1], share[0, 1] * scores.softmax(1)[0, 1])
    torch.testing.assert_close(weights.sum(1), torch.ones(1, 11))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_sums_to_one_in_view_and_to_nothing_elsewhere(count):
    scores, share = _drawn(2, count)
    share[:, :, 3:] = 0
    total = softmax_by_share(scores, share).sum(1)
    torch.testing.assert_close(total[:, :3], torch.ones_like(total[:, :3]))
    assert float(total[:, 3:].abs().max()) == 0


def test_the_range_goes_over_to_that_of_the_others():
    images = torch.tensor([0.2, 0.4, 0.9]).view(1, 3, 1).expand(1, 3, 5)
    share = torch.ones(1, 3, 5)
    share[0, 2] = torch.tensor([1.0, 0.5, 0.1, 0.0, 0.0])
    share[0, :, 4] = 0
    low, high = range_by_share(images, share)
    torch.testing.assert_close(high[0, 0], torch.tensor([0.9, 0.65, 0.45, 0.4, 0.0]))
    torch.testing.assert_close(low[0, 0], torch.tensor([0.2, 0.2, 0.2, 0.2, 0.0]))

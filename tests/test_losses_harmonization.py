"""The harmonization loss: (4.2) to (4.4), and the terms that make a constant expensive."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from fusion_pipeline.losses.harmonization_loss import (
    HARMONIZATION_WEIGHTS,
    box_mean,
    contrast_lost,
    edge_agreement,
    edges_lost,
    gradients,
    harmonization_loss,
    harmonization_parts,
    information_lost,
    intensity_agreement,
    lesion_contrast_lost,
    protocol_difference,
    range_lost,
    separation_lost,
    shared_structure,
    spread_lost,
)
from fusion_pipeline.networks.harmonization_net import HarmonizationNet

SHAPES = {2: (22, 31), 3: (14, 17, 20)}


@pytest.fixture(params=[2, 3])
def shape(request):
    return SHAPES[request.param]


def _anatomy(shape, seed):
    """Blobs in a body, z-scored like a normalized image; another contrast for each seed."""
    rng = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(rng.standard_normal(shape), 2.0)
    labels = np.digitize(blobs, np.quantile(blobs, [0.3, 0.6, 0.8]))
    values = np.concatenate([[-1.6], np.random.default_rng(seed).uniform(-0.8, 2.5, 3)])
    noise = 0.05 * np.random.default_rng(seed + 100).standard_normal(shape)
    return torch.from_numpy(values[labels] + noise).float()[None, None]


def _straight(image):
    return ((image + 4) / 8).clamp(0, 1)


@pytest.mark.parametrize("seed", range(6))
def test_constant_costs_more_than_the_straight_line(shape, seed):
    """The trap of METHOD 4: (4.4) alone is smallest for a constant."""
    normalized = torch.cat([_anatomy(shape, seed), _anatomy(shape, seed + 10)], 1)
    identity = float(harmonization_loss(_straight(normalized), normalized))
    for level in (0.0, 0.3, 1.0):
        constant = torch.full_like(normalized, level)
        assert float(harmonization_loss(constant, normalized)) > identity + 1.0
        paper = {"hold": 0.0, "likeness": 0.0}
        alone = harmonization_loss(constant, normalized, **paper)
        assert (
            float(alone)
            == 0
            < float(harmonization_loss(_straight(normalized), normalized, **paper))
        )


def test_constant_costs_more_than_the_worst_case():
    """Two images that contradict each other at every voxel: the straight line still wins."""
    board = torch.from_numpy(np.indices((12, 16)).sum(0) % 2).float()[None, None]
    normalized = torch.cat([8 * board - 4, 4 - 8 * board], 1)
    line = float(harmonization_loss(_straight(normalized), normalized))
    assert line > 1
    assert line < float(harmonization_loss(torch.full_like(normalized, 0.5), normalized))


def test_a_nearly_constant_output_costs_more_too(shape):
    normalized = torch.cat([_anatomy(shape, 1), _anatomy(shape, 2)], 1)
    faint = 0.5 + 0.01 * (_straight(normalized) - 0.5)
    assert harmonization_loss(faint, normalized) > harmonization_loss(
        _straight(normalized), normalized
    )


def test_flattening_one_of_two_costs():
    """Agreement bought by giving up one image is too dear."""
    normalized = torch.cat([_anatomy((20, 24), 1), _anatomy((20, 24), 2)], 1)
    line = _straight(normalized)
    one_flat = torch.cat([line[:, :1], torch.full_like(line[:, :1], 0.4)], 1)
    assert harmonization_loss(one_flat, normalized) > harmonization_loss(line, normalized)


def test_agreeing_costs_less(shape):
    """The same anatomy in two contrasts: an image nearer to the reference is better, edges kept."""
    a = _anatomy(shape, 3)
    normalized = torch.cat([a, 0.5 * a + 0.8], 1)
    apart = _straight(normalized)
    together = torch.cat([apart[:, :1]] * 2, 1)
    assert harmonization_loss(together, normalized) < harmonization_loss(apart, normalized)


def test_identity_loses_nothing(shape):
    source = _anatomy(shape, 4)
    source = (source - source.mean()) / source.std(correction=0)
    line = source / 8 + 0.5
    for lost in (edges_lost, contrast_lost, information_lost):
        assert float(lost(line, source)) == pytest.approx(0, abs=1e-3)
    assert float(spread_lost(line)) == pytest.approx(0, abs=1e-3)


def test_constant_loses_all(shape):
    source, flat = _anatomy(shape, 4), torch.full((1, 1, *shape), 0.3)
    for lost in (edges_lost, contrast_lost, information_lost):
        assert float(lost(flat, source)) == pytest.approx(1, abs=1e-2)
    assert float(spread_lost(flat)) == pytest.approx(1, abs=1e-2)


def test_inverted_contrast_is_worse_than_none(shape):
    source = _anatomy(shape, 4)
    assert float(edges_lost(-source, source)) == pytest.approx(2, abs=1e-4)
    assert float(information_lost(-source, source)) == pytest.approx(2, abs=1e-4)


def test_contrast_lost_sees_what_the_cosine_does_not():
    """A weak edge beside a strong one is flattened."""
    source = torch.zeros(1, 1, 30, 12)
    source[:, :, 10:] = 0.3
    source[:, :, 20:] = 4.0
    output = torch.where(source > 3, 0.6, 0.2)
    assert float(edges_lost(output, source)) < 0.01
    assert float(contrast_lost(output, source)) > 0.3


def test_information_lost_is_pearson(shape):
    a, b = _anatomy(shape, 5), _anatomy(shape, 6)
    mask = (torch.rand(a.shape, generator=torch.Generator().manual_seed(0)) > 0.4).float()
    inside = mask[0, 0] > 0
    expected = 1 - np.corrcoef(a[0, 0][inside], b[0, 0][inside])[0, 1]
    assert float(information_lost(a, b, mask)) == pytest.approx(expected, abs=1e-4)


def test_agreements_are_means():
    """A ramp of slope 0.1 against a constant, in the head."""
    ramp = 0.1 * torch.arange(5.0).view(1, 1, 5, 1).expand(1, 1, 5, 4)
    flat = torch.zeros_like(ramp)
    assert float(intensity_agreement(ramp, flat)) == pytest.approx((1 + 4 + 9 + 16) / 500, abs=1e-6)
    # four of five rows have a difference of 0.1 along one of two axes
    assert float(edge_agreement(ramp, flat)) == pytest.approx(0.1 * 4 / 5 / 2, abs=1e-6)
    weight = torch.zeros_like(ramp)
    weight[:, :, 2] = 1
    assert float(intensity_agreement(ramp, flat, weight)) == pytest.approx(0.04, abs=1e-6)


def test_gradients_run_along_their_axis():
    ramp = torch.arange(4.0).view(1, 1, 1, 4, 1).expand(1, 1, 3, 4, 5)
    first, second, third = gradients(ramp)[0]
    assert float(first.abs().max()) == float(third.abs().max()) == 0
    assert second[0, :, 0].tolist() == [1, 1, 1, 0]


def test_box_mean_is_scipys(shape):
    image = _anatomy(shape, 7)
    inner = (slice(3, -3),) * len(shape)
    expected = ndimage.uniform_filter(image[0, 0].numpy(), 7)
    np.testing.assert_allclose(box_mean(image, 7)[0, 0].numpy()[inner], expected[inner], atol=1e-5)
    torch.testing.assert_close(box_mean(torch.ones_like(image), 7), torch.ones_like(image))


def test_shared_structure(shape):
    """High where both show the same edge; low where they contradict or only one shows something."""
    a = _anatomy(shape, 8)
    valid = torch.ones_like(a)
    valid[:, :, :2] = 0
    noise = 0.01 * torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    assert float(shared_structure(a, 1 + 2 * a, valid)[:, :, 5:].mean()) > 0.9
    assert float(shared_structure(a, 1 - 2 * a, valid)[:, :, 5:].mean()) < 0.3
    alone = shared_structure(a, noise, valid)
    assert float(alone[:, :, 5:].mean()) < 0.3
    assert float(alone.min()) == 0 == float(alone[:, :, :2].max())
    assert float(alone[:, :, 2:].min()) >= 0.2 - 1e-6


def test_a_hot_spot_of_one_modality_is_not_pulled_down():
    """What only one image sees weighs a fifth in (4.4)."""
    quiet = torch.zeros(1, 1, 30, 26)
    spot = quiet.clone()
    spot[:, :, 12:18, 10:16] = 3.0
    weight = shared_structure(quiet, spot, torch.ones_like(quiet))
    assert float(weight[:, :, 12:18, 10:16].max()) == pytest.approx(0.2)


def test_batch_equals_each_alone(shape):
    normalized = torch.cat(
        [torch.cat([_anatomy(shape, s), _anatomy(shape, s + 1)], 1) for s in (1, 5, 8)]
    )
    harmonized = _straight(normalized) ** 1.5
    valid = torch.ones_like(normalized)
    valid[1, 1, :5] = 0
    together = harmonization_loss(harmonized, normalized, valid)
    alone = [
        harmonization_loss(*(t[n : n + 1] for t in (harmonized, normalized, valid)))
        for n in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_body_is_where_images_are_held(shape):
    normalized = torch.cat([_anatomy(shape, 1), _anatomy(shape, 2)], 1)
    harmonized = _straight(normalized)
    body = torch.zeros_like(normalized)
    body[:, :, 4:10] = 1
    spoilt = torch.where(body > 0, harmonized, torch.full_like(harmonized, 0.2))
    held = {"hold": 1.0, "beta": 0.0, "likeness": 0.0}
    whole = harmonization_loss(spoilt, normalized, **held)
    assert harmonization_loss(spoilt, normalized, None, body, **held) < whole


def test_gradient_is_finite_on_constants(shape):
    harmonized = torch.full((1, 2, *shape), 0.5, requires_grad=True)
    normalized = torch.cat([_anatomy(shape, 1), _anatomy(shape, 2)], 1)
    harmonization_loss(harmonized, normalized, torch.zeros_like(normalized)).sum().backward()
    assert bool(harmonized.grad.isfinite().all())
    harmonized.grad = None
    harmonization_loss(harmonized, normalized).sum().backward()
    assert bool(harmonized.grad.isfinite().all())


class TestParts:
    """What trains the network: `harmonization_parts`."""

    KINDS = ("ct", "mr", "emission")

    def _batch(self):
        """Three modalities of two classes and noise, in own units; the same again with a gamma."""
        draw = torch.Generator().manual_seed(0)
        lumps = F.avg_pool3d(torch.randn(2, 1, 26, 24, 22, generator=draw), 5, 1, 2) > 0
        noise = [torch.randn(lumps.shape, generator=draw) for _ in self.KINDS]
        ct = torch.where(lumps, 55.0, -105.0) + 8 * noise[0]
        mr = torch.where(lumps, 300.0, 900.0) + 80 * noise[1]
        pet = (torch.where(lumps, 0.9, 0.4) + 0.05 * noise[2]).clamp_min(0)
        pet[:, :, 10:13, 10:13, 10:13] = 8.0
        images = torch.cat([ct, mr, pet], 1)
        protocol = torch.cat([ct + 15, 900 * (mr / 900).clamp_min(0) ** 1.3, 2 * pet], 1)
        return images, torch.ones_like(images), protocol

    def _parts(self, net):
        """Weighted."""
        images, whole, protocol = self._batch()

        def mapped(values, kinds):
            view = whole[:, :1]
            columns = zip(values.split(1, 1), kinds, strict=True)
            return torch.cat([net(one, kind, view, view) for one, kind in columns], 1)

        first, second = mapped(images, self.KINDS), mapped(protocol, self.KINDS)
        again = torch.cat([first[:, :1], mapped(first[:, 1:2], ("mr",)), first[:, 2:]], 1)
        parts = harmonization_parts(first, second, again, images, self.KINDS, whole, whole)
        return {name: HARMONIZATION_WEIGHTS[name] * part for name, part in parts.items()}

    def test_names_shapes_and_gradients(self):
        net = HarmonizationNet(3, channels=8)
        parts = self._parts(net)
        assert set(parts) == set(HARMONIZATION_WEIGHTS)
        assert all(part.shape == (2,) for part in parts.values())
        sum(part.sum() for part in parts.values()).backward()
        for head in (net.curve_head, net.bias_head):
            assert float(head.weight.grad.abs().sum()) > 0

    def test_the_standard_loses_little(self):
        with torch.no_grad():
            parts = {name: float(p.max()) for name, p in self._parts(HarmonizationNet()).items()}
        assert parts["protocol"] < 0.2 * HARMONIZATION_WEIGHTS["protocol"]
        assert parts["separation"] < 0.5
        assert parts["contrast"] < 0.2
        assert parts["idempotence"] < 0.03

    def test_a_constant_costs_more_than_the_standard(self):
        """(4.4) alone prefers a constant; the whole does not."""

        def constant(image, kinds, view, body):
            return torch.full_like(image, 0.5)

        with torch.no_grad():
            ours, flat = self._parts(HarmonizationNet()), self._parts(constant)
        assert float(flat["agreement"].max()) < float(ours["agreement"].min())
        assert float(sum(flat.values()).min()) > float(sum(ours.values()).max()) + 1

    def test_protocol_difference_is_the_rms_in_deviations(self):
        first = torch.randn(1, 1, 20, 18, generator=torch.Generator().manual_seed(1))
        step = torch.full_like(first, 0.3)
        body = torch.ones_like(first)
        expected = 0.3 / float(first.std(correction=0))
        assert float(protocol_difference(first, first + step, body)) == pytest.approx(
            expected, 1e-3
        )

    def test_separation_and_contrast_ask_for_nothing_more_than_the_input_has(self):
        images, whole, _ = self._batch()
        mr, pet, body = images[:, 1:2], images[:, 2:], whole[:, :1]
        assert float(separation_lost(mr, mr, body).max()) == 0
        assert float(lesion_contrast_lost(pet, pet, body).max()) == 0
        # a logarithm loses contrast of the hottest, noise loses separation
        assert float(lesion_contrast_lost((pet + 0.01).log(), pet, body).min()) > 0.05
        spoilt = mr + 300 * torch.randn(mr.shape, generator=torch.Generator().manual_seed(2))
        assert float(separation_lost(spoilt, mr, body).min()) > 0.3

    def test_what_has_no_contrast_loses_none(self):
        """A share of next to nothing would rule the sum of a batch."""
        even = torch.full((1, 1, 20, 20), 3.0)
        even[..., 4, 4] += 1e-6
        body, other = torch.ones_like(even), torch.rand(even.shape)
        assert float(separation_lost(other, even, body)) == 0
        assert float(lesion_contrast_lost(other, torch.ones_like(even), body)) == 0

    def test_range(self):
        """100 voxels from 0.01 to 1: the brightest hundredth begins at 0.99."""
        line = torch.linspace(0.01, 1, 100).view(1, 1, 10, 10)
        body = torch.ones_like(line)
        assert float(range_lost(line, body)) == 0
        assert float(range_lost(0.5 * line, body)) == pytest.approx(0.85 - 0.495, abs=1e-5)

    def test_kinds_have_to_fit(self):
        images, whole, _ = self._batch()
        with pytest.raises(ValueError, match="expected 3 kinds, one for each channel, got 2"):
            harmonization_parts(whole, whole, whole, images, ("ct", "mr"), whole, whole)

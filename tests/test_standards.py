"""Classical standards, each against a second library or a known answer."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.exposure import match_histograms

from fusion_pipeline.data import Image, InputError
from fusion_pipeline.standards import (
    HarmonizeBy,
    HistogramStandard,
    Nyul,
    NyulStandard,
    classical_standards,
    match_histogram,
    white_stripe,
    without_bias,
    z_score,
)


def _blobs(shape, seed, sigma=2.0):
    blobs = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return torch.from_numpy((blobs - blobs.min()) / np.ptp(blobs)).float()


def test_z_score_inside_the_mask():
    image, mask = 40 * _blobs((20, 24, 9), 0) - 7, _blobs((20, 24, 9), 1) > 0.5
    out = z_score(image, mask)
    assert float(out[mask].mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(out[mask].std(correction=0)) == pytest.approx(1 / 8, abs=1e-3)


def test_match_histogram_is_scikit_images():
    image, template = _blobs((40, 37), 0), _blobs((31, 52), 1) ** 3
    whole, other = torch.ones(40, 37, dtype=torch.bool), torch.ones(31, 52, dtype=torch.bool)
    found = match_histogram(image, template, whole, other)
    expected = match_histograms(image.numpy(), template.numpy())
    apart = np.abs(found.numpy() - expected)
    # the ends of the histogram rest on single pixels
    assert np.quantile(apart, 0.99) < 0.01


def test_match_histogram_of_itself_is_itself_with_a_flat_background():
    image = _blobs((30, 28), 0)
    image[:10] = 0
    whole = torch.ones_like(image, dtype=torch.bool)
    torch.testing.assert_close(
        match_histogram(image, image, whole, whole), image, atol=0.01, rtol=0
    )


def test_nyul_undoes_another_scanner():
    """Gain and offset of each image vanish; the landmarks land where they should."""
    images = [
        (_blobs((30, 26, 8), seed), torch.ones(30, 26, 8, dtype=torch.bool)) for seed in range(4)
    ]
    standard = Nyul().fit(images)
    image, mask = images[0]
    torch.testing.assert_close(
        standard(30 * image + 5, mask), standard(image, mask), atol=1e-4, rtol=0
    )
    marks = np.percentile(standard(image, mask).numpy(), standard.percentiles)
    np.testing.assert_allclose(marks, standard.standard, atol=2e-3)
    assert standard.standard[0] == 0
    assert standard.standard[-1] == 1
    assert bool((standard(image, mask).flatten()[image.flatten().argsort()].diff() >= -1e-6).all())


def test_nyul_needs_a_scale():
    with pytest.raises(ValueError, match=r"call fit\(images\) first"):
        Nyul()(torch.zeros(4, 4), torch.ones(4, 4, dtype=torch.bool))


def _mr(shape=(26, 30, 18), seed=0):
    """Three tissues in a box of air, and the box: ``(1, *S)`` each."""
    body = torch.zeros(1, *shape, dtype=torch.bool)
    body[:, 3:-3, 4:-4, 2:-2] = True
    tissues = np.digitize(_blobs(shape, seed).numpy(), (0.42, 0.58))
    noise = np.random.default_rng(seed + 1).standard_normal(shape)
    values = np.array([300.0, 600.0, 900.0])[tissues] + 15 * noise
    array = torch.where(body, torch.from_numpy(values).float(), 5.0)
    return Image(array, np.eye(4), "mr"), body


@pytest.fixture(scope="module")
def standards():
    return classical_standards([_mr(seed=seed) for seed in (0, 10)])


class TestClassicalStandards:
    def test_each_gives_the_common_range_and_is_black_out_of_view(self, standards):
        image, body = _mr(seed=3)
        view = torch.ones_like(body)
        view[:, :5] = False
        assert len(standards) == 6
        for standard in standards.values():
            mapped = standard(image, view, body & view)
            assert mapped.shape == image.array.shape
            assert 0 <= float(mapped.min()) <= float(mapped.max()) <= 1
            assert float(mapped[:, :5].abs().max()) == 0

    def test_each_takes_out_the_gain_of_a_scanner(self, standards):
        image, body = _mr(seed=4)
        view = torch.ones_like(body)
        other = image.with_array(7 * image.array)
        for name, standard in standards.items():
            first, second = (standard(x, view, body) for x in (image, other))
            assert float((first - second)[body].abs().max()) < 0.02, name

    def test_as_a_stage(self, standards):
        image, _ = _mr(seed=5)
        out = HarmonizeBy(standards["Nyúl"])({"mr": image}, {"mr": torch.ones_like(image.array)})
        assert out.images["mr"].shape == image.shape
        assert not out.mappings

    def test_a_modality_that_was_not_there_is_refused(self):
        image, body = _mr()
        pet = Image(image.array, image.affine, "pet")
        for standard in (NyulStandard(), HistogramStandard()):
            with pytest.raises(InputError, match=r"examples of the modality pet .*, got mr"):
                standard.fit([(image, body)])(pet, body, body)


def test_the_white_stripe_is_the_brightest_tissue():
    """Its mean comes to 0.5, whatever the share of the other tissues."""
    for seed in (0, 20):
        image, body = _mr(seed=seed)
        white = body & (image.array > 800)
        mapped = white_stripe(image, torch.ones_like(body), body)
        assert float(mapped[white].mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
def test_n4_takes_a_known_bias_field_out():
    image, body = _mr((40, 44, 36))
    ramp = torch.linspace(-0.35, 0.35, 40).exp().view(1, -1, 1, 1)
    biased = image.array * ramp
    even = without_bias(biased, body)
    inside = body & (image.array > 800)

    def spread(values):
        return float(values[inside].std() / values[inside].mean())

    assert spread(biased) > 0.15
    assert spread(even) < 0.5 * spread(biased)

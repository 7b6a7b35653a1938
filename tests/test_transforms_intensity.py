"""Scaling per modality: laws, NumPy as witness, messages."""

import numpy as np
import pytest
import torch

from fusion_pipeline.transforms import (
    ClipHU,
    NormalizeModality,
    RobustZScore,
    ScaleEmission,
)


def textured(shape=(20, 24, 28), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, *shape), generator=generator)


def test_clip_keeps_the_window_and_the_values_in_it():
    image = torch.tensor([[[-1000.0, -300.0, 40.0, 700.0, 3000.0]]])
    assert ClipHU()(image).tolist() == [[[-300.0, -300.0, 40.0, 700.0, 700.0]]]


@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_images_without_an_affine_give_a_plain_float_tensor(kind):
    image = textured() * 100
    given = {"tensor": image.int(), "array": image.int().numpy()}
    out = ClipHU()(given[kind])
    assert type(out) is torch.Tensor
    assert out.dtype == torch.float32


def test_z_score_agrees_with_numpy_inside_the_mask():
    image, mask = textured() * 7 + 3, textured(seed=1) > 0
    out = RobustZScore(5, 95)(image, mask)
    values = image[mask].numpy().astype(np.float64)
    clipped = np.clip(values, *np.percentile(values, [5, 95]))
    expected = (clipped - clipped.mean()) / clipped.std()
    np.testing.assert_allclose(out[mask].numpy(), expected, atol=2e-5)


@pytest.mark.parametrize(("gain", "offset"), [(3.0, -40.0), (0.01, 1000.0)])
def test_z_score_is_blind_to_gain_and_offset(gain, offset):
    image = textured((20, 24))
    torch.testing.assert_close(
        RobustZScore()(gain * image + offset), RobustZScore()(image), atol=2e-2, rtol=0
    )


def test_z_score_treats_each_channel_alone():
    image = torch.cat([textured(seed=2), 50 + 9 * textured(seed=3)])
    both = RobustZScore()(image)
    for channel in range(2):
        assert torch.equal(both[channel], RobustZScore()(image[channel : channel + 1])[0])


def test_z_score_of_a_constant_is_zero_and_few_bright_voxels_are_kept():
    flat = torch.full((1, 20, 30), 5.0)
    assert RobustZScore()(flat).abs().max() == 0
    flat[0, 3, 4] = 9.0
    assert RobustZScore()(flat)[0, 3, 4] > 1


def test_z_score_does_not_depend_on_the_unit():
    image = textured()
    for unit in (1e-9, 1e6):
        torch.testing.assert_close(RobustZScore()(unit * image), RobustZScore()(image))


def test_an_empty_mask_counts_as_none():
    image = textured()
    none = torch.zeros_like(image)
    assert torch.equal(RobustZScore()(image, none), RobustZScore()(image))


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(20, 24, 28\), got \(20, 24, 27\)"):
        RobustZScore()(textured(), torch.ones(1, 20, 24, 27))


def test_emission_does_not_depend_on_the_unit():
    uptake = textured().exp()
    torch.testing.assert_close(ScaleEmission()(uptake * 12345.0), ScaleEmission()(uptake))


def test_emission_is_monotone_and_compresses_a_lesion():
    uptake = torch.linspace(0.0, 1.0, 1000).reshape(1, 10, 100)
    uptake[0, 9, 95:] = 40.0
    out = ScaleEmission(upper=99.9)(uptake).flatten()
    assert (out.diff() >= 0).all()
    assert out.max() < 8
    assert out.min() == 0


def test_emission_without_any_count_is_zero():
    assert ScaleEmission()(-textured().abs()).abs().max() == 0


@pytest.mark.parametrize("modality", ["ct", "mr", "pet", "spect"])
@pytest.mark.parametrize("shape", [(20, 24), (20, 24, 28)])
def test_normalized_images_are_z_scored_in_the_mask_and_bounded(modality, shape):
    image = textured(shape).exp() * 60 - (30 if modality == "ct" else 0)
    mask = textured(shape, seed=4) > -1
    out = NormalizeModality(modality)(image, mask)
    assert out.shape == image.shape
    assert out.abs().max() <= 4
    assert abs(float(out[mask].mean())) < 0.1
    assert 0.7 < float(out[mask].std()) < 1.1


def test_a_ct_volume_is_windowed_and_a_ct_picture_is_not():
    image = textured().abs() * 30
    image[0, 0] = -1000.0
    metal = image.clone()
    metal[0, 1, 1, :5] = 30000.0
    bone = image.clone()
    bone[0, 1, 1, :5] = 700.0
    normalize = NormalizeModality("ct")
    assert torch.equal(normalize(metal), normalize(bone))
    picture = image.clamp_min(0)
    assert torch.equal(normalize(picture), NormalizeModality("mr")(picture))


def test_air_of_a_ct_lies_at_its_low_end():
    body = torch.zeros(1, 20, 24, 28, dtype=torch.bool)
    body[0, 5:15, 5:19, 5:22] = True
    image = torch.where(body, 40 + 60 * textured(), -1000.0)
    out = NormalizeModality("ct")(image, body)
    assert out[~body].max() <= out[body].min()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClipHU(5, 5), "lower < upper, got lower=5"),
        (lambda: RobustZScore(50, 20), "percentiles 0 <= lower < upper <= 100, got 50 and 20"),
        (lambda: ScaleEmission(40), "percentile 50 < upper <= 100, got 40"),
        (lambda: NormalizeModality("us"), "modality of ct, mr, pet, spect, got 'us'"),
    ],
)
def test_wrong_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

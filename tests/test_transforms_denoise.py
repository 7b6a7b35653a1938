"""Denoising: less noise, same edges, same mean."""

import pytest
import torch

from fusion_pipeline.transforms import Denoise

SHAPE, SPACING = (20, 24, 28), (1.0, 1.5, 3.0)


def step(shape=SHAPE, sigma=10.0):
    generator = torch.Generator().manual_seed(0)
    clean = torch.zeros((1, *shape))
    clean[:, shape[0] // 2 :] = 200.0
    return clean, clean + sigma * torch.randn(clean.shape, generator=generator)


@pytest.mark.parametrize("modality", ["ct", "mr", "pet", "spect"])
@pytest.mark.parametrize("d", [2, 3])
def test_noise_falls_and_the_edge_stays(modality, d):
    clean, noisy = step(SHAPE[:d])
    out = Denoise(modality)(noisy, SPACING[:d])
    assert out.shape == noisy.shape
    assert (out - clean)[:, 2:8].std() < 0.8 * (noisy - clean)[:, 2:8].std()
    edge = SHAPE[0] // 2
    assert (out[:, edge + 1] - out[:, edge - 2]).mean() > 170
    assert abs(float((out - noisy).mean())) < 3


def test_thick_slices_are_mixed_less():
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn((1, *SHAPE), generator=generator)
    out = Denoise("ct")(noisy, (1.0, 1.0, 4.0))
    along = [float(out.diff(dim=axis).std()) for axis in (1, 3)]
    assert along[0] < along[1]


def test_channels_are_filtered_alone():
    clean, noisy = step()
    both = Denoise("mr")(torch.cat([clean, noisy]), SPACING)
    assert torch.equal(both[1:], Denoise("mr")(noisy, SPACING))


def test_no_iteration_changes_nothing():
    _, noisy = step()
    assert torch.equal(Denoise("mr", iterations=0)(noisy, SPACING), noisy)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="iterations >= 0, got -1"):
        Denoise("ct", iterations=-1)
    with pytest.raises(ValueError, match="modality of ct, mr"):
        Denoise("xray")
    with pytest.raises(ValueError, match="positive spacing for each of 3 axes"):
        Denoise("ct")(step()[1], (1.0, 1.0, 0.0))

"""One anatomy under other protocols: repeatable, as wide as asked, the order of values kept."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.stats import spearmanr

from fusion_pipeline.synthesis.protocols import (
    ProtocolRanges,
    narrower_field_of_view,
    other_protocol,
)

SHAPE = (30, 26, 22)
SPACING = (1.0, 1.5, 3.0)
QUIET = ProtocolRanges(noise=0.0, noise_hu=0.0, uptake_noise=0.0, blur_mm=0.0, bias=0.0)


def _images() -> tuple[torch.Tensor, torch.Tensor]:
    """CT, MR and PET of lumps in a box, ``(3, 1, *S)``, and the box."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 2)
    lumps = torch.from_numpy(smooth / smooth.std()).float()
    body = torch.zeros(SHAPE)
    body[4:-4, 4:-4, 3:-3] = 1
    ct = torch.where(body > 0, 60 * lumps, -1000.0)
    mr = torch.where(body > 0, 400 + 150 * lumps, 4.0)
    pet = torch.where(body > 0, (1 + 0.4 * lumps).clamp_min(0.1), 0.02)
    return torch.stack([ct, mr, pet])[:, None], body.expand(3, 1, *SHAPE)


def _other(seed: int = 0, ranges: ProtocolRanges | None = None) -> torch.Tensor:
    image, body = _images()
    generator = torch.Generator().manual_seed(seed)
    kinds = ["ct", "mr", "emission"]
    return other_protocol(image, kinds, body, generator, spacing=SPACING, ranges=ranges)


def test_a_generator_gives_one_result():
    assert torch.equal(_other(3), _other(3))
    assert not torch.equal(_other(3), _other(4))


def test_the_order_of_values_is_kept_without_noise_bias_and_blur():
    image, body = _images()
    out = _other(1, QUIET)
    for m in (1, 2):
        inside = body[m] > 0
        rank = spearmanr(image[m][inside].numpy(), out[m][inside].numpy())[0]
        assert rank > 0.9999


def test_ct_stays_within_its_calibration():
    image, _ = _images()
    for seed in range(6):
        out = _other(seed, ProtocolRanges(noise_hu=0.0, kernel=-1.0))
        # the kernel mixes the skin with air, and leaves the mean further inside alone
        inside = (slice(None), slice(9, -9), slice(9, -9), slice(8, -8))
        shift = float((out[0] - image[0])[inside].mean())
        assert abs(shift) < 20 + 5
        assert float(out[0].min()) >= -1024


def test_uptake_is_scaled_within_its_limits():
    image, body = _images()
    scales = [
        float(_other(seed)[2][body[2] > 0].mean() / image[2][body[2] > 0].mean())
        for seed in range(12)
    ]
    assert 0.35 < min(scales) < 0.9
    assert 1.3 < max(scales) < 3.4


def test_the_receive_field_is_as_strong_as_asked():
    image, body = _images()
    only = ProtocolRanges(
        gain=(1.0, 1.0), offset=0.0, gamma=(1.0, 1.0), warp=0.0, noise=0.0, blur_mm=0.0
    )
    ratio = ((_other(0, only)[1] - 0) / (image[1] - 4.0))[body[1] > 0]
    assert 0.69 < float(ratio.min()) < 0.97
    assert 1.0 < float(ratio.max()) < 1.31


def test_a_ct_picture_has_no_hounsfield_units():
    """Eight bits stay non-negative, and get another window and tone."""
    image, body = _images()
    picture = ((image[:1] + 200) / 400 * 255).clamp(0, 255)
    out = other_protocol(picture, "ct", body[:1], torch.Generator().manual_seed(0), spacing=SPACING)
    assert float(out.min()) >= 0
    inside = body[:1] > 0
    assert spearmanr(picture[inside].numpy(), out[inside].numpy())[0] > 0.9


def test_shorter_scans():
    view = torch.ones(4, 1, *SHAPE)
    cut = narrower_field_of_view(view, torch.Generator().manual_seed(0))
    shares = cut.flatten(1).mean(1)
    assert float(shares.min()) >= 0.55
    assert float(shares.max()) <= 1.0
    assert len(set(shares.tolist())) > 1
    assert float(view.min()) == 1  # the input is untouched


def test_kinds_have_to_fit():
    image, body = _images()
    with pytest.raises(ValueError, match="expected 3 kinds, one for each image, got 2"):
        other_protocol(image, ["ct", "mr"], body, torch.Generator(), spacing=SPACING)

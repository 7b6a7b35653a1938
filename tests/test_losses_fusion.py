"""The fusion loss judges source by source: copying one, adding or dropping something all cost."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from fusion_pipeline.losses.fusion import fusion_loss, fusion_loss_terms
from fusion_pipeline.metrics import ssim

SHAPES = {2: (34, 29), 3: (18, 22, 20)}


@pytest.fixture(params=[2, 3])
def sources(request):
    """Two images with structures of their own inside one body, and dark air around it."""
    shape = SHAPES[request.param]
    rng = np.random.default_rng(0)
    grid = np.indices(shape)
    body = sum(((g - n / 2) / (n / 2.4)) ** 2 for g, n in zip(grid, shape, strict=True)) < 1
    parts = []
    for _ in range(2):
        blobs = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5)
        parts.append(body * (0.35 + 0.5 * (blobs > 0.05)))
    return torch.from_numpy(np.stack(parts)[None]).float()


def test_a_source_that_is_alone_costs_nothing(sources):
    one = sources[:, :1]
    terms = fusion_loss_terms(one, one)
    for name in ("structure", "information", "edges", "gradient", "intensity", "added"):
        assert float(getattr(terms, name)) == pytest.approx(0, abs=2e-3), name


def test_copying_one_source_costs_more_than_the_average(sources):
    average = sources.mean(1, keepdim=True)
    for m in (0, 1):
        copy = sources[:, m : m + 1]
        mine, other = fusion_loss_terms(average, sources), fusion_loss_terms(copy, sources)
        assert float(mine.structure) < float(other.structure)


def test_a_constant_costs_most(sources):
    flat = torch.full_like(sources[:, :1], 0.4)
    for better in (sources[:, :1], sources.mean(1, keepdim=True), sources.amax(1, keepdim=True)):
        assert float(fusion_loss(better, sources)) < float(fusion_loss(flat, sources))


def test_adding_what_no_source_has_costs(sources):
    clean = sources.amax(1, keepdim=True)
    noise = 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    spoilt = (clean + noise).clamp(0, 1)
    assert float(fusion_loss_terms(clean, sources).added) < 0.01
    assert float(fusion_loss_terms(spoilt, sources).added) > 0.02
    assert float(fusion_loss(spoilt, sources)) > float(fusion_loss(clean, sources))


def test_light_in_the_background_costs(sources):
    average = sources.mean(1, keepdim=True)
    lit = average.clamp_min(0.15)
    assert float(fusion_loss_terms(lit, sources).added) > float(
        fusion_loss_terms(average, sources).added
    )


def test_gradient_follows_the_strongest():
    """One source shows a bright bar, the other a faint one elsewhere."""
    a, b = torch.zeros(1, 1, 24, 24), torch.zeros(1, 1, 24, 24)
    a[:, :, 14:] = 0.8
    b[:, :, :10, 12:] = 0.4
    pair = torch.cat([a, b], 1)
    terms = {
        "both": fusion_loss_terms(torch.maximum(a, b), pair),
        "weak": fusion_loss_terms(b, pair),
        "strong": fusion_loss_terms(a, pair),
    }
    found = {name: float(t.gradient) for name, t in terms.items()}
    assert found["both"] < 1e-6 < found["strong"] < found["weak"]


def test_structure_is_ssim():
    """One source: one minus SSIM, as scikit-image defines it up to the sample covariance."""
    rng = np.random.default_rng(1)
    source = torch.from_numpy(
        0.3 + 0.6 * ndimage.gaussian_filter(rng.random((40, 37)), 1.0)
    ).float()
    fused = (0.8 * source + 0.05 * torch.from_numpy(rng.random((40, 37))).float()).clamp(0.1, 1)
    found = 1 - float(fusion_loss_terms(fused[None, None], source[None, None]).structure)
    assert found == pytest.approx(ssim(fused, source), abs=0.02)


def test_outside_the_field_of_view_a_source_asks_for_nothing(sources):
    valid = torch.ones_like(sources)
    valid[:, 1] = 0
    assert float(fusion_loss(sources[:, :1], sources, valid)) == pytest.approx(0, abs=0.02)


def test_order_of_sources_changes_nothing(sources):
    fused = sources.mean(1, keepdim=True)
    torch.testing.assert_close(fusion_loss(fused, sources), fusion_loss(fused, sources.flip(1)))


def test_batch_equals_each_alone(sources):
    batch = torch.cat([sources, sources**2, sources.flip(2)])
    fused = batch.amax(1, keepdim=True) * 0.9
    alone = [fusion_loss(fused[n : n + 1], batch[n : n + 1]) for n in range(3)]
    torch.testing.assert_close(fusion_loss(fused, batch), torch.cat(alone))


def test_gradient_is_finite(sources):
    for fused in (torch.zeros_like(sources[:, :1]), sources.mean(1, keepdim=True)):
        fused = fused.clone().requires_grad_()
        fusion_loss(fused, sources, torch.zeros_like(sources)).sum().backward()
        assert bool(fused.grad.isfinite().all())
        fused.grad = None
        fusion_loss(fused, sources).sum().backward()
        assert bool(fused.grad.isfinite().all())


def test_descent_from_a_constant_finds_both_sources(sources):
    """Free voxels, a few steps of descent: what comes out shows both sources."""
    fused = torch.full_like(sources[:, :1], 0.4).requires_grad_()
    optimizer = torch.optim.Adam([fused], 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        fusion_loss(fused, sources).sum().backward()
        optimizer.step()
    found = fused.detach()
    for m in (0, 1):
        pair = torch.stack([found.flatten(), sources[:, m].flatten()])
        assert float(torch.corrcoef(pair)[0, 1]) > 0.6

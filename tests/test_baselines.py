"""The traditional ways, each against a second library or a known answer."""

import sys

import numpy as np
import pytest
import torch
from register_cases import moved_blobs
from scipy import ndimage

from fusion_pipeline.baselines import (
    FuseBy,
    RegisterByMutualInformation,
    average,
    laplacian_pyramid,
    maximum,
    pca,
    wavelet,
)
from fusion_pipeline.data import Image, InputError
from fusion_pipeline.geometry import apply_affine, identity_points
from fusion_pipeline.metrics import fusion_scores
from fusion_pipeline.standards import HarmonizeBy

KEYS = ("mr", "pet")
RULES = (average, maximum, pca, wavelet, laplacian_pyramid)


def _blobs(shape, seed, sigma=2.0):
    blobs = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return torch.from_numpy((blobs - blobs.min()) / np.ptp(blobs)).float()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(33, 26), (18, 21, 15)])
def test_rules(rule, shape):
    images = torch.stack([_blobs(shape, seed) for seed in (0, 1, 2)])
    seen = torch.ones_like(images)
    seen[1, 10:] = 0
    seen[:, :, :3] = 0
    images = images * seen
    fused, weights = rule(images, seen)
    assert fused.shape == (1, *shape)
    torch.testing.assert_close(weights.sum(0), seen.amax(0))
    assert float(weights[seen == 0].abs().max()) == 0
    assert float(fused[0][:, :3].abs().max()) == 0


@pytest.mark.parametrize("rule", RULES)
def test_two_equal_sources_fuse_to_themselves(rule):
    image = _blobs((33, 26), 4)[None]
    fused, _ = rule(torch.cat([image, image]), torch.ones(2, 33, 26))
    torch.testing.assert_close(fused, image, atol=1e-5, rtol=0)


def test_pca_is_numpys():
    a, b = _blobs((40, 30), 0), 3 * _blobs((40, 30), 1)
    _, weights = pca(torch.stack([a, b]), torch.ones(2, 40, 30))
    _, vectors = np.linalg.eigh(np.cov(a.numpy().ravel(), b.numpy().ravel()))
    first = np.abs(vectors[:, -1])
    np.testing.assert_allclose(weights[:, 0, 0].numpy(), first / first.sum(), atol=1e-5)


def test_laplacian_pyramid_takes_the_stronger_detail():
    """A fine pattern in one source, a flat other: the pattern stays, the mean is halved."""
    pattern = torch.from_numpy(np.indices((32, 48)).sum(0) % 2).float()[None]
    fused, weights = laplacian_pyramid(
        torch.cat([pattern, torch.zeros_like(pattern)]), torch.ones(2, 32, 48)
    )
    inner = fused[0, 8:-8, 8:-8]
    assert float(inner.max() - inner.min()) > 0.7
    assert float(weights[0, 8:-8, 8:-8].mean()) > 0.9


def test_wavelet_fusion_is_pywavelets_with_the_larger_coefficient():
    """One level by hand: means of the approximations, the stronger of each detail."""
    pywt = pytest.importorskip("pywt")
    a, b = _blobs((32, 48), 0, 1.0), _blobs((32, 48), 1, 1.0)
    fused, _ = wavelet(torch.stack([a, b]), torch.ones(2, 32, 48), levels=1)
    (low_a, high_a), (low_b, high_b) = (pywt.dwt2(x.numpy(), "db2", "symmetric") for x in (a, b))
    high = [np.where(np.abs(x) >= np.abs(y), x, y) for x, y in zip(high_a, high_b, strict=True)]
    expected = pywt.idwt2(((low_a + low_b) / 2, tuple(high)), "db2", "symmetric")
    np.testing.assert_allclose(fused[0].numpy(), np.clip(expected, 0, 1), atol=1e-5)


def test_wavelets_without_their_library_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pywt", None)
    with pytest.raises(InputError, match=r"PyWavelets to be installed, got none; pip install"):
        wavelet(torch.rand(2, 16, 16), torch.ones(2, 16, 16))


def test_stages(oblique_image):
    other = oblique_image.with_array(oblique_image.array.sqrt().nan_to_num(), key="pet")
    images = {oblique_image.key: oblique_image, "pet": other}
    valid = {key: torch.ones_like(image.array) for key, image in images.items()}
    harmonized = HarmonizeBy()(images, valid)
    assert list(harmonized.images) == list(images)
    for rule in RULES:
        fusion = FuseBy(rule)(harmonized.images, valid)
        assert fusion.fused.shape == oblique_image.shape
        np.testing.assert_array_equal(fusion.fused.affine, oblique_image.affine)
        assert 0 <= float(fusion.fused.array.min()) <= float(fusion.fused.array.max()) <= 1


@pytest.mark.parametrize("dims", [2, 3])
def test_mutual_information_finds_a_known_rigid_move(dims):
    fixed, moving, truth = moved_blobs(dims)
    found = RegisterByMutualInformation()(fixed, moving, transform="rigid")
    assert found.transform == "rigid"
    points = apply_affine(fixed.affine, identity_points(fixed.shape).numpy()).reshape(-1, dims)
    before = np.linalg.norm(apply_affine(truth, points) - points, axis=1).mean()
    error = np.linalg.norm(found.map.points(points) - apply_affine(truth, points), axis=1).mean()
    assert error < 0.2 * before


def test_b_spline_stays_near_the_truth():
    """Rigid transform and deformation in the right order: the whole stays near the truth."""
    fixed, moving, truth = moved_blobs(2)
    found = RegisterByMutualInformation(iterations=30)(fixed, moving)
    assert found.transform == "deformable"
    points = apply_affine(fixed.affine, identity_points(fixed.shape).numpy())[6:-6, 6:-6]
    error = np.linalg.norm(found.map.points(points) - apply_affine(truth, points), axis=-1)
    assert float(error.mean()) < 2.5
    inner = (slice(None), slice(8, -8), slice(8, -8))
    pair = [i.array[inner].flatten().numpy() for i in (found.warp(moving, fixed), fixed)]
    assert abs(np.corrcoef(*pair)[0, 1]) > 0.9


def test_none_trusts_the_headers():
    fixed, moving, _ = moved_blobs(3)
    found = RegisterByMutualInformation()(fixed, moving, transform="none")
    np.testing.assert_array_equal(found.map.moving_from_fixed, np.eye(4))
    assert float(found.map.ddf_mm.abs().max()) == 0


def test_a_rule_is_judged_by_the_displayed_images_whatever_it_fused():
    affine = np.diag([-1.0, -1.0, 1.0])
    harmonized = {key: Image(_blobs((40, 30), n)[None], affine, key) for n, key in enumerate(KEYS)}
    shown = {key: one.with_array(one.array**2) for key, one in harmonized.items()}
    fields = {key: torch.ones(1, 40, 30) for key in KEYS}
    found = FuseBy(average)(harmonized, fields, shown)
    expected = fusion_scores(found.fused.array[0], {k: one.array[0] for k, one in shown.items()})
    assert {name: found.scores[name] for name in expected} == pytest.approx(expected)
    assert found.scores["weight_mr"] == pytest.approx(0.5)


def test_a_z_score_keeps_all_and_agrees_as_before():
    """The scores of harmonization compare with the image's own z-score, which this is."""
    affine = np.diag([-1.0, -1.0, 1.0])
    images = {
        key: Image(200 * _blobs((40, 30), n)[None] + 20, affine, key)
        for n, key in enumerate(("mr", "mr_t2"))
    }
    found = HarmonizeBy()(images, {key: torch.ones(1, 40, 30) for key in images}).scores
    assert found["mr"]["edges_kept"] == pytest.approx(1, abs=1e-5)
    assert found["mr_t2"]["agreement_after"] == pytest.approx(
        found["mr_t2"]["agreement_before"], abs=1e-5
    )
    assert "agreement_after" not in found["mr"]

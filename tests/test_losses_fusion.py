"""The fusion loss judges source by source: copying one, adding or dropping something all cost."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.stats import spearmanr

from fusion_pipeline.losses.fusion_loss import (
    UPTAKE_BESIDE_BOTH,
    FusionLoss,
    weighted_sum,
)
from fusion_pipeline.metrics import ssim

SHAPES = {2: (34, 29), 3: (18, 22, 20)}


def fusion_loss_terms(fused, sources, valid=None, *, kinds=None, worst=0.5):
    """The parts, of MR alone unless kinds are given."""
    kinds = kinds or ["mr"] * sources.shape[1]
    return FusionLoss(sources, kinds, valid, worst=worst).terms(fused)


def fusion_loss(fused, sources, valid=None):
    """The whole, of MR alone."""
    return FusionLoss(sources, ["mr"] * sources.shape[1], valid)(fused)


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
    for name in ("structure", "information", "edges", "contrast", "gradient", "intensity", "added"):
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


def test_the_end_of_a_field_of_view_is_no_edge():
    """Nothing but two even images, one of which ends: nothing is lost, whatever becomes of it."""
    sources = torch.stack([torch.full((24, 24), 0.4), torch.full((24, 24), 0.8)])[None]
    valid = torch.ones_like(sources)
    valid[:, 1, 12:] = 0
    for fused in (sources[:, :1], (sources * valid).sum(1, keepdim=True) / valid.sum(1)):
        terms = fusion_loss_terms(fused, sources, valid)
        assert float(terms.edges) == 0
        assert float(terms.information) == 0
    # a step in the fused image where a source ends is added
    assert float(terms.added) > 0.005
    assert float(fusion_loss_terms(sources[:, :1], sources, valid).added) < 1e-4


def test_sources_are_weighed_where_they_are_seen_together():
    """What one shows alone elsewhere is no reason to give it up where the other sees as well."""
    generator = torch.Generator().manual_seed(4)
    sources = torch.rand(1, 2, 240, 24, generator=generator)
    valid = torch.ones_like(sources)
    valid[:, 1, 80:] = 0
    first = sources[:, :1]
    second = torch.where(valid[:, 1:] > 0, sources[:, 1:], first)
    even = torch.where(valid[:, 1:] > 0, sources.mean(1, keepdim=True), first)
    together = (slice(None), slice(None), slice(0, 80))
    for fused in (first, second, even):
        whole = fusion_loss_terms(fused, sources, valid)
        part = fusion_loss_terms(fused[together], sources[together])
        for name in ("structure", "information", "edges"):
            found, expected = float(getattr(whole, name)), float(getattr(part, name)) / 3
            assert found == pytest.approx(expected, abs=0.02), name


def test_beyond_a_field_of_view_the_fused_image_is_free(sources):
    """What a source loses is measured where it sees, up to its very end."""
    half = sources.shape[2] // 2
    one, valid = sources[:, :1], torch.ones_like(sources[:, :1])
    valid[:, :, half:] = 0
    fused = one.clone()
    fused[:, :, half:] = 0.9
    terms = fusion_loss_terms(fused, one, valid)
    for name in ("structure", "information", "edges"):
        assert float(getattr(terms, name)) == pytest.approx(0, abs=2e-3), name


def test_where_all_sources_end_the_fused_image_may(sources):
    valid = torch.ones_like(sources)
    valid[:, :, sources.shape[2] // 2 :] = 0
    one = torch.cat([sources[:, :1]] * 2, 1)
    assert float(fusion_loss(one[:, :1] * valid[:, :1], one, valid)) == pytest.approx(0, abs=0.02)


def test_an_even_source_asks_for_nothing():
    """Whatever its value: of its variance only rounding is left."""
    for value in (0.3, 0.37, 0.5):
        even = torch.full((1, 1, 24, 24), value)
        assert float(fusion_loss_terms(even, even).information) == 0


def test_a_source_is_judged_as_far_as_it_keeps_its_weight(sources):
    """A copy of the first: what is lost of the second counts by its share, in all and as worst."""
    copy = sources[:, :1]
    lost = []
    for share in (1.0, 0.3, 0.01):
        valid = torch.ones_like(sources)
        valid[:, 1] = share
        lost.append(fusion_loss_terms(copy, sources, valid))
    for name in ("structure", "information", "edges", "gradient", "intensity"):
        full, less, least = (float(getattr(terms, name)) for terms in lost)
        assert full > less > least, name
        # the latter hold the copy to the first source as well, which they mix with the second
        assert least < (0.1 if name in ("structure", "information", "edges") else 0.9) * full, name


def test_within_a_region_the_part_that_is_kept_counts(sources):
    half = sources.shape[2] // 2
    one, valid = sources[:, :1], torch.ones_like(sources)
    lost = one.clone()
    lost[:, :, half:] = 0.5
    valid[:, 1, half:] = 0.1
    even = fusion_loss_terms(lost, torch.cat([one, one], 1), worst=0.0)
    terms = fusion_loss_terms(lost, torch.cat([one, one], 1), valid, worst=0.0)
    for name in ("structure", "information", "edges"):
        assert float(getattr(terms, name)) < 0.9 * float(getattr(even, name)), name


def test_a_source_alone_is_judged_whatever_it_keeps(sources):
    faint = torch.full_like(sources[:, :1], 0.3)
    found, full = (
        fusion_loss(0.8 * sources[:, :1], sources[:, :1], valid) for valid in (faint, None)
    )
    torch.testing.assert_close(found, full)


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


def test_the_worst_source_counts_as_much_as_asked():
    """With one source kept and one lost, the structure term goes from the mean to the lost one."""
    generator = torch.Generator().manual_seed(3)
    sources = torch.rand(1, 2, 24, 24, generator=generator)
    none, half, full = (
        float(fusion_loss_terms(sources[:, :1], sources, worst=w).structure) for w in (0, 0.5, 1)
    )
    assert none < half < full
    assert half == pytest.approx((none + full) / 2)
    assert full == pytest.approx(2 * none, abs=1e-4)  # the kept one loses nothing
    with pytest.raises(ValueError, match=r"expected worst between 0 and 1, got 1\.5"):
        fusion_loss_terms(sources[:, :1], sources, worst=1.5)


def _ramp():
    """A CT, an MR and a PET of values that rise along the first axis, with noise of their own."""
    generator = torch.Generator().manual_seed(7)
    ramp = torch.linspace(0.1, 0.9, 40).view(1, 1, 40, 1).expand(1, 1, 40, 36)
    return (ramp + 0.02 * torch.randn(1, 3, 40, 36, generator=generator)).clamp(0.07, 1)


@pytest.mark.parametrize(("kind", "asks"), [("emission", True), ("ct", True), ("mr", False)])
def test_tone_is_the_order_of_uptake(kind, asks):
    """Any rising curve keeps it whole, a falling one loses twice as much as none."""
    source = _ramp()[:, :1]
    costs = [
        float(fusion_loss_terms(fused, source, kinds=[kind]).tone)
        for fused in (source, source**2, torch.full_like(source, 0.5), 1 - source)
    ]
    if not asks:
        assert costs == [0.0] * 4
        return
    assert costs[0] == pytest.approx(0, abs=1e-3)
    assert costs[1] == pytest.approx(0, abs=5e-3)
    assert costs[2] > 0.9
    assert costs[3] == pytest.approx(2 * costs[2], abs=2e-2)


def test_tone_is_spearmans():
    source = _ramp()[:, :1]
    noise = torch.rand(source.shape, generator=torch.Generator().manual_seed(1))
    fused = (source + 0.2 * noise) / 2
    expected = spearmanr(fused.flatten().numpy(), source.flatten().numpy())[0]
    found = 1 - float(fusion_loss_terms(fused, source, kinds=["emission"]).tone)
    assert found == pytest.approx(expected, abs=5e-3)


def test_bone_of_a_ct_and_fat_of_an_mr_stay_bright():
    """A bright block that only one image shows, left dark in the fused one."""
    image = torch.full((1, 1, 30, 30), 0.2)
    image[:, :, 10:20, 10:20] = 1.0
    pair = torch.cat([image, torch.full_like(image, 0.2)], 1)
    dark = torch.full_like(image, 0.2)
    lost = [
        float(fusion_loss_terms(dark, pair, kinds=kinds).bright)
        for kinds in (["ct", "mr"], ["mr", "ct"], ["mr", "emission"], ["emission", "ct"])
    ]
    assert lost[0] > 0.3
    assert lost[1] > 0.3
    assert lost[2:] == [0.0, 0.0]
    assert float(fusion_loss_terms(image, pair, kinds=["ct", "mr"]).bright) == 0


def test_contrast_has_a_sign():
    """A block 0.3 brighter than its surroundings: kept, halved, gone, turned round."""
    image = torch.full((1, 1, 48, 48), 0.4)
    image[:, :, 18:30, 18:30] = 0.7
    even = torch.full_like(image, 0.4)
    lost = [
        float(fusion_loss_terms(fused, image).contrast)
        for fused in (image, (image + even) / 2, even, 2 * even - image)
    ]
    assert lost == pytest.approx([0, 0.5, 1, 2], abs=1e-3)


def test_a_ct_asks_for_soft_tissue_where_no_mr_is():
    """Fat dark in the CT and bright in the MR: with the MR its own contrast counts."""
    ct, mr = torch.full((1, 1, 48, 48), 0.5), torch.full((1, 1, 48, 48), 0.3)
    ct[:, :, 18:30, 18:30], mr[:, :, 18:30, 18:30] = 0.2, 0.8
    pair = torch.cat([ct, mr], 1)
    with_mr, with_pet = (
        [float(fusion_loss_terms(fused, pair, kinds=["ct", k]).contrast) for fused in (ct, mr)]
        for k in ("mr", "emission")
    )
    assert with_mr[1] < 0.15 < with_mr[0]
    assert with_pet[0] < with_mr[0]


def test_unknown_parts_are_refused(sources):
    terms = fusion_loss_terms(sources[:, :1], sources)
    with pytest.raises(ValueError, match=r"expected weights of structure, .*, got brightness"):
        weighted_sum(terms, {"brightness": 1.0})


def test_soft_tissue_beside_a_ct_looks_as_in_the_mr():
    """Fat is dark in the CT and bright in the MR, muscle the other way round; bone is the CT's."""
    ct, mr = (torch.full((1, 1, 30, 30, 9), value) for value in (0.5, 0.3))
    ct[..., :12, :], mr[..., :12, :] = 0.15, 0.9
    ct[..., 12:18, 12:18, :], mr[..., 12:18, 12:18, :] = 1.0, 0.1
    both = torch.cat([ct, mr], 1)
    like_mr = torch.where(ct > 0.9, ct, mr)
    wanted, other = (fusion_loss_terms(x, both, kinds=["ct", "mr"]) for x in (like_mr, ct))
    assert float(wanted.tone) < float(other.tone)
    assert float(wanted.intensity) < 0.5 * float(other.intensity)
    # without an MR, and in a picture, whose window is not known, the CT's order is asked for
    alone = fusion_loss_terms(ct, torch.cat([ct, 0 * mr], 1), kinds=["ct", "emission"])
    picture = fusion_loss_terms(ct[..., 0], both[..., 0], kinds=["ct", "mr"])
    assert float(alone.tone) < 0.05
    assert float(picture.tone) < 0.05


def _with_uptake(level, shape):
    """A CT with a bone, and uptake of a few grey levels with a focus of some level, all of 255."""
    generator = torch.Generator().manual_seed(0)
    ct = 0.5 + 0.03 * torch.randn(shape, generator=generator)
    ct[30:40, 30:40] = 0.98
    uptake = (2 + 2 * torch.rand(shape, generator=generator)).round()
    uptake[6:14, 6:14] = level
    return torch.stack([ct, uptake / 255])[None]


@pytest.mark.parametrize("shape", [(48, 48), (48, 48, 9)])
def test_single_grey_levels_of_an_empty_pet_are_no_information(shape):
    sources = _with_uptake(4, shape)
    patches = (sources[:, :1] - 10 * sources[:, 1:]).clamp(0, 1)
    copy, patched = (
        fusion_loss_terms(f, sources, kinds=["ct", "emission"]) for f in (sources[:, :1], patches)
    )
    assert float(copy.information) == pytest.approx(0, abs=5e-3)
    assert float(patched.information) > float(copy.information)
    hot = _with_uptake(200, shape)  # a focus is asked for
    lost = fusion_loss_terms(hot[:, :1], hot, kinds=["ct", "emission"])
    assert float(lost.information) > 0.5


@pytest.mark.parametrize("anatomy", ["ct", "mr"])
@pytest.mark.parametrize("shape", [(12, 12, 12), (24, 24)])
def test_volumes_ask_for_bright_uptake(anatomy, shape):
    """In place of its contrast; a picture's window is not known."""
    beside = torch.full((1, 1, *shape), 0.3)
    uptake = torch.zeros(1, 1, *shape)
    uptake[(..., *[slice(4, 8)] * len(shape))] = 1.0
    loss = FusionLoss(torch.cat([beside, uptake], 1), [anatomy, "emission"])
    volume = len(shape) == 3
    assert loss.weights["contrast"] == (0 if volume else 1)
    bright, grey = (float(loss.terms(torch.maximum(beside, f * uptake)).bright) for f in (1, 0.5))
    assert bright < 0.02
    assert (grey > bright + 0.3) == volume


@pytest.mark.parametrize("shape", [(18, 18, 18), (40, 40)])
def test_uptake_beside_both_counts_more_in_volumes(shape):
    """What is lost of all but the MR, and of uptake beside a CT or an MR alone."""
    generator = torch.Generator().manual_seed(4)
    three = 0.3 + 0.6 * torch.rand(1, 3, *shape, generator=generator)

    def lost(kept, kinds):
        given = three[:, : len(kinds)]
        terms = fusion_loss_terms(given[:, kept : kept + 1], given, kinds=kinds, worst=0)
        return float(terms.information)

    alone = 2 * lost(1, ["ct", "mr"])  # the mean of two, of which one is kept whole
    for anatomy in ("ct", "mr"):
        assert 2 * lost(0, [anatomy, "emission"]) == pytest.approx(alone, rel=0.02)
    counts = 1 + (UPTAKE_BESIDE_BOTH if len(shape) == 3 else 1)
    assert 3 * lost(1, ["ct", "mr", "emission"]) == pytest.approx(counts * alone, rel=0.02)


def test_the_worst_is_that_of_whole_fields_of_view(sources):
    """Whose score counts is asked of whole images; what it counts, where they meet."""
    between = 0.6 * sources[:, :1] + 0.4 * sources[:, 1:]

    def lost(*overlap):
        loss = FusionLoss(sources, ["mr", "mr"], worst=1.0, overlap=overlap)
        return float(loss.terms(between).structure)

    first, second = lost(1.0, 0.01), lost(0.01, 1.0)
    assert first < 0.9 * second
    assert lost(1.0, 1.0) == pytest.approx(second)
    assert lost(0.9, 1.0) == pytest.approx(second)

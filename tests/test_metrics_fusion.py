"""Fusion scores: published programs, scikit-image and torchmetrics as witnesses, and laws."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.measure import shannon_entropy
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.clustering import mutual_info_score
from torchmetrics.functional.image import visual_information_fidelity

from fusion_pipeline.metrics import (
    artefacts,
    edge_transfer,
    entropy,
    fusion_scores,
    mutual_information,
    psnr,
    scd,
    ssim,
    vif,
)


def pictures(seed, shape):
    """A fused picture and two sources, black outside an ellipse; the second mostly flat."""
    rng = np.random.default_rng(seed)
    smooth = []
    for sigma in (2, 3, 1):
        x = ndimage.gaussian_filter(rng.normal(size=shape), sigma)
        smooth.append((x - x.min()) / (x.max() - x.min()))
    a, b, noise = smooth
    y, x = np.mgrid[: shape[0], : shape[1]]
    radius = ((y - 0.45 * shape[0]) / (0.4 * shape[0])) ** 2
    inside = radius + ((x - 0.55 * shape[1]) / (0.38 * shape[1])) ** 2 < 1
    a, b = a * inside, b * inside * (b > 0.5)
    fused = 0.7 * np.maximum(a, b) + 0.2 * noise * inside
    return fused / fused.max(), a, b


def volume(seed, shape=(26, 30, 24), sigma=2):
    x = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return (x - x.min()) / (x.max() - x.min())


# From the reference program of the project (fusion_metrics.py, source_wise.py: NumPy, after the
# papers' formulas), run on ``pictures(seed, shape)`` times 255.
WHOLE = {
    (0, (60, 75)): {
        "entropy": 4.317304992544912,
        "mi_sum": 2.5545492970442383,
        "mi_a": 1.79817984958052,
        "mi_b": 0.7563694474637184,
        "scd": 1.3204254452466517,
        "psnr": 14.214770511527037,
        "vif_sum": 0.4204440156561652,
        "vif_a": 0.3019876372177446,
        "vif_b": 0.1184563784384206,
        "vif_min": 0.1184563784384206,
        "q": 0.4024319091450743,
        "nabf": 0.015397494049437811,
        "ssim_sum": 1.3625799041520996,
    },
    (7, (97, 64)): {
        "entropy": 4.3017502932875376,
        "mi_sum": 2.69980292699175,
        "mi_a": 1.6407920128679807,
        "mi_b": 1.0590109141237694,
        "scd": 1.238437092176185,
        "psnr": 15.200068682416262,
        "vif_sum": 0.4753884141606043,
        "vif_a": 0.29007311899728955,
        "vif_b": 0.1853152951633147,
        "q": 0.4584367813495841,
        "nabf": 0.012721187972438633,
        "ssim_sum": 1.4069884016776895,
    },
}
TISSUE = {
    (0, (60, 75)): {
        "q_a": 0.4564439453031799,
        "q_b": 0.2197625963781695,
        "q_min": 0.2197625963781695,
        "ssim_a": 0.6784298812789176,
        "ssim_b": 0.3668723043830014,
        "ssim_min": 0.3668723043830014,
    },
    (7, (97, 64)): {
        "q_a": 0.4524592115595036,
        "q_b": 0.2699478852521682,
        "ssim_a": 0.5545844810344559,
        "ssim_b": 0.4738283325745294,
    },
}


class TestAgainstTheReferenceProgram:
    @pytest.mark.parametrize("which", WHOLE, ids=str)
    @pytest.mark.parametrize("data_range", [1.0, 255.0, 4.0])
    def test_whole_pictures(self, which, data_range):
        fused, a, b = (data_range * picture for picture in pictures(*which))
        scores = fusion_scores(fused, {"a": a, "b": b}, data_range=data_range)
        for name, value in WHOLE[which].items():
            assert scores[name] == pytest.approx(value, rel=1e-6), name

    @pytest.mark.parametrize("which", TISSUE, ids=str)
    def test_inside_the_tissue(self, which):
        fused, a, b = pictures(*which)
        tissue = (a > 15 / 255) | (b > 15 / 255)
        scores = fusion_scores(fused, {"a": a, "b": b}, tissue)
        for name, value in TISSUE[which].items():
            assert scores[name] == pytest.approx(value, rel=1e-6), name

    @pytest.mark.parametrize("which", WHOLE, ids=str)
    def test_functions_give_what_the_dictionary_gives(self, which):
        fused, a, b = pictures(*which)
        tissue = (a > 15 / 255) | (b > 15 / 255)
        for mask in (None, tissue):
            scores = fusion_scores(fused, {"a": a, "b": b}, mask)
            for key, source in (("a", a), ("b", b)):
                for name, function in (
                    ("ssim", ssim),
                    ("vif", vif),
                    ("q", edge_transfer),
                    ("mi", mutual_information),
                    ("psnr", psnr),
                ):
                    found = function(fused, source, mask)
                    assert scores[f"{name}_{key}"] == pytest.approx(found, rel=1e-12), name
            assert scores["nabf"] == pytest.approx(artefacts(fused, [a, b], mask))
            assert scores["scd"] == pytest.approx(scd(fused, [a, b], mask))
            assert scores["entropy"] == pytest.approx(entropy(fused, mask))

    @pytest.mark.parametrize("which", WHOLE, ids=str)
    def test_what_a_source_adds_and_correlates_makes_up_the_whole(self, which):
        fused, a, b = pictures(*which)
        scores = fusion_scores(fused, {"a": a, "b": b})
        assert scores["scd_a"] + scores["scd_b"] == pytest.approx(scores["scd"])
        expected = np.corrcoef((fused - b).ravel(), a.ravel())[0, 1]
        assert scores["scd_a"] == pytest.approx(expected)
        ends = sorted([scores["nabf_a"], scores["nabf_b"]])
        assert ends[0] <= scores["nabf"] <= ends[1]
        # one source alone has no edge that the other could excuse
        alone = fusion_scores(fused, {"a": a, "same": a})
        assert alone["nabf_a"] == pytest.approx(artefacts(fused, [a, a]))


class TestAgainstLibraries:
    @pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # inside torchmetrics
    @pytest.mark.parametrize("shape", [(40, 33), (26, 30, 24)])
    def test_ssim_psnr_mi_entropy(self, shape):
        a, f = volume(0, shape), volume(1, shape)
        whole = structural_similarity(a, f, win_size=7, data_range=1.0)
        assert ssim(f, a) == pytest.approx(whole, rel=1e-6)
        assert psnr(f, a) == pytest.approx(peak_signal_noise_ratio(a, f, data_range=1.0))
        levels = [np.round(255 * x).astype(int) for x in (f, a)]
        assert entropy(f) == pytest.approx(shannon_entropy(levels[0]))
        witness = mutual_info_score(*(torch.from_numpy(x).flatten() for x in levels)).item()
        assert mutual_information(f, a) == pytest.approx(witness, rel=1e-4)

    def test_ssim_in_a_mask_is_the_mean_of_the_map(self):
        a, f = volume(0), volume(1)
        mask = np.zeros(a.shape, bool)
        mask[4:20, 5:18, 6:16] = volume(2)[4:20, 5:18, 6:16] > 0.5
        _, whole = structural_similarity(a, f, win_size=7, data_range=1.0, full=True)
        assert ssim(f, a, mask) == pytest.approx(whole[mask].mean(), rel=1e-6)

    def test_vif_of_pictures_and_of_stacks(self):
        pairs = [(volume(k, (50, 64)), volume(k + 10, (50, 64))) for k in range(3)]
        pairs = [(a, 0.5 * a + 0.3 * other) for a, other in pairs]
        for a, f in pairs:
            given = [torch.from_numpy(255 * x)[None, None] for x in (f, a)]
            witness = visual_information_fidelity(*given).item()
            assert vif(f, a) == pytest.approx(witness, rel=1e-4)
        a, f = (np.stack(part, -1) for part in zip(*pairs, strict=True))
        assert min(vif(x, y) for y, x in pairs) < vif(f, a) < max(vif(x, y) for y, x in pairs)
        repeated = [np.repeat(x[..., None], 4, -1) for x in pairs[0][::-1]]
        assert vif(*repeated) == pytest.approx(vif(*pairs[0][::-1]))


class TestLaws:
    @pytest.mark.parametrize("shape", [(40, 33), (26, 30, 24)])
    def test_a_fused_image_that_is_its_source_keeps_everything(self, shape):
        a = volume(0, shape)
        assert ssim(a, a) == pytest.approx(1)
        assert vif(a, a) == pytest.approx(1, abs=1e-3)
        assert edge_transfer(a, a) == pytest.approx(0.9994 * 0.9879, abs=0.02)
        assert mutual_information(a, a) == pytest.approx(entropy(a) * np.log(2))
        assert psnr(a, a) == 120
        assert artefacts(a, [a, volume(1, shape)]) == 0

    def test_copying_one_source_does_not_win_the_minimum(self):
        a, b = volume(0), volume(1)
        copied = fusion_scores(a, {"ct": a, "pet": b})
        mixed = fusion_scores((a + b) / 2, {"ct": a, "pet": b})
        for name in ("ssim_min", "q_min", "vif_min"):
            assert mixed[name] > copied[name]

    def test_added_noise_is_an_artefact(self):
        a, b = volume(0), volume(1)
        fused = (a + b) / 2
        noisy = fused + 0.1 * np.random.default_rng(0).normal(size=a.shape)
        assert artefacts(noisy, [a, b]) > artefacts(fused, [a, b]) + 0.05

    @pytest.mark.parametrize("axes", [(1, 0, 2), (2, 0, 1)])
    def test_edges_and_ssim_of_volumes_know_no_preferred_axis(self, axes):
        f, a, b = volume(2), volume(0), volume(1)
        turned = [np.transpose(x, axes) for x in (f, a, b)]
        assert edge_transfer(turned[0], turned[1]) == pytest.approx(edge_transfer(f, a))
        assert ssim(turned[0], turned[1]) == pytest.approx(ssim(f, a))
        assert artefacts(turned[0], turned[1:]) == pytest.approx(artefacts(f, [a, b]))

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_a_stack_of_one_picture_has_the_artefacts_of_the_picture(self, axis):
        f, a, b = pictures(0, (40, 44))
        stacks = [np.repeat(np.expand_dims(x, axis), 5, axis) for x in (f, a, b)]
        assert artefacts(stacks[0], stacks[1:]) == pytest.approx(artefacts(f, [a, b]), rel=1e-6)

    def test_edges_of_opposite_sign_count_as_the_same_edge(self):
        a = volume(0)
        inner = np.zeros(a.shape)
        inner[1:-1, 1:-1, 1:-1] = 1
        assert edge_transfer(1 - a, a, inner) == pytest.approx(edge_transfer(a, a, inner))

    def test_slabs_change_nothing(self, monkeypatch):
        sources = {"ct": volume(0), "mr": volume(1), "pet": volume(2)}
        fused = sum(sources.values()) / 3
        whole = fusion_scores(fused, sources)
        monkeypatch.setattr("fusion_pipeline.metrics.slabs._SLAB_VOXELS", 26 * 30 * 5)
        assert fusion_scores(fused, sources) == pytest.approx(whole, rel=1e-9)

    def test_three_sources_in_any_order(self):
        sources = {"ct": volume(0), "mr": volume(1), "pet": volume(2)}
        fused = sum(sources.values()) / 3
        scores = fusion_scores(fused, sources)
        assert fusion_scores(fused, dict(reversed(sources.items()))) == pytest.approx(scores)
        per_source = {f"{m}_{k}" for m in ("ssim", "q", "vif", "mi", "psnr") for k in sources}
        assert per_source < set(scores)
        assert all(isinstance(value, float) for value in scores.values())
        assert scores["ssim_sum"] == pytest.approx(sum(scores[f"ssim_{k}"] for k in sources))

    def test_scd_by_the_definition_for_two_and_three(self):
        f, a, b, c = (volume(k) for k in range(4))

        def r(x, y):
            return np.corrcoef(x.ravel(), y.ravel())[0, 1]

        assert scd(f, [a, b]) == pytest.approx(r(f - b, a) + r(f - a, b))
        expected = r(f - (b + c) / 2, a) + r(f - (a + c) / 2, b) + r(f - (a + b) / 2, c)
        assert scd(f, [a, b, c]) == pytest.approx(expected)

    def test_what_lies_far_outside_the_mask_does_not_matter(self):
        f, a, b = (volume(k, (60, 30, 24)) for k in range(3))
        mask = np.zeros(f.shape, bool)
        mask[4:20, 5:18, 6:16] = True
        scores = fusion_scores(f, {"a": a, "b": b}, mask)
        far = a.copy()
        far[40:] = 0.5
        assert fusion_scores(f, {"a": far, "b": b}, mask) == pytest.approx(scores, rel=1e-9)

    def test_tensors_and_arrays_agree(self):
        f, a, b = (volume(k).astype(np.float32) for k in range(3))
        mask = a > 0.4
        expected = fusion_scores(f, {"a": a, "b": b}, mask)
        f, a, b, mask = (torch.from_numpy(x) for x in (f, a, b, mask))
        assert fusion_scores(f, {"a": a, "b": b}, mask) == pytest.approx(expected)

    def test_flat_and_small_images_give_numbers(self):
        flat, a = np.full((20, 24), 0.5), volume(0, (20, 24))
        scores = fusion_scores(a, {"flat": flat, "a": a})
        assert np.isfinite(list(scores.values())).all()
        assert scores["vif_flat"] == 1
        empty = np.zeros((20, 24))
        assert edge_transfer(empty, empty) == pytest.approx(1)
        assert fusion_scores(empty, {"a": empty, "b": empty})["q"] == 1
        assert scd(empty, [empty, a]) == 0
        thin = volume(0, (30, 20, 3))
        assert ssim(thin, thin) == pytest.approx(1)
        assert np.isnan(vif(np.zeros((9, 30)), np.zeros((9, 30))))
        corner = np.zeros((20, 24))
        corner[0, 0] = 1
        assert np.isnan(ssim(a, flat, corner))


class TestErrors:
    def test_one_source(self):
        with pytest.raises(ValueError, match=r"at least two sources, got \['ct'\]"):
            fusion_scores(volume(0), {"ct": volume(0)})

    def test_different_grids(self):
        with pytest.raises(ValueError, match=r"on one grid, got \(20, 24\), \(24, 20\)"):
            ssim(np.zeros((20, 24)), np.zeros((24, 20)))

    def test_wrong_dimension(self):
        with pytest.raises(ValueError, match=r"2D or 3D images on one grid, got \(1, 1, 9, 9\)"):
            entropy(np.zeros((1, 1, 9, 9)))

    def test_empty_mask(self):
        with pytest.raises(ValueError, match="mask is empty"):
            psnr(np.zeros((9, 9)), np.zeros((9, 9)), np.zeros((9, 9)))

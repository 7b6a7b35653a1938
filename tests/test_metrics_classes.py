"""The metric classes: the mean of their function over cases, however the cases are shared out."""

import json
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from scipy import ndimage
from skimage.measure import shannon_entropy
from skimage.metrics import normalized_mutual_information as skimage_nmi
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics import MetricCollection
from torchmetrics.functional.image import visual_information_fidelity

from fusion_pipeline import metrics

SHAPES = {2: (44, 50), 3: (44, 50, 8)}
SPACING = (1.0, 1.5, 3.0)
CASES = 5


def volumes(seed, shape, count=CASES):
    """(B, 1, *S) smooth noise in [0, 1], another contrast for each case."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        x = ndimage.gaussian_filter(rng.normal(size=shape), 2)
        out.append(((x - x.min()) / (x.max() - x.min())) ** rng.uniform(0.7, 1.5))
    return torch.from_numpy(np.stack(out))[:, None]


def fields(seed, shape, size=4.0):
    """(B, d, *S) voxels, with folds in some."""
    rng = np.random.default_rng(seed)
    d = len(shape)
    noise = rng.normal(size=(CASES, d, *shape))
    smooth = ndimage.gaussian_filter(noise, (0, 0, *[2] * d))
    growing = np.linspace(0.2, 1, CASES).reshape(-1, *[1] * (d + 1))
    return torch.from_numpy(size * growing * smooth / smooth.std()).float()


@pytest.fixture(params=[2, 3], ids=["2d", "3d"])
def d(request):
    return request.param


@pytest.fixture
def images(d):
    a, b = volumes(0, SHAPES[d]), volumes(1, SHAPES[d])
    mask = (volumes(2, SHAPES[d]) > 0.3).float()
    added = volumes(9, SHAPES[d])
    return 0.5 * a + 0.3 * b + 0.2 * added, {"ct": a, "pet": b}, mask


def registration_cases(d):
    """Class → how to make it, and the arguments of an update with all cases."""
    shape, spacing = SHAPES[d], SPACING[:d]
    a, b = volumes(3, shape), volumes(4, shape)
    mask = (volumes(5, shape) > 0.4).float()
    maps = [(3 * v).round().long() for v in (a, b)]
    points = [torch.randn(4 + n, d, generator=torch.Generator().manual_seed(n)) for n in range(5)]
    moved = [p + n for n, p in enumerate(points)]
    return {
        "TargetRegistrationError": (metrics.TargetRegistrationError, (points, moved)),
        "FoldedFraction": (metrics.FoldedFraction, (fields(6, shape), mask)),
        "LogJacobianStd": (metrics.LogJacobianStd, (fields(6, shape), mask)),
        "InverseConsistency": (
            partial(metrics.InverseConsistency, spacing),
            (fields(6, shape), fields(7, shape)),
        ),
        "NormalizedMutualInformation": (metrics.NormalizedMutualInformation, (a, b, mask)),
        "MindDistance": (metrics.MindDistance, (a, b, mask)),
        "DiceScore": (metrics.DiceScore, maps),
        "HausdorffDistance95": (partial(metrics.HausdorffDistance95, spacing), maps),
    }


FUSION = {
    "EdgeTransfer": partial(metrics.EdgeTransfer, ["ct", "pet", "mr"]),
    "VisualInformationFidelity": partial(metrics.VisualInformationFidelity, ["ct", "pet", "mr"]),
    "StructuralSimilarity": partial(metrics.StructuralSimilarity, ["ct", "pet", "mr"]),
    "PeakSignalNoiseRatio": partial(metrics.PeakSignalNoiseRatio, ["ct", "pet", "mr"]),
    "MutualInformation": partial(metrics.MutualInformation, ["ct", "pet", "mr"]),
    "FusionArtefacts": metrics.FusionArtefacts,
    "SumOfCorrelationsOfDifferences": metrics.SumOfCorrelationsOfDifferences,
}


def part(arguments, chosen):
    """The same arguments with some of the cases."""
    return [
        {key: value[chosen] for key, value in x.items()} if isinstance(x, dict) else x[chosen]
        for x in arguments
    ]


def numbers(result):
    """A result as an array."""
    values = result.values() if isinstance(result, dict) else [result]
    return np.array([float(value) for value in values])


def updated(make, *updates):
    metric = make()
    for arguments in updates:
        metric.update(*arguments)
    return metric


def check_shared(make, arguments):
    """Two processes, one of which saw four of five cases, agree with one that saw all."""
    whole = numbers(updated(make, arguments).compute())
    few, most = part(arguments, slice(0, 1)), part(arguments, slice(1, None))
    one, other = updated(make, few), updated(make, most)
    alone = numbers(other.compute())
    one.merge_state(other)
    np.testing.assert_allclose(numbers(one.compute()), whole, rtol=1e-5)
    one_by_one = [part(arguments, slice(n, n + 1)) for n in range(CASES)]
    np.testing.assert_allclose(numbers(updated(make, *one_by_one).compute()), whole, rtol=1e-5)
    assert not np.allclose(alone, whole, rtol=1e-4, equal_nan=True)  # the first case counted


class TestSharedCases:
    @pytest.mark.parametrize("name", list(registration_cases(2)))
    def test_registration(self, d, name):
        make, arguments = registration_cases(d)[name]
        check_shared(make, arguments)

    @pytest.mark.parametrize("name", FUSION)
    def test_fusion(self, images, name):
        check_shared(FUSION[name], images)

    def test_entropy(self, images):
        check_shared(metrics.Entropy, (images[0], images[2]))


class TestAgainstLibraries:
    def test_sources_by_scikit_image(self, images):
        fused, sources, _ = images
        names = ["ct", "pet"]
        found = {
            make: make(names)
            for make in (metrics.StructuralSimilarity, metrics.PeakSignalNoiseRatio)
        }
        for metric in found.values():
            metric.update(fused, sources)
        for key in names:
            pairs = [(f[0].numpy(), s[0].numpy()) for f, s in zip(fused, sources[key], strict=True)]
            witness = np.mean([structural_similarity(*p, data_range=1.0) for p in pairs])
            assert float(found[metrics.StructuralSimilarity].compute()[key]) == pytest.approx(
                witness, rel=1e-5
            )
            witness = np.mean([peak_signal_noise_ratio(*p, data_range=1.0) for p in pairs])
            assert float(found[metrics.PeakSignalNoiseRatio].compute()[key]) == pytest.approx(
                witness, rel=1e-5
            )

    def test_vif_by_torchmetrics(self):
        a, b = volumes(0, SHAPES[2]), volumes(1, SHAPES[2])
        metric = metrics.VisualInformationFidelity(["ct"])
        metric.update(0.7 * a + 0.3 * b, {"ct": a})
        witness = visual_information_fidelity(255 * (0.7 * a + 0.3 * b), 255 * a)
        assert float(metric.compute()["ct"]) == pytest.approx(float(witness), rel=1e-4)

    def test_entropy_and_nmi_by_scikit_image(self, images):
        fused, sources, _ = images
        levels = [np.round(255 * f[0].numpy()) for f in fused]
        witness = np.mean([shannon_entropy(x) for x in levels])
        found = updated(metrics.Entropy, (fused,)).compute()
        assert float(found) == pytest.approx(witness, rel=1e-5)
        pairs = zip(fused, sources["ct"], strict=True)
        witness = np.mean([skimage_nmi(f[0].numpy(), s[0].numpy(), bins=32) for f, s in pairs])
        nmi = metrics.NormalizedMutualInformation(bins=32)
        nmi.update(fused, sources["ct"])
        assert float(nmi.compute()) == pytest.approx(witness, rel=1e-5)

    def test_labels_by_monai(self, d):
        _, (a, b) = registration_cases(d)["DiceScore"]
        one_hot = [torch.cat([v == n for n in (1, 2, 3)], 1).float() for v in (a, b)]
        dice = updated(partial(metrics.DiceScore, [1, 2, 3]), (a, b)).compute()
        witness = compute_dice(one_hot[1], one_hot[0], ignore_empty=False)
        assert float(dice) == pytest.approx(float(witness.mean()), rel=1e-5)
        make = partial(metrics.HausdorffDistance95, SPACING[:d], [1, 2, 3])
        witness = compute_hausdorff_distance(
            *one_hot, include_background=True, percentile=95, spacing=SPACING[:d]
        )
        found = updated(make, (a, b)).compute()
        assert float(found) == pytest.approx(float(witness.mean()), rel=1e-5)


class TestKnownTruth:
    def test_error_is_the_mean_of_each_case_then_of_the_cases(self):
        metric = metrics.TargetRegistrationError()
        true = [torch.zeros(1, 3), torch.zeros(3, 3)]
        metric.update(true, [p + torch.tensor([3.0, 0, 4]) * (n + 1) for n, p in enumerate(true)])
        assert float(metric.compute()) == pytest.approx((5 + 10) / 2)

    def test_folds_and_consistency_of_constant_fields(self):
        shape = (10, 12, 14)
        still, mirrored = torch.zeros(1, 3, *shape), torch.zeros(1, 3, *shape)
        mirrored[:, 1] = -2 * torch.arange(12.0)[:, None]
        folded = updated(metrics.FoldedFraction, (still,), (mirrored,), (mirrored,))
        assert float(folded.compute()) == pytest.approx(2 / 3)
        assert float(updated(metrics.LogJacobianStd, (still,)).compute()) == 0
        there = still.clone()
        there[:, 2] = 2.0
        make = partial(metrics.InverseConsistency, SPACING)
        assert float(updated(make, (there, still), (there, -there)).compute()) == pytest.approx(3)

    def test_mind_does_not_see_contrast(self, images):
        fused, _, mask = images
        same = updated(metrics.MindDistance, (fused, 3 - 2 * fused, mask)).compute()
        assert float(same) == pytest.approx(0, abs=1e-4)

    def test_a_fused_image_that_is_a_source(self, images):
        _, sources, _ = images
        copied = sources["ct"]
        ssim = updated(FUSION["StructuralSimilarity"], (copied, sources)).compute()
        assert float(ssim["ct"]) == pytest.approx(1)
        assert float(ssim["pet"]) < 0.9
        assert float(updated(metrics.FusionArtefacts, (copied, sources)).compute()) == 0


class TestMissingAnswers:
    def test_a_case_without_an_answer_does_not_count(self):
        empty = torch.zeros(1, 1, 6, 8, dtype=torch.int64)
        half = empty.clone()
        half[..., :3, :] = 7
        dice = updated(metrics.DiceScore, (empty, half), (half, half))
        assert float(dice.compute()) == 1
        distance = updated(
            partial(metrics.HausdorffDistance95, (1.0, 2.0)), (half, empty), (half, half)
        )
        assert float(distance.compute()) == 0
        error = metrics.TargetRegistrationError()
        error.update([torch.zeros(0, 3), torch.zeros(1, 3)], [torch.zeros(0, 3), torch.ones(1, 3)])
        assert float(error.compute()) == pytest.approx(3**0.5)

    def test_without_any_case_it_is_nan(self):
        nothing = updated(metrics.TargetRegistrationError, ([], []))
        assert np.isnan(float(nothing.compute()))
        nothing.update([torch.zeros(1, 2)], [torch.ones(1, 2)])
        nothing.reset()
        nothing.update([], [])
        assert np.isnan(float(nothing.compute()))

    def test_a_source_that_some_cases_lack(self, images):
        fused, sources, mask = images
        metric = FUSION["EdgeTransfer"]()
        metric.update(fused, sources, mask)
        metric.update(fused, {"ct": sources["ct"]}, mask)
        found = metric.compute()
        once = updated(FUSION["EdgeTransfer"], images).compute()
        assert float(found["ct"]) == pytest.approx(float(once["ct"]))
        assert float(found["pet"]) == pytest.approx(float(once["pet"]))
        assert np.isnan(float(found["mr"]))

    def test_unknown_sources_and_wrong_shapes_are_refused(self, images):
        fused, sources, _ = images
        with pytest.raises(ValueError, match=r"sources of \['ct'\], got also \['pet'\]"):
            metrics.EdgeTransfer(["ct"]).update(fused, sources)
        with pytest.raises(ValueError, match=r"images \(B, 1, \*S\), 2D or 3D, got \(6, 7\)"):
            metrics.Entropy().update(torch.zeros(6, 7))


class TestAsTorchmetrics:
    def test_a_collection_names_each_score(self, images):
        fused, sources, mask = images
        both = MetricCollection([metrics.EdgeTransfer(["ct", "pet"]), metrics.FusionArtefacts()])
        both.update(fused, sources, mask)
        found = both.compute()
        assert set(found) == {"ct", "pet", "FusionArtefacts"}

    def test_measures_that_agree_at_first_stay_apart_in_a_collection(self):
        still, other = torch.zeros(1, 2, *SHAPES[2]), fields(6, SHAPES[2])
        both = MetricCollection([metrics.FoldedFraction(), metrics.LogJacobianStd()])
        for ddf in (still, other):
            both.update(ddf)
        alone = updated(metrics.LogJacobianStd, (still,), (other,)).compute()
        assert float(both.compute()["LogJacobianStd"]) == pytest.approx(float(alone))
        label = torch.ones(1, 1, 6, 8, dtype=torch.int64)
        overlaps = MetricCollection(
            {"one": metrics.DiceScore([1]), "all": metrics.DiceScore([1, 2])}
        )
        overlaps.update(label, label)
        overlaps.update(label + (torch.arange(8) > 3), label)
        found = {name: float(value) for name, value in overlaps.compute().items()}
        assert found == pytest.approx({"one": (1 + 2 / 3) / 2, "all": (1 + 1 / 3) / 2})

    def test_pickled_and_forward(self, images):
        fused, _, mask = images
        metric = pickle.loads(pickle.dumps(metrics.Entropy()))
        first = metric(fused[:2], mask[:2])
        second = metric(fused[2:], mask[2:])
        assert float(metric.compute()) == pytest.approx(float(2 * first + 3 * second) / 5)

    def test_data_range_reaches_the_function(self, images):
        fused, sources, _ = images
        scaled = {key: 4 * value for key, value in sources.items()}
        for name, make in FUSION.items():
            wide = make(data_range=4.0)
            wide.update(4 * fused, scaled)
            np.testing.assert_allclose(
                numbers(wide.compute()),
                numbers(updated(make, (fused, sources)).compute()),
                rtol=1e-5,
                err_msg=name,
            )


def test_a_name_that_is_none_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'Dice'"):
        _ = metrics.Dice


PROCESS = """
import json, sys
import torch, torch.distributed as dist
sys.path.insert(0, sys.argv[3])
from test_metrics_classes import FUSION, numbers, part, registration_cases, updated, volumes
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
share = slice(0, 2) if rank == 0 else slice(2, 5)
found = {}
for name, (make, arguments) in registration_cases(2).items():
    found[name] = numbers(updated(make, part(arguments, share)).compute()).tolist()
a, b = volumes(0, (44, 50)), volumes(1, (44, 50))
for name, make in FUSION.items():
    arguments = part((0.5 * a + 0.5 * b, {"ct": a, "pet": b}), share)
    found[name] = numbers(updated(make, arguments).compute()).tolist()
if rank == 0:
    print(json.dumps(found))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", PROCESS]
    here = str(Path(__file__).parent)
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meet"), here], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    found = json.loads(outputs[0].splitlines()[-1])
    expected = {
        name: numbers(updated(make, arguments).compute())
        for name, (make, arguments) in registration_cases(2).items()
    }
    a, b = volumes(0, SHAPES[2]), volumes(1, SHAPES[2])
    for name, make in FUSION.items():
        images = (0.5 * a + 0.5 * b, {"ct": a, "pet": b})
        expected[name] = numbers(updated(make, images).compute())
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)

"""The diagnostic study: patients, classifiers by fold, scores against torchmetrics and scipy."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pipeline_cases import small_pipeline
from scipy import stats
from torchmetrics.functional.classification import binary_auroc, binary_recall

from fusion_pipeline.data import InputError, read_datalist
from fusion_pipeline.evaluation import interval_of_mean
from fusion_pipeline.evaluation.classifier import Recipe, classify_by_folds, segment_by_folds
from fusion_pipeline.evaluation.diagnosis import Prediction, diagnose, difference
from fusion_pipeline.pipeline.diagnosis import DiagnosisPlan, run_diagnosis
from fusion_pipeline.synthesis import diagnostic_patient, save_cohort
from fusion_pipeline.synthesis.diagnosis import LESION_LABEL, foci
from fusion_pipeline.synthesis.patients import Plan, draw_canvas
from fusion_pipeline.training.folds import fold_numbers

SHORT = Recipe(steps=40, batch_size=8)


def predictions(probability, target, patients=None, name="x"):
    owners = patients or [f"p{n}" for n in range(len(target))]
    return [
        Prediction(f"c{n}", owner, 0, name, int(t), float(p))
        for n, (owner, t, p) in enumerate(zip(owners, target, probability, strict=True))
    ]


class TestPatients:
    def test_a_seed_gives_one_patient_and_its_parity_the_class(self):
        first, again, other = (diagnostic_patient(seed) for seed in (4, 4, 5))
        for key in ("mr", "pet"):
            assert torch.equal(first.case.images[key].array, again.case.images[key].array)
        assert (first.target, other.target) == (0, 1)

    def test_only_the_sick_have_a_lesion_and_its_uptake_is_there_once_aligned(self):
        healthy, sick = diagnostic_patient(10), diagnostic_patient(11)
        assert not (healthy.case.series["mr"].labels.array == LESION_LABEL).any()
        lesion = sick.case.series["mr"].labels.array == LESION_LABEL
        pet, field = sick.case.images["pet"], sick.case.series["pet"].displacement
        # a true field points from the reference to where the PET shows the same
        index = torch.nonzero(lesion[0])
        world = index.double() @ torch.from_numpy(sick.case.fixed.affine[:2, :2]).T
        there = world + field[:, index[:, 0], index[:, 1]].T.double()
        voxels = (there @ torch.from_numpy(np.linalg.inv(pet.affine)[:2, :2]).T).round().long()
        inside = ((voxels >= 0) & (voxels < torch.tensor(pet.shape))).all(1)
        values = pet.array[0][tuple(voxels[inside].T)]
        head = pet.array[pet.array > 20]
        assert values.mean() > head.mean() + 2 * head.std()

    def test_an_image_alone_does_not_tell_where_a_focus_lies_by_class(self):
        # the same draws for both classes: the MR of a seed does not know which one it is
        canvas = draw_canvas(Plan("head", "small", 2), torch.Generator().manual_seed(3))
        drawn = [
            foci(canvas, torch.Generator().manual_seed(8), apart=apart) for apart in (True, False)
        ]
        (sick_mr, sick_pet), (healthy_mr, healthy_pet) = drawn
        assert torch.equal(sick_mr, healthy_mr)
        assert torch.equal(healthy_mr, healthy_pet)
        assert not (sick_mr & sick_pet).any()

    def test_a_cohort_is_a_datalist_with_targets(self, tmp_path):
        path = save_cohort([diagnostic_patient(seed) for seed in (0, 1)], tmp_path)
        cases = read_datalist(path)
        assert [case.target for case in cases] == [0, 1]
        assert all(case.series["pet"].displacement for case in cases)


class TestClassifier:
    def images(self, count=40):
        """A bright square decides; where it lies does not."""
        generator = torch.Generator().manual_seed(0)
        target = torch.arange(count) % 2
        images = torch.randn((count, 1, 16, 16), generator=generator)
        masks = torch.zeros((count, 1, 16, 16))
        corners = torch.randint(10, (count, 2), generator=generator).tolist()
        for n, (i, j) in enumerate(corners):
            if target[n]:
                masks[n, 0, i : i + 5, j : j + 5] = 1
        return images + 3 * masks, target, masks

    @pytest.mark.slow
    def test_it_learns_what_is_there_and_nothing_from_noise(self):
        images, target, _ = self.images()
        folds = [(n // 2) % 2 for n in range(len(target))]
        assert binary_auroc(classify_by_folds(images, target, folds, SHORT), target) > 0.9
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
        assert 0.2 < binary_auroc(classify_by_folds(noise, target, folds, SHORT), target) < 0.8

    def test_the_same_seed_gives_the_same_numbers_and_leaves_the_callers_alone(self):
        images, target, _ = self.images(12)
        folds = [(n // 2) % 2 for n in range(12)]
        state = torch.get_rng_state()
        once = classify_by_folds(images, target, folds, Recipe(steps=3))
        assert torch.equal(once, classify_by_folds(images, target, folds, Recipe(steps=3)))
        assert torch.equal(state, torch.get_rng_state())

    def test_a_case_never_trains_its_own_classifier(self):
        images, target, _ = self.images(12)
        folds = [(n // 2) % 2 for n in range(12)]
        wrong = target.clone()
        wrong[0] = 1 - wrong[0]
        before = classify_by_folds(images, target, folds, Recipe(steps=3))
        after = classify_by_folds(images, wrong, folds, Recipe(steps=3))
        same = torch.tensor(folds) == folds[0]
        assert torch.equal(before[same], after[same])
        assert not torch.equal(before[~same], after[~same])

    @pytest.mark.slow
    def test_the_head_finds_the_square(self):
        images, _, masks = self.images(24)
        folds = [(n // 2) % 2 for n in range(24)]
        found = segment_by_folds(images, masks, folds, Recipe(steps=60, learning_rate=1e-2)) > 0.5
        overlap = 2 * (found & (masks > 0)).sum() / (found.sum() + masks.sum())
        assert overlap > 0.7

    def test_a_fold_with_one_class_is_refused(self):
        images, target, _ = self.images(4)
        with pytest.raises(ValueError, match="both classes outside of fold 0"):
            classify_by_folds(images, target, [1, 0, 1, 0], SHORT)


class TestScores:
    def drawn(self, count=60, seed=3):
        rng = np.random.default_rng(seed)
        target = rng.integers(0, 2, count)
        # one digit: many ties
        return np.round(np.clip(0.3 * target + rng.uniform(0, 0.7, count), 0, 1), 1), target

    def test_values_are_torchmetrics_with_ties(self):
        probability, target = self.drawn()
        found = diagnose(predictions(probability, target))
        p, t = torch.tensor(probability, dtype=torch.float32), torch.tensor(target)
        assert found.scores["auroc"].value == pytest.approx(float(binary_auroc(p, t)))
        assert found.scores["sensitivity"].value == pytest.approx(float(binary_recall(p, t)))
        own = difference(predictions(probability, target), predictions(0 * probability, target))
        # constant predictions: every pair is a tie, an area of one half
        assert own.auroc.value == pytest.approx(float(binary_auroc(p, t)) - 0.5)

    def test_the_interval_of_accuracy_is_that_of_a_mean(self):
        probability, target = self.drawn()
        found = diagnose(predictions(probability, target)).scores["accuracy"]
        low, high = interval_of_mean(((probability >= 0.5) == target).astype(float))
        # two draws of resamples, in steps of 1/60
        assert (found.low, found.high) == (
            pytest.approx(low, abs=0.035), pytest.approx(high, abs=0.035),
        )  # fmt: skip

    def test_patients_are_resampled_and_not_their_cases(self):
        probability, target = self.drawn(30)
        once = diagnose(predictions(probability, target)).scores["accuracy"]
        twice = diagnose(
            predictions(
                np.repeat(probability, 4), np.repeat(target, 4),
                [f"p{n // 4}" for n in range(120)],
            )
        ).scores["accuracy"]  # fmt: skip
        assert (twice.low, twice.high) == (once.low, once.high)

    def test_equal_inputs_are_not_worse_and_the_better_one_is_better(self):
        probability, target = self.drawn()
        same = difference(predictions(probability, target), predictions(probability, target))
        assert (same.auroc.value, same.verdict) == (0.0, "not worse")
        noise = np.random.default_rng(0).uniform(size=len(target))
        other = predictions(noise, target)
        perfect = predictions(target, target)
        assert difference(perfect, other).verdict == "better"
        assert difference(other, perfect).verdict == "worse"

    def test_ten_patients_have_an_interval_whatever_their_classes(self):
        # one of a thousand resamples of five and five lacks a class, and has no AUROC
        target = [0, 1] * 5
        found = diagnose(predictions(np.linspace(0.2, 0.8, 10), target)).scores["auroc"]
        assert 0 <= found.low < found.value < found.high <= 1
        rare = diagnose(predictions(np.linspace(0.2, 0.8, 10), [0] * 8 + [1] * 2))
        assert (rare.scores["auroc"].low, rare.scores["auroc"].high) == (1.0, 1.0)

    def test_the_interval_is_scipys_where_every_resample_has_both_classes(self):
        probability, target = self.drawn()
        found = diagnose(predictions(probability, target)).scores["auroc"]

        def area(index):
            return float(
                binary_auroc(torch.tensor(probability[index]), torch.tensor(target[index]))
            )

        expected = stats.bootstrap(
            (np.arange(len(target)),), area, vectorized=False, n_resamples=499, method="BCa",
            rng=np.random.default_rng(5),
        ).confidence_interval  # fmt: skip
        # two draws of resamples
        assert found.low == pytest.approx(expected.low, abs=0.03)
        assert found.high == pytest.approx(expected.high, abs=0.03)

    def test_two_patients_have_no_interval(self):
        found = diagnose(predictions([0.2, 0.9], [0, 1]))
        assert math.isnan(found.scores["auroc"].low)
        assert found.scores["auroc"].value == 1.0


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Eight patients by an untrained pipeline, as `run_study` leaves them."""
    root = tmp_path_factory.mktemp("study")
    cases = read_datalist(save_cohort([diagnostic_patient(n) for n in range(8)], root / "cohort"))
    pipeline = small_pipeline(2, refine_steps=0, fuse_steps=0)
    for case in cases:
        # as the headers say: what is tested here is what comes after
        unmoved = {key: replace(one, transform="none") for key, one in case.series.items()}
        pipeline.run(replace(case, series=unmoved), root / "out" / "cases" / "ours")
    return cases, pipeline, root / "out"


@pytest.mark.slow
def test_a_study_from_results_to_tables_and_a_second_run_trains_nothing(study, monkeypatch):
    cases, pipeline, output = study
    plan = DiagnosisPlan(fold_numbers(cases, 2), lesion_label=LESION_LABEL, recipe=Recipe(steps=3))
    run_diagnosis(cases, pipeline, output, plan)
    content = json.loads((output / "diagnosis" / "diagnosis.json").read_text())
    names = [one["input"] for one in content["diagnosis"]]
    assert names == [
        "mr alone", "pet alone", "unregistered stack", "true alignment",
        "ours: channels", "ours: fused", "ours: fused colour", "ours: features",
    ]  # fmt: skip
    assert all((one["patients"], one["positive"]) == (8, 4) for one in content["diagnosis"])
    assert content["segmentation_dice"].keys() == set(names)
    assert content["segmentation_dice"]["ours: features"]["patients"] == 4
    assert "ours: channels less pet alone" in content["dice_difference"]
    rows = (output / "diagnosis" / "predictions.csv").read_text()
    assert len(rows.splitlines()) == 1 + 8 * len(names)
    monkeypatch.setattr(
        "fusion_pipeline.pipeline.diagnosis.classify_by_folds",
        lambda *_: pytest.fail("trained again"),
    )
    run_diagnosis(cases, pipeline, output, plan)
    assert (output / "diagnosis" / "predictions.csv").read_text() == rows
    section = run_diagnosis(cases, pipeline, output, replace(plan, lesion_label=7))
    assert "No lesion is segmented: fewer than two folds" in section.note
    assert "the label 7" in section.note


def test_targets_are_two_classes(tmp_path):
    cases = read_datalist(save_cohort([diagnostic_patient(n) for n in (0, 2)], tmp_path))
    with pytest.raises(InputError, match="targets of two classes, got 0"):
        run_diagnosis(cases, small_pipeline(2), tmp_path, DiagnosisPlan({}))

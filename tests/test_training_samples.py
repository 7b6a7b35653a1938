"""Samples: painted label maps and windows of real cases."""

import nibabel as nib
import numpy as np
import pytest
import torch
from pipeline_cases import preprocessing
from training_cases import SHAPE, datalist  # noqa: F401 - a fixture

from fusion_pipeline.data import InputError, case_from_entry, read_datalist
from fusion_pipeline.geometry import compose, warp
from fusion_pipeline.synthesis import random_deformation
from fusion_pipeline.training import CaseSamples, PaintedSamples, Sample, collate
from fusion_pipeline.training.label_maps import label_map_paths, load_label_map
from fusion_pipeline.training.objectives.end_to_end import soft_dice
from fusion_pipeline.training.prepared_cases import PreparedCases
from fusion_pipeline.training.sampler import GroupedBatches


def agreement(sample, m):
    """How many labels the true field of the m-th moving image puts right, away from the rim."""
    moved = warp(sample.labels[None, m : m + 1].float(), sample.ddf[m - 1][None], mode="nearest")
    inner = tuple(slice(8, -8) for _ in sample.labels.shape[1:])
    return float((moved[0, 0][inner] == sample.labels[0][inner]).float().mean())


class TestPaintedSamples:
    @pytest.mark.parametrize("shape", [(33, 40), (17, 20, 24)])
    def test_shapes(self, shape):
        sample = PaintedSamples(2, shape, modalities=3, protocols=True)[1]
        images = (sample.image, sample.valid, sample.labels, sample.body)
        for image in (*images, sample.original, sample.protocol):
            assert image.shape == (3, *shape)
        assert sample.ddf.shape == (2, len(shape), *shape)
        assert len(sample.kinds) == 3
        assert sample.image.abs().max() <= 4

    def test_its_own_units_rise_with_the_image_and_are_those_of_the_kind(self):
        sample = PaintedSamples(1, (40, 44), modalities=3, motion=False, seed=2)[0]
        for m, kind in enumerate(sample.kinds):
            inside = sample.valid[m] > 0
            order = sample.image[m][inside].argsort()
            assert (sample.original[m][inside][order].diff() >= -1e-3).all()
            lowest = {"ct": -1000.0, "mr": 0.0, "emission": 0.0}[kind]
            assert sample.original[m].min() == pytest.approx(lowest, abs=1e-3)
        assert set(sample.kinds) == {"ct", "mr", "emission"}

    def test_the_true_fields_carry_the_moving_labels_to_the_reference(self):
        agreed = []
        for index in range(4):
            sample = PaintedSamples(4, (48, 56), modalities=3, max_voxels=5.0, seed=1)[index]
            agreed += [agreement(sample, m) for m in (1, 2)]
        assert min(agreed) > 0.9

    def test_without_motion_all_are_aligned(self):
        sample = PaintedSamples(1, SHAPE, motion=False)[0]
        assert torch.equal(sample.labels[0], sample.labels[1])
        assert sample.ddf.abs().max() == 0

    def test_another_protocol_is_the_same_anatomy(self):
        sample = PaintedSamples(1, (64, 64), motion=False, protocols=True, seed=4)[0]
        assert not torch.equal(sample.protocol, sample.image)
        inside = sample.body[0] > 0
        both = torch.stack([sample.original[0][inside], sample.protocol[0][inside]])
        assert torch.corrcoef(both)[0, 1] > 0.7

    def test_a_sample_depends_on_its_number_and_the_seed_alone(self):
        first, again = (PaintedSamples(4, SHAPE, seed=5)[2] for _ in range(2))
        other = PaintedSamples(4, SHAPE, seed=6)[2]
        assert torch.equal(first.image, again.image)
        assert not torch.equal(first.image, other.image)

    def test_a_group_shares_its_kinds(self):
        samples = PaintedSamples(4, SHAPE, group=2, seed=2)
        assert samples[0].kinds == samples[1].kinds == samples.kinds(1)
        assert collate([samples[2], samples[3]]).image.shape[0] == 2

    def test_it_ends(self):
        assert len(list(PaintedSamples(2, SHAPE))) == 2

    def test_one_modality_is_refused(self):
        with pytest.raises(ValueError, match="two or more modalities, got 1"):
            PaintedSamples(1, SHAPE, modalities=1)

    @pytest.mark.parametrize("shape", [(24, 24), (20, 20, 20)])
    def test_given_label_maps_are_painted_as_well(self, shape):
        given = torch.full((1, 30, 30, 30), 200, dtype=torch.uint8)
        samples = PaintedSamples(20, shape, label_maps=[given], motion=False)
        assert any((sample.labels == 200).all() for sample in samples)


@pytest.mark.parametrize("shape", [(40, 48), (24, 28, 32)])
def test_a_random_deformation_comes_with_its_way_back(shape):
    lengths = []
    for seed in range(4):
        move = random_deformation(shape, torch.Generator().manual_seed(seed), 5.0)
        inner = (slice(None), slice(None), *[slice(8, -8) for _ in shape])
        there_and_back = compose(move.ddf, move.inverse)[inner]
        lengths.append(float(move.ddf.abs().max()))
        assert there_and_back.norm(dim=1).mean() < 0.1
    assert max(lengths) > 2


def test_label_maps_are_read_onto_an_isotropic_lattice(tmp_path):
    labels = np.zeros((8, 8, 4), np.int16)
    labels[2:6, 2:6, 1:3] = 503
    nib.save(nib.Nifti1Image(labels, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / "a.nii.gz")
    (path,) = label_map_paths(tmp_path)
    read = load_label_map(path, 1.0)
    assert read.shape == (1, 8, 8, 8)
    assert read.unique().tolist() == [0, 1]
    assert label_map_paths(None) == []
    with pytest.raises(InputError, match=r"expected label maps in .*, got no "):
        label_map_paths(tmp_path / "b.nii.gz")


def test_samples_of_different_kinds_do_not_make_a_batch():
    x = torch.zeros(2, 4, 4)
    samples = [Sample(x, x, kinds, 2.0) for kinds in (("ct", "mr"), ("mr", "ct"))]
    with pytest.raises(ValueError, match="the same kinds"):
        collate(samples)


def test_samples_of_one_batch_may_have_voxels_of_their_own():
    x = torch.zeros(2, 4, 4)
    samples = [Sample(x, x, ("ct", "mr"), spacing) for spacing in (1.0, 2.0)]
    assert collate(samples).spacing == (1.0, 2.0)


def test_a_batch_has_only_what_all_its_samples_have():
    x = torch.zeros(2, 4, 4)
    labelled = Sample(x, x, ("ct", "mr"), 2.0, labels=x.long())
    assert collate([labelled]).labels is not None
    assert collate([labelled, Sample(x, x, ("ct", "mr"), 2.0)]).labels is None
    moved = collate([Sample(x, x, ("ct", "mr"), 2.0)]).to(torch.device("cpu"))
    assert moved.labels is None
    assert moved.ddf is None


class TestGroupedBatches:
    GROUPS = ("a", "b", "a", "a", "b", "a", "a", "c")

    def test_a_batch_is_of_one_group_and_none_is_lost(self):
        batches = list(GroupedBatches(self.GROUPS, 2, seed=0))
        assert all(len({self.GROUPS[i] for i in batch}) == 1 for batch in batches)
        assert all(len(batch) == 2 for batch in batches)
        assert {i for batch in batches for i in batch} == set(range(8))

    @pytest.mark.parametrize("world", [2, 4])
    def test_processes_share_the_batches_of_one(self, world):
        alone = list(GroupedBatches(self.GROUPS, 4, seed=5))
        shares = [
            list(GroupedBatches(self.GROUPS, 4 // world, world=world, rank=r, seed=5))
            for r in range(world)
        ]
        together = [
            sorted(i for batch in step for i in batch) for step in zip(*shares, strict=True)
        ]
        assert together == [sorted(batch) for batch in alone]

    def test_a_validation_counts_each_sample_once(self):
        shares = [
            list(GroupedBatches(self.GROUPS, 2, world=3, rank=r, seed=None)) for r in range(3)
        ]
        assert sorted(i for share in shares for batch in share for i in batch) == list(range(8))

    def test_the_order_depends_on_the_seed(self):
        first, again, other = (list(GroupedBatches("a" * 20, 1, seed=s)) for s in (1, 1, 2))
        assert first == again != other


def samples(path, shape, **options):
    cases = read_datalist(path, "training")
    prepared = PreparedCases(cases, preprocessing(), spacing=4.0, cache_dir=None)
    return CaseSamples(prepared, shape, **options)


@pytest.mark.slow
class TestCaseSamples:
    def test_a_window_brings_what_the_case_has(self, datalist):  # noqa: F811
        sample = samples(datalist, (33, 24, 28))[0]
        assert sample.kinds[0] == "ct"
        assert sorted(sample.kinds) == ["ct", "emission", "mr"]
        assert sample.image.shape == sample.valid.shape == sample.labels.shape == (3, 33, 24, 28)
        assert sample.ddf.shape == (2, 3, 33, 24, 28)
        assert set(sample.valid.unique().tolist()) <= {0.0, 1.0}
        assert sample.image.abs().max() <= 4

    @pytest.mark.parametrize("zoom", [(1.0, 1.0), (0.7, 0.7)])
    def test_the_true_field_of_a_window_carries_the_labels(self, datalist, zoom):  # noqa: F811
        sample = samples(datalist, (49, 49, 49), zoom=zoom)[0]
        for m in range(2):
            moving = sample.labels[None, m + 1 : m + 2]
            truth = sample.ddf[None, m]
            before = soft_dice(sample.labels[None, :1], moving, torch.zeros_like(truth))
            after = soft_dice(sample.labels[None, :1], moving, truth)
            assert after > before + 0.05

    def test_a_case_without_truth_is_a_sample_as_well(self, datalist):  # noqa: F811
        several = samples(datalist, (33, 24, 28), windows=3)
        assert several[1].labels is None
        assert several[1].ddf is None
        assert len(several) == 6

    def test_the_place_of_the_window_depends_on_the_seed(self, datalist):  # noqa: F811
        first, again, other = (samples(datalist, (17, 17, 17), seed=seed)[0] for seed in (0, 0, 1))
        assert torch.equal(first.image, again.image)
        assert not torch.equal(first.image, other.image)

    def test_moved_samples_are_of_aligned_images_or_of_one(self, datalist):  # noqa: F811
        moved = samples(datalist, (24, 24, 24), windows=8, modalities=2, motion=True)
        for index in range(len(moved)):
            sample = moved[index]
            assert sample.kinds == moved.kinds(index)
            assert sample.ddf.shape == (1, 3, 24, 24, 24)
            if index % 2 == 0:  # nothing of the first case is called aligned
                assert sample.kinds[0] == sample.kinds[1]
        assert {"ct", "mr"} in [set(moved.kinds(i)) for i in range(1, len(moved), 2)]

    def test_the_known_field_of_a_moved_sample_is_its_truth(self, datalist):  # noqa: F811
        moved = samples(datalist, (40, 40, 40), windows=12, modalities=2, motion=True)
        index = next(i for i in range(1, 24, 2) if set(moved.kinds(i)) == {"ct", "mr"})
        plan = moved._plan(index)
        generator = torch.Generator().manual_seed(index)
        sample = moved._drawn(plan, generator)
        generator.manual_seed(index)
        still = moved._window(moved.prepared[plan.case], generator).image[plan.channels[1]]
        inside = (sample.body[0] > 0) & (sample.valid.amin(0) > 0)

        def likeness(x):
            return float(torch.corrcoef(torch.stack([still[inside], x[inside]]))[0, 1])

        after = likeness(warp(sample.image[None, 1:], sample.ddf, fill=None)[0, 0])
        assert after > 0.8
        assert after > likeness(sample.image[1])

    def test_protocols_of_a_case(self, datalist):  # noqa: F811
        sample = samples(datalist, (24, 24, 24), protocols=True)[0]
        assert sample.protocol.shape == sample.original.shape == sample.image.shape
        ct = sample.kinds.index("ct")
        assert sample.original[ct].min() < -900
        inside = sample.body[ct] > 0
        apart = (sample.protocol[ct] - sample.original[ct])[inside]
        assert 1 < apart.abs().mean() < 100  # HU

    def test_moved_images_move_in_own_units_and_with_their_bodies(self, datalist):  # noqa: F811
        moved = samples(datalist, (24, 24, 24), windows=8, modalities=2, motion=True)
        for index in range(len(moved)):
            sample = moved[index]
            for m, kind in enumerate(sample.kinds):
                inside = sample.valid[m] * sample.body[m] > 0
                if kind != "mr" or inside.sum() < 200:
                    continue
                both = torch.stack([sample.image[m][inside], sample.original[m][inside]])
                assert torch.corrcoef(both)[0, 1] > 0.9

    def test_a_moved_body_is_cut_with_its_field_of_view_and_moves_with_its_image(self, datalist):  # noqa: F811
        moved = samples(datalist, (40, 40, 40), windows=4, modalities=2, motion=True)
        changed = []
        for index in range(len(moved)):
            sample = moved[index]
            assert bool((sample.body <= sample.valid).all())
            changed.append(bool((sample.body[0] != sample.body[1]).any()))
        assert any(changed)


class TestAlignedImages:
    """What is compared voxel by voxel has to be one anatomy."""

    def planned(self, **options):
        entry = {"id": "a", "ct": "a.nii", "mr": "b.nii", "pet": "c.nii", "reference": "ct"}
        entries = [entry | {"mr_transform": "none"}, entry | {"id": "b"}]
        files = [case_from_entry(one) for one in entries]
        prepared = PreparedCases(files, preprocessing(), spacing=4.0)
        return CaseSamples(prepared, SHAPE, windows=20, modalities=3, **options)

    def test_an_image_that_is_not_aligned_is_used_alone(self):
        drawn = self.planned(aligned=True, protocols=True)
        of_aligned = {drawn.kinds(index) for index in range(0, 40, 2)}
        assert of_aligned == {("ct", "mr"), ("emission",)}
        of_others = {drawn.kinds(index) for index in range(1, 40, 2)}
        assert of_others == {("ct",), ("mr",), ("emission",)}

    def test_without_protocols_a_case_without_aligned_images_is_refused(self):
        with pytest.raises(InputError, match=r"case 'b': expected two or more .* are aligned"):
            self.planned(aligned=True)

    @pytest.mark.slow
    def test_end_to_end_takes_them_as_they_are(self):
        assert all(len(self.planned().kinds(index)) == 3 for index in range(4))


def test_labelled_and_unlabelled_cases_do_not_share_a_batch():
    plain = {"ct": "a.nii", "mr": "b.nii"}
    labels = {"ct_label": "a.nii", "mr_label": "b.nii"}
    field = {"mr_displacement": "f.nii"}
    entries = [plain, plain | labels, plain | labels | field, plain | {"ct_label": "a.nii"}]
    files = [case_from_entry({"id": str(i)} | one) for i, one in enumerate(entries)]
    drawn = CaseSamples(PreparedCases(files, preprocessing(), spacing=4.0), SHAPE)
    keys = [drawn.batch_key(index) for index in range(4)]
    assert keys[0] == keys[3]
    assert len(set(keys)) == 3
    assert [sorted(drawn.truths(i)) for i in range(4)] == [[], ["labels"], ["ddf", "labels"], []]


def test_what_a_case_brings_is_what_its_samples_have(datalist):  # noqa: F811
    drawn = samples(datalist, (9, 9, 9))
    for index in range(len(drawn)):
        has = {name for name in ("ddf", "labels") if getattr(drawn[index], name) is not None}
        assert has == drawn.truths(index)


@pytest.mark.parametrize(("values", "came"), [((1, 2), "from 1 to 2"), ((-1, 0), "from -1 to 0")])
def test_a_label_map_without_a_background_of_0_is_refused(tmp_path, values, came):
    labels = np.full((8, 8, 4), values[0], np.int16)
    labels[2:6, 2:6, 1:3] = values[1]
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=came):
        load_label_map(tmp_path / "a.nii.gz", 1.0)

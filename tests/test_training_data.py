"""The data module: what it refuses, sets aside, keeps apart and caches."""

import gc
import json

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from pipeline_cases import preprocessing, write_case
from training_cases import data, module, painted, trainer

from fusion_pipeline.data import InputError
from fusion_pipeline.pipeline import bundle_for
from fusion_pipeline.pipeline.bundle_folder import BundleInUse
from fusion_pipeline.training import FusionObjective, HarmonizationObjective, MultimodalData, fit
from fusion_pipeline.training import trainer as training_trainer
from fusion_pipeline.training.monitored import check_monitors

CUBE = (9, 9, 9)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """A CT and an MR."""
    return {k: str(v) for k, v in write_case(tmp_path_factory.mktemp("patient")).items()}


def listed(folder, training, validation=()):
    path = folder / "cases.json"
    path.write_text(json.dumps({"training": list(training), "validation": list(validation)}))
    return path


def feed(datalist, **options):
    options = {"samples_per_epoch": 2, "validation_samples": 2, "spacing": 6.0} | options
    return MultimodalData(CUBE, datalist=datalist, preprocessing=preprocessing(), **options)


class TestPatients:
    def test_one_patient_in_training_and_validation_is_refused(self, tmp_path, paths):
        first, second = ({"id": name, "patient": "7", **paths} for name in ("a", "b"))
        path = listed(tmp_path, [first], [second])
        with pytest.raises(InputError, match=r"other patients .* got patient 7 in both"):
            feed(path)
        assert len(
            feed(listed(tmp_path, [first, {"id": "c", **paths}], [second]), folds=2).cases[0]
        )

    def test_without_a_patient_the_id_tells(self, tmp_path, paths):
        same = {"id": "a", **paths}
        with pytest.raises(InputError, match="got case a in both"):
            feed(listed(tmp_path, [same], [same]))

    def test_a_broken_case_takes_no_other_of_its_id_with_it(self, tmp_path, paths):
        broken = {"id": "a", "patient": "1", **paths, "mr": "gone.nii"}
        whole = {"id": "a", "patient": "2", **paths}
        cases = feed(listed(tmp_path, [broken, {"id": "b", **paths}], [whole]))
        assert [one.id for one in cases.training.cases] == ["b"]
        assert [one.patient for one in cases.validation.cases] == ["2"]


class TestAlignment:
    def test_fusion_sets_cases_aside_whose_images_are_not_aligned(self, tmp_path, paths):
        aligned = {"id": "a", **paths, "mr_transform": "none"}
        path = listed(tmp_path, [aligned, {"id": "b", **paths}])
        fusion = feed(path, motion=False, output_dir=tmp_path)
        assert [one.id for one in fusion.training.cases] == ["a"]
        said = (tmp_path / "set_aside.csv").read_text()
        assert "b,\"case 'b': expected two or more images that are aligned" in said
        harmonization, end_to_end = {"motion": False, "protocols": True}, {}
        for options in (harmonization, end_to_end):
            assert len(feed(path, **options).training) == 2

    def test_a_single_image_in_two_protocols_trains_the_harmonization(self):
        batch = painted("harmonization")
        alone = {
            name: getattr(batch, name)[:, :1]
            for name in ("image", "valid", "body", "protocol", "original")
        }
        one = type(batch)(kinds=batch.kinds[:1], spacing=batch.spacing, **alone)
        network = module("harmonization").network
        parts, _ = HarmonizationObjective().losses(network, one, 0)
        total = torch.stack(list(parts.values())).sum()
        total.backward()
        assert torch.isfinite(total)

    def test_a_part_without_any_usable_case_is_refused_unless_painted_samples_stand_in(
        self, tmp_path, paths
    ):
        broken, whole = {"id": "a", **paths, "mr": "gone.nii"}, {"id": "b", **paths}
        path = listed(tmp_path, [broken], [whole])
        assert feed(path).training is None
        with pytest.raises(InputError, match="expected a usable training case, got 1 that are not"):
            feed(path, samples_per_epoch=0).setup()


def test_pictures_among_volumes_are_set_aside_one_by_one(tmp_path, paths):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30), dtype=np.uint8)
    for key in ("ct", "mr"):
        PillowImage.fromarray(pixels).save(tmp_path / f"{key}.png")
    pictures = {"id": "p", "ct": "ct.png", "mr": "mr.png"}
    path = listed(tmp_path, [pictures, {"id": "a", **paths}, {"id": "b", **paths}])
    cases = feed(path, output_dir=tmp_path)
    assert [one.id for one in cases.training.cases] == ["a", "b"]
    assert "expected 3D, as the networks are, got 2D" in (tmp_path / "set_aside.csv").read_text()


@pytest.mark.parametrize(("count", "aside"), [(1, [0]), (3, [2]), (11, [4, 9])])
def test_painted_validation_samples_have_label_maps_of_their_own(monkeypatch, count, aside):
    cases = data()
    cases._label_maps = [torch.full((1, 2, 2), number) for number in range(count)]
    trained, validated = (
        [int(one.max()) for one in samples.parts[0].label_maps]
        for samples in (cases.train_dataset(), cases.val_dataset())
    )
    assert validated == aside
    assert trained == [n for n in range(count) if n not in aside or count == 1]


def test_workers_keep_the_cache_from_epoch_to_epoch(tmp_path, paths, monkeypatch):
    cases = feed(listed(tmp_path, [{"id": "a", **paths}]), workers=1, samples_per_epoch=0)
    before = [batch.image for batch in cases.train_dataloader()]

    def gone(*_):
        raise AssertionError

    monkeypatch.setattr("fusion_pipeline.training.prepared_cases.load_case", gone)
    after = [batch.image for batch in cases.train_dataloader()]
    assert torch.equal(before[0], after[0])
    folder = cases._shared_folder
    assert folder.is_dir()
    del cases
    gc.collect()
    assert not folder.exists()


class TestMonitors:
    @pytest.mark.parametrize("phase", ["registration", "harmonization", "fusion", "all"])
    def test_the_named_parts_are_those_of_the_loss(self, phase):
        made = module(phase)
        parts, _ = made.objective.losses(made.network, painted(phase), 0)
        assert set(parts) == set(made.objective.parts)
        assert set(made.objective.truths) <= set(made.scores.keys())

    def test_a_score_of_another_phase_is_refused_before_the_first_step(self, tmp_path):
        run = trainer(tmp_path)
        run.checkpoint_callback.monitor = "val/error_mm"
        with pytest.raises(InputError, match=r"expected a monitor of .*, got val/error_mm"):
            fit(run, module("fusion"), data("fusion"))
        assert run.global_step == 0

    def test_a_score_without_its_truth_is_refused(self, tmp_path):
        run = trainer(tmp_path)
        run.checkpoint_callback.monitor = "val/error_mm"
        objective = module("all").objective
        check_monitors(run.callbacks, objective, lambda: {"ddf"})
        with pytest.raises(InputError, match="validation samples with a true field"):
            check_monitors(run.callbacks, objective, lambda: {"labels"})

    def test_other_names_are_left_to_lightning(self, tmp_path):
        run = trainer(tmp_path)
        run.checkpoint_callback.monitor = "my_score"
        check_monitors(run.callbacks, FusionObjective(), set)


class TestTheEnd:
    @pytest.fixture
    def facts(self, monkeypatch):
        """What the model cards were told."""
        told = []
        in_use = BundleInUse(bundle_for(2), {})
        monkeypatch.setattr(training_trainer, "bundle_in_use", lambda: in_use)
        monkeypatch.setattr(
            training_trainer, "write_bundle", lambda *_, facts, **__: told.append(facts)
        )
        return told

    def trained(self, folder, steps, weights="last", **options):
        run = trainer(folder, max_epochs=-1, max_steps=steps, **options)
        return fit(run, module("fusion"), data("fusion"), weights=weights)

    def test_weights_that_nobody_validated_are_validated_at_the_end(self, tmp_path, facts):
        self.trained(tmp_path, 2, check_val_every_n_epoch=9)
        assert facts[0].scores["edge_transfer_worst"] > 0

    def test_without_any_validation_a_line_says_so(self, tmp_path, facts, caplog):
        self.trained(tmp_path, 1, limit_val_batches=0)
        assert facts[0].scores == {}
        assert "the weights are not validated" in caplog.text

    @pytest.mark.slow
    def test_a_finished_training_started_again_writes_the_same_weights(self, tmp_path, facts):
        first = torch.load(self.trained(tmp_path, 3), weights_only=True)
        again = torch.load(self.trained(tmp_path, 3), weights_only=True)
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert facts[0].scores == pytest.approx(facts[1].scores)

    @pytest.mark.slow
    def test_the_time_of_all_starts_is_counted(self, tmp_path, facts, monkeypatch):
        now = [0.0]

        def tick():
            now[0] += 1000.0
            return now[0]

        monkeypatch.setattr("fusion_pipeline.training.module.time.monotonic", tick)
        self.trained(tmp_path, 1)
        self.trained(tmp_path, 2)
        first, both = (one.settings["wall time in s"] for one in facts)
        assert first >= 1000
        assert both >= first + 1000

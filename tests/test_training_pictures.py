"""What a training shows: pictures and settings in TensorBoard, the score in the bar."""

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from training_cases import OBJECTIVES, data, module, network, painted

from fusion_pipeline.data import InputError
from fusion_pipeline.report.facts import label
from fusion_pipeline.training import ExamplePictures, ProgressBar, Trainer
from fusion_pipeline.training.objectives import Outputs
from fusion_pipeline.training.panels import WIDTH, CurvePanel
from fusion_pipeline.training.pictures import example_panels, example_pictures

STAGES = {
    "registration": {"registration"},
    "harmonization": {"harmonization"},
    "fusion": {"harmonization", "fusion"},
    "all": {"registration", "harmonization", "fusion"},
}


def outputs_of(phase, batch, d=2):
    with torch.no_grad():
        return OBJECTIVES[phase]().losses(network(d), batch, 0)[1]


def trainer(folder, *callbacks, **options):
    options = {"max_epochs": 2, "limit_train_batches": 1} | options
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        callbacks=list(callbacks),
        logger=TensorBoardLogger(folder, name="tb", version="", default_hp_metric=False),
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
        enable_model_summary=False,
        num_sanity_val_steps=1,
        log_every_n_steps=1,
        **options,
    )


def events(folder):
    accumulator = EventAccumulator(str(folder / "tb"), size_guidance={"images": 0, "scalars": 0})
    return accumulator.Reload()


class TestPictures:
    @pytest.mark.parametrize("d", [2, 3])
    @pytest.mark.parametrize("phase", STAGES)
    def test_each_phase_shows_its_stages(self, phase, d):
        batch = painted(phase, (33, 40) if d == 2 else (33, 35, 37))
        found = example_pictures(batch, outputs_of(phase, batch, d), 0)
        assert set(found) == STAGES[phase]
        for picture in found.values():
            assert picture.dtype == np.uint8
            assert picture.shape[1:] == (WIDTH, 3)
            # not a blank sheet, and ink from the left edge to the right one
            for quarter in np.array_split(picture, 4, axis=1):
                assert len(np.unique(quarter @ (1, 256, 65536))) > 20

    def test_each_panel_has_its_title(self):
        batch = painted("all")
        first, second = (label(kind) for kind in batch.kinds)
        found = example_panels(batch, outputs_of("all", batch), 0)
        images, compared = ([p.title.split("\n") for p in row] for row in found["registration"])
        assert images[:3] == [["fixed", first], ["moving", second], ["warped", second]]
        assert images[3][0].startswith("error ")
        assert [title for title, _ in compared] == [
            f"{how} {when}" for how in ("overlay", "checkerboard") for when in ("before", "after")
        ]
        assert all(first in names and second in names for _, names in compared)
        for name, row in zip((first, second), found["harmonization"], strict=True):
            assert [p.title.split("\n") for p in row] == [
                [name, "input"],
                [name, "harmonized, 0 to 1"],
                [name, "tone curve, 5 to 95 %"],
            ]
        titles = [p.title for row in found["fusion"] for p in row]
        assert sum(title.startswith("weight of ") for title in titles) == 2
        assert titles[-2:] == ["fused, 0 to 1", "fused, coloured by weight"]

    def test_what_a_phase_did_not_give_is_not_drawn(self):
        assert example_pictures(painted("registration"), Outputs(), 0) == {}

    def test_the_sample_asked_for_is_drawn(self):
        batch = painted("fusion", count=2)
        outputs = outputs_of("fusion", batch)
        first, second = (example_pictures(batch, outputs, b)["fusion"] for b in (0, 1))
        assert not np.array_equal(first, second)

    def test_a_field_changes_what_is_after_and_not_what_is_before(self):
        batch = painted("registration")
        still = outputs_of("registration", batch)
        moved = Outputs(ddf=still.ddf + 3.0, warped=still.warped.roll(3, -1))
        pair = [example_pictures(batch, o, 0)["registration"] for o in (still, moved)]
        half = len(pair[0]) // 2
        columns = range(0, WIDTH, WIDTH // 4)
        changed = [
            [not np.array_equal(*(p[rows, c : c + WIDTH // 4] for p in pair)) for c in columns]
            for rows in (slice(0, half), slice(half, None))
        ]
        # fixed, moving, warped, error; overlay before and after, checkerboard before and after
        assert changed == [[False, False, True, True], [False, True, False, True]]

    def test_without_a_true_field_the_displacement_is_drawn(self):
        batch = painted("registration")
        blind = type(batch)(batch.image, batch.valid, batch.kinds, batch.spacing)
        outputs = outputs_of("registration", batch)
        assert not np.array_equal(
            example_pictures(blind, outputs, 0)["registration"],
            example_pictures(batch, outputs, 0)["registration"],
        )

    def test_the_slice_goes_through_the_centre_of_the_body_and_lies_as_in_the_report(self):
        """First axis to the left, second axis up: radiological for RAS."""
        batch = painted("harmonization", (33, 35, 37))
        batch.body.zero_()
        batch.body[0, 0, 10:20, 10:20, 21:26] = 1
        outputs = Outputs(harmonized=torch.zeros_like(batch.image))
        outputs.harmonized[0, 0, 30, 33, 23] = 1.0  # far along both axes
        panel = example_panels(batch, outputs, 0)["harmonization"][0][1]
        assert panel.picture.shape == (35, 33, 3)
        assert np.argwhere(panel.picture[..., 0] == 1).tolist() == [[1, 2]]

    def test_tone_curves_are_those_of_any_network(self):
        batch = replace(painted("fusion"), original=None)
        outputs = Outputs(harmonized=((batch.image + 4) / 8) ** 2)
        rows = example_panels(batch, outputs, 0)["harmonization"]
        assert len(rows) == len(batch.kinds)
        for row in rows:
            (panel,) = [p for p in row if isinstance(p, CurvePanel)]
            (curve,) = panel.curves
            assert np.allclose(curve.median, ((curve.x + 4) / 8) ** 2, atol=0.02)
            assert (curve.low <= curve.median).all()
            assert (curve.median <= curve.high).all()

    def test_a_pair_of_protocols_gives_a_pair_of_curves(self):
        batch = painted("harmonization")
        rows = example_panels(batch, outputs_of("harmonization", batch), 0)["harmonization"]
        assert [[c.name for c in row[-1].curves] for row in rows] == [
            ["image", "other protocol"] for _ in batch.kinds
        ]

    def test_an_image_without_a_field_of_view_is_drawn(self):
        batch = painted("fusion")
        outputs = outputs_of("fusion", batch)
        batch.valid[:, 1] = 0
        assert set(example_pictures(batch, outputs, 0)) == STAGES["fusion"]


class TestCallback:
    @pytest.mark.slow
    def test_three_fixed_samples_in_each_validation(self, tmp_path):
        feed = data("registration", validation_samples=5, batch_size=2)
        trainer(tmp_path, ExamplePictures()).fit(module("registration"), feed)
        seen = events(tmp_path)
        tags = [f"val/example_{n}/registration" for n in (1, 2, 3)]
        assert sorted(seen.Tags()["images"]) == tags
        for tag in tags:
            assert [event.step for event in seen.Images(tag)] == [1, 2]  # none of the sanity check

    def test_every_second_validation(self, tmp_path):
        runner = trainer(tmp_path, ExamplePictures(cases=1, every=2), max_epochs=3)
        runner.fit(module("registration"), data("registration"))
        (tag,) = events(tmp_path).Tags()["images"]
        assert [event.step for event in events(tmp_path).Images(tag)] == [1, 3]

    def test_other_processes_draw_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Trainer, "is_global_zero", False)
        trainer(tmp_path, ExamplePictures()).validate(
            module("registration"), data("registration"), verbose=False
        )
        assert events(tmp_path).Tags()["images"] == []

    def test_a_failure_is_one_warning_and_the_training_goes_on(self, tmp_path, caplog):
        class Broken(Callback):
            def on_validation_batch_end(self, trainer, module, outputs, batch, *_):
                object.__setattr__(outputs, "warped", outputs.warped[..., :0])

        runner = trainer(tmp_path, Broken(), ExamplePictures())
        with caplog.at_level(logging.WARNING, "fusion_pipeline"):
            runner.fit(module("registration"), data("registration"))
        assert runner.global_step == 2
        assert [r.message for r in caplog.records if "example pictures" in r.message] == [
            "example pictures: drawing failed; the training goes on"
        ]

    @pytest.mark.parametrize("settings", [{"cases": 0}, {"every": 0}])
    def test_settings_that_draw_nothing_are_refused(self, settings):
        with pytest.raises(InputError, match=r"expected (cases|every) of 1 or more, got 0"):
            ExamplePictures(**settings)

    @pytest.mark.parametrize(
        "phase", ["registration", pytest.param("fusion", marks=pytest.mark.slow)]
    )
    def test_drawing_changes_nothing_of_the_training(self, tmp_path, phase):
        states = []
        for name, callbacks in (("with", [ExamplePictures()]), ("without", [])):
            trained = module(phase)
            trainer(tmp_path / name, *callbacks).fit(trained, data(phase))
            states.append(trained.network.state_dict())
        assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_settings_and_scores_stand_in_the_hparams_tab(tmp_path):
    trainer(tmp_path).fit(module("registration", learning_rate=3e-4), data("registration"))
    seen = events(tmp_path)
    contents = [
        HParamsPluginData.FromString(seen.SummaryMetadata(tag).plugin_data.content)
        for tag in seen.summary_metadata
        if tag.startswith("_hparams_/")
    ]
    (experiment,) = [c.experiment for c in contents if c.HasField("experiment")]
    (start,) = [c.session_start_info for c in contents if c.HasField("session_start_info")]
    assert start.hparams["learning_rate"].number_value == 3e-4
    assert start.hparams["objective"].string_value == "RegistrationObjective"
    names = {info.name.tag for info in experiment.metric_infos}
    assert {"val/loss", "val/error_mm"} <= names
    assert "hp_metric" not in names
    for name in names:  # real values and no placeholders
        values = {(event.step, event.value) for event in seen.Scalars(name)}
        assert [step for step, _ in sorted(values)] == [0, 1]
        assert all(math.isfinite(value) for _, value in values)


def test_the_bar_shows_the_monitored_score(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", monitor="val/error_mm")
    bar = ProgressBar()
    runner = trainer(tmp_path, checkpoint, bar, max_epochs=1)
    trained = module("registration")
    runner.fit(trained, data("registration"))
    shown = bar.get_metrics(runner, trained)
    assert shown["val/error_mm"] == pytest.approx(float(runner.callback_metrics["val/error_mm"]))
    assert "train/loss" in shown
    assert "v_num" not in shown

"""The data module, the trainer, checkpoints, and going on after a stop."""

import csv
import json
import math
from types import SimpleNamespace

import pytest
import torch
from pipeline_cases import preprocessing
from pytorch_lightning import Callback
from training_cases import SHAPE, data, datalist, module, network, painted, trainer  # noqa: F401

from fusion_pipeline.data import InputError
from fusion_pipeline.pipeline import bundle_for
from fusion_pipeline.pipeline.bundle_folder import BundleInUse
from fusion_pipeline.training import Batch, MultimodalData, Trainer, fit, last_checkpoint
from fusion_pipeline.training import trainer as training_trainer
from fusion_pipeline.training.sampler import GroupedBatches


class TestData:
    def test_the_validation_is_the_same_in_each_epoch_and_the_training_is_not(self):
        feed = data()
        assert torch.equal(feed.val_dataset()[0].image, feed.val_dataset()[0].image)
        assert not torch.equal(feed.train_dataset(0)[0].image, feed.train_dataset(1)[0].image)

    def test_single_samples_are_shuffled_anew_in_each_epoch(self):
        feed = data(samples_per_epoch=8)
        orders = [
            [
                i
                for batch in feed._loader(feed.train_dataset(e), seed=e).batch_sampler
                for i in batch
            ]
            for e in (0, 1)
        ]
        assert sorted(orders[0]) == sorted(orders[1]) == list(range(8))
        assert orders[0] != orders[1]

    @pytest.mark.slow
    def test_the_datalist_joins_the_painted_samples(self, datalist):  # noqa: F811
        real = {"datalist": datalist, "preprocessing": preprocessing()}
        feed = MultimodalData((17, 17, 17), samples_per_epoch=3, spacing=4.0, **real)
        assert len(feed.train_dataset()) == 5
        assert len(feed.val_dataset()) == 8 + 1
        only = MultimodalData((17, 17, 17), samples_per_epoch=0, windows_per_case=3, **real)
        assert len(only.train_dataset()) == 6

    @pytest.mark.parametrize(
        "settings", [{"modalities": 1}, {"samples_per_epoch": 0}, {"validation_samples": 0}]
    )
    def test_data_that_cannot_train_is_refused(self, settings):
        with pytest.raises(InputError):
            MultimodalData(SHAPE, **settings)


@pytest.mark.parametrize(
    "settings", [{"accelerator": "tpu"}, {"accelerator": "foo"}, {"devices": "abc"}]
)
def test_hardware_that_is_not_there_is_refused_in_a_line(tmp_path, settings):
    with pytest.raises(InputError, match="training: expected settings that Lightning takes, got"):
        Trainer(default_root_dir=tmp_path, max_epochs=1, **settings)


def test_the_trainer_takes_what_lightning_takes(tmp_path):
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        precision="bf16-mixed",
        accumulate_grad_batches=3,
        gradient_clip_val=0.5,
        max_steps=7,
        logger=False,
    )
    assert trainer.precision == "bf16-mixed"
    assert trainer.accumulate_grad_batches == 3
    assert trainer.max_steps == 7


def test_a_trainer_needs_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="output folder"):
        Trainer(default_root_dir=tmp_path / "file", max_epochs=1)


@pytest.mark.parametrize("content", [b"", b"no checkpoint"])
def test_a_damaged_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(content)
    with pytest.raises(InputError, match="expected a whole checkpoint"):
        fit(trainer(tmp_path), module(), data())


def test_a_loss_that_is_not_finite_stops_the_training():
    batch = painted("all")
    broken = Batch(batch.image * float("inf"), batch.valid, batch.kinds, batch.spacing)
    with pytest.raises(FloatingPointError, match="smaller learning rate"):
        module().training_step(broken, 0)


def test_a_refusal_in_a_worker_is_one_line(tmp_path):
    entry = {"id": "a", "ct": "gone.nii.gz", "mr": "gone.nii.gz"}
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({"training": [entry], "validation": []}))
    steps = preprocessing()
    samples = data(samples_per_epoch=0, datalist=path, preprocessing=steps, workers=1)
    samples._checked = lambda cases: list(cases)  # what the headers do not show
    with pytest.raises(InputError) as caught:
        fit(trainer(tmp_path), module(), samples)
    assert str(caught.value).startswith("case 'a', ct (")
    assert len(str(caught.value).splitlines()) == 1


def test_cases_that_cannot_be_used_are_set_aside_before_the_first_step(tmp_path, datalist):  # noqa: F811
    content = json.loads(datalist.read_text())
    for part in ("training", "validation"):
        content[part] = [
            {k: str(datalist.parent / v) if "/" in str(v) else v for k, v in entry.items()}
            for entry in content[part]
        ]
    content["training"].append({"id": "broken", "ct": "gone.nii.gz", "mr": "gone.nii.gz"})
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(content))
    feed = MultimodalData(
        (17, 17, 17), datalist=path, preprocessing=preprocessing(), output_dir=tmp_path
    )
    assert len(feed.training) == 2
    assert "broken" in (tmp_path / "set_aside.csv").read_text()


def test_folds_split_all_cases_by_patient(datalist):  # noqa: F811
    feeds = [
        MultimodalData(
            (17, 17, 17), datalist=datalist, preprocessing=preprocessing(), folds=2, fold=fold
        )
        for fold in range(2)
    ]
    ids = [[case.id for case in feed.cases[1]] for feed in feeds]
    assert sorted(ids[0] + ids[1]) == [f"synthetic-head-{seed}" for seed in (1, 2, 3)]


def rows(folder, version=0):
    with (folder / "csv" / f"version_{version}" / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
def test_training_writes_checkpoints_logs_and_weights_and_goes_on_after_a_stop(tmp_path):
    first_run = trainer(tmp_path)
    assert last_checkpoint(first_run) is None
    trained = module(learning_rate=1e-3)
    before = {k: v.clone() for k, v in trained.network.state_dict().items()}
    weights = fit(first_run, trained, data())
    state = torch.load(weights, weights_only=True)
    assert state.keys() == before.keys()
    assert any(not torch.equal(state[k], before[k]) for k in before)
    assert last_checkpoint(first_run) is not None
    row = next(r for r in rows(tmp_path) if r.get("val/loss"))
    assert math.isfinite(float(row["val/error_mm"]))

    written = (tmp_path / "csv" / "version_0" / "metrics.csv").read_bytes()
    later = trainer(tmp_path, max_epochs=2)
    fit(later, module(learning_rate=1e-7), data())
    # the lines of the first start stay
    assert (tmp_path / "csv" / "version_0" / "metrics.csv").read_bytes() == written
    assert (tmp_path / "csv" / "version_1" / "metrics.csv").is_file()
    assert later.optimizers[0].param_groups[0]["lr"] <= 1e-7  # and not the checkpoint's
    with pytest.raises(InputError, match="other stages frozen"):
        fit(trainer(tmp_path, max_epochs=3), module(frozen=["registration"]), data())
    with pytest.raises(InputError, match="a checkpoint of this network, got one of another"):
        fit(trainer(tmp_path, max_epochs=3), module(d=3), data())
    done = trainer(tmp_path, max_epochs=1)  # fewer than there were: nothing is left to do
    fit(done, module(), data())
    assert done.global_step == 8
    assert later.global_step == 8  # four steps of the first run, four of the second


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["registration", "harmonization", "fusion", "all"])
def test_the_first_fifty_steps_of_a_phase_are_the_same_twice(tmp_path, phase):
    losses = []
    for name in ("first", "again"):
        options = {"max_epochs": -1, "max_steps": 50, "limit_val_batches": 0}
        fit(trainer(tmp_path / name, **options), module(phase), data(phase, samples_per_epoch=25))
        losses.append([float(row["train/loss"]) for row in rows(tmp_path / name)])
    assert len(losses[0]) == 50
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["registration", "harmonization", "fusion"])
def test_a_phase_learns_and_leaves_the_other_stages(tmp_path, phase):
    """The same samples over and over: the loss falls."""
    trained = module(phase, learning_rate=3e-3, warmup_steps=1, last_rate=1.0)
    before = {k: v.clone() for k, v in trained.network.state_dict().items()}
    batch = painted(phase)
    optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=3e-3)
    costs = []
    for _ in range(40):
        optimizer.zero_grad()
        parts, _ = trained.objective.losses(trained.network, batch, 0)
        total = torch.stack(list(parts.values())).sum()
        total.backward()
        optimizer.step()
        costs.append(total.item())
    assert min(costs[-3:]) < 0.97 * costs[0]
    for name, value in trained.network.state_dict().items():
        if not name.startswith(phase):
            assert torch.equal(value, before[name])


class Images(Callback):
    """A number that tells one training batch from another, and from itself turned."""

    def __init__(self):
        self.first = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        ramp = torch.arange(batch.image.numel()).reshape(batch.image.shape)
        self.first.append(float((batch.image * ramp).sum()))


def seen_by(folder, steps, **options):
    run = trainer(folder, max_epochs=-1, max_steps=steps)
    run.callbacks.append(images := Images())
    fit(run, module("registration"), data("registration", **options))
    return images.first


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"twice": True, "samples_per_epoch": 2}])
def test_a_training_that_stopped_within_an_epoch_goes_on_with_its_next_batch(tmp_path, options):
    whole = seen_by(tmp_path / "whole", 6, **options)
    assert len(set(whole)) > (3 if options else 5)
    # four to an epoch
    parts = [seen_by(tmp_path / "parts", steps, **options) for steps in (3, 4, 5, 6)]
    assert [x for part in parts for x in part] == whole


@pytest.mark.slow
def test_the_facts_are_those_of_the_best_weights_and_stay_when_a_finished_training_starts_again(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(training_trainer, "bundle_in_use", lambda: BundleInUse(bundle_for(2), {}))
    monkeypatch.setattr(
        training_trainer, "write_bundle", lambda *_, facts, **__: told.append(facts)
    )
    told = []
    # the rate is far too high: the first validation is the best
    run = trainer(tmp_path, max_epochs=3)
    fit(run, module("registration", learning_rate=1.0, warmup_steps=1), data("registration"))
    losses = [float(row["val/loss"]) for row in rows(tmp_path) if row.get("val/loss")]
    assert min(losses) < losses[-1]
    again = trainer(tmp_path, max_epochs=3)
    fit(again, module("registration", learning_rate=1.0, warmup_steps=1), data("registration"))
    for facts in told:
        assert facts.scores["loss"] == pytest.approx(min(losses), rel=1e-4)
        assert facts.settings["step of these weights"] == 4 * (1 + losses.index(min(losses)))
    assert len(told) == 2


@pytest.mark.parametrize("world", [2, 3])
def test_each_process_gets_a_validation_batch(world):
    batches = [
        list(GroupedBatches("aaa", batch_size=2, world=world, rank=rank)) for rank in range(world)
    ]
    assert all(batches)
    assert sorted(i for own in batches for batch in own for i in batch) == [0, 1, 2]


def test_more_processes_than_validation_samples_are_refused():
    feed = data(validation_samples=2)
    feed.trainer = SimpleNamespace(world_size=3, global_rank=0)
    with pytest.raises(
        InputError, match="for each of 3 processes, got 2; raise validation_samples"
    ):
        feed.val_dataloader()

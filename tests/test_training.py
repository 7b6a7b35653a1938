"""Training end to end, on samples small enough for one core."""

import csv
import json
import math
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pipeline_cases import preprocessing

from fusion_pipeline.data import InputError, read_datalist
from fusion_pipeline.geometry import warp
from fusion_pipeline.networks.fusion_net import FusionNet
from fusion_pipeline.networks.harmonization_net import HarmonizationNet
from fusion_pipeline.networks.multimodal_net import MultimodalNet
from fusion_pipeline.networks.registration_net import RegistrationNet
from fusion_pipeline.synthesis import synthetic_patient
from fusion_pipeline.training import (
    Batch,
    CaseSamples,
    MultimodalData,
    MultimodalTraining,
    PaintedSamples,
    Sample,
    build_trainer,
    collate,
    fit,
    last_checkpoint,
)
from fusion_pipeline.training.module import picture, soft_dice

SHAPE = (33, 40)


def network(d=2):
    torch.manual_seed(0)
    return MultimodalNet(
        RegistrationNet(d, channels=(4, 4, 4, 4), learned_features=2),
        HarmonizationNet(d, channels=4, small_size=16),
        FusionNet(d, channels=(2, 4, 8)),
    )


@pytest.fixture(scope="module")
def batch():
    return collate([PaintedSamples(1, SHAPE, seed=3)[0]])


def data(**options):
    options = {"samples_per_epoch": 2, "validation_samples": 1} | options
    return MultimodalData(SHAPE, **options)


def trainer(folder, **options):
    options = {"max_epochs": 1, "accelerator": "cpu", "progress": False} | options
    return build_trainer(folder, **options)


class TestPaintedSamples:
    @pytest.mark.parametrize("shape", [(33, 40), (17, 20, 24)])
    def test_shapes(self, shape):
        sample = PaintedSamples(2, shape, modalities=3)[1]
        assert sample.image.shape == sample.valid.shape == (3, *shape)
        assert sample.labels.shape == (3, *shape)
        assert sample.ddf.shape == (2, len(shape), *shape)
        assert len(sample.kinds) == 3
        assert sample.image.abs().max() <= 4

    def test_the_true_field_carries_the_moving_labels_to_the_reference(self):
        agreed = []
        for index in range(4):
            sample = PaintedSamples(4, (48, 56), max_voxels=5.0, seed=1)[index]
            moved = warp(sample.labels[None, 1:].float(), sample.ddf, mode="nearest", fill=None)
            inner = (slice(8, -8), slice(8, -8))
            agreed.append((moved[0, 0][inner] == sample.labels[0][inner]).float().mean())
        assert min(agreed) > 0.9

    def test_a_sample_depends_on_its_number_and_the_seed_alone(self):
        first, again = (PaintedSamples(4, SHAPE, seed=5)[2] for _ in range(2))
        other = PaintedSamples(4, SHAPE, seed=6)[2]
        assert torch.equal(first.image, again.image)
        assert not torch.equal(first.image, other.image)

    def test_a_group_shares_its_kinds(self):
        samples = PaintedSamples(4, SHAPE, group=2, seed=2)
        assert samples[0].kinds == samples[1].kinds
        assert collate([samples[2], samples[3]]).image.shape[0] == 2

    def test_it_ends(self):
        assert len(list(PaintedSamples(2, SHAPE))) == 2

    def test_one_modality_is_refused(self):
        with pytest.raises(ValueError, match="two or more modalities, got 1"):
            PaintedSamples(1, SHAPE, modalities=1)


def test_samples_of_different_kinds_do_not_make_a_batch():
    x = torch.zeros(2, 4, 4)
    samples = [Sample(x, x, kinds, 2.0) for kinds in (("ct", "mr"), ("mr", "ct"))]
    with pytest.raises(ValueError, match="same kinds and spacing"):
        collate(samples)


def test_a_batch_knows_only_what_all_its_samples_know():
    x = torch.zeros(2, 4, 4)
    known = Sample(x, x, ("ct", "mr"), 2.0, labels=x.long())
    assert collate([known]).labels is not None
    assert collate([known, Sample(x, x, ("ct", "mr"), 2.0)]).labels is None
    moved = collate([Sample(x, x, ("ct", "mr"), 2.0)]).to(torch.device("cpu"))
    assert moved.labels is None
    assert moved.ddf is None


class TestLosses:
    def test_every_trained_parameter_gets_a_gradient(self, batch):
        module = MultimodalTraining(network())
        # the heads start at zero: what stands before them learns from the second step on
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)
        for _ in range(2):
            optimizer.zero_grad()
            losses, _ = module.losses(batch)
            losses.total.backward()
            optimizer.step()
        encoders = [f"fusion.encoders.{k}" for k in {"ct", "mr", "emission"} - set(batch.kinds)]
        without = [
            name
            for name, p in module.network.named_parameters()
            if p.grad is None and not name.startswith(tuple(encoders))
        ]
        assert without == []

    def test_the_fusion_loss_alone_reaches_the_registration(self, batch):
        """METHOD 6.1."""
        module = MultimodalTraining(network())
        losses, _ = module.losses(batch)
        losses.fusion.backward()
        grads = [p.grad for p in module.network.registration.parameters() if p.grad is not None]
        assert max(g.abs().max() for g in grads) > 0

    def test_weights_scale_their_stage(self, batch):
        plain, _ = MultimodalTraining(network()).losses(batch)
        weighted, _ = MultimodalTraining(
            network(), gamma=2.0, stage_weights={"harmonization": 3.0}
        ).losses(batch)
        torch.testing.assert_close(weighted.fusion, 2 * plain.fusion)
        torch.testing.assert_close(weighted.harmonization, 3 * plain.harmonization)

    def test_the_true_field_costs_less_than_none(self, batch):
        truth = batch.ddf[:, 0]

        class Known(torch.nn.Module):
            def __init__(self, factor):
                super().__init__()
                self.factor = factor

            def forward(self, fixed, moving):
                return truth * self.factor

        costs = []
        for factor in (0.0, 1.0, -1.0):
            net = network()
            net.registration = Known(factor)
            costs.append(float(MultimodalTraining(net).losses(batch)[0].registration))
        assert costs[1] < costs[0] < costs[2]

    def test_frozen_stages_keep_their_parameters(self):
        net = network()
        module = MultimodalTraining(net, frozen=["registration"])
        assert not any(p.requires_grad for p in net.registration.parameters())
        optimizer = module.configure_optimizers()
        trained = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        rest = (*net.harmonization.parameters(), *net.fusion.parameters())
        assert trained == sum(p.numel() for p in rest)

    @pytest.mark.parametrize("options", [{"frozen": ["warp"]}, {"stage_weights": {"fuse": 1.0}}])
    def test_an_unknown_stage_is_refused(self, options):
        with pytest.raises(ValueError, match="stages of registration, harmonization, fusion"):
            MultimodalTraining(network(), **options)

    def test_a_real_case_without_truth_has_a_loss(self, batch):
        bare = Batch(batch.image, batch.valid, batch.kinds, batch.spacing)
        losses, _ = MultimodalTraining(network()).losses(bare)
        assert torch.isfinite(losses.total)


def test_soft_dice_of_the_same_labels_is_one_and_of_none_too():
    labels = torch.zeros(1, 1, 6, 8, dtype=torch.int64)
    ddf = torch.zeros(1, 2, 6, 8)
    assert soft_dice(labels, labels, ddf).item() == 1
    labels[..., 2:4, 3:5] = 2
    assert soft_dice(labels, labels, ddf).item() == pytest.approx(1)
    assert soft_dice(labels, labels.roll(4, 3), ddf).item() == 0


def test_the_picture_has_a_row_per_step_and_a_column_per_image(batch):
    out = network().fuse_all(batch.image, batch.kinds, batch.valid)
    shown = picture(batch, out)
    assert shown.shape == (1, 4 * (SHAPE[0] + 2), 3 * (SHAPE[1] + 2))
    assert shown.min() >= 0
    assert shown.max() <= 1


def test_the_validation_is_the_same_in_each_epoch_and_the_training_is_not():
    feed = data()
    assert torch.equal(feed.val_dataset()[0].image, feed.val_dataset()[0].image)
    assert not torch.equal(feed.train_dataset(0)[0].image, feed.train_dataset(1)[0].image)


def test_processes_share_the_samples_in_batches_of_equal_kinds():
    """Two processes, batches of two: a group of four samples serves one step of both."""
    seen, batches = [], []
    for rank in range(2):
        feed = data(samples_per_epoch=8, batch_size=2)
        feed.trainer = SimpleNamespace(world_size=2, global_rank=rank, current_epoch=0)
        loader = feed.train_dataloader()
        seen += list(loader.sampler)
        batches += list(loader)
    assert sorted(seen) == list(range(8))
    assert [len(batch.image) for batch in batches] == [2] * 4


def test_single_samples_are_shuffled_anew_in_each_epoch():
    orders = []
    for epoch in (0, 1):
        feed = data(samples_per_epoch=8)
        feed.trainer = SimpleNamespace(world_size=1, global_rank=0, current_epoch=epoch)
        orders.append(list(feed.train_dataloader().sampler))
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(8))
    assert orders[0] != orders[1]


class TestValidationScores:
    """Two samples of two moving images each; every found field is off by a known vector."""

    SPACING = 1.5

    @pytest.fixture
    def known(self):
        labels = torch.zeros(2, 3, 12, 14, dtype=torch.int64)
        labels[:, 0, 3:7, 4:9] = 1
        labels[:, 1:, 5:9, 4:9] = 1  # two rows further down
        truth = torch.zeros(2, 2, 2, 12, 14)
        truth[:, :, 0] = 2.0
        image = torch.zeros(2, 3, 12, 14)
        batch = Batch(image, image + 1, ("ct", "mr", "mr"), self.SPACING, labels, truth)
        found = truth.clone()
        found[1, 1, 1] = 4.0  # one pair of four is four columns off
        found[..., 0, 0] = 100.0  # outside the body, where no error counts
        return batch, found

    def logged(self, monkeypatch, *batches):
        module = MultimodalTraining(network())
        logged = {}
        monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
        for epoch in range(2):  # the second epoch knows nothing of the first
            module.on_validation_epoch_start()
            for batch, found in batches[epoch:]:
                module._update_scores(batch, SimpleNamespace(ddf=found))
            module.on_validation_epoch_end()
        return {name: float(value) for name, value in logged.items()}

    def test_error_in_mm_and_dice_are_means_over_pairs(self, monkeypatch, known):
        other = (known[0], torch.zeros_like(known[1]))
        scores = self.logged(monkeypatch, other, known)
        assert scores == pytest.approx(
            {
                "val/error_mm_before": 2 * self.SPACING,
                "val/error_mm_after": 4 * self.SPACING / 4,
                "val/dice_before": 0.5,
                "val/dice_after": (3 * 1 + 0.2) / 4,
            }
        )

    def test_a_batch_without_truth_changes_nothing(self, monkeypatch, known):
        batch, found = known
        bare = Batch(batch.image, batch.valid, batch.kinds, batch.spacing)
        with_bare = self.logged(monkeypatch, (bare, found), (batch, found), (bare, found))
        assert with_bare == self.logged(monkeypatch, (bare, found), (batch, found))
        assert self.logged(monkeypatch, (bare, found), (bare, found)) == {}

    def test_without_labels_the_error_counts_everywhere(self, monkeypatch, known):
        batch, found = known
        unlabelled = Batch(batch.image, batch.valid, batch.kinds, batch.spacing, None, batch.ddf)
        scores = self.logged(monkeypatch, *[(unlabelled, found)] * 2)
        assert scores["val/error_mm_after"] > 1.2 * self.SPACING
        assert set(scores) == {"val/error_mm_before", "val/error_mm_after"}

    def test_scores_are_no_part_of_a_checkpoint(self):
        module = MultimodalTraining(network())
        assert all(name.startswith("network.") for name in module.state_dict())


@pytest.mark.parametrize(
    "settings", [{"modalities": 1}, {"samples_per_epoch": 0}, {"validation_samples": 0}]
)
def test_data_that_cannot_train_is_refused(settings):
    with pytest.raises(InputError):
        MultimodalData(SHAPE, **settings)


@pytest.mark.parametrize(
    "settings", [{"accelerator": "tpu"}, {"accelerator": "foo"}, {"devices": "abc"}]
)
def test_hardware_that_is_not_there_is_refused_in_a_line(tmp_path, settings):
    with pytest.raises(InputError, match="training: expected settings that Lightning takes, got"):
        build_trainer(tmp_path, max_epochs=1, **settings)


def test_a_trainer_needs_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="output folder"):
        build_trainer(tmp_path / "file", max_epochs=1)


@pytest.mark.parametrize("content", [b"", b"no checkpoint"])
def test_a_damaged_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(content)
    with pytest.raises(InputError, match="expected a whole checkpoint"):
        fit(trainer(tmp_path), MultimodalTraining(network()), data(), tmp_path)


def test_a_refusal_in_a_worker_is_one_line(tmp_path):
    entry = {"id": "a", "ct": "gone.nii.gz", "mr": "gone.nii.gz"}
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({"training": [entry], "validation": []}))
    samples = MultimodalData(
        SHAPE, samples_per_epoch=0, datalist=path, preprocessing=preprocessing(), workers=1
    )
    with pytest.raises(InputError) as caught:
        fit(trainer(tmp_path), MultimodalTraining(network()), samples, tmp_path)
    assert str(caught.value).startswith("case 'a', ct (")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_training_writes_checkpoints_logs_and_weights_and_goes_on_after_a_stop(tmp_path):
    assert last_checkpoint(tmp_path) is None
    module = MultimodalTraining(network(), learning_rate=1e-3)
    before = {k: v.clone() for k, v in module.network.state_dict().items()}
    weights = fit(trainer(tmp_path), module, data(), tmp_path)
    state = torch.load(weights, weights_only=True)
    assert state.keys() == before.keys()
    assert any(not torch.equal(state[k], before[k]) for k in before)
    assert last_checkpoint(tmp_path) is not None
    assert list((tmp_path / "tensorboard").glob("events*"))
    first = tmp_path / "csv" / "version_0" / "metrics.csv"
    with first.open() as stream:
        row = next(r for r in csv.DictReader(stream) if r["val/total"])
    assert math.isfinite(float(row["val/error_mm_after"]))

    kept = first.read_bytes()
    later = trainer(tmp_path, max_epochs=2)
    fit(later, MultimodalTraining(network(), learning_rate=1e-7), data(), tmp_path)
    assert first.read_bytes() == kept  # the lines of the first start stay
    assert (tmp_path / "csv" / "version_1" / "metrics.csv").is_file()
    assert later.optimizers[0].param_groups[0]["lr"] == 1e-7  # and not the checkpoint's
    again = MultimodalTraining(network(), frozen=["registration"])
    with pytest.raises(InputError, match="other stages frozen"):
        fit(trainer(tmp_path, max_epochs=3), again, data(), tmp_path)
    wider = MultimodalTraining(network(3))
    with pytest.raises(InputError, match="a checkpoint of this network, got one of another"):
        fit(trainer(tmp_path, max_epochs=3), wider, data(), tmp_path)
    with pytest.raises(InputError, match="max_epochs"):
        fit(trainer(tmp_path, max_epochs=1), MultimodalTraining(network()), data(), tmp_path)
    assert later.current_epoch == 2
    assert later.global_step == 4  # two steps of the first run, two of the second


@pytest.mark.slow
def test_training_learns(tmp_path):
    """One sample over and over: L_final falls."""
    pl.seed_everything(0, verbose=False)
    module = MultimodalTraining(network(), learning_rate=3e-3)
    sample = collate([PaintedSamples(1, SHAPE, seed=3, max_voxels=4.0)[0]])
    optimizer = module.configure_optimizers()
    costs = []
    for _ in range(25):
        optimizer.zero_grad()
        losses, _ = module.losses(sample)
        losses.total.backward()
        optimizer.step()
        costs.append(losses.total.item())
    assert min(costs[-3:]) < 0.97 * costs[0]


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    """Two synthetic patients, with their truth; the second without."""
    folder = tmp_path_factory.mktemp("cases")
    entries = []
    for seed in (1, 2):
        listed = synthetic_patient(seed).save(folder)
        (entry,) = json.loads(listed.read_text())["testing"]
        if seed == 2:
            entry = {k: v for k, v in entry.items() if k in ("id", "ct", "mr")}
        entries.append(entry)
    path = folder / "training.json"
    path.write_text(json.dumps({"training": entries, "validation": entries[:1]}))
    return path


def samples(datalist, shape, seed=0):
    cases = read_datalist(datalist, "training")
    return CaseSamples(cases, shape, preprocessing(), spacing=4.0, seed=seed)


class TestCaseSamples:
    def test_a_patch_brings_what_the_case_knows(self, datalist):
        sample = samples(datalist, (33, 24, 28))[0]
        assert sample.kinds == ("ct", "mr", "emission")
        assert sample.image.shape == sample.valid.shape == sample.labels.shape == (3, 33, 24, 28)
        assert sample.ddf.shape == (2, 3, 33, 24, 28)
        assert set(sample.valid.unique().tolist()) <= {0.0, 1.0}
        assert sample.image.abs().max() <= 4

    def test_the_true_field_of_a_patch_carries_the_labels(self, datalist):
        sample = CaseSamples(
            read_datalist(datalist, "training"), (49, 49, 49), preprocessing(), spacing=4.0
        )[0]
        for m in range(2):
            moving = sample.labels[None, m + 1 : m + 2]
            truth = sample.ddf[None, m]
            before = soft_dice(sample.labels[None, :1], moving, torch.zeros_like(truth))
            after = soft_dice(sample.labels[None, :1], moving, truth)
            assert after > before + 0.05

    def test_a_case_without_truth_is_a_sample_as_well(self, datalist):
        sample = samples(datalist, (33, 24, 28))[1]
        assert sample.labels is None
        assert sample.ddf is None
        assert len(samples(datalist, (33, 24, 28))) == 2

    def test_the_place_of_the_patch_depends_on_the_seed(self, datalist):
        first, again, other = (samples(datalist, (17, 17, 17), seed)[0] for seed in (0, 0, 1))
        assert torch.equal(first.image, again.image)
        assert not torch.equal(first.image, other.image)

    def test_the_datalist_joins_the_painted_samples(self, datalist):
        real = {"datalist": datalist, "preprocessing": preprocessing()}
        feed = MultimodalData((17, 17, 17), samples_per_epoch=3, spacing=4.0, **real)
        assert len(feed.train_dataset()) == 5
        assert len(feed.val_dataset()) == 8 + 1
        painted_only = MultimodalData((17, 17, 17), samples_per_epoch=0, **real)
        assert len(painted_only.train_dataset()) == 2


def test_a_loss_that_is_not_finite_stops_the_training(batch):
    module = MultimodalTraining(network())
    broken = Batch(batch.image * float("inf"), batch.valid, batch.kinds, batch.spacing)
    with pytest.raises(FloatingPointError, match="smaller learning rate"):
        module.training_step(broken, 0)

"""What each phase asks of the networks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from training_cases import OBJECTIVES, SHAPE, module, network, painted

from fusion_pipeline.data import Image, InputError
from fusion_pipeline.fuse import displayed
from fusion_pipeline.metrics import protocol_residual
from fusion_pipeline.training import Batch, EndToEnd, RegistrationObjective
from fusion_pipeline.training.objectives.end_to_end import soft_dice
from fusion_pipeline.training.objectives.fusion import displayed_batch
from fusion_pipeline.training.objectives.registration import distance, match_loss

PHASES = ("registration", "harmonization", "fusion", "all")


@pytest.fixture(scope="module")
def batches():
    return {phase: painted(phase) for phase in PHASES}


@pytest.mark.parametrize("phase", PHASES)
class TestEveryObjective:
    def test_each_part_is_a_finite_number(self, phase, batches):
        parts, _ = OBJECTIVES[phase]().losses(network(), batches[phase], 3)
        assert all(value.ndim == 0 and torch.isfinite(value) for value in parts.values())

    def test_it_trains_its_own_stages_and_leaves_the_others(self, phase, batches):
        trained = module(phase)
        stages = trained.objective.stages
        for _ in range(2):  # the heads start at zero: what is before them learns one step later
            parts, _ = trained.objective.losses(trained.network, batches[phase], 3)
            torch.stack(list(parts.values())).sum().backward()
            with torch.no_grad():
                for p in trained.network.parameters():
                    if p.grad is not None:
                        p -= 1e-4 * p.grad
        absent = {"ct", "mr", "emission"} - set(batches[phase].kinds)
        for name, p in trained.network.named_parameters():
            own = name.split(".")[0] in stages
            assert p.requires_grad == own
            if own and not any(f"encoders.{kind}" in name for kind in absent):
                assert p.grad is not None, name

    def test_the_mean_of_two_processes_is_the_loss_of_one(self, phase, batches):
        """Each part is a mean over the samples, so that devices may share a batch."""
        both = painted(phase, count=2)
        objective = OBJECTIVES[phase]()
        whole, _ = objective.losses(network(), both, 3)
        halves = [objective.losses(network(), _one(both, b), 3)[0] for b in range(len(both.image))]
        for name, value in whole.items():
            mean = sum(half[name] for half in halves) / 2
            torch.testing.assert_close(value, mean, rtol=1e-4, atol=1e-5)

    def test_scores_are_numbers_and_no_part_of_a_checkpoint(self, phase, batches):
        trained = module(phase)
        _, outputs = trained.objective.losses(trained.network, batches[phase], 0)
        trained.objective.update(trained.scores, batches[phase], outputs)
        scores = {name: float(metric.compute()) for name, metric in trained.scores.items()}
        absent = {"ct", "mr", "emission"} - set(batches[phase].kinds)
        for kind in absent:
            scores.pop(f"protocol_residual_{kind}", None)
        assert all(value == value for value in scores.values()), scores
        assert all(name.startswith("network.") for name in trained.state_dict())


def _one(batch, b):
    values = {k: v[b : b + 1] if isinstance(v, torch.Tensor) else v for k, v in vars(batch).items()}
    values["spacing"] = batch.spacing[b : b + 1]
    return Batch(**values)


class TestRegistration:
    def test_the_true_field_costs_least(self, batches):
        batch = batches["registration"]
        truth = batch.ddf[:, 0]
        lattice = [-(-n // 4) for n in SHAPE]

        class Scaled(torch.nn.Module):
            radius = 2

            def __init__(self, factor):
                super().__init__()
                self.factor = factor

            def ddf_and_match(self, fixed, moving):
                return truth * self.factor, torch.full((1, 25, *lattice), -3.2)

            def forward(self, fixed, moving):
                return torch.zeros_like(truth)

        costs = []
        for factor in (0.0, 1.0, -1.0):
            net = network()
            net.registration = Scaled(factor)
            parts, _ = RegistrationObjective().losses(net, batch, 0)
            costs.append(float(parts["distance"]))
        assert costs[1] < 0.04 < costs[0] < costs[2]

    def test_a_second_pass_comes_every_so_many_steps(self, batches):
        passes = [
            "second_pass"
            in RegistrationObjective().losses(network(), batches["registration"], s)[0]
            for s in range(4)
        ]
        assert passes == [False, False, False, True]

    def test_samples_without_truth_are_refused(self, batches):
        batch = batches["fusion"]
        bare = Batch(batch.image, batch.valid, batch.kinds, batch.spacing)
        with pytest.raises(ValueError, match="a known field"):
            RegistrationObjective().losses(network(), bare, 0)

    def test_distance_is_in_voxels_and_weighted(self):
        truth = torch.zeros(1, 2, 4, 4)
        ddf = truth.clone()
        ddf[:, 0, :2] = 3.0
        weight = torch.ones(1, 1, 4, 4)
        assert distance(ddf, truth, weight).item() == pytest.approx(1.5, abs=0.02)
        weight[:, :, :2] = 0
        assert distance(ddf, truth, weight).item() == pytest.approx(0.0, abs=0.04)

    @pytest.mark.parametrize("d", [2, 3])
    def test_the_belief_in_the_true_shift_costs_nothing(self, d):
        truth = torch.zeros(1, d, *[8] * d)
        truth[:, 0] = 4.0  # one step of the search along the first axis
        weight = torch.ones(1, 1, *[8] * d)
        sure = torch.full((1, 5**d, *[2] * d), -20.0)
        sure[:, 5 ** (d - 1) * 3 + (5 ** (d - 1) - 1) // 2] = 0.0
        assert match_loss(sure, truth, weight, 2).item() == pytest.approx(0, abs=1e-3)
        assert match_loss(sure, -truth, weight, 2).item() > 5


class TestEndToEnd:
    def test_a_step_draws_the_same_voxels_whatever_was_drawn_before(self):
        net, batch = network(), painted("all", shape=(160, 160))  # more voxels than are drawn
        torch.manual_seed(1)
        first, _ = EndToEnd().losses(net, batch, 5)
        torch.manual_seed(2)
        again, _ = EndToEnd().losses(net, batch, 5)
        assert torch.equal(first["registration"], again["registration"])

    def test_the_fusion_loss_alone_reaches_the_registration(self, batches):
        """METHOD 6.1."""
        net = network()
        parts, _ = EndToEnd().losses(net, batches["all"], 0)
        parts["fusion"].backward()
        grads = [p.grad for p in net.registration.parameters() if p.grad is not None]
        assert max(g.abs().max() for g in grads) > 0

    def test_weights_scale_their_stage(self, batches):
        plain, _ = EndToEnd().losses(network(), batches["all"], 0)
        objective = EndToEnd(gamma=2.0, stage_weights={"harmonization": 3.0})
        weighted, _ = objective.losses(network(), batches["all"], 0)
        torch.testing.assert_close(weighted["fusion"], 2 * plain["fusion"])
        torch.testing.assert_close(weighted["harmonization"], 3 * plain["harmonization"])

    def test_a_real_case_without_truth_has_a_loss(self, batches):
        batch = batches["all"]
        bare = Batch(batch.image, batch.valid, batch.kinds, batch.spacing)
        parts, _ = EndToEnd().losses(network(), bare, 0)
        assert all(torch.isfinite(value) for value in parts.values())

    def test_an_unknown_stage_is_refused(self):
        with pytest.raises(InputError, match="stages of registration, harmonization, fusion"):
            EndToEnd(stage_weights={"fuse": 1.0})
        with pytest.raises(InputError, match="stages of registration, harmonization, fusion"):
            module(frozen=["warp"])


def test_frozen_stages_keep_their_parameters():
    trained = module(frozen=["registration"])
    assert not any(p.requires_grad for p in trained.network.registration.parameters())
    assert all(p.requires_grad for p in trained.network.fusion.parameters())


def test_soft_dice_of_the_same_labels_is_one_and_of_none_too():
    labels = torch.zeros(1, 1, 6, 8, dtype=torch.int64)
    ddf = torch.zeros(1, 2, 6, 8)
    assert soft_dice(labels, labels, ddf).item() == 1
    labels[..., 2:4, 3:5] = 2
    assert soft_dice(labels, labels, ddf).item() == pytest.approx(1)
    assert soft_dice(labels, labels.roll(4, 3), ddf).item() == 0


def test_the_protocol_residual_is_in_deviations():
    image = torch.randn(2, 1, 40, 40)
    mask = torch.ones_like(image)
    off = protocol_residual(image, image + 0.5 * image.std(), mask)
    torch.testing.assert_close(off, torch.full((2,), 0.5), rtol=0.05, atol=0)
    flat = torch.ones_like(image)
    assert protocol_residual(flat, flat, mask).isnan().all()


class TestRegistrationScores:
    """Two samples of two moving images each; every predicted field is off by a known vector."""

    SPACING = 1.5

    @pytest.fixture
    def labelled(self):
        labels = torch.zeros(2, 3, 12, 14, dtype=torch.int64)
        labels[:, 0, 3:7, 4:9] = 1
        labels[:, 1:, 5:9, 4:9] = 1  # two rows further down
        truth = torch.zeros(2, 2, 2, 12, 14)
        truth[:, :, 0] = 2.0
        image = torch.zeros(2, 3, 12, 14)
        batch = Batch(
            image, image + 1, ("ct", "mr", "mr"), (self.SPACING,) * 2, labels=labels, ddf=truth
        )
        predicted = truth.clone()
        predicted[1, 1, 1] = 4.0  # one pair of four is four columns off
        predicted[..., 0, 0] = 100.0  # outside the body, where no error counts
        return batch, predicted

    def scores(self, *batches):
        objective = RegistrationObjective()
        scores = objective.scores()
        for batch, predicted in batches:
            objective.update(scores, batch, SimpleNamespace(ddf=predicted))
        return {name: float(metric.compute()) for name, metric in scores.items()}

    def test_error_in_mm_and_dice_are_means_over_pairs(self, labelled):
        assert self.scores(labelled) == pytest.approx(
            {
                "error_mm_before": 2 * self.SPACING,
                "error_mm": 4 * self.SPACING / 4,
                "dice_before": 0.5,
                "dice": (3 * 1 + 0.2) / 4,
            }
        )

    def test_a_batch_without_truth_changes_nothing(self, labelled):
        batch, predicted = labelled
        bare = Batch(batch.image, batch.valid, batch.kinds, batch.spacing)
        with_bare = self.scores((bare, predicted), (batch, predicted), (bare, predicted))
        assert with_bare == self.scores((batch, predicted))

    def test_without_labels_the_error_counts_everywhere(self, labelled):
        batch, predicted = labelled
        bare = Batch(batch.image, batch.valid, batch.kinds, batch.spacing, ddf=batch.ddf)
        assert self.scores((bare, predicted))["error_mm"] > 1.2 * self.SPACING


class TestDisplayedBatch:
    """Training sees what the fuse stage sums."""

    def test_a_volume_in_hu_is_displayed_as_the_fuse_stage_does(self):
        hu = torch.linspace(-1000, 1500, 4 * 5 * 6).view(1, 1, 4, 5, 6)
        everywhere = torch.ones_like(hu)
        batch = Batch(hu / 1000, everywhere, ("ct",), (2.0,), original=hu, body=everywhere)
        image = Image(hu[0], np.eye(4), "ct", units="HU")
        expected = displayed(image, everywhere[0])
        torch.testing.assert_close(displayed_batch(batch)[0], expected)

    def test_a_picture_of_a_ct_has_any_window_and_always_the_same(self):
        hu = torch.linspace(-1000, 1500, 40 * 30).view(1, 1, 40, 30)
        seen = []
        for shift in (0.0, 0.0, 7.0, 11.0, 13.0, 17.0):
            own = hu + shift
            batch = Batch(own, torch.ones_like(own), ("ct",), (2.0,), original=own)
            seen.append(displayed_batch(batch))
            assert float(seen[-1].min()) == 0
            assert float(seen[-1].max()) == 1
        assert seen[0].equal(seen[1])
        between = [float(((one > 0) & (one < 1)).float().mean()) for one in seen[1:]]
        assert max(between) > 1.5 * min(between)  # wide windows and narrow ones

    def test_uptake_begins_at_zero_and_what_is_out_of_view_is_black(self):
        uptake = 1 + torch.rand(1, 1, 20, 20, generator=torch.Generator().manual_seed(0))
        view = torch.ones_like(uptake)
        view[..., 15:] = 0
        batch = Batch(uptake, view, ("emission",), (2.0,), original=uptake)
        out = displayed_batch(batch)
        assert float(out[..., :15].min()) > 0.4
        assert float(out[..., 15:].abs().max()) == 0

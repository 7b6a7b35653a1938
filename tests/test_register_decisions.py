"""Decision numbers of the register stage, over hand-made similarities and small generated maps."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.special import expit

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import rigid_matrix
from fusion_pipeline.register import chosen_pose
from fusion_pipeline.register.chosen_pose import choose_pose, mean_move
from fusion_pipeline.register.criteria import Criterion
from fusion_pipeline.register.doubt import doubt_about
from fusion_pipeline.register.initial_alignment import _pose_gains_too_little
from fusion_pipeline.register.pose import Pose
from fusion_pipeline.register.risk import probability_over_5_mm
from fusion_pipeline.register.settings import RISK
from fusion_pipeline.register.stage import _estimate_falls, _less_similar

IMAGE = Image(torch.zeros(1, 40, 33), np.diag([-1.0, -1.0, 1.0]), "mr")


@dataclasses.dataclass
class Shown:
    """Stands for an aligned pair: its similarity and its estimated error are given."""

    nmi: float = 1.2
    mind: float = 0.5
    error: float = 2.0

    @property
    def similarity(self):
        return {"nmi": self.nmi, "mind": self.mind, "overlap": 1.0}

    def compared_region(self, *, either=False):
        assert either
        return torch.ones(1)

    def error_over(self, where):
        assert bool(where.all())
        return self.error

    @property
    def undeformed(self):
        return self


class TestDoubt:
    SAME = Shown().similarity

    @pytest.mark.parametrize(
        ("error_mm", "doubted"), [(1.0, False), (3.7, False), (4.3, True), (12.0, True)]
    )
    def test_the_estimate_is_doubtful_beyond_four_mm(self, error_mm, doubted):
        reason = doubt_about(self.SAME, self.SAME, error_mm, 1.0)
        assert bool(reason) == doubted
        assert ("look at it" in reason) == doubted

    def test_a_probable_error_is_doubtful_though_the_estimate_is_below_its_limit(self):
        for over_5_mm, doubted in ((0.9 * RISK.limit, False), (1.1 * RISK.limit, True)):
            reason = doubt_about(self.SAME, self.SAME, 3.0, 1.0, over_5_mm)
            assert ("more than 5 mm with a probability of" in reason) == doubted

    def test_no_estimate_is_no_doubt(self):
        assert doubt_about(self.SAME, self.SAME, math.nan, 1.0) == ""

    @pytest.mark.parametrize(("shared", "doubted"), [(0.0, True), (0.08, True), (0.12, False)])
    def test_a_tenth_of_the_smaller_body_must_overlap(self, shared, doubted):
        assert ("of the smaller body" in doubt_about(self.SAME, self.SAME, 1.0, shared)) == doubted

    @pytest.mark.parametrize(
        ("nmi", "mind", "doubted"),
        [(1.1, 0.6, True), (1.1, 0.4, False), (1.3, 0.6, False), (1.3, 0.4, False)],
    )
    def test_both_similarities_have_to_fall(self, nmi, mind, doubted):
        reason = doubt_about(self.SAME, Shown(nmi, mind).similarity, 1.0, 1.0)
        assert ("less similar" in reason) == doubted


class TestProbabilityOver5Mm:
    def test_it_is_the_logistic_function_of_the_measures(self):
        total = RISK.offset + RISK.estimate * math.log(3) + RISK.fall * math.log(0.08)
        for stays in (False, True):
            found = probability_over_5_mm(3.0, 0.08, stays=stays)
            expected = expit(total + RISK.stays * stays)
            assert found == pytest.approx(float(expected), rel=1e-9)

    def test_it_rises_with_the_estimate_and_stays_between_0_and_1(self):
        errors = (0.0, 0.5, 1.5, 3.0, 6.0, 100.0)
        found = [probability_over_5_mm(e, 0.05, stays=False) for e in errors]
        assert found[0] <= found[1]
        assert all(a < b for a, b in pairwise(found[1:]))
        assert found[0] >= 0
        assert found[-1] <= 1

    def test_it_is_high_where_the_score_hardly_falls_or_rises(self):
        falls = (-0.1, 0.01, 0.05, 0.2)
        found = [probability_over_5_mm(3.0, fall, stays=False) for fall in falls]
        assert all(a > b for a, b in pairwise(found))

    def test_without_an_estimate_there_is_none(self):
        assert math.isnan(probability_over_5_mm(math.nan, 0.1, stays=False))


class TestCriterion:
    @pytest.mark.parametrize(
        ("mind", "nmi", "accepted"),
        [(0.48, 1.22, True), (0.49, 1.22, False), (0.48, 1.205, False), (0.52, 1.30, False)],
    )
    def test_structure_and_information_both_count(self, mind, nmi, accepted):
        assert Criterion(0.03, 0.05).accepts(Shown(nmi, mind), Shown()) == accepted

    def test_both_takes_the_stricter_of_each(self):
        assert Criterion(0.1, 0.02).and_also(Criterion(0.03, 0.5)) == Criterion(0.1, 0.5)


class TestChosenPose:
    @staticmethod
    def choose(monkeypatch, mm, **scores):
        matrix = rigid_matrix([0.0], [mm, 0.0], [0.0, 0.0])
        stretched = matrix @ np.diag([1.1, 1.0, 1.0])
        scores = {"start": 1.0, "rigid_score": 1.0, "score": 1.0, "distance_penalty": 0.0, **scores}
        monkeypatch.setattr(
            chosen_pose, "find_pose", lambda *_, **__: Pose(matrix, stretched, **scores)
        )
        return choose_pose(IMAGE, IMAGE, (None, None), affine=True, stretch_gain=1.15)

    @pytest.mark.parametrize(
        ("mm", "start", "gain", "penalty", "kind"),
        [
            (9.0, 2.0, 0.04, 0.0, "rigid"),
            (9.0, 2.0, 0.02, 0.0, "none"),  # less than 0.03 nats
            (9.0, 2.0, 0.04, 0.02, "none"),  # nor what its distance asks for
            (9.0, 2.0, 0.06, 0.02, "rigid"),
            (1.0, 0.5, 0.012, 0.0, "rigid"),  # a small move: 2 % of the score are enough
            (1.0, 0.5, 0.008, 0.0, "none"),
            (2.5, 0.5, 0.012, 0.0, "none"),  # not a small one
        ],
    )
    def test_a_pose_has_to_gain(self, monkeypatch, mm, start, gain, penalty, kind):
        scores = {"start": start, "rigid_score": start + gain, "score": start + gain}
        found = self.choose(monkeypatch, mm, **scores, distance_penalty=penalty)
        assert found.kind == kind
        assert np.array_equal(found.matrix, np.eye(3)) == (kind == "none")

    @pytest.mark.parametrize(("score", "kind"), [(2.2, "rigid"), (2.4, "affine")])
    def test_a_stretch_has_to_gain_more(self, monkeypatch, score, kind):
        assert self.choose(monkeypatch, 9.0, rigid_score=2.0, score=score).kind == kind

    @pytest.mark.parametrize(
        ("start", "rigid", "undisputed"),
        [(1.0, 2.1, False), (1.0, 2.3, True), (0.1, 0.65, False), (0.1, 0.75, True)],
    )
    def test_far_better_is_undisputed(self, monkeypatch, start, rigid, undisputed):
        found = self.choose(monkeypatch, 9.0, start=start, rigid_score=rigid, score=rigid)
        assert found.undisputed == undisputed

    def test_the_mean_move_of_a_shift_is_its_length(self):
        assert mean_move(IMAGE, rigid_matrix([0.0], [3.0, 4.0], [0.0, 0.0])) == pytest.approx(5.0)


class TestAgainstTheInitialAlignment:
    @pytest.mark.parametrize(
        ("gain", "errors_mm", "moved_mm", "too_little"),
        [
            (0.04, (2.0, 2.0), 5.0, True),  # near: it has to gain 0.05
            (0.06, (2.0, 2.0), 5.0, False),
            (0.01, (2.0, 2.0), 30.0, False),  # twice as far as headers are wrong: anything
            (-0.01, (2.0, 2.0), 30.0, True),
            (-0.04, (2.0, 2.0), 60.0, False),  # far: it may lose as much
            (-0.06, (2.0, 2.0), 60.0, True),
            (0.01, (1.35, 1.35), 5.0, False),  # clear images are believed
            (0.01, (1.45, 1.45), 5.0, True),
            (0.0, (4.0, 2.0), 5.0, False),  # the network estimates less error after the pose
            (0.1, (2.0, 4.0), 5.0, True),
        ],
    )
    def test_what_a_pose_has_to_gain(self, gain, errors_mm, moved_mm, too_little):
        left = math.exp(-gain)
        assert _pose_gains_too_little(1.0, left, errors_mm, moved_mm) == too_little

    @pytest.mark.parametrize(
        ("before", "after", "falls"),
        [(4.2, 2.0, True), (3.8, 2.0, False), (1.8, 1.35, True), (1.6, 1.35, False)],
    )
    def test_the_estimate_has_to_fall_far(self, before, after, falls):
        assert _estimate_falls(Shown(error=before), Shown(error=after)) == falls

    @pytest.mark.parametrize(
        ("nmi", "mind", "less"), [(1.1, 0.4, True), (1.3, 0.6, True), (1.3, 0.4, False)]
    )
    def test_one_similarity_that_falls_is_less(self, nmi, mind, less):
        assert _less_similar(Shown(), Shown(nmi, mind)) == less

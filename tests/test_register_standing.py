"""A move is earned against "they are aligned already": what stays where it is, and what it says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from register_cases import rigid_pair

from fusion_pipeline.data import Identity, Image
from fusion_pipeline.geometry import apply_affine, rigid_matrix
from fusion_pipeline.networks.registration_net import RegistrationNet
from fusion_pipeline.register import Register, chosen_pose
from fusion_pipeline.register.pose import Pose
from fusion_pipeline.register.settings import STANDING
from fusion_pipeline.register.standing import least_move_mm, of_one_session

FRAME, STUDY = Identity(frame_of_reference="1.2.50"), Identity(study_uid="1.2.40")
OTHER = Identity(study_uid="1.2.41", frame_of_reference="1.2.51")


def stage(**options):
    torch.manual_seed(0)
    net = RegistrationNet(2, channels=(4, 6, 6, 8), learned_features=3)
    return Register(net, **{"refine_steps": 9, **options})


def pair(key="mr", *, degrees=0.0, mm=0.0):
    return rigid_pair(2, d=2, key=key, degrees=degrees, mm=mm)


def found_by_search(monkeypatch, matrix, *, start=0.5, score=0.9):
    """The search finds this pose, with this score."""
    pose = Pose(matrix, matrix, start=start, rigid_score=score, score=score, distance_penalty=0.0)
    monkeypatch.setattr(chosen_pose, "find_pose", lambda *_, **__: pose)


def of(image, identity):
    return replace(image, identity=identity)


def is_identity(found):
    d = found.map.spatial_dims
    return np.array_equal(found.map.moving_from_fixed, np.eye(d + 1)) and not bool(
        found.map.ddf_mm.any()
    )


class TestOneSession:
    @pytest.mark.parametrize(
        ("keys", "first", "second", "one"),
        [
            (("ct", "mr"), FRAME, FRAME, True),
            (("ct", "mr"), FRAME, OTHER, False),
            (("ct", "pet"), STUDY, STUDY, True),
            (("mr", "spect"), STUDY, STUDY, True),
            (("ct", "mr"), STUDY, STUDY, False),  # one study may hold several sessions
            (("ct", "pet"), STUDY, OTHER, False),
            (("ct", "pet"), Identity(), Identity(), False),  # nothing is said
            (("ct", "pet"), None, FRAME, False),
        ],
    )
    def test_frame_of_reference_or_study(self, keys, first, second, one):
        values = torch.zeros(1, 6, 5, 4)
        images = [
            Image(values, np.eye(4), key, identity=identity)
            for key, identity in zip(keys, (first, second), strict=True)
        ]
        assert of_one_session(*images) == one

    def test_a_pose_that_is_not_far_better_moves_nothing(self, monkeypatch):
        case = pair(degrees=5.0, mm=6.0)
        found_by_search(monkeypatch, case.truth)
        images = of(case.fixed, FRAME), of(case.moving, FRAME)
        found = stage()(*images)
        assert is_identity(found)
        assert found.evidence.aligned_already
        assert found.transform == "none"
        assert found.reason.startswith("left as it was: aligned already (one session")
        elsewhere = stage()(case.fixed, of(case.moving, OTHER))  # the very pose, no common space
        assert not is_identity(elsewhere)
        assert not elsewhere.evidence.aligned_already

    def test_clear_evidence_moves_it(self, monkeypatch):
        case = pair(degrees=5.0, mm=6.0)
        found_by_search(monkeypatch, case.truth, start=0.3, score=1.0)
        found = stage()(of(case.fixed, FRAME), of(case.moving, FRAME))
        np.testing.assert_array_equal(found.map.moving_from_fixed, case.truth)
        assert not found.evidence.aligned_already

    def test_images_of_different_people_have_no_session(self, monkeypatch):
        case = pair(degrees=5.0, mm=6.0)
        found_by_search(monkeypatch, case.truth)
        images = of(case.fixed, FRAME), of(case.moving, FRAME)
        assert not is_identity(stage(same_person=False)(*images))


class TestSmallMoves:
    @staticmethod
    def shift(case, mm):
        """A pose that moves everything by so many mm, and the moving image that it fits."""
        matrix = rigid_matrix([0.0], [0.8 * mm, -0.6 * mm], [0.0, 0.0])
        return matrix, replace(case.moving, affine=matrix @ case.moving.affine)

    @pytest.mark.parametrize("key", ["mr", "pet"])
    @pytest.mark.parametrize(("share", "stays"), [(0.8, True), (1.6, False)])
    def test_in_a_slice_only_a_move_that_is_large_enough_is_made(
        self, monkeypatch, key, share, stays
    ):
        case = pair(key)
        matrix, moving = self.shift(case, share * least_move_mm(case.fixed, case.moving))
        found_by_search(monkeypatch, matrix, start=0.3, score=1.0)
        found = stage()(case.fixed, moving)
        assert is_identity(found) == stays
        assert found.evidence.aligned_already == stays
        assert found.reason.startswith("left as it was: aligned already (the best move") == stays
        assert found.ok

    def test_a_rotation_counts_by_what_it_moves(self, monkeypatch):
        case = pair()
        least = least_move_mm(case.fixed, case.moving)
        body = np.linalg.norm(case.points - case.points.mean(0), axis=1).mean()
        degrees = np.rad2deg(0.5 * least / body)
        matrix = rigid_matrix([degrees], [0.0, 0.0], case.points.mean(0).tolist())
        found_by_search(monkeypatch, matrix, start=0.3, score=1.0)
        assert is_identity(stage()(case.fixed, case.moving))

    def test_the_numbers_are_told_apart_by_what_is_seen(self):
        def images(keys, d):
            values = torch.zeros(1, *(6, 5, 4)[:d])
            return [Image(values, np.eye(d + 1), key) for key in keys]

        assert least_move_mm(*images(("ct", "mr"), 2)) == STANDING.slice_mm
        assert least_move_mm(*images(("mr", "spect"), 2)) == STANDING.emission_2d_mm
        assert least_move_mm(*images(("ct", "pet"), 3)) == STANDING.emission_3d_mm
        assert least_move_mm(*images(("ct", "mr"), 3)) == 0.0  # compared with the headers elsewhere

    def test_people_who_differ_are_moved_by_little_as_well(self, monkeypatch):
        case = pair()
        matrix, moving = self.shift(case, 0.8 * STANDING.slice_mm)
        found_by_search(monkeypatch, matrix, start=0.3, score=1.0)
        assert not is_identity(stage(same_person=False)(case.fixed, moving, transform="rigid"))


class TestUnplaced:
    @pytest.mark.parametrize(("key", "flagged"), [("pet", True), ("mr", False)])
    def test_a_pet_that_fits_elsewhere_as_well_stays_and_is_flagged(
        self, monkeypatch, key, flagged
    ):
        case = pair(key)
        matrix = rigid_matrix([0.0], [9.0, 0.0], [0.0, 0.0])
        found_by_search(monkeypatch, matrix, start=0.89, score=0.9)
        found = stage()(case.fixed, case.moving, transform="rigid")
        assert is_identity(found)
        assert found.ok != flagged
        assert not found.evidence.aligned_already
        assert ("one slice does not tell where the pet lies: 9 mm away" in found.reason) == flagged

    def test_a_pet_that_fits_best_where_it_is_is_aligned(self, monkeypatch):
        case = pair("pet")
        found_by_search(monkeypatch, np.eye(3), start=0.9, score=0.9)
        found = stage()(case.fixed, case.moving, transform="rigid")
        assert found.ok
        assert found.evidence.aligned_already


def test_none_is_the_users_word_and_no_finding():
    case = pair(mm=6.0)
    found = stage()(case.fixed, case.moving, transform="none")
    assert not found.evidence.aligned_already
    assert found.reason == ""
    points = apply_affine(np.eye(3), case.points)
    np.testing.assert_allclose(found.map.points(points), points, atol=1e-9)

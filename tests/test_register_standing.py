"""A move is earned against "they are aligned already": what stays where it is, and what it says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from register_cases import rigid_pair

from fusion_pipeline.data import Identity, Image
from fusion_pipeline.geometry import apply_affine, rigid_matrix
from fusion_pipeline.networks.registration_net import RegistrationNet
from fusion_pipeline.register import Register, chosen_pose, standing
from fusion_pipeline.register.chosen_pose import ChosenPose
from fusion_pipeline.register.pose import Pose
from fusion_pipeline.register.settings import STANDING
from fusion_pipeline.register.standing import judged, of_one_session

FRAME, STUDY = Identity(frame_of_reference="1.2.50"), Identity(study_uid="1.2.40")
OTHER = Identity(study_uid="1.2.41", frame_of_reference="1.2.51")


def stage(**options):
    """The stage with a small untrained network."""
    torch.manual_seed(0)
    net = RegistrationNet(2, channels=(4, 6, 6, 8), learned_features=3)
    return Register(net, **{"refine_steps": 9, **options})


def stage3d():
    torch.manual_seed(0)
    return Register(RegistrationNet(3, channels=(4, 6, 6, 8), learned_features=3))


def with_settings(monkeypatch, *, same_person=True, **numbers):
    """The stage where a move needs other numbers."""
    monkeypatch.setattr(standing, "STANDING", replace(STANDING, **numbers))
    return stage(same_person=same_person)


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


def shifted(case, mm):
    """A pose that moves everything by so many mm, and the moving image that it fits."""
    matrix = rigid_matrix([0.0], [0.8 * mm, -0.6 * mm], [0.0, 0.0])
    return matrix, replace(case.moving, affine=matrix @ case.moving.affine)


class TestClearGain:
    @pytest.mark.parametrize("key", ["mr", "pet"])
    @pytest.mark.parametrize(("needed", "stays"), [(0.99, False), (1.01, True)])
    def test_a_slice_is_moved_where_information_rises_enough(self, monkeypatch, key, needed, stays):
        case = pair(key)
        matrix, moving = shifted(case, 6.0)
        found_by_search(monkeypatch, matrix, start=0.5, score=1.0)
        free = with_settings(monkeypatch, slice_gain=0.0, slice_gain_emission=0.0)(
            case.fixed, moving, transform="rigid"
        )
        after, before = (
            x["nmi"] - 1 for x in (free.evidence.similarity_after, free.evidence.similarity_before)
        )
        gain = free.evidence.details["nmi_gain"]
        assert gain > 0.2  # else the case says nothing
        # these are over a region each, the gain is over what both have
        assert gain == pytest.approx(after / before - 1, rel=0.2)
        name = "slice_gain_emission" if key == "pet" else "slice_gain"
        register = with_settings(monkeypatch, **{name: needed * gain})
        assert is_identity(register(case.fixed, moving, transform="rigid")) == stays

    def test_a_pet_is_not_moved_by_little_whatever_it_gains(self, monkeypatch):
        case = pair("pet")
        matrix, moving = shifted(case, 2.5)
        found_by_search(monkeypatch, matrix, start=0.5, score=1.0)
        found = with_settings(monkeypatch, slice_gain_emission=-99.0)(
            case.fixed, moving, transform="rigid"
        )
        assert is_identity(found)
        assert found.evidence.aligned_already

    @pytest.mark.parametrize(
        ("key", "limits", "stays"),
        [
            ("pet", {"slice_reach_emission": 7.0}, False),
            ("pet", {"slice_reach_emission": 5.0}, True),
            ("mr", {"slice_reach_emission": 5.0}, False),
            ("pet", {"slice_nats_emission": 0.08}, False),  # 0.5 nats for 6 mm
            ("pet", {"slice_nats_emission": 0.09}, True),
            ("mr", {"slice_nats_emission": 0.09}, False),
        ],
    )
    def test_a_slice_of_a_pet_is_not_moved_far(self, monkeypatch, key, limits, stays):
        case = pair(key)
        matrix, moving = shifted(case, 6.0)
        found_by_search(monkeypatch, matrix, start=0.5, score=1.0)
        settings = {"slice_gain": 0.0, "slice_gain_emission": 0.0, **limits}
        found = with_settings(monkeypatch, **settings)(case.fixed, moving, transform="rigid")
        assert is_identity(found) == stays
        assert found.ok == (not stays)
        told = "one slice does not tell where the pet lies: 6 mm away is too far to be sure"
        assert found.reason.startswith(told) == stays

    @pytest.mark.parametrize(("mm", "aligned"), [(2.0, True), (6.0, False)])
    def test_what_stays_is_aligned_if_the_best_pose_is_near_and_doubtful_if_not(
        self, monkeypatch, mm, aligned
    ):
        case = pair("pet")
        matrix, moving = shifted(case, mm)
        found_by_search(monkeypatch, matrix, start=0.5, score=1.0)
        found = with_settings(monkeypatch, slice_gain_emission=99.0)(case.fixed, moving)
        assert is_identity(found)
        assert found.evidence.aligned_already == aligned
        assert found.ok == aligned
        text = "left as it was: aligned already (the best move" if aligned else "one slice does not"
        assert found.reason.startswith(text)
        assert found.evidence.details["best_move_mm"] == pytest.approx(mm, abs=1e-3)

    def test_a_pose_that_was_refused_counts_as_one_that_may_be_right(self, monkeypatch):
        case = pair()
        matrix = rigid_matrix([0.0], [9.0, 0.0], [0.0, 0.0])
        found_by_search(monkeypatch, matrix, start=0.89, score=0.9)
        found = stage()(case.fixed, case.moving, transform="rigid")
        assert is_identity(found)
        assert not found.ok
        assert "one slice does not tell where the mr lies: 9 mm away" in found.reason

    def test_a_rotation_counts_by_what_it_moves(self, monkeypatch):
        case = pair()
        centre = case.points.mean(0)
        radius = np.linalg.norm(case.points - centre, axis=1).mean()
        matrix = rigid_matrix([np.rad2deg(1.5 / radius)], [0.0, 0.0], centre.tolist())
        found_by_search(monkeypatch, matrix, start=0.89, score=0.9)
        found = stage()(case.fixed, case.moving, transform="rigid")
        assert found.evidence.details["best_move_mm"] == pytest.approx(1.5, rel=0.3)
        assert found.evidence.aligned_already

    def test_people_who_differ_are_moved_by_any_gain(self, monkeypatch):
        case = pair()
        matrix, moving = shifted(case, 6.0)
        found_by_search(monkeypatch, matrix, start=0.5, score=1.0)
        register = with_settings(monkeypatch, same_person=False, slice_gain=99.0)
        assert not is_identity(register(case.fixed, moving, transform="rigid"))


class TestVolumes:
    @staticmethod
    def judged(keys, mm):
        """The verdict on two volumes whose result moves by so many mm."""
        values = torch.rand(1, 12, 11, 10, generator=torch.Generator().manual_seed(0))
        images = tuple(Image(values, np.diag([2.0, 2.0, 2.0, 1.0]), key) for key in keys)
        start = stage3d()._aligner(images, (torch.ones_like(values),) * 2)(None)
        found = ChosenPose(rigid_matrix([0.0] * 3, [mm, 0.0, 0.0], [0.0] * 3), "rigid", {})
        return judged(found, start.undeformed, start, images)

    @pytest.mark.parametrize(
        ("keys", "mm", "stays"),
        [
            (("ct", "pet"), 2.8, True),
            (("ct", "pet"), 3.2, False),
            (("mr", "spect"), 2.8, True),
            (("ct", "mr"), 0.5, False),  # compared with the headers elsewhere
        ],
    )
    def test_a_pet_is_moved_by_a_clear_distance_only(self, keys, mm, stays):
        verdict = self.judged(keys, mm)
        assert verdict.stays == stays
        assert bool(verdict.aligned) == stays
        assert verdict.doubt == ""


def test_none_is_the_users_word_and_no_finding():
    case = pair(mm=6.0)
    found = stage()(case.fixed, case.moving, transform="none")
    assert not found.evidence.aligned_already
    assert found.reason == ""
    points = apply_affine(np.eye(3), case.points)
    np.testing.assert_allclose(found.map.points(points), points, atol=1e-9)

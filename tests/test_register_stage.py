import dataclasses
import math
from functools import partial
from itertools import chain, repeat

import numpy as np
import pytest
import torch
from register_cases import rigid_pair

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import (
    apply_affine,
    ddf_from_ddf_mm,
    jacobian_determinant,
    rigid_matrix,
)
from fusion_pipeline.networks.registration_net import RegistrationNet
from fusion_pipeline.register import Register, chosen_pose, initial_alignment, pose, standing
from fusion_pipeline.register import stage as stages
from fusion_pipeline.register.aligned_pair import AlignedPair
from fusion_pipeline.register.criteria import Criterion
from fusion_pipeline.register.lattice import Lattice
from fusion_pipeline.register.pose import Pose
from fusion_pipeline.register.settings import DECISION, DEFORMATION, POSE, STANDING
from fusion_pipeline.synthesis import synthetic_patient

# smoothness, what information is worth, and whether the first level is gone through
STIFF, SOFT = (DEFORMATION.stiff, 0.0, True), (DEFORMATION.soft, 0.0, False)
INFORMED = DEFORMATION.soft, DEFORMATION.information, False


def stage(d, **options):
    """The stage with a small untrained network: what is tested here must not depend on training."""
    torch.manual_seed(0)
    net = RegistrationNet(d, channels=(4, 6, 6, 8), learned_features=3)
    return Register(net, **{"refine_steps": 9, **options})


def numbers(found):
    """All that a result holds, to compare or look for NaN."""
    scores = [*found.evidence.similarity_before.values(), *found.evidence.similarity_after.values()]
    details = [v for v in found.evidence.details.values() if isinstance(v, float)]
    return np.concatenate(
        [
            found.map.moving_from_fixed.ravel(),
            found.map.ddf_mm.numpy().ravel(),
            found.map.working_affine.ravel(),
            [*scores, *details, found.evidence.folded_fraction],
        ]
    )


def moved_by(matrix, found):
    """The same result with another affine."""
    return dataclasses.replace(found, map=dataclasses.replace(found.map, moving_from_fixed=matrix))


def any_gain_will_do(monkeypatch):
    """What a slice has to gain is asked afterwards, see `test_register_standing.py`."""
    numbers = {"slice_gain": -math.inf, "slice_gain_emission": -math.inf}
    monkeypatch.setattr(standing, "STANDING", dataclasses.replace(STANDING, **numbers))


def assert_rigid(matrix):
    d = len(matrix) - 1
    np.testing.assert_allclose(matrix[:d, :d] @ matrix[:d, :d].T, np.eye(d), atol=1e-9)
    assert np.linalg.det(matrix[:d, :d]) == pytest.approx(1.0, abs=1e-9)


@pytest.fixture(scope="module")
def volumes():
    return rigid_pair(3, key="mr")


@pytest.fixture(scope="module")
def rigid_result(volumes):
    """By a search of fewer poses: whole ones are slow, and tested as such."""
    fewer = dataclasses.replace(POSE, climbing=6, climbing_on=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pose, "POSE", fewer)
        patch.setattr(chosen_pose, "find_pose", partial(pose.find_pose, starts=150))
        return stage(3)(volumes.fixed, volumes.moving, transform="rigid")


@pytest.fixture(scope="module")
def deformable_result(volumes):
    return stage(3)(volumes.fixed, volumes.moving)


@pytest.mark.slow
class TestVolumes:
    def test_ten_degrees_and_twelve_mm_are_found(self, volumes, rigid_result):
        error = volumes.error(rigid_result.map.points(volumes.points))
        assert error < volumes.coarser_voxel
        assert error < 0.5 * volumes.error_before
        assert rigid_result.transform == "rigid"  # `ok` goes by the network, which is untrained
        assert (
            rigid_result.evidence.similarity_after["nmi"]
            > rigid_result.evidence.similarity_before["nmi"]
        )
        assert (
            rigid_result.evidence.similarity_after["mind"]
            < rigid_result.evidence.similarity_before["mind"]
        )

    def test_rigid_turns_and_shifts_and_does_nothing_else(self, rigid_result):
        assert_rigid(rigid_result.map.moving_from_fixed)
        assert float(rigid_result.map.ddf_mm.abs().max()) == 0.0
        assert rigid_result.evidence.folded_fraction == 0.0

    def test_the_warped_image_is_alike(self, volumes, rigid_result):
        warped = rigid_result.warp(volumes.moving, volumes.fixed)
        truth = moved_by(volumes.truth, rigid_result)
        true = truth.warp(volumes.moving, volumes.fixed).array
        body = (true > 0.2 * true.max()).flatten()
        found, before = (
            torch.corrcoef(torch.stack([x.flatten()[body], true.flatten()[body]]))[0, 1]
            for x in (
                warped.array,
                moved_by(np.eye(4), rigid_result).warp(volumes.moving, volumes.fixed).array,
            )
        )
        assert found > 0.9
        assert found > before

    @pytest.mark.slow
    def test_a_deformation_is_finite_and_does_not_fold(self, deformable_result):
        assert np.isfinite(numbers(deformable_result)).all()
        assert deformable_result.evidence.folded_fraction == 0.0
        working = torch.from_numpy(deformable_result.map.working_affine)
        ddf = ddf_from_ddf_mm(deformable_result.map.ddf_mm[None], working)
        assert bool((jacobian_determinant(ddf) > 0).all())
        assert (
            deformable_result.map.ddf_mm.shape[1:] == deformable_result.evidence.error_map_mm.shape
        )
        assert float(deformable_result.evidence.error_map_mm.min()) >= 0
        assert deformable_result.evidence.error_mm > 0

    @pytest.mark.slow
    def test_whatever_was_kept_is_better_than_doing_nothing(self, volumes, deformable_result):
        error = volumes.error(deformable_result.map.points(volumes.points))
        assert error < 0.5 * volumes.error_before

    @pytest.mark.slow
    def test_the_same_bits_each_time(self, volumes, deformable_result):
        again = stage(3)(volumes.fixed, volumes.moving)
        np.testing.assert_array_equal(numbers(again), numbers(deformable_result))

    @pytest.mark.slow
    @pytest.mark.parametrize("body", ["head", "trunk"])
    @pytest.mark.parametrize("key", ["mr", "pet"])
    def test_patients_come_closer_or_stay(self, body, key):
        case = synthetic_patient(5, body=body, size="small").case
        found = stage(3)(case.fixed, case.images[key], transform="affine")
        true, points = case.series[key].landmarks, case.series["ct"].landmarks
        before = np.linalg.norm(true - points, axis=1).mean()
        after = np.linalg.norm(true - found.map.points(points), axis=1).mean()
        # where no pose was clearly better the headers stay: no gain, and no loss
        assert after < before if found.transform != "none" else after == before


@pytest.fixture(scope="module")
def picture_result():
    """Of the first pair of pictures, with the values that it was given."""
    pair = rigid_pair(1, d=2)
    before = pair.fixed.array.clone(), pair.moving.array.clone(), pair.moving.affine.copy()
    return stage(2)(pair.fixed, pair.moving), before


class TestPictures:
    @pytest.mark.parametrize(
        ("seed", "transform"),
        [
            (1, "rigid"),
            (2, "affine"),
            (3, "deformable"),
            *(
                pytest.param(seed, transform, marks=pytest.mark.slow)
                for transform in ("rigid", "affine", "deformable")
                for seed in (1, 2, 3)
                if (seed, transform) not in ((1, "rigid"), (2, "affine"), (3, "deformable"))
            ),
        ],
    )
    def test_a_known_move_is_found(self, seed, transform):
        pair = rigid_pair(seed, d=2, degrees=10.0, mm=6.0)
        found = stage(2)(pair.fixed, pair.moving, transform=transform)
        error = pair.error(found.map.points(pair.points))
        assert error < (1.0 if transform == "rigid" else 2.0)
        assert error < 0.4 * pair.error_before
        assert found.evidence.folded_fraction == 0.0
        assert np.isfinite(numbers(found)).all()

    @pytest.mark.parametrize(
        ("seed", "key"),
        [
            (1, "mr"),
            (2, "pet"),
            *(
                pytest.param(seed, key, marks=pytest.mark.slow)
                for seed, key in ((2, "mr"), (3, "mr"), (1, "pet"), (3, "pet"))
            ),
        ],
    )
    def test_a_good_start_is_not_made_worse(self, seed, key):
        pair = rigid_pair(seed, d=2, key=key, degrees=0.0, mm=0.0)
        found = stage(2)(pair.fixed, pair.moving, transform="affine")
        assert pair.error(found.map.points(pair.points)) < 0.5

    @pytest.mark.parametrize("transform", ["rigid", "affine"])
    def test_a_stretch_is_taken_only_where_it_is_allowed(self, transform):
        pair = rigid_pair(2, d=2, degrees=6.0, mm=5.0)
        grow = np.diag([1.12, 0.9, 1.0])
        moving = pair.moving.with_array(pair.moving.array, affine=grow @ pair.moving.affine)
        found = stage(2)(pair.fixed, moving, transform=transform)
        if transform == "rigid":
            assert_rigid(found.map.moving_from_fixed)
        else:
            assert found.transform == "affine"
            stretched = dataclasses.replace(pair, moving=moving, truth=grow @ pair.truth)
            error = stretched.error(found.map.points(pair.points))
            assert error < 2.0
            assert error < 0.35 * stretched.error_before

    def test_the_same_image_stays_where_it_is(self):
        pair = rigid_pair(2, d=2)
        found = stage(2)(pair.fixed, pair.fixed)
        shift = found.map.points(pair.points) - pair.points
        assert float(np.linalg.norm(shift, axis=1).mean()) < 0.3
        assert found.ok

    def test_the_same_bits_each_time(self, picture_result):
        pair = rigid_pair(1, d=2)
        again = stage(2)(pair.fixed, pair.moving)
        np.testing.assert_array_equal(numbers(again), numbers(picture_result[0]))

    @pytest.mark.parametrize("which", ["fixed", "moving"])
    def test_how_a_file_is_stored_does_not_matter(self, which, picture_result):
        pair = rigid_pair(1, d=2)
        image = getattr(pair, which)
        flip = np.diag([-1.0, 1.0, 1.0])
        flip[0, 2] = image.shape[0] - 1
        stored = image.with_array(image.array.flip(1), affine=image.affine @ flip)
        images = {"fixed": pair.fixed, "moving": pair.moving, which: stored}
        np.testing.assert_array_equal(numbers(stage(2)(**images)), numbers(picture_result[0]))

    def test_without_refinement(self):
        pair = rigid_pair(1, d=2)
        found = stage(2, refine_steps=0)(pair.fixed, pair.moving)
        assert pair.error(found.map.points(pair.points)) < 0.5 * pair.error_before

    def test_inputs_are_left_alone(self, picture_result):
        pair, before = rigid_pair(1, d=2), picture_result[1]
        assert torch.equal(pair.fixed.array, before[0])
        assert torch.equal(pair.moving.array, before[1])
        np.testing.assert_array_equal(pair.moving.affine, before[2])


@pytest.mark.parametrize("d", [2, 3])
def test_none_leaves_the_headers(d, volumes):
    pair = volumes if d == 3 else rigid_pair(1, d=2)
    found = stage(d)(pair.fixed, pair.moving, transform="none")
    assert found.transform == "none"
    np.testing.assert_array_equal(found.map.moving_from_fixed, np.eye(d + 1))
    assert float(found.map.ddf_mm.abs().max()) == 0.0
    assert found.evidence.similarity_before == found.evidence.similarity_after
    np.testing.assert_allclose(found.map.points(pair.points), pair.points, atol=1e-9)
    assert found.evidence.error_mm > 0  # trusted by the user, and looked at all the same
    # the probability was fitted to volumes
    assert 0 < found.evidence.over_5_mm < 1 if d == 3 else np.isnan(found.evidence.over_5_mm)


class TestMasks:
    @staticmethod
    def spoilt():
        """A pair whose moving image is nonsense in one third, and the mask of the rest."""
        pair = rigid_pair(3, d=2, degrees=8.0, mm=6.0)
        array = pair.moving.array.clone()
        cut = array.shape[1] // 3
        array[:, :cut] = array[:, :cut].flip(2) * 1.5
        open_part = torch.ones_like(array)
        open_part[:, : cut + 2] = 0
        moving = pair.moving.with_array(array)
        return dataclasses.replace(pair, moving=moving), moving.with_array(open_part)

    def test_of_the_moving_image(self):
        pair, mask = self.spoilt()
        found = stage(2)(pair.fixed, pair.moving, transform="rigid", moving_mask=mask)
        assert pair.error(found.map.points(pair.points)) < 1.5

    def test_of_the_reference(self):
        pair, mask = self.spoilt()
        back = np.linalg.inv(pair.truth)
        found = stage(2)(pair.moving, pair.fixed, transform="rigid", fixed_mask=mask)
        points = apply_affine(pair.truth, pair.points)
        error = np.linalg.norm(found.map.points(points) - apply_affine(back, points), axis=1)
        assert error.mean() < 1.5

    @pytest.mark.slow
    def test_an_empty_mask_moves_nothing_and_says_so(self):
        pair = rigid_pair(1, d=2)
        empty = pair.fixed.with_array(torch.zeros_like(pair.fixed.array))
        found = stage(2)(pair.fixed, pair.moving, fixed_mask=empty)
        assert not found.ok
        assert "share only 0%" in found.reason
        assert np.isfinite(numbers(found)).all()
        np.testing.assert_array_equal(found.map.moving_from_fixed, np.eye(3))


class TestDoubt:
    def test_images_that_hardly_meet(self):
        pair = rigid_pair(1, d=2)
        away = pair.moving.affine.copy()
        away[0, 2] += 400.0
        moving = pair.moving.with_array(pair.moving.array, affine=away)
        found = stage(2)(pair.fixed, moving, transform="none")
        assert not found.ok
        assert "of the smaller body" in found.reason

    @pytest.mark.slow
    def test_flat_images_give_no_nan(self):
        flat = Image(torch.zeros(1, 40, 33), np.diag([-1.0, -1.0, 1.0]), "mr")
        found = stage(2)(flat, flat)
        assert np.isfinite(numbers(found)).all()
        assert float(found.displacement_mm(flat).abs().max()) < 1e-3

    def test_a_reason_is_given_where_nothing_is_moved(self):
        pair = rigid_pair(2, d=2)
        found = stage(2)(pair.fixed, pair.fixed, transform="rigid")
        assert found.transform == "none"
        assert found.reason.startswith("left as it was: aligned already")
        assert found.ok


class TestSecondOpinions:
    """What the stage makes of a pose that the search thinks well of."""

    @staticmethod
    def found_by_search(monkeypatch, matrix):
        pose = Pose(matrix, matrix, start=0.5, rigid_score=0.9, score=0.9, distance_penalty=0.0)
        monkeypatch.setattr(chosen_pose, "find_pose", lambda *_, **__: pose)
        any_gain_will_do(monkeypatch)

    def test_a_pose_that_spoils_the_structure_is_not_taken(self, monkeypatch):
        pair = rigid_pair(2, d=2, degrees=0.0, mm=0.0)
        self.found_by_search(monkeypatch, rigid_matrix([15.0], [12.0, -9.0], [0.0, 0.0]))
        found = stage(2)(pair.fixed, pair.moving, transform="rigid")
        assert found.transform == "none"
        np.testing.assert_array_equal(found.map.moving_from_fixed, np.eye(3))
        assert "headers" in found.reason

    @pytest.mark.parametrize("degrees", [1.0, 15.0])
    def test_a_wrong_pose_is_not_taken(self, monkeypatch, degrees):
        pair = rigid_pair(2, d=2, degrees=0.0, mm=0.0)
        self.found_by_search(monkeypatch, rigid_matrix([degrees], [2.0, -1.0], [0.0, 0.0]))
        found = stage(2)(pair.fixed, pair.moving)
        np.testing.assert_array_equal(found.map.moving_from_fixed, np.eye(3))
        assert pair.error(found.map.points(pair.points)) < 1.0

    @pytest.mark.parametrize(("degrees", "mm"), [(8.0, 6.0), (5.0, 3.0)])
    def test_a_right_pose_is_taken_though_bent_headers_do_well(self, monkeypatch, degrees, mm):
        pair = rigid_pair(2, d=2, degrees=degrees, mm=mm)
        self.found_by_search(monkeypatch, pair.truth)
        found = stage(2)(pair.fixed, pair.moving)
        np.testing.assert_array_equal(found.map.moving_from_fixed, pair.truth)

    @pytest.mark.parametrize(
        ("mm", "explained", "still_seen", "taken"),
        [
            (5.0, -0.02, (2.0, 2.0), False),
            (60.0, -0.02, (2.0, 2.0), True),  # headers have to be clearly better than a far pose
            (60.0, -0.02, (1.0, 4.0), False),  # the network would move the far pose back
            (5.0, -0.02, (6.0, 2.0), True),  # the network would move the headers, not the pose
            (5.0, 0.02, (2.0, 2.0), False),  # better, but a small error is likelier than a large
            (5.0, 0.02, (1.0, 1.0), True),  # images that show so much are believed
            (5.0, -0.02, (1.0, 1.0), False),
        ],
    )
    def test_what_is_left_unexplained_and_what_the_network_still_sees_decide(
        self, monkeypatch, mm, explained, still_seen, taken
    ):
        pair = rigid_pair(2, d=2, degrees=0.0, mm=0.0)
        self.found_by_search(monkeypatch, rigid_matrix([0.0], [mm, 0.0], [0.0, 0.0]))
        left = iter([1.0, 1.0 - explained])
        seen = chain(still_seen, repeat(2.0))  # in mm; the last of them is the result's own
        monkeypatch.setattr(initial_alignment, "unexplained", lambda *_: next(left))
        monkeypatch.setattr(AlignedPair, "error_mm", property(lambda _: next(seen)))
        found = stage(2)(pair.fixed, pair.moving)
        moved = not np.array_equal(found.map.moving_from_fixed, np.eye(3))
        assert moved == taken

    @pytest.mark.parametrize(
        ("still_seen", "tried"),
        [
            ((4.1, 2.0), False),
            ((3.9, 2.0), True),
            ((1.8, 1.4), False),  # clear: less is enough
            ((1.7, 1.4), True),
            ((2.6, 1.5), True),
            ((1.3, 0.3), False),
        ],
    )
    def test_a_pose_after_which_far_less_error_is_seen_is_not_tried(
        self, monkeypatch, still_seen, tried
    ):
        pair = rigid_pair(2, d=2, degrees=0.0, mm=0.0)
        self.found_by_search(monkeypatch, rigid_matrix([0.0], [5.0, 0.0], [0.0, 0.0]))
        asked = []
        seen = chain(still_seen, repeat(2.0))
        monkeypatch.setattr(AlignedPair, "error_over", lambda *_: next(seen))
        monkeypatch.setattr(stages, "_less_similar", lambda *_: False)
        monkeypatch.setattr(stages, "initial_alignment_suffices", lambda *_, **__: asked.append(1))
        found = stage(2)(pair.fixed, pair.moving)
        assert bool(asked) == tried
        assert not np.array_equal(found.map.moving_from_fixed, np.eye(3))

    def test_pose_and_initial_alignment_are_tried_on_closer_nodes(self, monkeypatch):
        pair = rigid_pair(2, d=2, degrees=0.0, mm=0.0)
        self.found_by_search(monkeypatch, rigid_matrix([0.0], [9.0, 0.0], [0.0, 0.0]))
        asked = []

        def refined(of_fixed, of_moving, velocity, *, smoothness, **_):
            asked.append(smoothness)
            return velocity

        monkeypatch.setattr(stages, "refine", refined)
        stage(2)(pair.fixed, pair.moving)
        assert asked[:3] == [
            DECISION.trial_smoothness,
            DECISION.trial_smoothness,
            DEFORMATION.stiff,
        ]

    @pytest.mark.parametrize(
        ("keys", "still_seen", "falls", "rises", "refinements", "kept"),
        [
            # shares by which the stiff and the soft field change MIND and NMI, against the pose
            (("ct", "mr"), 1.0, (0.20, 0.40), (0.20, 0.40), [STIFF, INFORMED], "soft"),
            (("mr", "ct"), 1.0, (0.20, 0.40), (0.20, 0.40), [STIFF, INFORMED], "soft"),
            (("pet", "mr"), 1.0, (0.20, 0.40), (0.20, 0.40), [STIFF, INFORMED], "soft"),
            (("mr", "mr"), 2.0, (0.20, 0.40), (0.20, 0.40), [STIFF, SOFT], "soft"),
            (("mr", "ct"), 2.0, (0.20, 0.40), (0.20, 0.40), [STIFF], "stiff"),
            (("mr", "ct"), float("nan"), (0.20, 0.40), (0.20, 0.40), [STIFF], "stiff"),
            # a soft field that is worse than a stiff one that was kept, by either measure
            (("mr", "mr"), 1.0, (0.20, 0.19), (0.20, 0.40), [STIFF, SOFT], "stiff"),
            (("mr", "mr"), 1.0, (0.20, 0.40), (0.20, 0.22), [STIFF, SOFT], "stiff"),
            # the stiff field shows too little: a soft one is on trial, on clear images
            (("ct", "mr"), 1.0, (0.02, 0.04), (0.00, 0.10), [STIFF, INFORMED], "soft"),
            (("mr", "mr"), 1.0, (0.02, 0.04), (0.00, 0.10), [STIFF, SOFT], "soft"),
            (("mr", "mr"), 2.0, (0.02, 0.04), (0.00, 0.10), [STIFF], "none"),
            (("mr", "mr"), 1.0, (0.011, 0.04), (0.00, 0.10), [STIFF, SOFT], "soft"),
            (("mr", "mr"), 1.0, (0.009, 0.04), (0.00, 0.10), [STIFF], "none"),  # hopeless
            (("mr", "mr"), 1.0, (0.011, 0.04), (-0.5, 0.10), [STIFF, SOFT], "soft"),
            (("mr", "mr"), 1.0, (0.02, 0.033), (0.00, 0.10), [STIFF, SOFT], "none"),
            (("mr", "mr"), 1.0, (0.02, 0.04), (0.00, 0.07), [STIFF, SOFT], "none"),
            (("ct", "pet"), 1.0, (0.02, 0.09), (0.00, 0.20), [STIFF, INFORMED], "none"),
        ],
    )
    def test_a_field_is_soft_where_the_pair_and_what_is_seen_allow_it(
        self, monkeypatch, keys, still_seen, falls, rises, refinements, kept
    ):
        pair = rigid_pair(2, d=2, degrees=0.0, mm=0.0)
        fixed = dataclasses.replace(pair.fixed, key=keys[0])
        moving = dataclasses.replace(pair.moving, key=keys[1])
        tried = stage(2)
        lattice = stages.working_lattice(fixed, moving)
        known = torch.ones_like(fixed.array), torch.ones_like(moving.array)
        placed = tried._aligner((fixed, moving), known, lattice)(None)
        asked = []

        def refined(of_fixed, of_moving, velocity, *, steps, smoothness, information, coarse):
            asked.append((smoothness, information, coarse))
            return velocity + 1e-3  # one step further than what it began with

        def number(trial):  # 0: the pose, 1: the stiff field, 2: the soft one
            return 0 if trial.ddf is None else round(float(trial.ddf.mean()) / 2e-3)

        def similarity(trial):
            n = number(trial)
            return {
                "nmi": 1 + 0.1 * (1 + (0.0, *rises)[n]),
                "mind": 1 - (0.0, *falls)[n],
                "overlap": 1.0,
            }

        monkeypatch.setattr(stages, "refine", refined)
        monkeypatch.setattr(Lattice, "dims", 3)  # pictures stand for volumes: they are faster
        monkeypatch.setattr(AlignedPair, "similarity", property(similarity))
        monkeypatch.setattr(AlignedPair, "distance", lambda *_: 1.0)
        monkeypatch.setattr(AlignedPair, "error_mm", property(lambda _: still_seen))
        end = tried._deformed(placed, (fixed, moving))
        assert asked == refinements
        assert ("none", "stiff", "soft")[number(end)] == kept

    @pytest.mark.parametrize(
        ("start", "rigid", "affine", "less_similar", "asked"),
        [
            (0.5, 1.0, 1.0, False, True),  # twice their score
            (0.5, 1.2, 1.2, False, False),  # 2.4 times, and 0.7 nats
            (0.1, 0.6, 0.6, False, True),  # six times, and 0.5 nats
            (-0.1, 0.6, 0.6, False, False),
            (0.5, 1.05, 1.15, False, True),  # the affine pose, which is not taken, does not count
            (0.5, 1.2, 1.2, True, True),
        ],
    )
    def test_headers_are_no_rival_to_a_score_that_is_far_better(
        self, monkeypatch, start, rigid, affine, less_similar, asked
    ):
        pair = rigid_pair(2, d=2, degrees=0.0, mm=0.0)
        matrix = rigid_matrix([0.0], [9.0, 0.0], [0.0, 0.0])
        pose = Pose(
            matrix, matrix, start=start, rigid_score=rigid, score=affine, distance_penalty=0.0
        )
        monkeypatch.setattr(chosen_pose, "find_pose", lambda *_, **__: pose)
        any_gain_will_do(monkeypatch)
        monkeypatch.setattr(stages, "_less_similar", lambda *_: less_similar)
        monkeypatch.setattr(stages, "initial_alignment_suffices", lambda *_, **__: True)
        found = stage(2)(pair.fixed, pair.moving)
        assert np.array_equal(found.map.moving_from_fixed, np.eye(3)) == asked

    @pytest.mark.parametrize("same_person", [True, False])
    def test_between_people_any_stretch_counts_and_headers_do_not(self, monkeypatch, same_person):
        pair = rigid_pair(2, d=2, degrees=0.0, mm=0.0)
        rigid = rigid_matrix([0.0], [9.0, 0.0], [0.0, 0.0])
        stretched = rigid @ np.diag([1.05, 1.0, 1.0])
        pose = Pose(rigid, stretched, start=0.9, rigid_score=0.99, score=1.0, distance_penalty=0.0)
        monkeypatch.setattr(chosen_pose, "find_pose", lambda *_, **__: pose)
        monkeypatch.setattr(stages, "initial_alignment_suffices", lambda *_, **__: True)
        found = stage(2, same_person=same_person)(pair.fixed, pair.moving)
        kept = np.eye(3) if same_person else stretched
        np.testing.assert_array_equal(found.map.moving_from_fixed, kept)

    @pytest.mark.parametrize(
        ("falls", "rises", "kept"),
        [  # of the stiff, the soft and the softest field, against the pose
            ((0.1, 0.2, 0.3), (0.1, 0.2, 0.3), 3),
            ((0.1, 0.2, 0.3), (0.1, 0.2, 0.0), 2),
            ((0.1, 0.02, 0.02), (0.1, 0.2, 0.3), 1),
            ((0.02, 0.02, 0.02), (0.1, 0.2, 0.3), 0),
            ((0.1, 0.2, 0.3), (0.0, 0.0, 0.0), 0),
        ],
    )
    def test_between_people_the_field_ends_softest(self, monkeypatch, falls, rises, kept):
        pair = rigid_pair(2, d=2, degrees=0.0, mm=0.0)
        tried = stage(2, same_person=False)
        images = pair.fixed, pair.moving
        known = torch.ones_like(pair.fixed.array), torch.ones_like(pair.moving.array)
        placed = tried._aligner(images, known, stages.working_lattice(*images))(None)
        asked = []

        def refined(of_fixed, of_moving, velocity, *, smoothness, information, coarse, **_):
            asked.append((smoothness, information, coarse))
            return velocity + 1e-3

        def number(trial):
            return 0 if trial.ddf is None else round(float(trial.ddf.mean()) / 2e-3)

        def similarity(trial):
            n = number(trial)
            rise, fall = (0.0, *rises)[n], (0.0, *falls)[n]
            return {"nmi": 1.1 + 0.1 * rise, "mind": 1 - fall, "overlap": 1.0}

        monkeypatch.setattr(stages, "refine", refined)
        monkeypatch.setattr(AlignedPair, "similarity", property(similarity))
        monkeypatch.setattr(AlignedPair, "distance", lambda *_: 1.0)
        end = tried._deformed(placed, images)
        softest = DEFORMATION.softest, DEFORMATION.information, False
        assert asked == [STIFF, (DEFORMATION.soft, DEFORMATION.information, True), softest]
        assert number(end) == kept

    @pytest.mark.parametrize(
        ("keys", "still_seen", "transform", "mm", "placed_anew"),
        [
            (("ct", "mr"), 1.0, "rigid", 0.5, True),
            (("pet", "mr"), 1.4, "rigid", 1.9, True),
            (("ct", "mr"), 1.0, "deformable", 0.5, True),  # no deformation is kept, see below
            (("ct", "mr"), 1.0, "rigid", 2.1, False),  # it ran away
            (("ct", "pet"), 1.0, "rigid", 0.5, False),
            (("spect", "ct"), 1.0, "rigid", 0.5, False),
            (("ct", "mr"), 1.5, "rigid", 0.5, False),
            (("ct", "mr"), float("nan"), "rigid", 0.5, False),
            (("ct", "mr"), 1.0, "affine", 0.5, False),  # an affine pose
        ],
    )
    def test_a_rigid_result_of_clear_images_is_polished(
        self, monkeypatch, volumes, keys, still_seen, transform, mm, placed_anew
    ):
        fixed = dataclasses.replace(volumes.fixed, key=keys[0])
        moving = dataclasses.replace(volumes.moving, key=keys[1])
        rough = rigid_matrix([0.0] * 3, [9.0, 0.0, 0.0], [0.0] * 3)
        fine = rigid_matrix([0.0] * 3, [9.0 + mm, 0.0, 0.0], [0.0] * 3)
        asked = []
        score = 2.0 if transform == "affine" else 1.0
        pose = Pose(rough, rough, start=0.3, rigid_score=1.0, score=score, distance_penalty=0.0)
        monkeypatch.setattr(chosen_pose, "find_pose", lambda *_, **__: pose)
        monkeypatch.setattr(stages, "polished", lambda *given: asked.append(given) or fine)
        monkeypatch.setattr(stages, "_less_similar", lambda *_: False)
        monkeypatch.setattr(stages.Register, "_deformed", lambda _, start, __: start.undeformed)
        monkeypatch.setattr(AlignedPair, "error_mm", property(lambda _: still_seen))
        seen = property(lambda trial: trial.warped.arrays.image)
        monkeypatch.setattr(AlignedPair, "error_map_mm", seen)  # tells on what it was estimated
        found = stage(3)(fixed, moving, transform=transform)
        np.testing.assert_array_equal(found.map.moving_from_fixed, fine if placed_anew else rough)
        assert ("polished_mm" in found.evidence.details) == placed_anew
        if placed_anew:  # the report speaks of the pose that it holds
            assert found.evidence.details["polished_mm"] == pytest.approx(mm)
            assert [image.key for image in asked[0][:2]] == list(keys)
            np.testing.assert_array_equal(asked[0][3], rough)
            again = Pose(fine, fine, start=0.3, rigid_score=1.0, score=score, distance_penalty=0.0)
            monkeypatch.setattr(chosen_pose, "find_pose", lambda *_, **__: again)
            monkeypatch.setattr(stages, "_can_be_polished", lambda *_: False)
            there = stage(3)(fixed, moving, transform=transform)
            assert found.evidence.similarity_after == pytest.approx(
                there.evidence.similarity_after, abs=1e-6
            )
            assert not torch.equal(
                found.evidence.error_map_mm, there.evidence.error_map_mm
            )  # not made anew

    @pytest.mark.parametrize(
        ("key", "refined"), [("pet", False), ("spect", False), ("mr_t2", True), ("ct", True)]
    )
    def test_pictures_with_an_emission_image_are_not_refined(self, monkeypatch, key, refined):
        pair = rigid_pair(2, d=2, degrees=0.0, mm=0.0)
        asked = []
        monkeypatch.setattr(stages, "refine", lambda *given, **_: asked.append(given) or given[2])
        self.found_by_search(monkeypatch, np.eye(3))
        moving = dataclasses.replace(pair.moving, key=key)
        for same_person in (True, False):
            stage(2, same_person=same_person)(dataclasses.replace(pair.fixed, key="mr"), moving)
            assert bool(asked) == refined

    def test_pictures_are_not_polished(self, monkeypatch):
        pair = rigid_pair(2, d=2, degrees=0.0, mm=0.0)
        self.found_by_search(monkeypatch, rigid_matrix([0.0], [9.0, 0.0], [0.0, 0.0]))
        monkeypatch.setattr(stages, "_less_similar", lambda *_: False)
        monkeypatch.setattr(stages, "initial_alignment_suffices", lambda *_, **__: False)
        monkeypatch.setattr(AlignedPair, "error_mm", property(lambda _: 1.0))
        found = stage(2)(pair.fixed, pair.moving, transform="rigid")
        assert found.transform == "rigid"
        assert "polished_mm" not in found.evidence.details

    def test_a_criterion_asks_for_structure_and_for_information(self):
        @dataclasses.dataclass
        class Shown:
            similarity: dict[str, float]

        def shown(mind, nmi):
            return Shown({"mind": mind, "nmi": nmi})

        criterion, before = Criterion(0.03, 0.05), shown(0.5, 1.2)
        assert criterion.accepts(shown(0.484, 1.211), before)
        assert not criterion.accepts(shown(0.486, 1.211), before)
        assert not criterion.accepts(shown(0.484, 1.209), before)
        both = criterion.and_also(Criterion(0.01, 0.10))
        assert (both.structure, both.information) == (0.03, 0.10)

    def test_a_pose_that_makes_a_pet_less_similar_is_not_taken(self, monkeypatch):
        pair = rigid_pair(2, d=2, key="pet", degrees=0.0, mm=0.0)
        self.found_by_search(monkeypatch, rigid_matrix([0.0], [9.0, -6.0], [0.0, 0.0]))
        monkeypatch.setattr(standing, "STANDING", STANDING)  # the usual gain is asked for
        found = stage(2)(pair.fixed, pair.moving, transform="rigid")
        assert found.transform == "none"


class TestOptions:
    def test_a_working_spacing_is_taken(self):
        pair = rigid_pair(1, d=2)
        found = stage(2, working_spacing=2.5)(pair.fixed, pair.moving, transform="rigid")
        assert found.evidence.details["working_spacing_mm"] == pytest.approx(2.5)
        assert pair.error(found.map.points(pair.points)) < 2.5

    def test_bad_options_are_refused(self):
        with pytest.raises(ValueError, match="refine_steps >= 0, got -1"):
            stage(2, refine_steps=-1)
        for spacing in (0.0, -2.0, float("nan")):
            with pytest.raises(ValueError, match="working_spacing > 0 mm, got"):
                stage(2, working_spacing=spacing)

    def test_volumes_and_pictures_do_not_mix(self, volumes):
        picture = rigid_pair(1, d=2).fixed
        with pytest.raises(ValueError, match="expected 3D images, got 2D"):
            stage(3)(volumes.fixed, picture)

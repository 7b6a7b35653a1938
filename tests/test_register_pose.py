import numpy as np
import pytest
import torch
from register_cases import rigid_pair

import fusion_pipeline.register.pose as poses
from fusion_pipeline.data import Image
from fusion_pipeline.geometry import apply_affine, rigid_matrix, sample
from fusion_pipeline.geometry.filters import dilated
from fusion_pipeline.register.blur import gaussian_blur
from fusion_pipeline.register.lattice import read_on_lattice, working_lattice
from fusion_pipeline.register.point_score import Points, PointScore
from fusion_pipeline.register.pose import (
    find_pose,
    polished,
    pose_parameters,
)
from fusion_pipeline.register.pose_parameters import parameters_of, world_matrix
from fusion_pipeline.register.views import View, make_view, masked_field_of_view, smoothed


def search(pair, *, affine=False, masks=(None, None), **options):
    known = masked_field_of_view(pair.fixed, masks[0]), masked_field_of_view(pair.moving, masks[1])
    return find_pose(pair.fixed, pair.moving, known, affine=affine, **options)


def assert_rigid(matrix):
    d = len(matrix) - 1
    linear = matrix[:d, :d]
    np.testing.assert_allclose(linear @ linear.T, np.eye(d), atol=1e-9)
    assert np.linalg.det(linear) == pytest.approx(1.0, abs=1e-9)
    np.testing.assert_array_equal(matrix[d], [*[0.0] * d, 1.0])


class TestKnownMoves:
    # fast tests place the volume with an MR in test_register_stage
    @pytest.mark.slow
    @pytest.mark.parametrize("key", ["mr", "pet"])
    def test_ten_degrees_and_twelve_mm(self, key):
        pair = rigid_pair(3, key=key)
        pose = search(pair)
        assert_rigid(pose.rigid)
        np.testing.assert_array_equal(pose.rigid, pose.matrix)
        error = pair.error(apply_affine(pose.rigid, pair.points))
        assert error < pair.coarser_voxel
        assert error < 0.5 * pair.error_before
        assert pose.rigid_score > pose.start > 0

    @pytest.mark.parametrize(
        "seed", [1, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 3))]
    )
    def test_pictures(self, seed):
        pair = rigid_pair(seed, d=2, degrees=10.0, mm=6.0)
        pose = search(pair)
        assert_rigid(pose.rigid)
        error = pair.error(apply_affine(pose.rigid, pair.points))
        assert error < 1.0
        assert error < 0.25 * pair.error_before

    def test_an_aligned_pair_stays(self):
        pair = rigid_pair(2, d=2, degrees=0.0, mm=0.0)
        assert pair.error(apply_affine(search(pair).rigid, pair.points)) < 0.5

    @pytest.mark.slow
    def test_a_stretch_is_found_where_it_is_allowed(self):
        errors = {"rigid": 0.0, "affine": 0.0}
        grow = np.diag([1.08, 0.96, 1.0])
        for seed in (1, 2, 3):
            pair = rigid_pair(seed, d=2, degrees=4.0, mm=3.0)
            moving = pair.moving.with_array(pair.moving.array, affine=grow @ pair.moving.affine)
            known = masked_field_of_view(pair.fixed), masked_field_of_view(moving)
            pose = find_pose(pair.fixed, moving, known, affine=True)
            assert_rigid(pose.rigid)
            true = apply_affine(grow @ pair.truth, pair.points)
            for name, m in (("rigid", pose.rigid), ("affine", pose.matrix)):
                apart = np.linalg.norm(apply_affine(m, pair.points) - true, axis=1).mean()
                errors[name] += apart / 3
            assert apart < 1.25 * pair.coarser_voxel
        assert errors["affine"] < 0.7 * errors["rigid"]

    @pytest.mark.parametrize("swapped", [False, True])
    def test_points_may_come_from_either_image(self, swapped):
        pair = rigid_pair(3, d=2, degrees=6.0, mm=5.0)
        half = pair.moving.array[:, :, : pair.moving.shape[1] * 2 // 3]
        moving = pair.moving.with_array(half)  # shows less: the points then come from it
        images = (moving, pair.fixed) if swapped else (pair.fixed, moving)
        pose = find_pose(
            *images,
            (masked_field_of_view(images[0]), masked_field_of_view(images[1])),
            affine=False,
        )
        matrix = np.linalg.inv(pose.rigid) if swapped else pose.rigid
        assert pair.error(apply_affine(matrix, pair.points)) < 1.5

    def test_the_same_bits_each_time(self):
        pair = rigid_pair(1, d=2)
        first, second = (search(pair, affine=True, starts=150) for _ in range(2))
        np.testing.assert_array_equal(first.matrix, second.matrix)
        assert (first.start, first.score) == (second.start, second.score)

    def test_a_mask_hides_what_does_not_belong(self):
        pair = rigid_pair(1, d=2, degrees=8.0, mm=6.0)
        array = pair.moving.array.clone()
        cut = array.shape[1] // 3
        array[:, :cut] = array[:, :cut].flip(2) * 1.5
        moving = pair.moving.with_array(array)
        open_part = torch.ones_like(array)
        open_part[:, : cut + 2] = 0
        errors = []
        for mask in (None, moving.with_array(open_part)):
            known = masked_field_of_view(pair.fixed), masked_field_of_view(moving, mask)
            pose = find_pose(pair.fixed, moving, known, affine=False)
            errors.append(pair.error(apply_affine(pose.rigid, pair.points)))
        assert errors[1] < 1.0
        assert errors[1] < 0.5 * errors[0]

    def test_images_of_nothing_give_a_finite_pose(self):
        flat = Image(torch.zeros(1, 40, 33), np.diag([-1.0, -1.0, 1.0]), "mr")
        pose = find_pose(
            flat,
            flat,
            (masked_field_of_view(flat), masked_field_of_view(flat)),
            affine=True,
            starts=9,
        )
        assert np.isfinite(pose.matrix).all()
        nothing = torch.zeros_like(flat.array)
        pose = find_pose(flat, flat, (nothing, nothing), affine=False, starts=9)
        assert np.isfinite(pose.rigid).all()
        assert np.isfinite([pose.start, pose.score]).all()

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", [1, 2, 4, 5])
    @pytest.mark.parametrize("key", ["mr", "pet"])
    def test_more_patients(self, seed, key):
        pair = rigid_pair(seed, key=key)
        error = pair.error(apply_affine(search(pair).rigid, pair.points))
        assert error < pair.coarser_voxel


@pytest.mark.slow
class TestPolish:
    # each modality and each order once in the fast tests
    @pytest.mark.parametrize(
        ("key", "swapped"),
        [
            ("mr", True),
            ("pet", False),
            pytest.param("mr", False, marks=pytest.mark.slow),
            pytest.param("pet", True, marks=pytest.mark.slow),
        ],
    )
    def test_a_rough_pose_is_placed_more_exactly(self, key, swapped):
        pair = rigid_pair(3, key=key)
        half = pair.moving.array[:, :, : pair.moving.shape[1] * 3 // 4]
        moving = pair.moving.with_array(half)  # shows less: the points come from it
        centre = pair.points.mean(0).tolist()
        rough = pair.truth @ rigid_matrix([1.0, -0.8, 0.6], [0.9, -0.7, 0.8], centre)
        images = (moving, pair.fixed) if swapped else (pair.fixed, moving)
        known = masked_field_of_view(images[0]), masked_field_of_view(images[1])
        start = np.linalg.inv(rough) if swapped else rough
        matrix = polished(*images, known, start)
        assert_rigid(matrix)
        matrix = np.linalg.inv(matrix) if swapped else matrix
        before, after = (pair.error(apply_affine(m, pair.points)) for m in (rough, matrix))
        assert after < 0.5 * before

    def test_parameters_and_matrix_say_the_same(self):
        matrix = rigid_matrix([21.0, -13.0, 34.0], [7.0, -11.0, 5.0], [40.0, -20.0, 9.0])
        centre = torch.tensor([12.0, 30.0, -7.0])
        parameters = parameters_of(matrix, centre)
        np.testing.assert_allclose(world_matrix(parameters, centre), matrix, rtol=0, atol=2e-5)


class TestPointScore:
    @pytest.fixture
    def score(self):
        pair = rigid_pair(2, d=2, degrees=0.0, mm=0.0)
        views = [
            make_view(image, masked_field_of_view(image), spacing=2.0, blur_mm=1.0)
            for image in (pair.fixed, pair.moving)
        ]
        return PointScore(Points(views[0], 3000, seed=0), views[1])

    @staticmethod
    def shifts(*mm):
        still = torch.eye(2).expand(len(mm), 2, 2)
        return torch.cat([still, torch.tensor([[[x], [0.0]] for x in mm])], 2)

    def test_is_highest_where_the_images_agree(self, score):
        values = score(self.shifts(0.0, 3.0, -8.0, 30.0))
        assert values.argmax() == 0
        assert float(values[0]) > 2 * float(values[3])

    def test_far_away_is_worth_nothing(self, score):
        assert float(score(self.shifts(5000.0))[0]) == 0.0

    def test_a_batch_is_each_alone(self, score):
        together = score(self.shifts(0.0, 4.0, 9.0))
        alone = torch.cat([score(self.shifts(x)) for x in (0.0, 4.0, 9.0)])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)

    def test_the_slope_points_uphill(self, score):
        poses = self.shifts(2.5).requires_grad_()
        score(poses).sum().backward()
        assert float(poses.grad[0, 0, 2]) < 0

    def test_structure_tells_places_of_equal_values_apart(self):
        # stripes along one axis and along the other, grey values strewn alike
        stripes = torch.sin(torch.arange(60.0) / 2).expand(60, 60)
        views = [
            View(x[None, None] / 2 + 0.5, *[torch.ones(1, 1, 60, 60)] * 2, np.eye(3), False)
            for x in (stripes, stripes.T)
        ]
        score = [PointScore(Points(views[0], 2000, seed=0), view) for view in views]
        still = self.shifts(0.0)
        along, across = (float(s(still)[0]) for s in score)
        assert along > across + 0.5

    def test_blind_to_noise_it_tells_edges_and_nothing_else(self):
        # a step at 30, noise of its own on each image; only the step tells one place from another
        step = (torch.arange(60.0) >= 30).float().expand(60, 60) * 0.8
        noise = [
            0.02 * torch.randn(60, 60, generator=torch.Generator().manual_seed(k)) for k in (1, 2)
        ]
        images = [(step + n + 0.1)[None, None] for n in noise]
        views = [View(x, *[torch.ones(1, 1, 60, 60)] * 2, np.eye(3), False) for x in images]
        spread = []
        for blind in (False, True):
            points = Points(views[0], 2000, seed=0, blind=blind)
            far = (points.positions + points.centre)[:, 1].sub(30).abs() > 10
            spread.append(float(points.structure[far].std()))
            values = PointScore(points, views[1])(self.shifts_across(0.0, 6.0))
            assert values[0] > values[1]
        assert spread[1] < 0.6 * spread[0]

    @staticmethod
    def shifts_across(*mm):
        still = torch.eye(2).expand(len(mm), 2, 2)
        return torch.cat([still, torch.tensor([[[0.0], [x]] for x in mm])], 2)

    @pytest.mark.parametrize(
        ("d", "key", "blind"),
        [
            pytest.param(3, "mr", [1, 1, 0], marks=pytest.mark.slow),
            pytest.param(3, "pet", [1, 1, 1], marks=pytest.mark.slow),
            (2, "mr", [0, 0, 0]),
        ],
    )
    def test_only_the_finest_level_without_a_pet_sees_the_noise(self, monkeypatch, d, key, blind):
        asked = []

        class Counted(Points):
            def __init__(self, source, count, seed, *, blind, **others):
                asked.append(int(blind))
                super().__init__(source, 200, seed, blind=blind, **others)

        monkeypatch.setattr(poses, "Points", Counted)
        monkeypatch.setattr(poses, "_climb", lambda _, p, **__: (p, torch.zeros(len(p))))
        search(rigid_pair(1, d=d, key=key), starts=2)
        assert asked == blind

    def test_how_an_image_is_stored_does_not_matter(self):
        # descriptors are made along axes: a flipped and transposed copy must score the same
        pair = rigid_pair(2, d=2, degrees=0.0, mm=0.0)
        moving = pair.moving
        turned = moving.array.flip(1).transpose(1, 2).contiguous()
        swap = np.array([[0.0, -1.0, moving.shape[0] - 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        other = moving.with_array(turned, affine=moving.affine @ swap)
        fixed = make_view(pair.fixed, masked_field_of_view(pair.fixed), spacing=2.0, blur_mm=1.0)
        points = Points(fixed, 3000, seed=0)
        poses = self.shifts(0.0, 4.0)
        values = []
        for image in (moving, other):
            view = make_view(image, masked_field_of_view(image), spacing=2.0, blur_mm=1.0)
            values.append(PointScore(points, view)(poses))
        torch.testing.assert_close(values[0], values[1], atol=0.03, rtol=0.02)

    def test_a_turned_target_is_described_along_the_points_axes(self):
        pair = rigid_pair(2, d=2, degrees=30.0, mm=0.0)
        views = [
            make_view(image, masked_field_of_view(image), spacing=2.0, blur_mm=1.0)
            for image in (pair.fixed, pair.moving)
        ]
        points = Points(views[0], 3000, seed=0)
        d, c = 2, points.centre.numpy()
        true = pair.truth
        shift = true[:d, d] - c + true[:d, :d] @ c
        pose = torch.from_numpy(np.column_stack([true[:d, :d], shift]))[None].float()
        turned = PointScore(points, views[1], pose=true, room_mm=20.0)(pose)
        plain = PointScore(points, views[1])(pose)
        assert float(turned[0]) > float(plain[0])

    def test_how_many_numbers_a_pose_has(self):
        assert pose_parameters(2) == (1, 3)
        assert pose_parameters(3) == (3, 6)


class TestViews:
    def test_a_view_keeps_the_world(self, oblique_image):
        known = masked_field_of_view(oblique_image)
        view = make_view(oblique_image, known, spacing=4.0, blur_mm=2.0)
        np.testing.assert_allclose(np.linalg.norm(view.affine[:3, :3], axis=0), 4.0)
        middle = [
            apply_affine(a, (np.asarray(s) - 1) / 2)
            for a, s in (
                (view.affine, view.values.shape[2:]),
                (oblique_image.affine, oblique_image.shape),
            )
        ]
        np.testing.assert_allclose(middle[0], middle[1], atol=1e-9)
        assert 0 <= float(view.values.min()) < float(view.values.max()) <= 1
        assert view.dark_is_doubtful
        assert view.tissue_extent > 0

    @pytest.mark.parametrize("unit", [2.0**-40, 2.0**20])  # an ADC in m²/s is of 1e-9
    def test_a_view_does_not_depend_on_the_unit(self, unit):
        image = rigid_pair(2, d=2).moving
        views = [
            make_view(one, masked_field_of_view(one), spacing=3.0, blur_mm=1.0).values
            for one in (image, image.with_array(unit * image.array))
        ]
        torch.testing.assert_close(views[1], views[0], atol=1e-3, rtol=0)

    def test_along_another_view_the_world_stays(self, oblique_image):
        known = masked_field_of_view(oblique_image)
        view = make_view(oblique_image, known, spacing=3.0, blur_mm=1.0)
        straight = View(*[torch.zeros(1, 1, 9, 9, 9)] * 3, np.diag([3.0, 3.0, 3.0, 1.0]), False)
        turn = rigid_matrix([10.0, 0.0, -20.0], [5.0, 1.0, 2.0], [0.0] * 3)
        other = view.along(straight, turn, None)
        np.testing.assert_allclose(other.affine[:3, :3], (turn @ straight.affine)[:3, :3])
        middle = view.world(torch.tensor([[n / 2 for n in view.values.shape[2:]]]))
        read = [
            sample(v.values, torch.from_numpy(apply_affine(np.linalg.inv(v.affine), middle))[None])
            for v in (view, other)
        ]
        torch.testing.assert_close(read[0], read[1], atol=0.1, rtol=0.1)
        assert float(other.field_of_view.sum()) == pytest.approx(
            float(view.field_of_view.sum()), rel=0.1
        )
        near = view.along(straight, turn, 6.0)
        assert all(n <= 9 + 2 * 2 for n in near.values.shape[2:])
        nowhere = rigid_matrix([0.0] * 3, [9e3, 0.0, 0.0], [0.0] * 3)
        assert float(view.along(straight, nowhere, 6.0).field_of_view.sum()) == 0.0

    def test_a_grown_mask_is_a_box_larger(self):
        mask = torch.zeros(1, 1, 9, 11)
        mask[0, 0, 4, 5] = 1
        out = dilated(mask, 2.2)
        assert float(out.sum()) == 25
        assert bool((out[0, 0, 2:7, 3:8] == 1).all())
        assert float(dilated(mask, 0.1).sum()) == 9

    def test_without_tissue_the_lattice_is_the_measure(self, oblique_image):
        nothing = torch.zeros_like(oblique_image.array)
        view = make_view(oblique_image, nothing, spacing=4.0, blur_mm=0.0)
        assert view.tissue_extent == 0.0
        centre = apply_affine(view.affine, (np.asarray(view.values.shape[2:]) - 1) / 2)
        np.testing.assert_allclose(view.centre().numpy(), centre, atol=1e-3)

    def test_a_mask_on_any_lattice_counts(self, oblique_image, oblique_affine):
        turn = oblique_affine @ np.diag([-0.5, 1.0, 2.0, 1.0])
        turn[:3, 3] = apply_affine(oblique_affine, [19.5, 0.0, 0.5])
        half = torch.ones(1, 41, 24, 14)
        half[:, :20] = 0  # its first axis runs the other way, at half the voxel size
        known = masked_field_of_view(oblique_image, oblique_image.with_array(half, affine=turn))
        assert set(known.unique().tolist()) == {0.0, 1.0}
        assert bool((known[0, 11:, 2:-2, 2:-2] == 0).all())
        assert float(known[0, 1:9, 2:-2, 2:-2].mean()) == 1.0

    def test_a_blur_does_not_read_what_is_unknown(self):
        known = torch.ones(15, 20)
        known[:, 12:] = 0
        image = torch.full((15, 20), 3.0)
        other = image.clone()
        other[:, 12:] = -500.0
        for sigma in ((2.0, 1.0), (0.0, 2.0)):
            blurred = smoothed(other, known, sigma)
            torch.testing.assert_close(blurred[:, :12], image[:, :12])
        torch.testing.assert_close(smoothed(image, known, (0.0, 0.0)), image)

    def test_a_blur_of_what_is_all_known_is_the_plain_one(self):
        image = torch.randn((15, 20), generator=torch.Generator().manual_seed(0))
        known = torch.ones(15, 20)
        plain = smoothed(image, known, (1.0, 1.0))
        known[0, 0] = 0
        torch.testing.assert_close(smoothed(image, known, (1.0, 1.0))[6:, 6:], plain[6:, 6:])
        assert float(plain.std()) < 0.5 * float(image.std())


class TestLattice:
    def test_lies_between_both_images(self, oblique_image):
        coarse = oblique_image.with_array(
            oblique_image.array, affine=oblique_image.affine @ np.diag([3.0, 3.0, 3.0, 1.0])
        )
        fine = working_lattice(oblique_image, oblique_image)
        assert fine.spacing == pytest.approx(2.0)
        assert working_lattice(oblique_image, coarse).spacing == pytest.approx(3.30, abs=0.01)
        assert working_lattice(coarse, coarse).spacing == pytest.approx(4.0)
        assert all(n % 2 == 1 and n >= 17 for n in fine.shape)

    def test_takes_the_spacing_it_is_given(self, oblique_image):
        assert working_lattice(oblique_image, oblique_image, 2.5).spacing == pytest.approx(2.5)

    def test_stays_small_for_huge_images(self):
        huge = Image(torch.zeros(1, 1, 1, 1).expand(1, 600, 500, 700), np.eye(4), "ct")
        lattice = working_lattice(huge, huge)
        assert np.prod(lattice.shape) < 1.3e6

    def test_reads_an_image_at_its_pose(self):
        pair = rigid_pair(2, d=2, degrees=0.0, mm=0.0)
        lattice = working_lattice(pair.fixed, pair.moving, 2.0)
        known = masked_field_of_view(pair.moving)
        still = read_on_lattice(pair.moving, known, lattice)
        shift = rigid_matrix([0.0], [2 * lattice.spacing * s for s in (-1, 0)], [0.0, 0.0])
        # the picture's first axis runs to the left: two voxels on
        moved = read_on_lattice(pair.moving, known, lattice, shift)
        inner = (0, 0, slice(6, -8), slice(6, -6))
        ahead = (0, 0, slice(8, -6), slice(6, -6))
        assert still.image.shape == (1, 1, *lattice.shape)
        assert set(still.body.unique().tolist()) <= {0.0, 1.0}
        # normalized within its own body, hence not to the last digit
        assert float((moved.image[inner] - still.image[ahead]).abs().mean()) < 0.05


class TestPrior:
    """The headers decide where the images cannot."""

    @staticmethod
    def climbed(prior, far):
        """A pose that the images support along x, and say little about along y."""

        class Valley:
            centre = torch.zeros(2)

            def __call__(self, matrices):
                x, y = matrices[:, :, 2].T
                return 1 - 0.02 * (x - far) ** 2 - 0.0005 * (y - 7.0) ** 2

        found = torch.zeros(1, 6)
        found[0, 1:3] = torch.tensor([far, 7.0])
        return poses._climb(Valley(), found, steps=30, rate=0.6, prior=prior)

    def test_flat_directions_go_back_to_the_headers_and_steep_ones_stay(self):
        pose, score = self.climbed(0.3, 9.0)
        assert 0 < float(pose[0, 2]) < 4
        assert float(pose[0, 1]) == pytest.approx(9.0, abs=0.8)
        assert float(score[0]) == pytest.approx(1.0, abs=0.02)  # without the prior

    def test_without_it_nothing_moves(self):
        pose, _ = self.climbed(0.0, 9.0)
        assert pose[0, 1:3].tolist() == [9.0, 7.0]

    def test_large_moves_are_hardly_pulled(self):
        pose, _ = self.climbed(0.3, 60.0)
        assert float(pose[0, 1]) == pytest.approx(60.0, abs=0.05)
        assert float(pose[0, 2]) > 6.5


def test_a_blur_changes_nothing_beyond_its_reach_of_the_field_of_view():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(40, 31, 26, generator=generator)
    view = torch.zeros_like(image)
    view[14:22, 3:20, 9:26] = 1.0
    sigma = (2.0, 1.1, 0.0)
    total, share = (gaussian_blur(x, sigma) for x in (image * view, view))
    known = torch.where(share > 1e-3, total / share, image)
    assert torch.equal(smoothed(image, view, sigma), known)
    assert torch.equal(smoothed(image, torch.zeros_like(view), sigma), image)

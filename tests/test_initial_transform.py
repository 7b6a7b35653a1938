"""A given start of the registration: how it is read, tried, held by the images, and reported."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from pipeline_cases import small_network, write_case
from register_cases import itk_affine, itk_field, rigid_pair
from report_cases import moved_by, result_3d

from fusion_pipeline.data import InputError, NoOverlapError, case_from_entry, load_case
from fusion_pipeline.data.initial_transforms import read_initial_transform
from fusion_pipeline.geometry import apply_affine, rigid_matrix
from fusion_pipeline.register import Register
from fusion_pipeline.register.given_start import with_given_start
from fusion_pipeline.register.pose import find_pose
from fusion_pipeline.register.pose_parameters import nearest_parameters, world_matrix
from fusion_pipeline.register.views import masked_field_of_view
from fusion_pipeline.report.html import render_html
from fusion_pipeline.report.json_report import case_report

MATRIX = rigid_matrix((10.0, -20.0, 30.0), (40.0, -5.0, 12.0), (0.0, 0.0, 0.0))
STRETCHED = MATRIX @ np.diag([1.1, 0.9, 1.05, 1.0])


def written(matrix, path):
    """As a program of ITK writes it, or as text."""
    if path.name == "rows.txt":
        np.savetxt(path, matrix, header="RAS mm, from the report")
    else:
        sitk.WriteTransform(itk_affine(matrix), str(path))
    return path


class TestRead:
    @pytest.mark.parametrize("name", ["a.tfm", "a.h5", "a.txt", "a.mat", "rows.txt"])
    @pytest.mark.parametrize("matrix", [MATRIX, STRETCHED])
    def test_all_formats_say_the_same(self, tmp_path, name, matrix):
        path = written(matrix, tmp_path / name)
        read = read_initial_transform(path, 3, place="mr")
        np.testing.assert_allclose(read, matrix, rtol=0, atol=1e-9)

    def test_it_leads_from_the_reference_to_the_moving_image_as_in_simpleitk(self, tmp_path):
        path = written(STRETCHED, tmp_path / "a.tfm")
        point = np.array([12.0, -30.0, 44.0])
        theirs = sitk.ReadTransform(str(path)).TransformPoint((point * [-1, -1, 1]).tolist())
        ours = apply_affine(read_initial_transform(path, 3, place="mr"), point)
        np.testing.assert_allclose(ours, np.multiply(theirs, [-1, -1, 1]), atol=1e-9)

    def test_the_parts_of_a_composite_count_together(self, tmp_path):
        composite = sitk.CompositeTransform([itk_affine(MATRIX), itk_affine(STRETCHED)])
        sitk.WriteTransform(composite, str(tmp_path / "both.h5"))
        read = read_initial_transform(tmp_path / "both.h5", 3, place="mr")
        np.testing.assert_allclose(read, MATRIX @ STRETCHED, atol=1e-9)

    def test_commas_may_stand_between_the_numbers(self, tmp_path):
        (tmp_path / "m.csv").write_text("1,0,5\n0,1,-2\n0,0,1\n")
        read = read_initial_transform(tmp_path / "m.csv", 2, place="mr")
        np.testing.assert_array_equal(read, [[1, 0, 5], [0, 1, -2], [0, 0, 1]])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("1 0 0\n0 1 0\n0 0 1\n", "expected 4 rows of 4 numbers"),
            ("hello", "got other text"),
            ("1 0 0 0\n0 1 0 0\n0 0 1 0\n1 0 0 1\n", "got the last row 1 0 0 1"),
            ("1 0 0 0\n0 1 0 0\n0 0 nan 0\n0 0 0 1\n", "NaN or infinity"),
            ("-1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "mirrors or flattens"),
            ("1 0 0 0\n0 1 0 0\n0 0 0 0\n0 0 0 1\n", "mirrors or flattens"),
            ("", "expected an ITK transform"),
        ],
    )
    def test_what_is_no_affine_is_refused_in_one_line(self, tmp_path, text, message):
        (tmp_path / "m.txt").write_text(text)
        with pytest.raises(InputError, match=message) as refused:
            read_initial_transform(tmp_path / "m.txt", 3, place="case 'a', mr (m.txt)")
        assert str(refused.value).startswith("case 'a', mr (m.txt): expected ")
        assert "\n" not in str(refused.value)

    def test_a_deformation_a_missing_file_and_another_dimension_are_refused(self, tmp_path):
        field = itk_field(torch.ones(3, 4, 5, 6), np.eye(4))
        sitk.WriteTransform(field, str(tmp_path / "bent.h5"))
        flat = sitk.Euler2DTransform()
        sitk.WriteTransform(flat, str(tmp_path / "flat.tfm"))
        for name, message in (
            ("bent.h5", "expected an affine transform, got one with a displacement field"),
            ("none.tfm", "no such file"),
            ("none.txt", "no such file"),
            ("flat.tfm", "expected a transform for 3D images, got one for 2D"),
        ):
            with pytest.raises(InputError, match=message):
                read_initial_transform(tmp_path / name, 3, place="mr")


class TestLoad:
    def test_a_case_brings_it(self, tmp_path):
        entry = write_case(tmp_path, ("ct", "mr"))
        start = written(MATRIX, tmp_path / "rows.txt")
        case = load_case(case_from_entry({**entry, "mr_initial_transform": start}))
        np.testing.assert_allclose(case.series["mr"].initial_transform, MATRIX, atol=1e-9)
        assert case.series["ct"].initial_transform is None

    def test_images_that_only_the_transform_brings_together_are_taken(self, tmp_path):
        entry = write_case(tmp_path, ("ct", "mr"))
        far = written(rigid_matrix([0.0] * 3, [900.0, 0, 0], [0.0] * 3), tmp_path / "far.tfm")
        # where only the headers overlap, they are tried
        load_case(case_from_entry({**entry, "mr_initial_transform": far}))
        image = sitk.ReadImage(str(entry["mr"]))
        image.SetOrigin([x - 900 * (n == 0) for n, x in enumerate(image.GetOrigin())])
        sitk.WriteImage(image, str(entry["mr"]))
        with pytest.raises(NoOverlapError):
            load_case(case_from_entry(entry))
        load_case(case_from_entry({**entry, "mr_initial_transform": far}))

    def test_the_reference_has_none(self, tmp_path):
        entry = write_case(tmp_path, ("ct", "mr"))
        with pytest.raises(InputError, match="expected a initial_transform of a moving image"):
            case_from_entry({**entry, "ct_initial_transform": "a.tfm"})


@pytest.mark.parametrize("d", [2, 3])
def test_parameters_give_the_matrix_back(d):
    matrix = STRETCHED if d == 3 else rigid_matrix([25.0], [3.0, -8.0], [0.0] * 2)
    if d == 2:
        matrix = matrix @ np.diag([1.2, 0.8, 1.0])
    centre = torch.tensor([5.0, -3.0, 8.0][:d])
    whole = world_matrix(nearest_parameters(matrix, centre, strain=True)[0:1], centre)
    np.testing.assert_allclose(whole, matrix, atol=1e-4)
    rigid = world_matrix(nearest_parameters(matrix, centre)[0:1], centre)
    np.testing.assert_allclose(rigid[:d, :d] @ rigid[:d, :d].T, np.eye(d), atol=1e-6)
    c = centre.numpy()
    np.testing.assert_allclose(apply_affine(rigid, c), apply_affine(matrix, c), atol=1e-4)


class TestSearch:
    def pose(self, pair, given):
        fields = masked_field_of_view(pair.fixed), masked_field_of_view(pair.moving)
        return find_pose(pair.fixed, pair.moving, fields, affine=False, given=given, starts=80)

    @pytest.mark.slow
    def test_a_turn_that_the_search_does_not_reach_is_followed(self):
        pair = rigid_pair(1, d=2, degrees=150.0, mm=8.0)
        near = rigid_matrix([6.0], [2.0, -3.0], [0.0, 0.0]) @ pair.truth
        alone, given = self.pose(pair, None), self.pose(pair, near)
        assert pair.error(apply_affine(alone.rigid, pair.points)) > 10
        off = pair.error(apply_affine(near, pair.points))
        assert pair.error(apply_affine(given.rigid, pair.points)) < 0.3 * off
        assert given.score > max(given.given_score, given.start)
        assert given.distance_penalty < alone.distance_penalty + 1
        assert np.isnan(alone.given_score)

    def test_a_wrong_one_is_not_believed(self):
        pair = rigid_pair(2, d=2, degrees=8.0, mm=6.0)
        wrong = rigid_matrix([120.0], [60.0, 40.0], [0.0, 0.0])
        pose = self.pose(pair, wrong)
        assert pair.error(apply_affine(pose.rigid, pair.points)) < 1.0
        assert pose.given_score < pose.score


@pytest.fixture(scope="module")
def register():
    return Register(small_network(2).registration, refine_steps=0)


class TestStage:
    def test_with_none_it_is_the_result(self, register):
        pair = rigid_pair(1, d=2, degrees=8.0, mm=6.0)
        found = register(pair.fixed, pair.moving, transform="none", initial_transform=pair.truth)
        np.testing.assert_array_equal(found.map.moving_from_fixed, pair.truth)
        assert found.transform == "rigid"
        assert "the initial transform that was given" in found.reason
        given = found.evidence.given_start
        assert given.from_result_mm == pytest.approx(0, abs=1e-9)
        assert given.from_headers_mm > 3
        stretched = pair.truth @ np.diag([1.1, 1.0, 1.0])
        found = register(pair.fixed, pair.moving, transform="none", initial_transform=stretched)
        assert found.transform == "affine"

    @pytest.mark.slow
    def test_the_evidence_says_how_far_the_result_lies_from_it(self, register):
        pair = rigid_pair(1, d=2, degrees=150.0, mm=8.0)
        near = rigid_matrix([6.0], [2.0, -3.0], [0.0, 0.0]) @ pair.truth
        found = register(pair.fixed, pair.moving, transform="rigid", initial_transform=near)
        assert found.transform == "rigid"
        given = found.evidence.given_start
        assert 2 < given.from_result_mm < 30 < given.from_headers_mm
        details = found.evidence.details
        assert details["pose_score"] > max(details["pose_score_given"], details["pose_score_start"])
        np.testing.assert_array_equal(given.moving_from_fixed, near)


@pytest.mark.slow
def test_the_report_says_what_became_of_it():
    result = result_3d()
    found = result.registrations["mr_t1"]
    moved = with_given_start(found, result.case.fixed, found.map.moving_from_fixed)
    moved = moved_by(moved, found.map.moving_from_fixed)
    result = replace(result, registrations={**result.registrations, "mr_t1": moved})
    report = case_report(result, {})
    start = report["registration"]["mr_t1"]["initial_transform"]
    assert start["from_result_mm"] == pytest.approx(0, abs=1e-9)
    assert "initial_transform" not in report["registration"]["pet"]
    page = render_html(result, report)
    assert "mm from the headers, " in page
    assert page.count(">given; ") == 1

"""``report.json`` is strict, complete and says what was measured."""

import json
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import torch
from report_cases import SHIFT, TURN, moved_by, result_2d, result_3d

from fusion_pipeline.geometry import WorldMap, apply_affine, rigid_matrix
from fusion_pipeline.register import Evidence, Registration
from fusion_pipeline.report.json_report import case_report

KEYS = [
    "id",
    "reference",
    "modalities",
    "files",
    "grids",
    "registration",
    "harmonization",
    "fusion",
    "warnings",
    "versions",
    "timings",
    "peak_memory_mb",
]
FILES = {"registered": {"mr_t1": "mr_t1_registered.nii.gz"}, "fused": "fused.nii.gz"}


def refuse(name):
    raise AssertionError(f"{name} is not JSON")


def test_keys_are_those_of_the_contract_and_nan_is_null():
    report = case_report(result_3d(), FILES)
    text = json.dumps(report, allow_nan=False)
    assert json.loads(text, parse_constant=refuse) == report
    assert list(report) == KEYS
    assert report["modalities"] == ["ct", "mr_t1", "pet"]
    assert report["reference"] == "ct"
    assert report["registration"]["pet"]["error_mm"] is None
    assert report["registration"]["mr_t1"]["details"] == {"offset_mm": None, "engine": "features"}
    assert report["fusion"] == {"ssim": 0.7, "scd": None}
    assert report["harmonization"]["pet"] == {"edges_kept": 0.94}
    assert report["timings"] == {"register": {"wall_s": 3.1, "cpu_s": 5.9}}
    assert report["warnings"] == ["PET units were not named; SUV was assumed."]
    assert report["versions"]["torch"] == version("torch")


def test_grids_are_the_references_own_and_those_of_the_moving_images():
    result = result_3d()
    grids = case_report(result, FILES)["grids"]
    assert list(grids) == ["ct", "mr_t1", "pet"]
    assert grids["ct"]["affine"] == result.fusion.fused.affine.tolist()
    assert grids["pet"]["shape"] == list(result.case.images["pet"].shape)


def test_registration_says_what_was_found():
    result = result_3d()
    found = case_report(result, FILES)["registration"]
    mr, pet = found["mr_t1"], found["pet"]
    assert (mr["ok"], mr["transform"], mr["error_mm"]) == (True, "deformable", 1.6)
    assert (mr["over_5_mm"], pet["over_5_mm"]) == (0.034, None)
    assert mr["similarity_before"] == {"nmi": 1.1, "mind": 0.3}
    assert mr["similarity_after"] == {"nmi": 1.2, "mind": 0.4}
    assert mr["folded_fraction"] == 0.001
    assert (pet["ok"], pet["reason"]) == (False, "Less similar <after>.")
    assert pet["displacement_mm"] == {"mean": 0, "max": 0}


def test_pose_is_the_angle_and_the_shift_of_the_centre():
    result = result_3d()
    mr = case_report(result, FILES)["registration"]["mr_t1"]
    turn = rigid_matrix(TURN, SHIFT, (0.0, 0.0, 0.0))[:3, :3]
    cosine = (np.trace(turn) - 1) / 2
    assert mr["rotation_deg"] == pytest.approx(np.degrees(np.arccos(cosine)))
    fixed = result.case.fixed
    centre = apply_affine(fixed.affine, (np.asarray(fixed.shape) - 1) / 2)
    assert mr["translation_mm"] == pytest.approx(turn @ centre + SHIFT - centre)
    assert mr["scale"] == pytest.approx(1)
    assert np.asarray(mr["moving_from_fixed"]).shape == (4, 4)


def test_scale_and_displacement_of_a_known_affine():
    result = result_3d()
    grown = np.diag([1.1, 1.1, 1.1, 1.0])
    shifted = np.eye(4)
    shifted[:3, 3] = 3.0, 4.0, 0.0
    still = result.registrations["pet"]
    registrations = {
        "mr_t1": moved_by(still, grown),
        "pet": moved_by(still, shifted),
    }
    found = case_report(replace(result, registrations=registrations), FILES)["registration"]
    assert found["mr_t1"]["scale"] == pytest.approx(1.1)
    assert found["mr_t1"]["rotation_deg"] == pytest.approx(0, abs=1e-5)
    assert found["pet"]["displacement_mm"] == pytest.approx({"mean": 5.0, "max": 5.0})


def test_the_angle_is_that_of_the_rotation_in_a_stretched_turn():
    turn = rigid_matrix((0.0, 0.0, 30.0), SHIFT, (0.0, 0.0, 0.0))
    lean = rigid_matrix((20.0, 50.0, -35.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    stretch = lean @ np.diag([1.2, 0.9, 1.05, 1.0]) @ lean.T
    result = result_3d()
    found = moved_by(result.registrations["mr_t1"], turn @ stretch)
    report = case_report(replace(result, registrations={"mr_t1": found}), FILES)
    assert report["registration"]["mr_t1"]["rotation_deg"] == pytest.approx(30)


def test_two_dimensions_turn_by_one_angle():
    mr = case_report(result_2d(), FILES)["registration"]["mr"]
    assert mr["rotation_deg"] == pytest.approx(8)
    assert len(mr["translation_mm"]) == 2


def test_files_are_those_that_were_named():
    assert case_report(result_3d(), FILES)["files"] == FILES


def test_the_digest_and_the_evaluation_come_last_where_there_are_any():
    scores = {"mr_t1": {"tre_mm_before": 8.0, "tre_mm_after": float("nan")}}
    report = case_report(replace(result_3d(), evaluation=scores, input_digest="abc"), FILES)
    assert list(report) == [*KEYS, "input", "evaluation"]
    assert report["input"] == "abc"
    assert report["evaluation"] == {"mr_t1": {"tre_mm_before": 8.0, "tre_mm_after": None}}


def test_odd_values_become_plain():
    result = result_3d()
    details = {"a": np.float32(0.5), "b": torch.tensor([1, 2]), "c": ("x", None), "d": np.bool_(1)}
    found = Registration(
        WorldMap(np.eye(4), torch.zeros(3, 2, 2, 2), np.eye(4)), Evidence("none", details=details)
    )
    report = case_report(replace(result, registrations={"pet": found}), FILES)
    expected = {"a": 0.5, "b": [1, 2], "c": ["x", None], "d": True}
    assert report["registration"]["pet"]["details"] == expected

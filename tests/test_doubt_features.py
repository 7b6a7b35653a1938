"""Measures that may say whether a result is wrong, and the random cases that they are tried on."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from register_cases import rigid_pair

from fusion_pipeline.geometry import rigid_matrix
from fusion_pipeline.register.views import masked_field_of_view

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def features():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import doubt_features
    finally:
        sys.path.pop(0)
    return doubt_features


def row(patient, wrong, rng):
    """A result; of a wrong one the climbed poses disagree."""
    spread = 12.0 if wrong else 0.5
    rivals = [[spread * rng.random(), 1.0 - 0.01 * k] for k in range(3)]
    return {
        "patient": patient,
        "moving": "mr",
        "error_mm": 9.0 if wrong else 1.0,
        "over_5_mm": 0.3,
        "estimate_mm": 2.0 + 0.2 * rng.random(),
        "estimate_percentiles": [1.0, 2.0, 3.0],
        "before": {"nmi": 1.05, "mind": 0.3, "overlap": 0.9},
        "after": {"nmi": 1.1, "mind": 0.25, "overlap": 0.9},
        "details": {"pose_score_rigid": 1.0, "pose_score_start": 0.5},
        "move_mm": 10.0,
        "bend_mm": 0.0,
        "rivals": rivals,
    }


def test_what_tells_wrong_results_apart_judges_patients_it_was_not_fitted_on(features):
    rng = np.random.default_rng(0)
    rows = [row(f"p{n % 6}", n % 3 == 0, rng) for n in range(60)]
    patients = [one["patient"] for one in rows]
    judged = {
        name: features.judged_on_others(
            features.table(rows, [name]), features.wrong(rows), patients
        )
        for name in ("spread", "estimate")
    }
    assert judged["spread"].auroc > 0.95
    assert judged["estimate"].auroc < 0.75


def test_distances_count_by_how_well_the_poses_score(features):
    near, far = [1.0, 1.0], [30.0, 0.5]  # half a nat lower counts for nothing
    assert features.spread_mm([near, far]) == pytest.approx(features.spread_mm([near]), abs=1e-2)
    assert features.second_nats([near, far]) == pytest.approx(0.5)
    assert features.second_nats([near]) == 1.0


def test_random_cases_are_of_training_patients_and_the_same_again(features, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import doubt_rows

    entries = [{"id": name} for name in ("sts001", "sts015", "sts008", "sts050")]
    (tmp_path / "datalist.json").write_text(json.dumps({"ct_mr_pet_3d": entries}))
    cases = [doubt_rows.drawn(seed, tmp_path) for seed in range(300)]
    assert cases == [doubt_rows.drawn(seed, tmp_path) for seed in range(300)]
    patients = {case.patient for case in cases}
    assert not patients & {*doubt_rows.HELD_OUT, *(f"head{n}" for n in (15, 16, 17, 19, 20))}
    assert {"still", "near", "usual", "strong", "far"} == {case.move for case in cases}
    assert {("ct", "mr"), ("ct", "pet"), ("mr", "pet")} == {case.keys for case in cases}


@pytest.mark.slow
def test_a_right_pose_stands_on_a_hill_and_a_wrong_one_does_not(monkeypatch):
    """The score falls whichever way the truth is left; reruns of a wrong pose climb higher."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    around = importlib.import_module("doubt_measures").around
    pair = rigid_pair(3)
    views = masked_field_of_view(pair.fixed), masked_field_of_view(pair.moving)
    wrong = pair.truth @ rigid_matrix([6.0, 0.0, 0.0], [12.0, 0.0, 0.0], pair.points.mean(0))
    right, other = (
        around(pair.fixed, pair.moving, views, matrix, pair.points)
        for matrix in (pair.truth, wrong)
    )
    assert min(right["fall_6"]) > 0 > min(other["fall_6"])
    assert max(right["rerun_gain"]) < 0.05 < max(other["rerun_gain"])
    assert np.median(right["rerun_mm"]) < np.median(other["rerun_mm"])

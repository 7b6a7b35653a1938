"""The fit of the probability of an error over 5 mm: numbers of the package come from its table."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from fusion_pipeline.register.settings import RISK

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def doubt():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import doubt
    finally:
        sys.path.pop(0)
    return doubt


def test_the_packages_numbers_are_those_of_the_table(doubt):
    rows = doubt.training_rows(ROOT / "docs/history/doubt_rows.jsonl")
    held_out = {"sts008", "sts015", "sts026", "sts032", "sts035", "sts043", "sts047"}
    assert not held_out & {row["patient"] for row in rows}
    assert len(rows) == 150
    found = doubt.fitted(doubt.measures(rows), doubt.wrong(rows))
    expected = [RISK.offset, RISK.estimate, RISK.fall, RISK.stays]
    assert found == pytest.approx(expected, abs=2e-3)


def test_a_known_model_is_found_again(doubt):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4000, 2)) * [1.0, 3.0] + [0.5, -1.0]
    y = rng.random(4000) < expit(-0.7 + x @ [1.5, -0.4])
    assert doubt.fitted(x, y) == pytest.approx([-0.7, 1.5, -0.4], abs=0.15)


def test_the_order_of_wrong_and_right_results_and_their_flags(doubt):
    judged = doubt.Judged(np.array([0.9, 0.2, 0.6, 0.1]), np.array([True, False, False, False]))
    assert judged.auroc == 1
    assert judged.flagged(0.5) == pytest.approx((1, 1 / 3))
    assert judged.limit == 0.6  # none of three may be flagged at 15 %
    turned = doubt.Judged(1 - judged.probability, judged.wrong)
    assert turned.auroc == 0


def test_the_reliability_counts_each_result_once(doubt):
    probability = np.array([0.0, 0.05, 0.3, 0.5, 0.99, 1.0])
    judged = doubt.Judged(probability, probability > 0.4)
    inside = np.stack([one for _, _, one in judged.bins()])
    assert inside.sum(0).tolist() == [1] * 6
    assert "| 0.75 to 1.00 | 2 |" in doubt.markdown(judged, 0.4, "some")


def test_held_out_patients_are_not_fitted_to(doubt):
    with pytest.raises(SystemExit, match="expected training patients alone, got sts"):
        doubt.training_rows(ROOT / "docs/history/doubt_held_out.jsonl")


def test_the_package_is_judged_by_what_it_would_say(doubt):
    rows = doubt.read_rows(ROOT / "docs/history/doubt_held_out.jsonl")
    judged = doubt.Judged(doubt.probabilities(rows), doubt.wrong(rows))
    assert judged.auroc == pytest.approx(0.82, abs=0.005)  # as docs/history/doubt.md says

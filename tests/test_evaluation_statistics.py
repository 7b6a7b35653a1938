"""Statistics of scores, against scipy and by hand: ties, few patients, missing cases."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from fusion_pipeline.evaluation import Comparison, compare, holm, interval_of_mean, summarize


def single(values):
    """One case for each patient."""
    return {f"p{n}": [value] for n, value in enumerate(values)}


class TestSummary:
    def test_a_patient_counts_once_whatever_its_cases(self):
        found = summarize({"a": [1.0, 3.0], "b": [6.0], "c": [4.0]}, higher_is_better=False)
        assert (found.patients, found.cases, found.missing) == (3, 4, 0)
        assert found.mean == pytest.approx((2 + 6 + 4) / 3)
        assert found.median == 4
        assert found.sd == pytest.approx(np.std([2, 6, 4], ddof=1))

    def test_the_worst_third_is_the_high_end_of_errors_and_the_low_end_of_overlaps(self):
        values = single([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10])
        assert summarize(values, higher_is_better=False).worst == 9
        assert summarize(values, higher_is_better=True).worst == 2

    def test_missing_cases_are_counted_and_patients_without_any_are_left_out(self):
        found = summarize(
            {"a": [1.0, math.nan], "b": [math.nan], "c": [3.0]}, higher_is_better=False, missing=2
        )
        assert (found.patients, found.cases, found.missing) == (2, 2, 4)
        assert found.mean == 2

    def test_nobody(self):
        found = summarize({}, higher_is_better=True, missing=3)
        assert (found.patients, found.cases, found.missing) == (0, 0, 3)
        assert math.isnan(found.mean)


class TestInterval:
    def test_it_is_that_of_scipy(self):
        values = np.random.default_rng(1).gamma(2.0, size=30)
        expected = stats.bootstrap(
            (values,), np.mean, method="BCa", n_resamples=9_999, rng=np.random.default_rng(7)
        ).confidence_interval
        low, high = interval_of_mean(values)
        # two draws of resamples
        assert low == pytest.approx(expected.low, abs=0.03)
        assert high == pytest.approx(expected.high, abs=0.03)
        assert interval_of_mean(values) == (low, high)

    def test_it_covers_the_truth_as_often_as_it_says(self):
        rng = np.random.default_rng(2)
        inside = [
            low <= 5.0 <= high
            for low, high in (interval_of_mean(rng.normal(5.0, 2.0, 20)) for _ in range(60))
        ]
        assert 0.83 < np.mean(inside) <= 1.0  # 0.92 expected of 20 values; 60 trials

    def test_few_or_equal_values(self):
        assert all(math.isnan(end) for end in interval_of_mean(np.array([1.0, 2.0])))
        assert interval_of_mean(np.array([2.0, 2.0, 2.0])) == (2.0, 2.0)


class TestComparison:
    def test_exact_p_of_six_patients_by_hand(self):
        differences = np.array([1.0, -2.0, 3.0, 4.0, 5.0, 6.0])
        found = compare(single(differences), single(np.zeros(6)))
        ranks = np.arange(1, 7)
        sums = [np.dot(signs, ranks) for signs in itertools.product([0, 1], repeat=6)]
        # sum of the positive ranks: 19 of 21
        tail = np.mean(np.asarray(sums) >= 19)
        assert found.p == pytest.approx(2 * tail)
        assert found.effect == pytest.approx((19 - 2) / 21)
        assert found.mean == pytest.approx(differences.mean())

    def test_ties_and_zeros_are_scipys(self):
        a, b = [3.0, 3, 5, 5, 7, 1, 2, 2], [1.0, 1, 5, 3, 4, 2, 1, 1]
        found = compare(single(a), single(b))
        expected = stats.wilcoxon(np.array(a) - b).pvalue
        assert found.p == pytest.approx(expected)

    def test_only_common_patients_count_and_the_others_are_reported(self):
        found = compare({"a": [2.0], "b": [3.0], "x": [9.0]}, {"a": [1.0], "b": [1.0], "y": [0.0]})
        assert (found.patients, found.missing) == (2, 2)
        assert found.mean == 1.5

    def test_equal_methods_show_no_difference(self):
        found = compare(single([1.0, 2, 3, 4]), single([1.0, 2, 3, 4]))
        assert (found.p, found.effect, found.mean) == (1.0, 0.0, 0.0)
        assert found.verdict(higher_is_better=True) == "no difference shown"

    def test_three_patients_cannot_show_a_difference(self):
        found = compare(single([9.0, 8, 9]), single([1.0, 1, 2]))
        assert found.p == pytest.approx(0.25)
        assert found.verdict(higher_is_better=True) == "no difference shown"

    def test_three_patients_of_which_two_tie(self):
        a, b = [5.0, 5.0, 6.0], [1.0, 1.0, 1.0]
        found = compare(single(a), single(b))
        assert found.p == pytest.approx(stats.wilcoxon(np.array(a) - b).pvalue)
        assert (found.patients, found.effect) == (3, 1.0)

    def test_which_end_is_better(self):
        lower = compare(single(np.arange(10.0)), single(np.arange(10.0) + 2))
        assert lower.verdict(higher_is_better=False) == "better"
        assert lower.verdict(higher_is_better=True) == "worse"

    def test_the_corrected_p_decides(self):
        found = Comparison(9, 0, 1.0, 0.5, 1.5, p=0.02, effect=0.9, p_holm=0.08)
        assert found.verdict(higher_is_better=True) == "no difference shown"

    def test_nobody_in_common(self):
        found = compare({"a": [1.0]}, {"b": [1.0]})
        assert (found.patients, found.missing) == (0, 2)
        assert found.verdict(higher_is_better=True) == "no difference shown"


def test_holm_is_that_of_the_textbook_and_leaves_out_what_was_not_tested():
    given = [0.005, 0.011, math.nan, 0.02, 0.04, 0.13]
    found = holm(given)
    assert found[:2] == pytest.approx([0.025, 0.044])
    assert math.isnan(found[2])
    assert found[3:] == pytest.approx([0.06, 0.08, 0.13])

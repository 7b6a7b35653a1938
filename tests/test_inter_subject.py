"""The benchmark's Dice between heads of different people."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import inter_subject


def test_dice_is_a_mean_over_large_labels():
    fixed = np.repeat([0, 1, 2, 3], [2000, 1000, 1000, 10])
    assert inter_subject.dice(fixed, fixed) == 1.0
    half = fixed.copy()
    half[2000:2500] = 0  # label 1: 2 · 500 / 1500; label 3 is too small to count
    assert inter_subject.dice(fixed, half) == pytest.approx((2 / 3 + 1) / 2)
    assert inter_subject.dice(fixed, np.zeros_like(fixed)) == 0.0


def test_labels_are_read_where_the_points_lie():
    labels = np.arange(24).reshape(2, 3, 4)
    affine = np.array([[0.0, 2, 0, 5], [-1, 0, 0, 7], [0, 0, 3, -4], [0, 0, 0, 1]])
    index = np.indices(labels.shape).reshape(3, -1).T
    points = index @ affine[:3, :3].T + affine[:3, 3]
    found = inter_subject._labels_at(points + 0.4, labels, affine)
    np.testing.assert_array_equal(found, labels.ravel())
    assert inter_subject._labels_at(points[-1:] + 50, labels, affine).tolist() == [0]


def test_a_centred_brain_lies_on_the_origin():
    labels = np.zeros((9, 9, 9), int)
    labels[2:5, 3:6, 1:8] = 1
    affine = np.array([[-1.0, 0, 0, 40], [0, 0, 1, -30], [0, -1, 0, 50], [0, 0, 0, 1]])
    found = inter_subject.centred(affine, labels)
    np.testing.assert_allclose(found[:3, :3] @ [3, 4, 4] + found[:3, 3], 0, atol=1e-12)

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import apply_affine, inverse_affine, rigid_matrix

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from header_truth import apart, best_pose, contours_of, filled, in_common_view

SIZE = np.array([64, 56, 44])
WORLD = np.diag([2.0, 2.0, 3.0, 1.0])
MIDDLE = apply_affine(WORLD, (SIZE - 1) / 2)


def limb(key: str, image_from_reference: np.ndarray) -> Image:
    """A thigh: a shaft with marrow, a muscle with a lobe, fat; read after a pose."""
    voxels = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), -1).reshape(-1, 3)
    places = apply_affine(inverse_affine(image_from_reference), apply_affine(WORLD, voxels))
    x, y, z = (places - MIDDLE).T
    air, fat, muscle, cortex = (-1000, -100, 50, 1200) if key == "ct" else (5, 900, 300, 15)
    values = np.full(len(places), float(air))
    values[np.hypot(x, 1.2 * y + 0.08 * z) < 48] = fat
    values[np.hypot(x + 3 - 0.1 * z, y) < 34] = muscle
    for at in ((30, -4, 12), (-28, 8, -20), (2, 30, 0), (-4, -30, 30), (26, 6, -34)):
        values[np.sqrt((x - at[0]) ** 2 + (y - at[1]) ** 2 + (z - at[2]) ** 2) < 12] = muscle
    values[np.hypot(x - 5, y - 3 - 0.1 * z) < 13] = cortex
    values[np.hypot(x - 5, y - 3 - 0.1 * z) < 6] = fat
    values += np.random.default_rng(3).normal(0, 8, len(values))
    if key == "mr":
        values = np.clip(values, 1, None)
    return Image(torch.from_numpy(values.reshape(SIZE).astype(np.float32))[None], WORLD, key)


@pytest.mark.slow
def test_contours_find_a_pose_that_the_headers_do_not_know():
    pose = rigid_matrix([3.0, -4.0, 5.0], [5.0, -4.0, 4.0], MIDDLE)
    contours = contours_of(limb("ct", np.eye(4)), limb("mr", pose))
    assert set(contours) == {"fat", "skin", "bone"}
    seen = {name: contour.away(np.eye(4))[1] for name, contour in contours.items()}
    before, there = (sum(apart(contours, m, seen).values()) for m in (np.eye(4), pose))
    assert there < 0.7 * before
    found = best_pose(contours, starts=2)[0][1]
    inside = contours["fat"].points
    error = np.linalg.norm(apply_affine(found @ inverse_affine(pose), inside) - inside, axis=1)
    assert error.mean() < 1.0
    moved = np.linalg.norm(apply_affine(pose, inside) - inside, axis=1)
    assert moved.mean() > 6.0
    shift = np.eye(4)
    shift[:3, 3] = 0.0, 0.0, 40.0
    means = in_common_view(contours, {"right": pose, "wrong": np.eye(4), "away": shift @ pose})
    assert all(means["right"][name] < means["wrong"][name] - 0.5 for name in contours)


def test_what_one_pose_does_not_show_counts_for_none():
    contour = contours_of(limb("ct", np.eye(4)), limb("mr", np.eye(4)))["bone"]
    out = np.eye(4)
    out[:3, 3] = 0.0, 0.0, 50.0
    both = in_common_view({"bone": contour}, {"here": np.eye(4), "there": out})["here"]["bone"]
    away, here = contour.away(np.eye(4))
    there = contour.away(out)[1]
    assert 0 < (here & there).sum() < here.sum()
    assert both == pytest.approx(away[here & there].mean())


def test_marrow_is_inside_a_shaft_that_the_view_cuts():
    x, y, _ = np.meshgrid(*[np.arange(21)] * 3, indexing="ij")
    radius = np.hypot(x - 10, y - 10)
    ring = (radius < 8) & (radius > 4)
    np.testing.assert_array_equal(filled(ring), radius < 8)

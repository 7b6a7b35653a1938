"""What a result is worth where the truth is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_phantoms import case_of

from fusion_pipeline.data import Image
from fusion_pipeline.evaluation import evaluate, recovery_table
from fusion_pipeline.geometry import WorldMap
from fusion_pipeline.register import Evidence, Registration

SHAPE = (20, 24, 28)
AFFINE = np.array([[0, 1.5, 0, -20], [-1, 0, 0.2, 12], [0, 0.1, 3, -40], [0, 0, 0, 1.0]])
SHIFT = np.array([4.0, -3.0, 6.0])


def image(array, key="ct", affine=AFFINE):
    return Image(torch.as_tensor(array, dtype=torch.float32)[None], affine, key)


def ball(centre=(10, 12, 14), radius=6):
    index = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1)
    return np.linalg.norm(index - centre, axis=-1) < radius


def registration(shift):
    matrix = np.eye(4)
    matrix[:3, 3] = shift
    return Registration(WorldMap(matrix, torch.zeros(3, 2, 2, 2), AFFINE), Evidence("rigid"))


def result(found, **truth):
    """The moving image is the reference, moved by SHIFT in the world."""
    moved = AFFINE.copy()
    moved[:3, 3] += SHIFT
    ct = image(ball() * 1000.0 - 1000)
    mr = image(ball() * 300.0, "mr", moved)
    case = case_of("p", "ct", {"ct": ct, "mr": mr}, {"mr": "rigid"}, **truth)
    return SimpleNamespace(case=case, registrations={"mr": registration(found)})


def true_field():
    return torch.as_tensor(SHIFT).reshape(3, 1, 1, 1).expand(3, *SHAPE).float()


def test_a_true_field_is_met_in_mm():
    scores = evaluate(result(SHIFT, displacements={"mr": true_field()}))["mr"]
    assert scores["tre_mm_before"] == pytest.approx(np.linalg.norm(SHIFT))
    assert scores["tre_mm_after"] == pytest.approx(0, abs=1e-5)


def test_what_is_left_is_measured():
    scores = evaluate(result(SHIFT + np.array([0, 2, 0]), displacements={"mr": true_field()}))["mr"]
    assert scores["tre_mm_after"] == pytest.approx(2, abs=1e-5)
    assert scores["tre_mm_after_max"] == pytest.approx(2, abs=1e-5)


def test_the_field_counts_in_the_body_alone():
    field = true_field().clone()
    field[:, ~torch.as_tensor(ball(radius=7))] += 500
    scores = evaluate(result(SHIFT, displacements={"mr": field}))["mr"]
    assert scores["tre_mm_after"] < 1


def test_landmarks_are_met_in_mm():
    points = np.array([[0.0, 0, 0], [5, 10, -3]])
    marks = {"ct": points, "mr": points + SHIFT}
    scores = evaluate(result([0, 0, 0], landmarks=marks))["mr"]
    assert scores["landmarks_mm_before"] == scores["landmarks_mm_after"]
    assert scores["landmarks_mm_after"] == pytest.approx(np.linalg.norm(SHIFT))
    assert evaluate(result(SHIFT, landmarks=marks))["mr"]["landmarks_mm_after"] < 1e-6


def labels(**arrays):
    moved = AFFINE.copy()
    moved[:3, 3] += SHIFT
    affines = {"ct": AFFINE, "mr": moved}
    return {key: image(array, key, affines[key]) for key, array in arrays.items()}


def test_labels_overlap_after_and_less_before():
    maps = ball() + 1.0 * ball(radius=3)
    scores = evaluate(result(SHIFT, labels=labels(ct=maps, mr=maps)))["mr"]
    assert scores["dice_after"] == pytest.approx(1)
    assert scores["dice_before"] < 0.8
    assert scores["hd95_mm_after"] == pytest.approx(0)
    assert scores["hd95_mm_before"] > 2


def test_a_label_that_left_the_grid_has_no_distance():
    maps = labels(ct=ball(), mr=ball())
    scores = evaluate(result([500.0, 0, 0], labels=maps))["mr"]
    assert scores["dice_after"] == 0
    assert "hd95_mm_after" not in scores


def test_labels_without_a_partner_say_nothing():
    assert evaluate(result(SHIFT, labels=labels(ct=ball())))["mr"] == {}
    assert evaluate(result(SHIFT, labels=labels(ct=ball(), mr=2 * ball())))["mr"] == {}


def test_without_truth_there_is_nothing_to_say():
    assert evaluate(result(SHIFT)) == {"mr": {}}
    assert evaluate(result(SHIFT, landmarks={"mr": np.zeros((1, 3))})) == {"mr": {}}


def test_two_dimensions():
    affine = np.diag([-1.0, -1.0, 1.0])
    disc = np.zeros((24, 28))
    disc[6:18, 8:20] = 200
    field = torch.zeros(2, 24, 28)
    field[0] = 3.0
    images = {key: image(disc + np.arange(28), key, affine) for key in ("ct", "mr")}
    case = case_of("p", "ct", images, {"mr": "rigid"}, displacements={"mr": field})
    still = Registration(WorldMap(np.eye(3), torch.zeros(2, 2, 2), affine), Evidence("none"))
    found = SimpleNamespace(case=case, registrations={"mr": still})
    assert evaluate(found)["mr"]["tre_mm_after"] == pytest.approx(3)


def test_the_table_says_how_much_of_the_error_is_gone():
    scores = {
        "mr": {"tre_mm_before": 10.0, "tre_mm_after": 2.5},
        "pet": {"tre_mm_before": 0.0, "tre_mm_after": 0.0},
    }
    assert recovery_table(scores).splitlines() == [
        "mr: 10.00 mm before, 2.50 mm after, 75 % of the error gone",
        "pet: 0.00 mm before, 0.00 mm after, 0 % of the error gone",
    ]

"""Tests of `fusion_pipeline.register.sharpness` and of what is made of the images once."""

import numpy as np
import pytest
import torch
from register_cases import rigid_pair

from fusion_pipeline.geometry import inverse_affine, rigid_matrix
from fusion_pipeline.register import made_views
from fusion_pipeline.register.made_views import MadeViews
from fusion_pipeline.register.sharpness import falls_around
from fusion_pipeline.register.views import masked_field_of_view


@pytest.fixture(scope="module")
def pair():
    return rigid_pair(3)


def _given(pair):
    images = pair.fixed, pair.moving
    return images, tuple(masked_field_of_view(one) for one in images)


def test_the_score_falls_all_around_the_truth_and_less_around_a_wrong_pose(pair):
    away = rigid_matrix([6.0, 0.0, 0.0], [12.0, 0.0, 0.0], pair.points.mean(0))
    right = falls_around(*_given(pair), pair.truth)
    wrong = falls_around(*_given(pair), pair.truth @ away)
    assert right.shape == (12,)
    assert bool((right > 0).all())
    assert float(wrong.quantile(0.5)) < 0.5 * float(right.quantile(0.5))


def test_the_other_way_round_it_is_as_sharp(pair):
    images, fields = _given(pair)
    forth = falls_around(images, fields, pair.truth)
    back = falls_around(images[::-1], fields[::-1], inverse_affine(pair.truth))
    assert back.numpy() == pytest.approx(forth.numpy(), abs=1e-5)


def test_a_reference_is_looked_at_once_for_two_images(pair, monkeypatch):
    asked = []
    make = made_views.make_view

    def counted(image, field_of_view, **options):
        asked.append(image.key)
        return make(image, field_of_view, **options)

    monkeypatch.setattr(made_views, "make_view", counted)
    images, fields = _given(pair)
    other = images[1].with_array(images[1].array + 0.0)
    made, options = MadeViews(), {"spacing": 4.0, "blur_mm": 2.0}
    for moving in (images[1], other):
        made.hold((images[0], moving), fields)
        for image, view in zip((images[0], moving), fields, strict=True):
            first, second = (made.view(image, view.clone(), **options) for _ in range(2))
            assert first is second
    assert asked.count(images[0].key) == 1
    assert asked.count(images[1].key) == 2


def test_another_mask_is_another_view(pair):
    (image, _), (field, _) = _given(pair)
    made = MadeViews()
    made.hold([image], [field])
    half = field.clone()
    half[:, : half.shape[1] // 2] = 0
    whole, cut = (made.view(image, one, spacing=4.0, blur_mm=2.0) for one in (field, half))
    assert float(cut.field_of_view.mean()) < 0.7 * float(whole.field_of_view.mean())
    assert np.allclose(whole.affine, cut.affine)
    assert torch.equal(whole.values, made.view(image, field, spacing=4.0, blur_mm=2.0).values)


def test_the_same_values_at_another_place_are_another_view(pair):
    (image, _), (field, _) = _given(pair)
    affine = image.affine.copy()
    affine[0, 3] += 20
    moved = image.with_array(image.array, affine=affine)
    made = MadeViews()
    made.hold([image, moved], [field, field])
    here, there = (made.view(one, field, spacing=4.0, blur_mm=2.0) for one in (image, moved))
    assert there.affine[0, 3] - here.affine[0, 3] == pytest.approx(20)
    made.hold([moved], [field])
    again = made.view(moved, field, spacing=4.0, blur_mm=2.0)
    assert again is there

"""Axes exchanged and mirrored, and batches that are used twice."""

from collections import Counter

import pytest
import torch
from training_cases import SHAPE, data, painted

from fusion_pipeline.geometry import warp
from fusion_pipeline.training import PaintedSamples
from fusion_pipeline.training.turns import Turn, random_turn, turned, turned_field, turned_images


@pytest.mark.parametrize(
    "turn",
    [Turn((1, 2, 0), ()), Turn((0, 1, 2), (1,)), Turn((2, 0, 1), (0, 2)), Turn((1, 0, 2), (2,))],
)
def test_a_turned_field_moves_a_turned_image_as_the_field_moves_the_image(turn):
    sample = PaintedSamples(1, (20, 20, 20), seed=2)[0]
    moving = sample.image[None, 1:]
    after = turned(warp(moving, sample.ddf, fill=None), turn)
    assert torch.allclose(
        warp(turned(moving, turn), turned_field(sample.ddf, turn), fill=None), after, atol=1e-4
    )
    assert not torch.allclose(warp(turned(moving, turn), sample.ddf, fill=None), after, atol=0.1)


def test_a_turn_says_where_each_axis_goes():
    values = torch.arange(6).reshape(1, 2, 3)
    assert turned(values, Turn((1, 0), (0,)))[0].tolist() == [[2, 5], [1, 4], [0, 3]]


def test_all_parts_of_a_batch_are_turned_alike():
    batch = painted("harmonization", (24, 24), count=2)
    turn = Turn((1, 0), (1,))
    other = turned_images(batch, turn)
    for name in ("image", "valid", "body", "labels", "protocol"):
        assert torch.equal(getattr(other, name), turned(getattr(batch, name), turn))
    assert other.kinds == batch.kinds
    back = turned_images(turned_images(other, Turn((0, 1), (1,))), Turn((1, 0), ()))
    assert torch.equal(back.image, batch.image)
    assert torch.equal(back.ddf, batch.ddf)


def test_axes_are_exchanged_where_all_sides_are_equal():
    generator = torch.Generator().manual_seed(0)
    cubes = {random_turn((8, 8, 8), generator).order for _ in range(60)}
    assert len(cubes) == 6
    slabs = [random_turn((8, 8, 9), generator) for _ in range(60)]
    assert {one.order for one in slabs} == {(0, 1, 2)}
    counted = Counter(axis for one in slabs for axis in one.mirrored)
    assert all(15 < counted[axis] < 45 for axis in range(3))


def images(feed):
    return [batch.image for batch in feed.train_dataloader()]


def test_each_batch_comes_twice_and_the_second_time_turned():
    once, twice = images(data(samples_per_epoch=3)), images(data(samples_per_epoch=3, twice=True))
    assert len(data(samples_per_epoch=3, twice=True).train_dataloader()) == len(twice) == 6
    for number, image in enumerate(once):
        first, second = twice[2 * number : 2 * number + 2]
        assert torch.equal(first, image)
        assert second.shape == image.shape == (1, 2, *SHAPE)
        assert torch.equal(second.flatten().sort()[0], image.flatten().sort()[0])
    assert any(not torch.equal(a, b) for a, b in zip(twice[::2], twice[1::2], strict=True))


@pytest.mark.parametrize("done", range(7))
def test_a_stop_within_an_epoch_goes_on_with_the_next_turn(done):
    whole = images(data(samples_per_epoch=3, twice=True))
    feed = data(samples_per_epoch=3, twice=True)
    feed.load_state_dict({"epoch": 0, "batches": done})
    rest = images(feed)
    assert len(rest) == 6 - done
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[done:], strict=True))

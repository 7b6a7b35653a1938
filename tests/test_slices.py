"""Slices as pictures show them, on which the 2D networks are trained."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from slices import WINDOWS, as_picture, shown_range


@pytest.mark.parametrize("key", ["ct", "mr", "pet"])
def test_a_picture_holds_whole_numbers_of_eight_bits(key):
    image = torch.linspace(-1000.0 if key == "ct" else 0.0, 2000.0, 400).reshape(1, 20, 20)
    seen = torch.ones_like(image, dtype=torch.bool)
    picture = as_picture(image, *shown_range(image, seen, key, torch.Generator().manual_seed(0)))
    assert torch.equal(picture, picture.round())
    assert (float(picture.min()), float(picture.max())) == (0.0, 255.0)
    assert bool((picture.flatten().diff() >= 0).all())


def test_every_window_of_a_ct_is_drawn():
    image = torch.linspace(-1000.0, 2000.0, 3001).reshape(1, 1, -1)
    seen = torch.ones_like(image, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    found = set()
    for _ in range(40):
        picture = as_picture(image, *shown_range(image, seen, "ct", generator))
        shown = image[(picture > 0) & (picture < 255)]
        found.add(round(float(shown.max() - shown.min()), -1))
    assert len(found) == len(WINDOWS)


def test_what_is_not_seen_does_not_set_the_scale():
    image = torch.ones(1, 4, 4)
    image[0, 0] = 1000.0
    seen = image < 10
    picture = as_picture(image, *shown_range(image, seen, "mr", torch.Generator().manual_seed(0)))
    assert bool((picture == 255).all())

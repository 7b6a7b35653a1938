"""Colour maps of uptake: there and back, and pictures that were coloured by none of them."""

import nibabel as nib
import numpy as np
import pytest
import torch

from fusion_pipeline.data import (
    COLOUR_MAPS,
    Image,
    InputError,
    check_colour_map,
    coloured,
    read_image,
    uptake_of,
    write_colour,
)
from fusion_pipeline.data.palettes import palette

RAMP = torch.arange(256.0).view(1, 16, 16)


@pytest.mark.parametrize("name", COLOUR_MAPS)
def test_there_and_back(name):
    """As far as its colours differ: PET 20 step has twenty."""
    found = uptake_of(coloured(RAMP / 255, name))
    assert found is not None
    uptake, told = found
    again = torch.from_numpy(palette(told))[uptake.long()[0]].movedim(-1, 0)
    torch.testing.assert_close(again, coloured(RAMP / 255, name), atol=2, rtol=0)
    if name == "hot_iron":
        assert told == name
        torch.testing.assert_close(uptake, RAMP, atol=1, rtol=0)


def test_noise_of_a_compressed_picture_does_not_matter():
    noise = 4 * torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    uptake, name = uptake_of((coloured(RAMP / 255, "jet") + noise).clamp(0, 255))
    assert name == "jet"
    assert float((uptake - RAMP).abs().mean()) < 6


def test_grey_and_unknown_colours_tell_nothing():
    assert uptake_of(RAMP.repeat(3, 1, 1)) is None
    blue_to_pink = torch.cat([RAMP, 0 * RAMP + 30, 255 - 0.3 * RAMP])
    assert uptake_of(blue_to_pink) is None


def test_an_unknown_map_is_refused():
    with pytest.raises(InputError, match=r"colour_map: expected one of hot_iron, .* got 'grey'"):
        check_colour_map("grey")


@pytest.mark.parametrize(
    ("key", "name", "words"),
    [
        ("pet", "hot_iron", "those of hot_iron"),
        ("pet", None, "lie on no colour map"),
        ("mr", "hot_iron", None),
    ],
)
def test_pictures_are_read_as_uptake_where_they_can_be(tmp_path, key, name, words):
    unknown = torch.cat([RAMP, 0 * RAMP + 30, 255 - 0.3 * RAMP])
    colour = unknown if name is None else coloured(RAMP / 255, name)
    image = Image(RAMP, np.diag([-1.0, -1.0, 1.0]), key, colour=colour.round())
    write_colour(image, tmp_path / "a.png")
    found, warnings = read_image(str(tmp_path / "a.png"), key)
    assert [words in text for text in warnings] == [True] if words else warnings == []
    if name and words:
        torch.testing.assert_close(found.array, RAMP, atol=1, rtol=0)


def test_colour_is_written_as_rgb_voxels(tmp_path):
    """Datatype 128, each channel where it was, on the image's grid."""
    draw = torch.Generator().manual_seed(0)
    colour = torch.randint(0, 256, (3, 4, 5, 6), generator=draw).float()
    affine = np.diag([1.0, 1.5, 3.0, 1.0])
    write_colour(Image(colour[:1], affine, "fused", colour=colour), tmp_path / "a.nii.gz")
    file = nib.load(tmp_path / "a.nii.gz")
    assert int(file.header["datatype"]) == 128
    np.testing.assert_allclose(file.affine, affine)
    pixels = np.asarray(file.dataobj)
    for n, name in enumerate("RGB"):
        np.testing.assert_array_equal(pixels[name], colour[n].numpy())
    with pytest.raises(ValueError, match="expected an image in colour"):
        write_colour(Image(colour[:1], affine, "fused"), tmp_path / "b.nii.gz")

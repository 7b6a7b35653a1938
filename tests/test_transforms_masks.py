"""Body and field-of-view masks on phantoms whose truth is known."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from fusion_pipeline.geometry import identity_points, resample
from fusion_pipeline.transforms import BodyMask, FieldOfView, masks

SHAPE, SPACING = (56, 72, 40), (2.4, 2.0, 3.1)


def noise(shape, seed=0):
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))


def place(shape=SHAPE, spacing=SPACING):
    middle = (torch.tensor(shape) - 1) / 2
    return ((identity_points(shape) - middle) * torch.tensor(spacing)).unbind(-1)


def legs():
    """Two legs that lean apart, cut by both ends of the lattice; one of them holds a bone."""
    x, y, z = place()
    left = ((x + 30 + 0.1 * z) / 24) ** 2 + (y / 34) ** 2 < 1
    right = ((x - 30 - 0.1 * z) / 22) ** 2 + ((y - 4) / 30) ** 2 < 1
    bone = (x + 30 + 0.1 * z) ** 2 + y**2 < 9**2
    return left | right, bone


def chest():
    """An oval with two lungs that the ends of the lattice open."""
    x, y, _ = place()
    body = (x / 56) ** 2 + (y / 44) ** 2 < 1
    lungs = ((x.abs() - 26) / 16) ** 2 + (y / 26) ** 2 < 1
    return body, lungs


def dice(found, truth):
    return 2 * float((found & truth).sum()) / float(found.sum() + truth.sum())


def painted(modality, body, bright):
    air, flesh, other, sigma = {
        "ct": (-1000.0, 40.0, 1000.0, 20.0),
        "mr": (12.0, 300.0, 900.0, 9.0),
        "pet": (0.02, 0.5, 14.0, 0.05),
    }[modality]
    image = torch.where(body, flesh, air)
    image = torch.where(bright, other, image)[None] + sigma * noise(body.shape)
    return image if modality == "ct" else image.clamp_min(0)


@pytest.mark.parametrize("modality", ["ct", "mr", "pet"])
def test_two_legs_are_both_found(modality):
    body, bone = legs()
    found = BodyMask(modality)(painted(modality, body, bone), SPACING)
    assert found.dtype == torch.bool
    assert found.shape == (1, *SHAPE)
    assert dice(found[0], body) > {"ct": 0.98, "mr": 0.95, "pet": 0.92}[modality]


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_lungs_are_filled_although_the_lattice_cuts_them(modality):
    body, lungs = chest()
    image = painted(modality, body & ~lungs, torch.zeros_like(lungs))
    assert dice(BodyMask(modality)(image, SPACING)[0], body) > 0.95


@pytest.mark.parametrize("shape", [(20, 26), (14, 12, 10)])
def test_what_is_enclosed_is_what_scipy_fills(shape):
    mask = np.random.default_rng(0).random(shape) < 0.75
    d = len(shape)
    cross = ndimage.generate_binary_structure(d, 1)
    filled = masks._enclosed(mask, cross, range(d)) | mask
    np.testing.assert_array_equal(filled, ndimage.binary_fill_holes(mask))
    assert filled.sum() > mask.sum()
    layers = cross.copy()
    layers[tuple(slice(0, 3, 2) if a == 1 else slice(None) for a in range(d))] = False
    others = [a for a in range(d) if a != 1]
    np.testing.assert_array_equal(
        masks._enclosed(mask, layers, others) | mask, ndimage.binary_fill_holes(mask, layers)
    )


def test_the_table_is_left_out():
    body, bone = legs()
    _, y, _ = place()
    image = painted("ct", body, bone)
    table = ((y - 60).abs() < 2.5)[None]
    image = torch.where(table, -100.0, image)
    found = BodyMask("ct")(image, SPACING)
    assert not (found & table).any()
    assert dice(found[0], body) > 0.96


def test_fine_and_coarse_lattices_agree():
    body, bone = legs()
    image = painted("mr", body, bone)
    fine = image.repeat_interleave(3, 1).repeat_interleave(3, 2)
    small = BodyMask("mr")(image, SPACING)
    large = BodyMask("mr")(fine, (0.8, 2.0 / 3, 3.1))
    assert dice(large, small.repeat_interleave(3, 1).repeat_interleave(3, 2)) > 0.97


def test_a_picture_needs_no_third_axis():
    body, bone = (part[:, :, 20] for part in legs())
    image = painted("mr", body, bone)
    assert dice(BodyMask("mr")(image, (2.4, 2.0))[0], body) > 0.95


def test_padding_is_not_taken_for_air():
    body, bone = legs()
    image = painted("mr", body, bone) + 8.0
    image[:, :, :, :12] = 0.0
    truth = body.clone()
    truth[:, :, :12] = False
    found = BodyMask("mr")(image, SPACING)
    assert not found[..., :12].any()
    assert dice(found[0], truth) > 0.95


@pytest.mark.parametrize("modality", ["ct", "mr", "pet"])
def test_without_a_body_everything_counts(modality):
    flat = torch.full((1, *SHAPE), -1000.0 if modality == "ct" else 0.0)
    assert BodyMask(modality)(flat, SPACING).all()
    assert BodyMask(modality)(flat + 2000.0, SPACING).all()


def test_a_crop_without_air_is_all_body():
    x, _, _ = place()
    tissue = torch.where(x > 0, 400.0, 900.0)[None] + 20 * noise(SHAPE)
    assert BodyMask("mr")(tissue, SPACING).all()


def test_a_wrong_number_of_spacings_is_refused():
    with pytest.raises(ValueError, match="one positive spacing for each of 3 axes, got"):
        BodyMask("ct")(noise(SHAPE), (1.0, 1.0))


@pytest.mark.parametrize("fill", [0.0, -1024.0])
@pytest.mark.parametrize("degrees", [9.0, 27.0])
@pytest.mark.parametrize("shape", [(60, 76), (50, 60, 40)])
def test_a_turned_image_is_false_in_its_corners(shape, degrees, fill):
    d = len(shape)
    angle = math.radians(degrees)
    turn = torch.eye(d + 1, dtype=torch.float64)
    turn[:2, :2] = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    middle = (torch.tensor(shape, dtype=torch.float64) - 1) / 2
    turn[:d, d] = middle - turn[:d, :d] @ middle
    image = 100 + 20 * noise(shape)
    truth = resample(torch.ones_like(image)[None], turn, shape, fill=0.0)[0] > 0.5
    padded = torch.where(truth, resample(image[None], turn, shape, fill=fill)[0], fill)
    found = FieldOfView()(padded)
    assert not truth.all()
    assert dice(found, truth) > 0.995
    assert dice(~found, ~truth) > 0.9


def test_a_shifted_image_is_false_where_nothing_came_in():
    image = 100 + 20 * noise(SHAPE)
    image[:, :, -9:] = 0.0
    image[:, :4] = 0.0
    assert torch.equal(FieldOfView()(image), image != 0)


def test_large_lattices_are_judged_on_blocks_and_cut_to_the_voxel():
    shape = (172, 190, 20)
    x, y, _ = identity_points(shape).unbind(-1)
    truth = (x + 0.4 * y < 190) & (y > 10)
    found = FieldOfView()(torch.where(truth, 100 + 20 * noise(shape)[0], 0.0)[None])
    assert dice(~found[0], ~truth) > 0.97
    assert not (found[0] & (y <= 10)).any()


def test_masked_air_is_not_padding():
    body, bone = legs()
    x, y, z = place()
    image = painted("mr", body, bone) + 20
    assert FieldOfView()(torch.where(body, image, 0.0)).all()
    head = (x / 50) ** 2 + (y / 60) ** 2 + (z / 50) ** 2 < 1
    assert FieldOfView()(torch.where(head, image, 0.0)).all()
    assert FieldOfView()(torch.where(head, image, 0.0)[:, :, :, 20]).all()


@pytest.mark.parametrize("clip", [-2000.0, -1000.0])
def test_noisy_air_even_clipped_is_not_padding(clip):
    body, bone = legs()
    assert FieldOfView()(painted("ct", body, bone).clamp_min(clip)).all()


def test_a_constant_image_is_all_field_of_view():
    assert FieldOfView()(torch.zeros(1, 20, 30, 24)).all()


def test_arrays_are_taken_too():
    image = np.ones((1, 20, 30), np.int16)
    assert FieldOfView()(image).dtype == torch.bool


def test_a_field_of_view_that_is_a_tilted_sheet():
    """Its hull has no volume."""
    sheet = np.zeros((24, 24, 24), bool)
    sheet[np.arange(4, 20), 4:20, np.arange(4, 20)] = True
    assert not masks._is_cut_by_planes(sheet)

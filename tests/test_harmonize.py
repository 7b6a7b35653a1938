"""The harmonize stage: native grids, slabs, fields of view, scores."""

import numpy as np
import pytest
import torch
from scipy import ndimage

import fusion_pipeline.harmonize as stage
from fusion_pipeline.data import Image
from fusion_pipeline.harmonize import Harmonize
from fusion_pipeline.networks.harmonization_net import HarmonizationNet
from fusion_pipeline.transforms import BodyMask

AFFINE = np.array(
    [[1.4, 0.3, 0.0, -20.0], [-0.2, 1.5, 0.4, 8.0], [0.1, -0.3, 2.9, 40.0], [0, 0, 0, 1.0]]
)


def _patient(shape=(32, 30, 22)):
    """A body of two tissues with a bone, as CT, MR and PET on one grid."""
    grid = np.indices(shape)
    centre = [n / 2 for n in shape]
    radius = sum(((g - c) / c) ** 2 for g, c in zip(grid, centre, strict=True)) ** 0.5
    rng = np.random.default_rng(0)
    lumps = ndimage.gaussian_filter(rng.standard_normal(shape), 2) > 0
    body = radius < 0.85
    bone = radius < 0.2
    ct = np.select([bone, body & lumps, body], [900.0, 60.0, -90.0], -1000.0)
    mr = np.select([bone, body & lumps, body], [80.0, 300.0, 900.0], 5.0)
    pet = np.select([bone, body & lumps, body], [1.0, 0.9, 0.4], 0.02)
    pet[tuple(slice(n // 4, n // 4 + 4) for n in shape)] = 8.0
    noise = {"ct": 8.0, "mr": 9.0, "pet": 0.02}
    arrays = {"ct": ct, "mr": mr, "pet": np.abs(pet)}
    affine = AFFINE if len(shape) == 3 else np.diag([-1.0, -1.0, 1.0])
    images = {
        key: Image(
            torch.from_numpy(a + noise[key] * rng.standard_normal(shape)).float()[None], affine, key
        )
        for key, a in arrays.items()
    }
    valid = {key: torch.ones(1, *shape) for key in images}
    return images, valid


def _network(spatial_dims=3):
    torch.manual_seed(0)
    net = HarmonizationNet(spatial_dims, channels=8, cells=3)
    torch.nn.init.normal_(net.curve_head.weight, std=0.3)
    torch.nn.init.normal_(net.bias_head.weight, std=0.3)
    return net


def test_result_lies_on_the_reference_grid():
    images, valid = _patient()
    found = Harmonize(_network())(images, valid)
    assert list(found.images) == ["ct", "mr", "pet"]
    for key, image in found.images.items():
        assert image.shape == images[key].shape
        assert image.key == key
        assert image.units == "harmonized"
        np.testing.assert_array_equal(image.affine, images[key].affine)
        assert image.array.dtype == torch.float32
        assert 0 <= float(image.array.min()) < float(image.array.max()) <= 1


def test_is_the_network_on_the_image_and_its_body():
    images, valid = _patient()
    net = _network()
    found = Harmonize(net)(images, valid).images["ct"].array
    body = BodyMask("ct")(images["ct"].array, images["ct"].spacing.tolist()).float()
    with torch.no_grad():
        expected = net(images["ct"].array[None], "ct", valid["ct"][None], body[None])[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_the_way_back_to_own_units():
    images, valid = _patient()
    found = Harmonize(_network())(images, valid)
    for key, image in images.items():
        black = float(found.mappings[key].black)
        expected = image.array.clamp_min(black)
        width = float(image.array.max() - image.array.min())
        assert float((found.in_own_units(key) - expected).abs().max()) < 0.01 * width, key


def test_what_is_harmonized_stays_as_it_is():
    images, valid = _patient()
    once = Harmonize(_network())(images, valid)
    twice = Harmonize(_network())(once.images, valid)
    for key in images:
        assert torch.equal(twice.images[key].array, once.images[key].array)
    assert not twice.mappings


def test_bias_fields_turn_with_the_images():
    """In other axes the mapping still undoes the image."""
    images, valid = _patient()
    found = Harmonize(_network())(images, valid)
    turn = np.array([[0, 0, -1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    affine = AFFINE @ np.linalg.inv(turn)
    turned = found.along_axes_of(affine)
    assert turned.images["mr"].shape != found.images["mr"].shape
    expected = images["mr"].in_axes_of(affine).array
    expected = expected.clamp_min(float(found.mappings["mr"].black))
    error = (turned.in_own_units("mr") - expected).abs().max()
    assert float(error) < 0.01 * float(expected.max())


def test_slabs_change_nothing(monkeypatch):
    images, valid = _patient()
    whole = Harmonize(_network())(images, valid)
    monkeypatch.setattr(stage, "PART_VOXELS", 5 * 30 * 22)
    slabs = Harmonize(_network())(images, valid)
    for key in images:
        torch.testing.assert_close(
            slabs.images[key].array, whole.images[key].array, atol=1e-6, rtol=0
        )


def test_zero_outside_the_field_of_view():
    images, valid = _patient()
    valid["mr"][:, 22:] = 0
    full = Harmonize(_network())(images, valid)
    assert float(full.images["mr"].array[:, 22:].abs().max()) == 0
    # what stood there does not matter
    images["mr"] = images["mr"].with_array(torch.where(valid["mr"] > 0, images["mr"].array, 0.0))
    again = Harmonize(_network())(images, valid)
    torch.testing.assert_close(again.images["mr"].array, full.images["mr"].array, atol=0.02, rtol=0)


def test_no_field_of_view_at_all_is_zero():
    images, valid = _patient()
    valid["pet"] = torch.zeros_like(valid["pet"])
    found = Harmonize(_network())(images, valid)
    assert float(found.images["pet"].array.abs().max()) == 0
    assert all(np.isfinite(list(scores.values())).all() for scores in found.scores.values())


def test_scores_of_the_standard():
    images, valid = _patient()
    scores = Harmonize(HarmonizationNet())(images, valid).scores
    assert set(scores) == {"ct", "mr", "pet"}
    for key in scores:
        assert 0.8 < scores[key]["edges_kept"] <= 1
        assert 0.9 < scores[key]["information_kept"] <= 1
        assert 0.08 < scores[key]["spread"] < 0.4
    assert "agreement_before" not in scores["ct"]
    for key in ("mr", "pet"):
        assert {"agreement_before", "agreement_after"} <= set(scores[key])


def test_large_images_are_scored_on_small_copies(monkeypatch):
    images, valid = _patient()
    monkeypatch.setattr(stage, "_SCORE_SIZE", 16)
    scores = Harmonize(HarmonizationNet())(images, valid).scores
    assert scores["mr"]["edges_kept"] > 0.9


def test_two_dimensions_and_colour():
    images, valid = _patient((60, 52))
    luma = 255 * images["pet"].array / images["pet"].array.max()
    colour = luma.clamp_min(0).repeat(3, 1, 1) * torch.tensor([1.2, 1.0, 0.4]).view(3, 1, 1)
    images["pet"] = images["pet"].with_array(luma, colour=colour)
    found = Harmonize(_network(2))(images, valid)
    pet = found.images["pet"]
    assert pet.colour is not None
    assert pet.colour.shape == (3, 60, 52)
    assert found.images["ct"].colour is None
    assert float((pet.colour[0] - pet.colour[2])[images["pet"].array[0] > 100].min()) > 0


def test_same_input_same_output():
    images, valid = _patient()
    first, second = (Harmonize(_network())(images, valid) for _ in range(2))
    for key in images:
        assert torch.equal(first.images[key].array, second.images[key].array)
    assert first.scores == second.scores


def test_bool_fields_of_view():
    images, valid = _patient()
    as_bool = {key: v > 0 for key, v in valid.items()}
    one, other = Harmonize(_network())(images, valid), Harmonize(_network())(images, as_bool)
    assert torch.equal(one.images["ct"].array, other.images["ct"].array)


def test_errors_say_what_came():
    images, valid = _patient()
    run = Harmonize(_network())
    with pytest.raises(ValueError, match=r"expected a field of view of pet, .*, got nothing"):
        run(images, {"ct": valid["ct"], "mr": valid["mr"]})
    images["mr"] = images["mr"].with_array(images["mr"].array[:, :-1])
    with pytest.raises(ValueError, match=r"expected images of one shape.*\(31, 30, 22\)"):
        run(images, valid)

"""The same belief in the stages: thin padding, small voxels, any axes, no border of padding."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from fusion_pipeline.data import Image
from fusion_pipeline.data.image import along_axes_of
from fusion_pipeline.fuse import Fuse
from fusion_pipeline.geometry import rigid_matrix
from fusion_pipeline.geometry.filters import continued
from fusion_pipeline.harmonize import Harmonize
from fusion_pipeline.networks.fusion_net import FusionNet
from fusion_pipeline.networks.harmonization_net import HarmonizationNet
from fusion_pipeline.transforms import body_mask, field_of_view, masks

AFFINE = np.array(
    [[1.4, 0.3, 0.0, -20.0], [-0.2, 1.5, 0.4, 8.0], [0.1, -0.3, 2.9, 40.0], [0, 0, 0, 1.0]]
)


def moved(shape, degrees, floor, shift=(0.0, 0.0, 0.0)):
    """An MR resampled a little aside, exact zeros where it ends; and where these are."""
    rng = np.random.default_rng(0)
    i, j, k = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    body = (i / 0.8) ** 2 + (j / 0.75) ** 2 < 1
    tissue = np.where(body, 400 + 200 * np.sin(5 * i) * np.cos(4 * j + 3 * k), 0)
    acquired = np.abs(tissue + floor + 6 * rng.normal(size=shape)).clip(1)
    centre = (np.array(shape) - 1) / 2
    turn = rigid_matrix(degrees, (0, 0, 0), (0, 0, 0))[:3, :3]
    offset = centre - turn @ centre + shift
    out = ndimage.affine_transform(acquired, turn, offset, order=1, output=np.float32)
    return torch.from_numpy(out)[None]


class TestThinPadding:
    @pytest.mark.parametrize("shape", [(40, 36, 32), (96, 90, 40)])
    @pytest.mark.parametrize("degrees", [(0, 0, 2), (0, 0, 5), (3, 4, 5), (10, -8, 15)])
    @pytest.mark.parametrize("floor", [10, 300])
    def test_zeros_of_a_turned_image_are_not_seen(self, shape, degrees, floor):
        image = moved(shape, degrees, floor)
        view = field_of_view(image)
        zeros = image == 0
        assert zeros.float().mean() > 0.02
        assert (view & zeros).sum() <= 0.02 * zeros.sum()
        assert (view | zeros).all()

    @pytest.mark.parametrize("shift", [(1.5, 0, 0), (0, -2, 0), (0, 0, 1)])
    def test_a_shifted_images_layer_is_not_seen(self, shift):
        image = moved((40, 36, 32), (0, 0, 0), 10, shift)
        assert torch.equal(field_of_view(image), image != 0)

    def test_masked_air_and_ragged_air_are_seen(self):
        i, j, _ = np.meshgrid(*[np.linspace(-1, 1, n) for n in (40, 36, 32)], indexing="ij")
        body = (i / 0.97) ** 2 + (j / 0.95) ** 2 < 1  # nearly touches the faces
        flesh = 300 + 10 * np.random.default_rng(0).normal(size=body.shape)
        masked = torch.from_numpy(np.where(body, flesh, 0).astype(np.float32))[None]
        assert field_of_view(masked).all()
        noise = np.random.default_rng(1).normal(size=body.shape).clip(0)  # half of it is 0
        ragged = torch.from_numpy(np.where(body, flesh, noise).astype(np.float32))[None]
        assert field_of_view(ragged).all()


class TestSmallVoxels:
    def test_opening_by_distances_is_opening_by_a_ball(self, monkeypatch):
        rng = np.random.default_rng(0)
        for _ in range(12):
            shape = tuple(int(n) for n in rng.integers(6, 20, int(rng.integers(2, 4))))
            mask = ndimage.gaussian_filter(rng.normal(size=shape), 1.2) > 0
            spacing, radius = rng.uniform(0.5, 2, len(shape)), float(rng.uniform(1, 4))
            for step in (masks._opened, masks._closed):
                by_ball = step(mask, spacing, radius)
                monkeypatch.setattr(masks, "_BALL_VOXELS", 0)
                np.testing.assert_array_equal(step(mask, spacing, radius), by_ball)
                monkeypatch.undo()

    @pytest.mark.parametrize("size", [0.05, 0.1, 0.3])
    @pytest.mark.parametrize("modality", ["ct", "mr", "pet"])
    def test_a_small_body_is_found_in_few_steps(self, size, modality, monkeypatch):
        lengths = []
        ball = masks._ball
        monkeypatch.setattr(masks, "_ball", lambda r: lengths.append(int(r.max())) or ball(r))
        i, j, k = np.meshgrid(*[np.linspace(-1, 1, n) for n in (48, 44, 40)], indexing="ij")
        body = torch.from_numpy(i**2 + j**2 + 0.2 * k**2 < 0.5)[None]
        air, flesh, sigma = {"ct": (-1000, 40, 10), "mr": (5, 300, 5), "pet": (0.02, 1, 0.02)}[
            modality
        ]
        noise = sigma * torch.randn(body.shape, generator=torch.Generator().manual_seed(0))
        image = torch.where(body, flesh, air) + noise
        found = body_mask(image, (size,) * 3, modality)
        assert (found & body).sum() > 0.95 * body.sum()
        # lengths in mm shrink with the voxels: as in an animal whose voxels are 0.5 mm
        assert torch.equal(found, body_mask(image, (0.5,) * 3, modality))
        assert max(lengths, default=0) <= 10


def stored(images, views, affine):
    """The same on a grid with other axes."""
    there = {key: image.in_axes_of(affine) for key, image in images.items()}
    return there, {key: along_axes_of(affine, views[key], AFFINE) for key in images}


AXES = [((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (1, -1, 1)), ((1, 2, 0), (-1, -1, -1))]


@pytest.fixture(scope="module")
def unturned():
    """Images of two stages with where they are data, the stages, and what comes of them."""
    rng = np.random.default_rng(0)
    shape = (26, 22, 18)
    images, views = {}, {}
    for key, low in (("ct", -1000.0), ("mr", 0.0)):
        blobs = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5)
        values = low + 1100 * (blobs - blobs.min()) / np.ptp(blobs)
        images[key] = Image(torch.from_numpy(values).float()[None], AFFINE, key)
        views[key] = torch.ones(1, *shape)
    views["mr"][:, :, :5] = 0
    torch.manual_seed(0)
    harmonize, network = Harmonize(HarmonizationNet()), FusionNet()
    torch.nn.init.normal_(network.logit.weight, std=0.7)
    fuse = Fuse(network, steps=3)  # each step is the same arithmetic

    def run(given, fields):
        harmonized = harmonize(given, fields)
        return harmonized.images, fuse(harmonized.images, fields)

    return images, views, run, run(images, views)


@pytest.mark.parametrize(("order", "signs"), AXES)
def test_harmonize_and_fuse_do_not_depend_on_the_axes(unturned, order, signs):
    images, views, run, (expected, fusion) = unturned
    columns = [AFFINE[:3, a] * s for a, s in zip(order, signs, strict=True)]
    other = np.eye(4)
    other[:3, :3] = np.stack(columns, 1)
    there, found = run(*stored(images, views, other))
    for key, image in expected.items():
        assert there[key].shape != image.shape or order == (0, 1, 2)
        assert torch.equal(there[key].in_axes_of(AFFINE).array, image.array)
    assert torch.equal(found.fused.in_axes_of(AFFINE).array, fusion.fused.array)
    back = along_axes_of(AFFINE, found.weights, there["ct"].affine)
    assert torch.equal(back, fusion.weights)


def test_values_are_continued_by_one_voxel():
    values = torch.arange(12.0).reshape(1, 1, 3, 4)
    mask = torch.zeros(1, 1, 3, 4, dtype=torch.bool)
    mask[..., :2] = True
    out = continued(values, mask)
    assert torch.equal(out[..., :2], values[..., :2])
    assert torch.equal(out[..., 3], values[..., 3])
    assert out[0, 0, :, 2].tolist() == [3.0, 5.0, 7.0]  # means of the neighbours in the mask

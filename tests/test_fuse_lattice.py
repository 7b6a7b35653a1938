"""Tests of `fusion_pipeline.fuse.lattice`: volumes of voxels finer than what is decided on."""

import numpy as np
import pytest
import torch

from fusion_pipeline.data import Image
from fusion_pipeline.fuse import Fuse, lattice
from fusion_pipeline.fuse.lattice import block_means, in_detail, voxels_in_block
from fusion_pipeline.networks.fusion_net import FusionNet

_SHAPE, _BLOCK = (37, 41, 23), (2, 3, 2)


def _random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def _decided(count=2):
    """Images on a grid, what they show of it, and something decided on its lattice."""
    images, views = _random(count, *_SHAPE), _random(count, *_SHAPE, seed=1) > 0.1
    shown = torch.stack([block_means(i, v, _BLOCK)[0] for i, v in zip(images, views, strict=True)])
    weights = _random(*shown.shape, seed=2)
    weights = weights / weights.sum(0)
    decided = (weights * shown).sum(0, keepdim=True)
    return decided, weights, shown, torch.ones_like(shown), [*images], views, _BLOCK


@pytest.mark.parametrize(
    ("shape", "spacing", "block"),
    [
        ((512, 512, 250), (0.8, 0.8, 1.0), (2, 2, 1)),
        ((160, 160, 60), (0.98, 0.98, 3.27), (1, 1, 1)),
        ((512, 512, 300), (0.5, 0.5, 0.5), (3, 3, 3)),
        ((512, 512), (0.3, 0.3), (1, 1)),
        ((140, 70, 1), (0.4, 0.4, 0.4), (4, 2, 1)),
        ((900, 900, 900), (0.05, 0.05, 0.05), (4, 4, 4)),
    ],
)
def test_blocks_are_of_at_most_1_6_mm(shape, spacing, block):
    assert voxels_in_block(shape, spacing) == block


def test_means_are_of_blocks_that_are_seen_whole():
    values, view = torch.full((5, 4, 4), 0.5), torch.ones(5, 4, 4, dtype=torch.bool)
    values[0], view[0] = 9.0, False
    view[:, 2:, 2:] = False
    means, seen = block_means(values, view, (2, 2, 2))
    assert means.shape == seen.shape == (3, 2, 2)
    assert means[seen] == pytest.approx(0.5)  # of the last blocks too, half of which lie beyond
    assert not seen[0].any()
    assert not seen[:, 1, 1].any()
    assert seen.sum() == 6
    assert (means[~seen] == 0).all()


def test_one_image_comes_out_as_it_is():
    _, _, shown, kept, images, views, block = _decided(count=1)
    fused, weights = in_detail(shown, torch.ones_like(shown), shown, kept, images, views, block)
    assert fused[0].numpy() == pytest.approx((images[0] * views[0]).numpy(), abs=1e-6)
    assert torch.equal(weights, views.float())


def test_parts_leave_no_seam(monkeypatch):
    given = _decided()
    whole = in_detail(*given)
    monkeypatch.setattr(lattice, "_VOXELS", 1)  # the thinnest
    for one, other in zip(whole, in_detail(*given), strict=True):
        assert one.numpy() == pytest.approx(other.numpy(), abs=1e-6)
    means = [block_means(i, v, _BLOCK)[0] for i, v in zip(given[4], given[5], strict=True)]
    assert torch.stack(means).numpy() == pytest.approx(given[2].numpy(), abs=1e-6)


def test_weights_sum_to_one_where_something_is_seen():
    given = _decided()
    fused, weights = in_detail(*given)
    views = given[5]
    assert (weights[~views] == 0).all()
    assert weights.sum(0).numpy() == pytest.approx(views.any(0).float().numpy(), abs=1e-5)
    assert (fused[0][~views.any(0)] == 0).all()


def test_an_edge_finer_than_the_lattice_is_not_thinned():
    """A line of one voxel in one image, where the other is flat, keeps its contrast."""
    line, flat = torch.full((24, 24, 8), 0.4), torch.full((24, 24, 8), 0.4)
    line[11] = 0.8
    views, block = torch.ones(2, 24, 24, 8, dtype=torch.bool), (2, 2, 1)
    shown = torch.stack([block_means(i, views[0], block)[0] for i in (line, flat)])
    half = torch.full_like(shown, 0.5)
    decided = shown.mean(0, keepdim=True)
    fused, _ = in_detail(decided, half, shown, torch.ones_like(shown), [line, flat], views, block)
    middle = fused[0, :, 12, 4]
    finer = line[:, 12, 4] - shown[0, :, 6, 4].repeat_interleave(2)
    own = float(finer[11] - finer[9])
    assert float(middle[11] - middle[9]) > 0.5 * 0.2 + 0.8 * own


def _volume(spacing, size=48.0):
    """CT and MR of a ball and a rod, on a grid over a cube of so many mm."""
    n = round(size / spacing)
    at = (torch.arange(n) + 0.5) * spacing - size / 2
    x, y, z = torch.meshgrid(at, at, at, indexing="ij")
    ball = torch.sigmoid(18.0 - (x**2 + y**2 + z**2).sqrt())
    rod = torch.sigmoid(6.0 - (x**2 + y**2).sqrt())
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = (spacing - size) / 2
    arrays = {"ct": 0.3 * ball + 0.5 * rod * ball, "mr": 0.6 * ball - 0.4 * rod * ball}
    images = {key: Image(a[None], affine, key) for key, a in arrays.items()}
    return images, {key: torch.ones(1, n, n, n) for key in images}


def _network():
    torch.manual_seed(0)
    network = FusionNet(3)
    torch.nn.init.normal_(network.logit.weight, std=0.2)
    return network


@pytest.mark.parametrize("steps", [0, 6])
def test_a_finer_grid_gives_what_the_coarser_gives(steps):
    """Of a smooth patient who is stored twice as fine, the same image comes out."""
    fuse = Fuse(_network(), steps=steps)
    coarse, fine = (fuse(*_volume(spacing)) for spacing in (1.5, 0.75))
    assert fine.fused.shape == (64,) * 3
    assert np.allclose(fine.fused.affine, _volume(0.75)[0]["ct"].affine)
    means = torch.nn.functional.avg_pool3d(fine.fused.array[None], 2)[0]
    assert float((means - coarse.fused.array).abs().mean()) < 0.004
    weights = torch.nn.functional.avg_pool3d(fine.weights[None], 2)[0]
    assert float((weights - coarse.weights).abs().mean()) < 0.01
    assert fine.weights.sum(0).numpy() == pytest.approx(1.0, abs=1e-5)
    assert set(fine.scores) == set(coarse.scores)


def _halved(images, fields, key):
    """A field of view that ends in the middle of a block."""
    fields = {k: v.clone() for k, v in fields.items()}
    fields[key][:, :31] = 0
    return images, fields


def test_beyond_an_image_the_other_comes_out_as_it_is():
    images, fields = _halved(*_volume(0.75), "mr")
    fused = Fuse(_network(), steps=0)(images, fields)
    apart = (fused.fused.array[0] - images["ct"].array[0]).abs()
    assert float(apart[:28].max()) < 1e-4
    assert float(apart[:31].max()) < 0.02
    assert (fused.weights[1, :31] == 0).all()


def test_what_lies_outside_a_field_of_view_is_not_seen():
    images, fields = _volume(0.75)
    images["pet"] = images["mr"].with_array(images["mr"].array.clone(), key="pet")
    images, fields = _halved(images, {**fields, "pet": fields["mr"]}, "pet")
    masked = {**images, "pet": images["pet"].with_array(images["pet"].array * fields["pet"])}
    fuse = Fuse(_network(), steps=0)
    one, other = fuse(images, fields), fuse(masked, fields)
    assert torch.equal(one.fused.array, other.fused.array)
    assert torch.equal(one.colour.colour, other.colour.colour)
    assert one.scores == other.scores


@pytest.mark.parametrize("spacing", [1.5, 0.75])
def test_the_order_of_the_displayed_images_changes_nothing(spacing):
    images, fields = _volume(spacing)
    fuse = Fuse(_network(), steps=0)
    one = fuse(images, fields, images)
    other = fuse(images, fields, dict(reversed(images.items())))
    assert torch.equal(one.fused.array, other.fused.array)

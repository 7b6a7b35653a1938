from dataclasses import astuple, replace

import numpy as np
import pytest
import torch

from fusion_pipeline.geometry import compose, warp
from fusion_pipeline.metrics import mind_distance, normalized_mutual_information
from fusion_pipeline.networks.registration_net import RegistrationNet
from fusion_pipeline.register.aligned_pair import AlignedPair, ImagePair, LatticeImage
from fusion_pipeline.register.lattice import Lattice, LatticeArrays

SHAPES = {2: (33, 37), 3: (33, 35, 37)}
SPACING = 2.5


def network(d):
    torch.manual_seed(0)
    net = RegistrationNet(d, channels=(4, 6, 6, 8), learned_features=3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return net.eval()


def box(shape, low, high):
    out = torch.zeros(1, 1, *shape)
    out[(slice(None), slice(None), *[slice(low, high)] * len(shape))] = 1.0
    return out


def pair(d, *, known=(0, 99), body=(6, 26)):
    """Two images of noise; the second is known in a part only, and shows another body."""
    shape = SHAPES[d]
    g = torch.Generator().manual_seed(0)
    images = [torch.randn((1, 1, *shape), generator=g) for _ in range(2)]
    nowhere = torch.zeros(1, 1, *shape)
    net = network(d)
    first = LatticeArrays(images[0], torch.ones_like(nowhere), box(shape, 4, 24), nowhere)
    second = LatticeArrays(images[1], box(shape, *known), box(shape, *body), nowhere)
    sides = [LatticeImage(arrays, net) for arrays in (first, second)]
    affine = np.diag([SPACING] * d + [1.0])
    return ImagePair(*sides, Lattice(affine, shape))


def velocity(d):
    half = tuple((n + 1) // 2 for n in SHAPES[d])
    g = torch.Generator().manual_seed(1)
    return 0.2 * torch.randn((1, d, *half), generator=g) + 0.4


@pytest.mark.parametrize("d", [2, 3])
class TestAlignedPair:
    def test_the_error_is_how_far_the_network_moves_forth_and_back(self, d):
        seen = pair(d).deformed(velocity(d))
        net, fixed, moved = seen.fixed.network, seen.fixed.arrays.image, seen.warped.arrays.image
        with torch.no_grad():
            forth, back = net(fixed, moved), net(moved, fixed)
        fields = forth, back, compose(forth, back)
        expected = torch.stack([field.norm(dim=1)[0] for field in fields]).mean(0) * SPACING
        assert seen.error_map_mm.shape == expected.shape
        nodes = (slice(None, None, 2),) * d  # it is measured there, and linear between
        torch.testing.assert_close(seen.error_map_mm[nodes], expected[nodes])
        inside = seen.compared_region()[0, 0] > 0
        assert seen.error_mm == pytest.approx(float(seen.error_map_mm[inside].mean()))
        assert seen.error_mm == pytest.approx(float(expected[inside].mean()), rel=0.05)
        assert seen.error_mm > 0.1

    def test_the_error_of_even_sizes_is_cut_from_that_of_odd_ones(self, d):
        odd = pair(d).undeformed
        even = tuple(n - 1 for n in odd.fixed.arrays.image.shape[2:])
        inside = (..., *map(slice, even))
        cut = [
            replace(side, arrays=LatticeArrays(*(x[inside] for x in astuple(side.arrays))))
            for side in (odd.fixed, odd.warped)
        ]
        found = AlignedPair(*cut, SPACING).error_map_mm
        assert found.shape == even
        with torch.no_grad():
            net, images = network(d), [side.arrays.image for side in cut]
            fields = [net(*images), net(*images[::-1])]
        fields.append(compose(*fields))
        expected = torch.stack([field.norm(dim=1)[0] for field in fields]).mean(0) * SPACING
        nodes = (slice(None, -9, 2),) * d  # the field goes on a voxel further than the images
        torch.testing.assert_close(found[nodes], expected[nodes])

    def test_everything_of_an_image_goes_with_it(self, d):
        tried = pair(d, known=(0, 20))
        seen = tried.deformed(velocity(d))
        assert seen.ddf is not None
        before, after = tried.moving.arrays, seen.warped.arrays
        torch.testing.assert_close(after.image, warp(before.image, seen.ddf, fill=None))
        torch.testing.assert_close(after.field_of_view, warp(before.field_of_view, seen.ddf))
        torch.testing.assert_close(after.body, warp(before.body, seen.ddf))
        assert not torch.equal(after.field_of_view, before.field_of_view)

    def test_what_is_compared_is_body_where_both_are_known(self, d):
        shape = SHAPES[d]
        seen = pair(d, known=(0, 20)).undeformed
        torch.testing.assert_close(seen.compared_region(), box(shape, 4, 20))
        either = torch.maximum(box(shape, 4, 20), box(shape, 6, 20))
        torch.testing.assert_close(seen.compared_region(either=True), either)

    def test_similarities_are_those_of_the_metrics(self, d):
        seen = pair(d).undeformed
        where = seen.compared_region()
        fixed, moved = seen.fixed.arrays.image, seen.warped.arrays.image
        everywhere = torch.ones_like(where)
        assert seen.distance(everywhere) == pytest.approx(
            float(mind_distance(fixed, moved, everywhere)), abs=1e-5
        )
        nmi = normalized_mutual_information(fixed[0, 0], moved[0, 0], where[0, 0], 32)
        assert seen.similarity["nmi"] == pytest.approx(nmi)
        assert seen.similarity["mind"] == pytest.approx(seen.distance(where))
        assert seen.similarity["overlap"] == pytest.approx(1.0)

    def test_equal_images_are_not_apart(self, d):
        tried = pair(d)
        same = AlignedPair(tried.fixed, tried.fixed, SPACING)
        assert same.distance(same.compared_region()) == 0.0

    def test_where_nothing_is_compared_nothing_is_said(self, d):
        seen = pair(d, known=(0, 0)).undeformed
        assert seen.similarity == {"nmi": 1.0, "mind": 1.0, "overlap": 0.0}
        assert seen.distance(seen.compared_region()) == 1.0
        assert np.isnan(seen.error_mm)

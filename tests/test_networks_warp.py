import copy
import pickle

import numpy as np
import pytest
import torch
from scipy import ndimage

from fusion_pipeline.geometry import identity_points
from fusion_pipeline.networks.warp import Warp

SHAPES = [(15, 22), (11, 14, 17)]


@pytest.fixture(params=SHAPES, ids=["2d", "3d"])
def shape(request):
    return request.param


def noise(shape, batch=2, channels=3, seed=0):
    return torch.randn((batch, channels, *shape), generator=torch.Generator().manual_seed(seed))


def field(shape, batch=2, size=2.0, seed=1):
    return size * noise(shape, batch, len(shape), seed)


def test_zero_field_is_the_identity(shape):
    image = noise(shape)
    torch.testing.assert_close(
        Warp()(image, torch.zeros(2, len(shape), *shape)), image, atol=1e-4, rtol=0
    )


def test_equals_scipy_where_the_border_goes_on(shape):
    image, ddf = noise(shape), field(shape)
    found = Warp(fill=None)(image, ddf).numpy()
    points = (identity_points(shape).movedim(-1, 0) + ddf).double().numpy()
    for b in range(2):
        for c in range(3):
            expected = ndimage.map_coordinates(
                image[b, c].double().numpy(), points[b], order=1, mode="nearest"
            )
            np.testing.assert_allclose(found[b, c], expected, atol=1e-4)


@pytest.mark.parametrize("fill", [0.0, -7.0])
def test_outside_is_filled(shape, fill):
    ddf = torch.zeros(2, len(shape), *shape)
    ddf[:, 1] = 1000.0
    assert bool((Warp(fill=fill)(noise(shape), ddf) == fill).all())


def test_channel_c_pulls_along_tensor_axis_2_plus_c(shape):
    image = noise(shape)
    for axis in range(len(shape)):
        ddf = torch.zeros(2, len(shape), *shape)
        ddf[:, axis] = 2.0
        n = shape[axis] - 2
        found = Warp()(image, ddf).narrow(2 + axis, 0, n)
        torch.testing.assert_close(found, image.narrow(2 + axis, 2, n), atol=1e-4, rtol=0)


def test_a_kept_lattice_never_outlives_its_shape(shape):
    layer = Warp()
    turned = tuple(reversed(shape))
    for size in (shape, turned, shape, tuple(n - 3 for n in shape)):
        image, ddf = noise(size), field(size)
        for _ in range(2):  # the second call reads the kept coordinates
            assert torch.equal(layer(image, ddf), Warp()(image, ddf))


def test_the_field_gives_the_shape(shape):
    target = tuple(n + 4 for n in shape)
    assert Warp()(noise(shape), field(target)).shape == (2, 3, *target)


def test_copies_and_pickles_leave_the_coordinates_behind(shape):
    layer = Warp(fill=-1.0)
    image, ddf = noise(shape), field(shape)
    expected = layer(image, ddf)
    sent = pickle.dumps(layer)
    assert len(sent) < 4 * len(shape) * int(np.prod(shape))
    for other in (copy.deepcopy(layer), pickle.loads(sent)):
        assert torch.equal(other(image, ddf), expected)
    assert layer.state_dict() == {}


def test_the_gradient_reaches_image_and_field(shape):
    image, ddf = noise(shape).requires_grad_(), field(shape, size=0.3).requires_grad_()
    Warp()(image, ddf).square().sum().backward()
    for leaf in (image, ddf):
        assert leaf.grad is not None
        assert bool(torch.isfinite(leaf.grad).all())
        assert float(leaf.grad.abs().sum()) > 0


def test_a_field_of_other_dimensions_is_refused(shape):
    ddf = torch.zeros(2, 5 - len(shape), *shape)
    with pytest.raises(ValueError, match=f"a {len(shape)}D image needs a field of {len(shape)}"):
        Warp()(noise(shape), ddf)

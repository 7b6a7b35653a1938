"""The harmonization network: increasing curves, the identity when untrained, nothing invented."""

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from fusion_pipeline.networks.harmonization_net import HarmonizationNet, apply_curves
from fusion_pipeline.networks.kinds import KINDS, kind_indices, kind_of

SHAPES = {2: (26, 21), 3: (20, 17, 24)}


def _trained(spatial_dims: int, seed: int = 0) -> HarmonizationNet:
    """A network with weights that do something."""
    torch.manual_seed(seed)
    net = HarmonizationNet(spatial_dims, channels=8, intervals=8, cells=3)
    torch.nn.init.normal_(net.head.weight, std=0.5)
    return net.eval()


@pytest.fixture(params=[2, 3])
def dims(request):
    return request.param


def test_kind_of_modalities():
    assert [kind_of(m) for m in ("ct", "mr", "pet", "spect")] == [
        "ct",
        "mr",
        "emission",
        "emission",
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kind_of("us"), "expected a modality of ct, mr, pet, spect, got 'us'"),
        (lambda: kind_indices(["ct"], 2), "expected 2 kinds, one for each image, got 1"),
        (lambda: kind_indices("pet", 1), "expected kinds of ct, mr, emission, got 'pet'"),
        (lambda: HarmonizationNet(4), "expected 2 or 3 spatial dimensions, got 4"),
        (
            lambda: HarmonizationNet(3)(torch.zeros(1, 2, 4, 4, 4), "ct"),
            r"expected an image \(B, 1, \*S\) with 3 spatial axes, got \(1, 2, 4, 4, 4\)",
        ),
    ],
)
def test_errors_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_untrained_is_the_straight_line(dims):
    image = 8 * torch.rand(2, 1, *SHAPES[dims]) - 4
    out = HarmonizationNet(dims)(image, ["ct", "emission"])
    torch.testing.assert_close(out, (image + 4) / 8, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_curves_rise_everywhere(dims, kind):
    net = _trained(dims)
    image = torch.randn(1, 1, *SHAPES[dims]).clamp(-4, 4)
    with torch.no_grad():
        curves = net.curves(image, kind)
        levels = [apply_curves(torch.full_like(image, v), curves) for v in np.linspace(-4, 4, 17)]
    torch.testing.assert_close(curves.sum(1), torch.ones_like(curves[:, 0]))
    steps = torch.stack(levels).diff(dim=0)
    assert float(steps.min()) > 0.5 * 0.05 / 8  # a twentieth of the straight line's slope
    assert float(levels[0].abs().max()) == 0
    torch.testing.assert_close(levels[-1], torch.ones_like(image))


def test_flat_input_stays_smooth(dims):
    """A mapping that depends on place and value only smoothly cannot draw an edge into nothing."""
    net = _trained(dims)
    shape = (60,) * dims
    image = torch.full((1, 1, *shape), 0.7)
    with torch.no_grad():
        out = net(image, "mr")
    assert max(float(out.diff(dim=a).abs().max()) for a in range(2, 2 + dims)) < 0.02


def test_edges_lie_where_they_were():
    """The gradient keeps its direction wherever the input has an edge."""
    net = _trained(3)
    i, j, k = torch.meshgrid(*[torch.arange(float(n)) for n in (40, 36, 44)], indexing="ij")
    image = torch.where((i - 20) ** 2 + (j - 17) ** 2 * 1.5 + (k - 22) ** 2 < 150, 1.5, -1.0)
    with torch.no_grad():
        out = net(image[None, None], "ct")[0, 0]
    before, after = (torch.stack(torch.gradient(x)) for x in (image, out))
    edge = before.norm(dim=0) > 0.5
    cosine = (before * after).sum(0) / (before.norm(dim=0) * after.norm(dim=0))
    assert float(cosine[edge].min()) > 0.98
    assert float(after.norm(dim=0)[~edge].max()) < 0.2 * float(after.norm(dim=0)[edge].min())


def test_slabs_equal_the_whole(dims):
    net = _trained(dims)
    image = torch.randn(1, 1, *SHAPES[dims]).clamp(-4, 4)
    with torch.no_grad():
        curves = net.curves(image, "ct")
        whole = apply_curves(image, curves)
        length = image.shape[2]
        parts = [
            apply_curves(image[:, :, a : a + 7], curves, first=a, length=length)
            for a in range(0, length, 7)
        ]
    torch.testing.assert_close(torch.cat(parts, 2), whole, atol=1e-6, rtol=0)


def test_blending_is_a_cubic_spline():
    """SciPy's B-spline basis is the witness."""
    cells, length = 6, 31
    curves = torch.zeros(1, 2, cells, 1)
    heights = torch.tensor([0.1, 0.9, 0.3, 0.5, 0.2, 0.7])
    curves[0, 0, :, 0], curves[0, 1, :, 0] = heights, 1 - heights
    out = apply_curves(torch.zeros(1, 1, length, 1), curves)[0, 0, :, 0]
    padded = np.concatenate([[0.1] * 3, heights.numpy(), [0.7] * 3])
    spline = BSpline(np.arange(-5.0, len(padded) - 1.0), padded, 3)
    place = (np.arange(length) + 0.5) / length * cells - 0.5
    # the basis of control point k is centred on k
    np.testing.assert_allclose(out.numpy(), spline(place), atol=1e-5)


def test_batch_equals_each_alone(dims):
    net = _trained(dims)
    images = torch.randn(3, 1, *SHAPES[dims]).clamp(-4, 4)
    kinds = ["emission", "ct", "mr"]
    with torch.no_grad():
        together = net(images, kinds)
        alone = torch.cat([net(images[n : n + 1], kinds[n]) for n in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_padding_does_not_count(dims):
    """Values outside the field of view change nothing inside, and are 0 afterwards."""
    net = _trained(dims)
    valid = torch.ones(1, 1, *SHAPES[dims])
    valid[:, :, 12:] = 0
    image = torch.randn(valid.shape).clamp(-4, 4)
    with torch.no_grad():
        out = net(image, "mr", valid)
        other = net(torch.where(valid > 0, image, 3.0), "mr", valid)
    assert torch.equal(out, other)
    assert float(out[:, :, 12:].abs().max()) == 0
    assert not torch.allclose(net(image, "mr")[:, :, :12], out[:, :, :12])


def test_kinds_have_curves_of_their_own():
    net = _trained(2)
    image = torch.randn(1, 1, *SHAPES[2])
    with torch.no_grad():
        assert not torch.allclose(net(image, "ct"), net(image, "mr"))


def test_every_parameter_gets_a_gradient(dims):
    net = _trained(dims)
    image = torch.randn(3, 1, *SHAPES[dims], requires_grad=True)
    net(image, list(KINDS)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name
    assert float(image.grad.abs().sum()) > 0


def test_size():
    assert sum(p.numel() for p in HarmonizationNet().parameters()) < 100_000

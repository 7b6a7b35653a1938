"""The harmonization network: the classical standard when untrained, rising, invertible."""

import json

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.interpolate import BSpline

from fusion_pipeline.networks.harmonization_net import HarmonizationNet
from fusion_pipeline.networks.intensity_map import IntensityMap, spline_weights
from fusion_pipeline.networks.intensity_standard import (
    calibration_shift,
    lattice_of,
    weighted_quantiles,
)
from fusion_pipeline.networks.kinds import KINDS, kind_indices, kind_of

SHAPES = {2: (46, 41), 3: (30, 27, 34)}


def _trained(spatial_dims: int, seed: int = 0) -> HarmonizationNet:
    """A network with weights that do something."""
    torch.manual_seed(seed)
    net = HarmonizationNet(spatial_dims, channels=8, intervals=8, cells=3)
    torch.nn.init.normal_(net.curve_head.weight, std=0.5)
    torch.nn.init.normal_(net.bias_head.weight, std=0.5)
    return net.eval()


def _body(spatial_dims: int, kind: str, seed: int = 0) -> torch.Tensor:
    """An ellipse of fat and muscle in air, in own units, with noise; ``(1, 1, *S)``."""
    shape = SHAPES[spatial_dims]
    rng = np.random.default_rng(seed)
    grid = np.indices(shape)
    radius = sum(((g / n - 0.5) / 0.42) ** 2 for g, n in zip(grid, shape, strict=True)) ** 0.5
    lumps = ndimage.gaussian_filter(rng.standard_normal(shape), 2) > 0
    values = {
        "ct": (-1000.0, -105.0, 55.0, 8.0),
        "mr": (5.0, 900.0, 300.0, 9.0),
        "emission": (0.02, 0.4, 0.9, 0.03),
    }
    air, fat, muscle, noise = values[kind]
    image = np.where(radius < 1, np.where(lumps, fat, muscle), air)
    image = image + noise * rng.standard_normal(shape)
    if kind == "emission":
        image = np.abs(image)
        image[tuple(slice(n // 2, n // 2 + 3) for n in shape)] = 6.0
    return torch.from_numpy(image).float()[None, None]


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


class TestStandard:
    """What the network is before it learns."""

    def test_hounsfield_units_go_by_a_fixed_curve(self, dims):
        """Between −150 HU at 0.25 and 150 HU at 0.55: fat at 0.295, muscle at 0.455."""
        image = _body(dims, "ct")
        with torch.no_grad():
            out = HarmonizationNet(dims)(image, "ct")
        fat, muscle = (out[(image - hu).abs() < 5].mean() for hu in (-105.0, 55.0))
        assert float(fat) == pytest.approx(0.295, abs=0.01)
        assert float(muscle) == pytest.approx(0.455, abs=0.01)

    @pytest.mark.parametrize("shift", [-20.0, 20.0])
    def test_fat_and_muscle_set_a_calibration_right(self, dims, shift):
        image = _body(dims, "ct")
        lattice = lattice_of(image + shift, None, (image > -350).float(), 40)
        assert float(calibration_shift(lattice)) == pytest.approx(shift, abs=2.5)
        net = HarmonizationNet(dims)
        with torch.no_grad():
            apart = (net(image + shift, "ct") - net(image, "ct"))[image > -350].abs()
        uncorrected = abs(shift) / 1000  # the curve's slope in soft tissue: 0.3 for 300 HU
        assert float(apart.mean()) < 0.15 * uncorrected

    def test_air_is_black_and_the_range_is_used(self, dims):
        for kind in KINDS:
            image = _body(dims, kind)
            with torch.no_grad():
                out = HarmonizationNet(dims)(image, kind)
            air = image < {"ct": -900, "mr": 30, "emission": 0.1}[kind]
            assert float(out[air].mean()) < 0.06, kind
            assert float(out[~air].max()) > (0.45 if kind == "ct" else 0.6), kind

    @pytest.mark.parametrize("kind", ["mr", "emission"])
    def test_units_do_not_matter(self, dims, kind):
        image = _body(dims, kind)
        net = _trained(dims)
        offset = 70.0 if kind == "mr" else 0.0
        with torch.no_grad():
            same = net(1000 * image + offset, kind)
            torch.testing.assert_close(same, net(image, kind), atol=1e-3, rtol=0)

    def test_a_smooth_bias_is_divided_out(self, dims):
        image = _body(dims, "mr")
        ramp = torch.linspace(-0.3, 0.3, image.shape[2]).view(1, 1, -1, *[1] * (dims - 1))
        net = HarmonizationNet(dims)
        body = image > 150
        with torch.no_grad():
            straight, shaded = net(image, "mr")[body], net(image * torch.exp(ramp), "mr")[body]
            field = net.mapping(image * torch.exp(ramp), "mr").bias(image.shape[2:]).log()
        left = float((shaded - straight).square().mean().sqrt() / straight.std())
        fat = image[body] > 600
        undone = float((ramp.expand_as(image)[body] - field[body])[fat].std())
        assert left < 0.15
        assert undone < 0.5 * float(ramp.std())

    def test_gamma_is_undone(self, dims):
        image = _body(dims, "mr").clamp_min(0)
        net = HarmonizationNet(dims)
        with torch.no_grad():
            one, other = net(image, "mr"), net((image / 900) ** 1.4, "mr")
        body = image > 150
        assert float((one - other)[body].square().mean().sqrt() / one[body].std()) < 0.1

    def test_an_mr_is_a_fixed_point(self, dims):
        net = HarmonizationNet(dims)
        with torch.no_grad():
            once = net(_body(dims, "mr"), "mr")
            twice = net(once, "mr")
        assert float((twice - once).square().mean().sqrt()) < 0.03

    def test_weighted_quantiles(self):
        values = torch.tensor([[[3.0, 1.0, 2.0, 9.0]]])
        weight = torch.tensor([[[1.0, 1.0, 1.0, 0.0]]])
        order = values.flatten(1).argsort(1)
        marks = weighted_quantiles(values, weight, (0.1, 0.5, 1.0), order)
        assert marks.tolist() == [[1.0, 2.0, 3.0]]

    def test_nothing_at_all_is_finite(self, dims):
        for kind in KINDS:
            with torch.no_grad():
                out = HarmonizationNet(dims)(torch.zeros(1, 1, *SHAPES[dims]), kind)
            assert bool(torch.isfinite(out).all())

    @pytest.mark.parametrize("value", [-1000.0, 3e4])
    def test_one_value_everywhere_is_finite_and_can_be_learned_from(self, dims, value):
        """White is then as near to black as float32 allows, but another number."""
        for kind in KINDS:
            network = HarmonizationNet(dims)
            out = network(torch.full((1, 1, *SHAPES[dims]), value), kind)
            out.sum().backward()
            assert bool(torch.isfinite(out).all())
            assert all(bool(torch.isfinite(p.grad).all()) for p in network.parameters())


class TestMapping:
    """The mapping of one image."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_rises_everywhere(self, dims, kind):
        image = _body(dims, kind)
        with torch.no_grad():
            mapping = _trained(dims).mapping(image, kind)
        torch.testing.assert_close(mapping.rise.sum(1), torch.ones(1))
        low, high = float(mapping.black), float(image.max())
        levels = [
            mapping(torch.full_like(image, float(v))) for v in np.linspace(low + 1e-3, high, 17)
        ]
        assert float(torch.stack(levels).diff(dim=0).min()) > 0
        assert float(mapping(torch.full_like(image, low)).abs().max()) < 1e-6

    @pytest.mark.parametrize("kind", KINDS)
    def test_inverse(self, dims, kind):
        image = _body(dims, kind)
        with torch.no_grad():
            mapping = _trained(dims).mapping(image, kind)
            back = mapping.inverse(mapping(image))
        # what is darker than black comes back as black
        expected = torch.maximum(image, mapping.black.view(-1, *[1] * (dims + 1)))
        width = float(image.max() - image.min())
        assert float((back - expected).abs().max()) < 1e-3 * width

    def test_json_and_back(self, dims):
        image = _body(dims, "mr")
        with torch.no_grad():
            mapping = _trained(dims).mapping(image, "mr")
        again = IntensityMap.from_dict(json.loads(json.dumps(mapping.as_dict())))
        assert torch.equal(again(image), mapping(image))

    def test_slabs_equal_the_whole(self, dims):
        image = _body(dims, "mr")
        with torch.no_grad():
            mapping = _trained(dims).mapping(image, "mr")
        length = image.shape[2]
        parts = [
            mapping(image[:, :, a : a + 7], first=a, length=length) for a in range(0, length, 7)
        ]
        torch.testing.assert_close(torch.cat(parts, 2), mapping(image), atol=1e-6, rtol=0)

    def test_blending_is_a_cubic_spline(self):
        """SciPy's B-spline basis is the witness."""
        cells, length = 6, 31
        heights = torch.tensor([0.1, 0.9, 0.3, 0.5, 0.2, 0.7])
        out = spline_weights(0, length, length, cells, heights) @ heights
        padded = np.concatenate([[0.1] * 3, heights.numpy(), [0.7] * 3])
        spline = BSpline(np.arange(-5.0, len(padded) - 1.0), padded, 3)
        position = (np.arange(length) + 0.5) / length * cells - 0.5
        # the basis of control point k is centred on k
        np.testing.assert_allclose(out.numpy(), spline(position), atol=1e-5)

    def test_flat_input_stays_smooth(self, dims):
        """A mapping that depends on position and value only smoothly draws no edge."""
        image = _body(dims, "mr")
        with torch.no_grad():
            out = _trained(dims).mapping(image, "mr")(torch.full((1, 1, *[60] * dims), 400.0))
        assert max(float(out.diff(dim=a).abs().max()) for a in range(2, 2 + dims)) < 0.03


class TestNetwork:
    """Batches, masks and gradients."""

    def test_batch_equals_each_alone(self, dims):
        net = _trained(dims)
        kinds = ["emission", "ct", "mr"]
        images = torch.cat([_body(dims, kind) for kind in kinds])
        with torch.no_grad():
            together = net(images, kinds)
            alone = torch.cat([net(images[n : n + 1], kinds[n]) for n in range(3)])
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)

    def test_padding_does_not_count(self, dims):
        """Values outside the field of view change nothing inside, and are 0 afterwards."""
        net = _trained(dims)
        image = _body(dims, "mr")
        valid = torch.ones_like(image)
        valid[:, :, 20:] = 0
        with torch.no_grad():
            out = net(image, "mr", valid)
            other = net(torch.where(valid > 0, image, 3e4), "mr", valid)
        assert torch.equal(out, other)
        assert float(out[:, :, 20:].abs().max()) == 0

    def test_kinds_have_curves_of_their_own(self):
        net = _trained(2)
        image = _body(2, "mr")
        with torch.no_grad():
            assert not torch.allclose(
                net.mapping(image, "emission").rise, net.mapping(image, "mr").rise
            )

    def test_every_parameter_gets_a_gradient(self, dims):
        net = _trained(dims)
        images = torch.cat([_body(dims, kind) for kind in KINDS]).requires_grad_()
        net(images, list(KINDS)).square().sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().sum()) > 0, name
        assert float(images.grad.abs().sum()) > 0

    def test_size(self):
        assert sum(p.numel() for p in HarmonizationNet().parameters()) < 100_000

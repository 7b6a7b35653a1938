"""The whole as one network."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fusion_pipeline.networks.fusion_net import FusionNet
from fusion_pipeline.networks.harmonization_net import HarmonizationNet
from fusion_pipeline.networks.multimodal_net import MultimodalNet

SHAPES = {2: (20, 24), 3: (12, 16, 20)}


class Shift(nn.Module):
    """Moves everything by a learned constant."""

    def __init__(self, spatial_dims, start):
        super().__init__()
        self.step = nn.Parameter(torch.tensor(start).reshape(1, spatial_dims, *[1] * spatial_dims))

    def forward(self, fixed, moving):
        assert fixed.shape == moving.shape
        return self.step.expand(len(fixed), -1, *fixed.shape[2:])


def network(spatial_dims, start=None):
    start = [0.0] * spatial_dims if start is None else start
    torch.manual_seed(0)
    return MultimodalNet(
        Shift(spatial_dims, start),
        HarmonizationNet(spatial_dims, channels=4),
        FusionNet(spatial_dims, channels=(2, 4, 8)),
    )


@pytest.fixture(params=[2, 3])
def d(request):
    return request.param


def images(d, channels, batch=1):
    torch.manual_seed(1)
    return torch.randn(batch, channels, *SHAPES[d]).clamp(-4, 4)


@pytest.mark.parametrize("channels", [2, 3])
def test_forward_gives_one_fused_image_in_the_unit_range(d, channels):
    fused = network(d)(images(d, channels))
    assert fused.shape == (1, 1, *SHAPES[d])
    assert fused.min() >= 0
    assert fused.max() <= 1


def test_everything_on_the_way_comes_in_the_order_of_the_input(d):
    x = images(d, 3)
    out = network(d).fuse_all(x, ["mr", "mr", "emission"])
    assert out.ddf.shape == (1, 2, d, *SHAPES[d])
    assert out.warped.shape == out.harmonized.shape == out.weights.shape == x.shape
    torch.testing.assert_close(out.warped, x)
    torch.testing.assert_close(out.weights.sum(1), torch.ones(1, *SHAPES[d]))


def test_moving_images_are_pulled_back_and_the_reference_stays(d):
    step = [2.0] + [0.0] * (d - 1)
    x = images(d, 2)
    out = network(d, step).fuse_all(x, ["ct", "mr"])
    torch.testing.assert_close(out.warped[:, 0], x[:, 0])
    torch.testing.assert_close(out.warped[:, 1, :-2], x[:, 1, 2:])


def test_what_comes_from_outside_is_not_valid_and_gets_no_weight(d):
    out = network(d, [3.0] + [0.0] * (d - 1)).fuse_all(images(d, 2), ["ct", "mr"])
    assert out.field_of_view[:, 0].all()
    assert out.field_of_view[:, 1, :-3].all()
    assert not out.field_of_view[:, 1, -3:].any()
    assert not out.weights[:, 1, -3:].any()


def test_a_field_of_view_moves_with_its_image(d):
    valid = torch.ones(1, 2, *SHAPES[d])
    valid[:, 1, :5] = 0
    out = network(d, [2.0] + [0.0] * (d - 1)).fuse_all(images(d, 2), ["ct", "mr"], valid)
    assert not out.field_of_view[:, 1, :3].any()
    assert out.field_of_view[:, 1, 3:-2].all()


def test_the_gradient_of_the_fused_image_reaches_the_registration(d):
    """METHOD 6.1."""
    net = network(d, [0.3] * d)
    net(images(d, 2)).square().mean().backward()
    assert net.registration.step.grad.abs().min() > 0


def test_a_batch_is_each_alone(d):
    net = network(d, [0.5] * d).eval()
    x = images(d, 2, batch=2)
    alone = torch.cat([net(x[:1]), net(x[1:])])
    torch.testing.assert_close(net(x), alone)


def test_the_order_of_the_moving_images_changes_nothing(d):
    net = network(d, [0.5] * d)
    x = images(d, 3)
    swapped = net(x[:, [0, 2, 1]], ["ct", "emission", "mr"])
    torch.testing.assert_close(net(x, ["ct", "mr", "emission"]), swapped)


def test_all_weights_load_from_one_state_dict(d):
    source, target = network(d, [1.5] * d), network(d)
    target.load_state_dict(source.state_dict())
    assert {k.split(".")[0] for k in source.state_dict()} == {
        "registration",
        "harmonization",
        "fusion",
    }
    x = images(d, 2)
    assert torch.equal(source(x), target(x))


@pytest.mark.parametrize(
    ("channels", "kinds", "message"),
    [
        (1, None, "two or more channels are needed"),
        (4, None, "4 channels need 4 kinds"),
        (3, ["ct", "mr"], "3 channels need 3 kinds"),
    ],
)
def test_channels_that_do_not_fit_are_refused(channels, kinds, message):
    with pytest.raises(ValueError, match=message):
        network(2)(images(2, channels), kinds)


def test_any_parts_with_the_same_call_will_do():
    class Mean(nn.Module):
        def forward(self, x, kinds, valid):
            return SimpleNamespace(fused=x.mean(1, keepdim=True), weights=torch.full_like(x, 0.5))

    class Same(nn.Module):
        def forward(self, x, kind, valid, body):
            return x

    x = images(2, 2)
    net = MultimodalNet(Shift(2, [0.0, 0.0]), Same(), Mean())
    torch.testing.assert_close(net(x), x.mean(1, keepdim=True))

"""The fusion network: weights sum to one, order changes nothing, untrained is the average."""

from itertools import permutations

import pytest
import torch

from fusion_pipeline.networks.fusion_net import FusionNet

SHAPES = {2: (26, 21), 3: (13, 17, 10)}


def _trained(spatial_dims: int) -> FusionNet:
    """A network with weights that do something."""
    torch.manual_seed(3)
    net = FusionNet(spatial_dims)
    torch.nn.init.normal_(net.logit.weight, std=1.0)
    return net.eval()


def _case(spatial_dims: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    images = torch.rand(2, count, *SHAPES[spatial_dims], generator=generator)
    valid = torch.ones_like(images)
    valid[:, 1, 8:] = 0
    valid[1, 0, :4] = 0
    return images, valid


@pytest.fixture(params=[2, 3])
def dims(request):
    return request.param


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FusionNet(1), "expected 2 or 3 spatial dimensions, got 1"),
        (lambda: FusionNet(2, (4, 8)), r"expected channels of three levels, got \(4, 8\)"),
        (
            lambda: FusionNet(2)(torch.zeros(2, 4, 4), "ct"),
            r"expected images \(B, M, \*S\) with 2 spatial axes, got \(2, 4, 4\)",
        ),
        (
            lambda: FusionNet(2)(torch.zeros(1, 2, 4, 4), "ct", torch.zeros(1, 1, 4, 4)),
            r"expected field_of_view of the images' shape \(1, 2, 4, 4\), got \(1, 1, 4, 4\)",
        ),
        (
            lambda: FusionNet(2)(torch.zeros(1, 2, 4, 4), ["ct", "mr", "mr"]),
            "expected 2 kinds, one for each image, got 3",
        ),
        (
            lambda: FusionNet(2)(torch.zeros(1, 2, 4, 4), "ct", None, torch.zeros(1, 3, 33)),
            r"expected a summary of 2 images, got \(1, 3, 33\)",
        ),
        (
            lambda: FusionNet(2)(torch.zeros(1, 2, 4, 4), "ct", displayed=torch.zeros(1, 2, 4, 3)),
            r"expected displayed images of the shape \(1, 2, 4, 4\), got \(1, 2, 4, 3\)",
        ),
    ],
)
def test_errors_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("count", [2, 3, 4])
def test_untrained_is_the_average_of_those_present(dims, count):
    images, valid = _case(dims, count)
    out = FusionNet(dims)(images, "mr", valid)
    expected = (images * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True)
    torch.testing.assert_close(out.fused, expected)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_weights(dims, count):
    images, valid = _case(dims, max(count, 2))
    images, valid = images[:, :count], valid[:, :count]
    with torch.no_grad():
        fused, weights = _trained(dims)(images, "ct", valid)
    assert weights.shape == images.shape
    present = valid.amax(1)
    torch.testing.assert_close(weights.sum(1), present)
    assert float(weights[valid == 0].abs().sum()) == 0
    assert float(weights[valid > 0].min()) > 0
    assert float(fused[present.unsqueeze(1) == 0].abs().sum()) == 0
    assert 0 <= float(fused.min()) <= float(fused.max()) <= 1


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_order_changes_nothing_to_the_last_bit(dims, order):
    images, valid = _case(dims, 3)
    kinds = ["mr", "mr", "emission"]
    net = _trained(dims)
    with torch.no_grad():
        fused, weights = net(images, kinds, valid)
        again, moved = net(images[:, order], [kinds[m] for m in order], valid[:, order])
    assert torch.equal(again, fused)
    assert torch.equal(moved, weights[:, order])


def test_kinds_matter():
    images, valid = _case(2, 2)
    net = _trained(2)
    with torch.no_grad():
        one = net(images, ["ct", "mr"], valid).weights
        other = net(images, ["mr", "ct"], valid).weights
    assert not torch.allclose(one, other)


def test_modalities_look_at_each_other():
    """The features of one modality depend on what another shows."""
    net = _trained(2)
    images, _ = _case(2, 2)
    seen = torch.ones(2, 2, 7, 6)
    with torch.no_grad():
        coarse = torch.stack([net.encoders["ct"](images[:, :1])[-1]] * 2, 1)
        changed = coarse.clone()
        changed[:, 1] += 1.0
        before, after = net.modality_attention(coarse, seen), net.modality_attention(changed, seen)
    assert not torch.allclose(before[:, 0], after[:, 0])


def test_nothing_outside_a_field_of_view_counts(dims):
    images, valid = _case(dims, 2)
    net = _trained(dims)
    with torch.no_grad():
        fused, weights = net(images, "ct", valid)
        again = net(torch.where(valid > 0, images, 0.9), "ct", valid)
    assert torch.equal(fused, again.fused)
    assert torch.equal(weights, again.weights)


def test_nothing_is_added_to_nothing(dims):
    images, _ = _case(dims, 2)
    images[:, :, :6] = 0
    with torch.no_grad():
        fused = _trained(dims)(images, ["ct", "mr"]).fused
    assert float(fused[:, :, :6].abs().max()) == 0


def test_the_sum_is_linear_in_what_is_displayed(dims):
    """With the same weights: twice as bright sources give twice as bright a sum."""
    images, valid = _case(dims, 2)
    net = _trained(dims)
    with torch.no_grad():
        net.logit.weight[:, -5:] = 0  # weights that do not see what is displayed
        half, third = (
            net(images, ["ct", "mr"], valid, displayed=images * share).fused
            for share in (0.5, 0.25)
        )
    clipped = (half > 0) & (half < 1) & (third > 0)
    assert float(clipped.float().mean()) > 0.5
    torch.testing.assert_close(half[clipped], 2 * third[clipped], atol=1e-5, rtol=1e-4)


def test_weights_follow_the_harmonized_images_details_the_displayed_ones(dims):
    images, _ = _case(dims, 2)
    net = _trained(dims)
    with torch.no_grad():
        net.logit.weight[:, -5:] = 0
        plain = net(images, ["ct", "mr"])
        other = net(images, ["ct", "mr"], displayed=1 - images)
    assert torch.equal(plain.weights, other.weights)
    assert float((plain.fused - other.fused).abs().mean()) > 0.1


def test_batch_equals_each_alone(dims):
    images, valid = _case(dims, 3)
    net = _trained(dims)
    with torch.no_grad():
        together = net(images, ["ct", "mr", "emission"], valid).fused
        alone = [
            net(images[n : n + 1], ["ct", "mr", "emission"], valid[n : n + 1]).fused for n in (0, 1)
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)


def test_every_parameter_gets_a_gradient(dims):
    images, valid = _case(dims, 3)
    net = _trained(dims)
    fused, weights = net(images, ["ct", "mr", "emission"], valid)
    (fused.square().sum() + weights.square().sum()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_gradient_reaches_the_images(dims):
    images, valid = _case(dims, 2)
    images.requires_grad_()
    _trained(dims)(images, ["ct", "mr"], valid).fused.sum().backward()
    assert float((images.grad.abs() * valid).sum()) > 0
    assert float((images.grad.abs() * (1 - valid)).sum()) == 0


def test_size():
    assert sum(p.numel() for p in FusionNet(3).parameters()) < 300_000


@pytest.mark.parametrize("dims", [2, 3])
def test_shares_of_a_field_of_view_scale_the_weights(dims):
    images, valid = _case(dims, 2)
    net, kinds = _trained(dims), ["ct", "mr"]
    with torch.no_grad():
        full = net(images, kinds, valid).weights
        halved = valid.clone()
        halved[:, 1] *= 0.25
        weights = net(images, kinds, halved).weights
    both = (valid > 0).all(1)
    torch.testing.assert_close(weights.sum(1), valid.amax(1))
    odds, before = ((w[:, 1] / w[:, 0])[both] for w in (weights, full))
    # the mean over the scales, each of which the share scales
    assert bool((odds < before).all())
    torch.testing.assert_close(weights.movedim(1, -1)[~both], full.movedim(1, -1)[~both])


@pytest.mark.parametrize("share", [-0.1, 255.0, float("nan")])
def test_shares_beyond_0_to_1_are_refused(share):
    images, valid = _case(2, 2)
    valid[:, 0, 0] = share
    with pytest.raises(ValueError, match="expected field_of_view between 0 and 1"):
        FusionNet(2)(images, "mr", valid)


def test_summaries_of_parts_add_up(dims):
    """And a part of the images, given the summary of the whole, is fused as in the whole."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 2, 96, *[20] * (dims - 1), generator=generator)
    valid = torch.ones_like(images)
    valid[:, 1, 30:] = 0
    images[:, :, 60:] *= 0.2
    net, kinds = _trained(dims), ["ct", "mr"]
    for encoder in net.encoders.values():  # gates that differ, and matter
        encoder.gate[2].weight.data *= 30
    net.decoder.narrow.weight.data *= 100
    where = torch.zeros_like(images[:, :1])
    where[:, :, :48] = 1
    with torch.no_grad():
        whole = net.summarize(images, kinds, valid)
        first = net.summarize(images[:, :, :72], kinds, valid[:, :, :72], where[:, :, :72])
        second = net.summarize(images[:, :, 24:], kinds, valid[:, :, 24:], 1 - where[:, :, 24:])
        assert whole.shape == (1, 2, 33)
        torch.testing.assert_close(first + second, whole, rtol=1e-3, atol=1e-3)
        fused = net(images, kinds, valid).fused
        again = net(images, kinds, valid, whole).fused
        part = net(images[:, :, :72], kinds, valid[:, :, :72], whole).fused
        other = torch.cat([whole[..., :-1] - 50 * whole[..., -1:], whole[..., -1:]], 2)
        apart = net(images, kinds, valid, other).fused
    torch.testing.assert_close(again, fused)
    torch.testing.assert_close(part[:, :, :44], fused[:, :, :44], rtol=0, atol=1e-4)
    assert float((apart - fused).abs().max()) > 1e-3


def test_what_is_not_seen_says_nothing_about_an_image(dims):
    """The mean channels of an image that sees half are those of that half (not half of them)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 2, 96, *[32] * (dims - 1), generator=generator)
    valid = torch.ones_like(images)
    valid[:, 1, 48:] = 0
    net, kinds = _trained(dims), ["ct", "mr"]
    with torch.no_grad():
        whole = net.summarize(images, kinds, valid)[0, 1]
        half = net.summarize(images[:, :, :48], kinds)[0, 1]
    torch.testing.assert_close(whole[-1], half[-1], rtol=1e-5, atol=0)
    means = half[:-1] / half[-1]
    torch.testing.assert_close(
        whole[:-1] / whole[-1], means, rtol=0, atol=0.1 * float(means.abs().max())
    )


def test_black_around_the_images_changes_nothing_inside(dims):
    images, valid = _case(dims, 2)
    net, kinds = _trained(dims), ["ct", "mr"]
    beyond = [0, 8] * dims
    padded, seen = (torch.nn.functional.pad(x, beyond) for x in (images, valid))
    with torch.no_grad():
        fused = net(images, kinds, valid).fused
        within = [slice(None)] * 2 + [slice(n) for n in SHAPES[dims]]
        again = net(padded, kinds, seen).fused[tuple(within)]
        told = net.summarize(images, kinds, valid), net.summarize(padded, kinds, seen)
    means, again_means = (one[..., :-1] / one[..., -1:] for one in told)
    torch.testing.assert_close(told[0][..., -1], told[1][..., -1])
    # a convolution sees zeros beyond a lattice, and what goes on beyond a field of view
    torch.testing.assert_close(means, again_means, rtol=0, atol=0.2 * float(means.abs().max()))
    assert float((again - fused).abs().mean()) < 0.01


def _listening(dims):
    """A network whose coarse level and attention do something."""
    net = _trained(dims)
    net.decoder.narrow.weight.data *= 30
    for part in (net.modality_attention.value, net.modality_attention.out):
        part.weight.data *= 8
    return net


def test_the_end_of_a_field_of_view_changes_weights_by_its_share_alone(dims):
    """Textured images; both ways, for the image that ends and for the one that does not."""
    generator = torch.Generator().manual_seed(2)
    shape = (1, 2, 64, 24, *[16] * (dims - 2))
    noise = torch.rand(shape, generator=generator)
    pool = torch.nn.functional.avg_pool3d if dims == 3 else torch.nn.functional.avg_pool2d
    images = 0.5 + 3 * (pool(noise, 5, 1, 2, count_include_pad=False) - 0.5)
    images = images.clamp(0, 1)
    shares = torch.ones_like(images)
    shares[:, 1, 20:32] = torch.linspace(1, 0.05, 12).view(12, *[1] * (dims - 1))
    shares[:, 1, 32:] = 0
    net, kinds = _listening(dims), ["ct", "mr"]
    net.logit.weight.data[:] = net.logit.weight.data[:1]  # one weight at all scales
    with torch.no_grad():
        summary = net.summarize(images, kinds)
        whole = net(images, kinds, None, summary).weights
        cut = net(images, kinds, shares, summary).weights
        net.modality_attention.value.weight.data *= 0
        deaf = net(images, kinds, None, summary).weights
    assert float((deaf - whole).abs().mean()) > 0.01  # they hear each other
    assert float(whole.std()) > 0.05
    ending = whole[:, 1:] * shares[:, 1:]
    expected = torch.cat([1 - ending, ending], 1)
    apart = (cut - expected)[:, :, :32].abs()
    assert float(apart.mean()) < 0.003
    assert float(apart.max()) < 0.1


def test_an_image_alone_is_itself_whatever_it_keeps(dims):
    images, _ = _case(dims, 2)
    net = _trained(dims)
    with torch.no_grad():
        full, faint = (
            net(images[:, :1], "mr", torch.full_like(images[:, :1], share)) for share in (1.0, 0.3)
        )
    torch.testing.assert_close(full, faint)


def test_images_that_show_nothing_are_fused_to_nothing(dims):
    images = torch.zeros(1, 2, *SHAPES[dims])
    with torch.no_grad():
        out = _trained(dims)(images, "mr")
    assert float(out.fused.abs().max()) == 0
    assert bool(out.weights.isfinite().all())


class TestFusedFeatures:
    def test_their_order_and_what_lies_out_of_view_change_nothing(self, dims):
        net, (images, view) = _trained(dims), _case(dims, 3)
        kinds = ["ct", "mr", "emission"]
        with torch.no_grad():
            found = net.features(images, kinds, view)
            order = [2, 0, 1]
            turned = net.features(images[:, order], [kinds[m] for m in order], view[:, order])
            hidden = net.features(torch.where(view > 0, images, 0.7), kinds, view)
        assert found.shape == (2, 12, *SHAPES[dims])
        assert torch.equal(found, turned)
        assert torch.equal(found, hidden)

    def test_nothing_is_fused_where_no_image_has_data(self, dims):
        net, (images, view) = _trained(dims), _case(dims, 2)
        view[:, :, -3:] = 0
        with torch.no_grad():
            found = net.features(images, ["ct", "mr"], view)
        assert not found[:, :, -3:].any()
        assert found[:, :, 4:8].any()

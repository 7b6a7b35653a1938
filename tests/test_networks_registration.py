import pytest
import torch
from torch import nn

from fusion_pipeline.geometry import identity_points, integrate, jacobian_determinant, resize_ddf
from fusion_pipeline.networks.registration_net import RegistrationNet

# one of the form 16 n + 1, odd, even, smaller than the least the levels need
SHAPES = {2: [(33, 49), (37, 51), (40, 34), (19, 24)], 3: [(33, 33, 33), (21, 30, 35)]}
CASES = [(d, shape) for d, shapes in SHAPES.items() for shape in shapes]


def net(d, *, shaken=0.0, **options):
    """A small network; ``shaken`` adds noise to all parameters, as if it had been trained."""
    torch.manual_seed(0)
    out = RegistrationNet(d, channels=(4, 6, 6, 8), learned_features=3, **options)
    if shaken:
        with torch.no_grad():
            for parameter in out.parameters():
                parameter.add_(shaken * torch.randn(parameter.shape))
    return out.eval()


def blobs(shape, batch=1, seed=0, shift=0.0):
    """Overlapping hills of different width, about -1..3, another image per batch item."""
    points = identity_points(shape)
    g = torch.Generator().manual_seed(seed)
    out = torch.zeros(batch, 1, *shape)
    for b in range(batch):
        for _ in range(9):
            centre = torch.rand(len(shape), generator=g) * torch.tensor(shape) + shift
            width = 2 + 5 * torch.rand(1, generator=g)
            out[b, 0] += 3 * (-0.5 * ((points - centre) / width).square().sum(-1)).exp() - 0.1
    return out


@pytest.mark.parametrize(("d", "shape"), CASES)
def test_the_field_has_the_shape_of_the_images(d, shape):
    with torch.no_grad():
        ddf = net(d, shaken=0.05)(blobs(shape), blobs(shape, seed=1))
    assert ddf.shape == (1, d, *shape)
    assert ddf.dtype == torch.float32
    assert bool(torch.isfinite(ddf).all())
    assert float(ddf.abs().max()) > 0


@pytest.mark.parametrize(("d", "shape"), CASES)
def test_where_no_shift_is_better_nothing_moves(d, shape):
    flat = torch.full((1, 1, *shape), 0.7)
    with torch.no_grad():
        assert float(net(d)(flat, flat).abs().max()) < 1e-5


@pytest.mark.parametrize(("d", "shape"), CASES)
def test_identical_images_stay_where_they_are(d, shape):
    image, model = blobs(shape), net(d)
    with torch.no_grad():
        soft = float(model(image, image).norm(dim=1).mean())
        model.log_sharpness.fill_(8.0)
        sharp = float(model(image, image).norm(dim=1).mean())
    assert soft < 1.0  # an average over shifts of up to 8 voxels; the border weighs on one side
    assert sharp < 0.05


@pytest.mark.parametrize("d", [2, 3])
def test_untrained_the_field_is_the_search_alone(d):
    pair = blobs(SHAPES[d][1]), blobs(SHAPES[d][1], seed=1)
    model = net(d)
    with torch.no_grad():
        model.log_sharpness.fill_(-40.0)  # all shifts are believed alike: none is left
        assert float(model(*pair).abs().max()) < 1e-4


@pytest.mark.parametrize("d", [2, 3])
def test_the_search_finds_a_shift_and_its_sign(d):
    shape = {2: (65, 49), 3: (33, 49, 33)}[d]
    fixed, axis = blobs(shape), 1
    moving = torch.roll(fixed, 4, 2 + axis)  # moving(x + 4) = fixed(x)
    model = net(d)
    with torch.no_grad():
        model.trust.bias.fill_(100.0)
        model.log_sharpness.fill_(6.0)
        ddf = model(fixed, moving)
    middle = (0, slice(None), *[slice(n // 4, -(n // 4)) for n in shape])
    found = ddf[middle].flatten(1).median(1).values
    expected = torch.zeros(d)
    expected[axis] = 4.0
    torch.testing.assert_close(found, expected, atol=1.2, rtol=0)


@pytest.mark.parametrize("d", [2, 3])
def test_a_batch_is_each_alone(d):
    shape = SHAPES[d][1]
    fixed, moving = blobs(shape, batch=2), blobs(shape, batch=2, seed=1)
    model = net(d, shaken=0.05)
    with torch.no_grad():
        together = model(fixed, moving)
        alone = torch.cat([model(fixed[b : b + 1], moving[b : b + 1]) for b in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("d", [2, 3])
def test_every_parameter_gets_a_gradient(d):
    shape = {2: (37, 51), 3: (21, 30, 35)}[d]
    model = net(d, shaken=0.05).train()
    ddf, belief = model.ddf_and_match(blobs(shape), blobs(shape, seed=1))
    weights = torch.randn(ddf.shape, generator=torch.Generator().manual_seed(2))
    ((ddf * weights).sum() + belief[:, 0].mean()).backward()
    # a norm right behind a convolution takes its bias out again
    idle = {
        id(block[0].bias)
        for block in model.modules()
        if isinstance(block, nn.Sequential)
        and len(block) == 3
        and isinstance(block[1], nn.InstanceNorm2d | nn.InstanceNorm3d)
    }
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert id(parameter) in idle or float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("d", [2, 3])
def test_the_first_step_reaches_what_is_zero_at_first(d):
    shape = SHAPES[d][1]
    model = net(d).train()
    model(blobs(shape), blobs(shape, seed=1)).square().sum().backward()
    for part in (*model.heads, model.trust):
        assert part.weight.grad is not None
        assert float(part.weight.grad.abs().max()) > 0


@pytest.mark.parametrize("d", [2, 3])
def test_the_field_is_the_integral_of_the_velocity(d):
    model, shape = net(d, shaken=0.05), {2: (33, 49), 3: (33, 33, 33)}[d]
    fixed, moving = blobs(shape), blobs(shape, seed=1)
    with torch.no_grad():
        velocity, belief = model.match(model.features(fixed), model.features(moving))
        ddf, same = model.ddf_and_match(fixed, moving)
    assert velocity.shape == (1, d, *[(n + 1) // 2 for n in shape])
    assert belief.shape == (1, 5**d, *[(n + 3) // 4 for n in shape])
    torch.testing.assert_close(belief.exp().sum(1), torch.ones_like(belief[:, 0]))
    torch.testing.assert_close(same, belief)
    torch.testing.assert_close(ddf, resize_ddf(integrate(velocity, 6), shape))
    assert bool((jacobian_determinant(ddf) > 0).all())


@pytest.mark.parametrize("d", [2, 3])
def test_it_goes_through_a_state_dict(d, tmp_path):
    shape = SHAPES[d][1]
    model, other = net(d, shaken=0.05), net(d)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    with torch.no_grad():
        pair = blobs(shape), blobs(shape, seed=1)
        assert torch.equal(other(*pair), model(*pair))


def test_the_same_call_gives_the_same_bits():
    pair = blobs((37, 51)), blobs((37, 51), seed=1)
    model = net(2, shaken=0.05)
    with torch.no_grad():
        assert torch.equal(model(*pair), model(*pair))


def test_flat_images_give_finite_fields_and_gradients():
    flat = torch.zeros(1, 1, 37, 51)
    model = net(2, shaken=0.05)
    ddf = model(flat, flat)
    ddf.sum().backward()
    assert bool(torch.isfinite(ddf).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


@pytest.mark.parametrize("d", [2, 3])
def test_other_shapes_are_refused(d):
    shape = SHAPES[d][1]
    other = (shape[0] + 1, *shape[1:])
    with pytest.raises(ValueError, match=r"on one lattice, got fixed \(1, 1, .*and moving \(1, 1"):
        net(d)(blobs(shape), blobs(other))


def test_options_are_checked():
    with pytest.raises(ValueError, match="spatial_dims 2 or 3, got 4"):
        RegistrationNet(4)
    with pytest.raises(ValueError, match="4 channel numbers, got 2"):
        RegistrationNet(2, channels=(4, 4))

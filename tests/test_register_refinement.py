import pytest
import torch

from fusion_pipeline.geometry import (
    identity_points,
    integrate,
    invert,
    jacobian_determinant,
    resize_ddf,
    sample,
    warp,
)
from fusion_pipeline.geometry.filters import averaged
from fusion_pipeline.losses import mutual_information
from fusion_pipeline.register import refinement
from fusion_pipeline.register.refinement import describe, refine
from fusion_pipeline.register.settings import REFINEMENT
from fusion_pipeline.register.smoothness import Smoothness

STIFF = Smoothness(diffusion=80.0)
SHAPES = {2: (65, 49), 3: (33, 41, 37)}


def texture(shape, seed=0):
    """A smooth random image with detail everywhere, about -2..2, within a round body."""
    g = torch.Generator().manual_seed(seed)
    image = torch.randn((1, 1, *shape), generator=g)
    for _ in range(2):
        image = averaged(image, 2)
    image = image / image.std()
    points = identity_points(shape)
    size = torch.tensor(shape)
    body = (((points - (size - 1) / 2) / (0.42 * size)).square().sum(-1) < 1).float()
    return image * body, body[None, None]


def half(shape):
    return tuple((n + 1) // 2 for n in shape)


def waves(shape, size=1.0):
    """A slow velocity on half the lattice, of up to ``size`` of its voxels along each axis."""
    points = identity_points(half(shape))
    d = len(shape)
    parts = [torch.sin(points[..., (c + 1) % d] / (6.0 + c) + c) for c in range(d)]
    return size * torch.stack(parts)[None]


def pair(d, size=1.0):
    """Fixed, moving of the opposite contrast, the true field, and the body."""
    shape = SHAPES[d]
    fixed, body = texture(shape)
    ddf = resize_ddf(integrate(waves(shape, size)), shape)
    moving = 1.5 - 0.8 * warp(fixed, invert(ddf), fill=None)  # moving(x + ddf) shows fixed(x)
    return fixed, moving, ddf, body


def refined(fixed, moving, velocity, known, moving_known, **options):
    """`refine` on images instead of what describes them."""
    return refine(describe(fixed, known), describe(moving, moving_known), velocity, **options)


def field(velocity, d):
    return resize_ddf(integrate(velocity), SHAPES[d])


def error(found, true, body):
    return float(((found - true).norm(dim=1, keepdim=True) * body).sum() / body.sum())


def still(d):
    return torch.zeros(1, d, *half(SHAPES[d]))


@pytest.mark.parametrize("d", [2, 3])
class TestRefine:
    def test_no_steps_give_the_start_back(self, d):
        fixed, moving, _, body = pair(d)
        start = waves(SHAPES[d])
        found = refined(
            fixed, moving, start, body, torch.ones_like(body), steps=0, smoothness=STIFF
        )
        assert found is start

    def test_finds_a_known_deformation_across_contrasts(self, d):
        fixed, moving, ddf, body = pair(d)
        found = field(
            refined(
                fixed, moving, still(d), body, torch.ones_like(body), steps=40, smoothness=STIFF
            ),
            d,
        )
        before = error(torch.zeros_like(ddf), ddf, body)
        assert before > 1.0
        assert error(found, ddf, body) < 0.5 * before
        assert float((jacobian_determinant(found) <= 0).float().mean()) == 0.0

    def test_a_right_start_stays_right(self, d):
        fixed, moving, ddf, body = pair(d)
        everywhere = torch.ones_like(body)
        found = refined(
            fixed, moving, waves(SHAPES[d]), everywhere, everywhere, steps=15, smoothness=STIFF
        )
        # these waves are rougher than anatomy moves: the price of smoothness is half a voxel
        assert error(field(found, d), ddf, body) < 0.55

    def test_what_is_softer_follows_rougher_fields(self, d):
        fixed, moving, ddf, body = pair(d)
        everywhere = torch.ones_like(body)
        ends = [
            refined(fixed, moving, still(d), everywhere, everywhere, steps=25, smoothness=penalty)
            for penalty in (Smoothness(diffusion=5.0), STIFF)
        ]
        soft, stiff = (error(field(end, d), ddf, body) for end in ends)
        assert soft < 0.8 * stiff

    @pytest.mark.parametrize(
        ("options", "nodes", "steps"),
        [
            ({"smoothness": STIFF}, 4, [7, 3]),
            ({"smoothness": Smoothness(diffusion=80.0, nodes=2)}, 2, [7, 3]),
            ({"smoothness": Smoothness(diffusion=5.0, bending=10.0), "coarse": False}, 4, [3]),
        ],
    )
    def test_levels_and_nodes_are_those_asked_for(self, d, options, nodes, steps, monkeypatch):
        fixed, moving, ddf, body = pair(d)
        everywhere = torch.ones_like(body)
        asked, optimize = [], refinement._optimize

        def watched(dissimilarity, velocity, count, *rest):
            asked.append((tuple(velocity.shape[2:]), count))
            return optimize(dissimilarity, velocity, count, *rest)

        monkeypatch.setattr(refinement, "_optimize", watched)
        found = refined(fixed, moving, still(d), everywhere, everywhere, steps=7, **options)
        size = tuple((n - 1) // nodes + 1 for n in SHAPES[d])
        assert asked == [(size, count) for count in steps]
        assert error(field(found, d), ddf, body) < error(torch.zeros_like(ddf), ddf, body)

    def test_information_is_raised_where_it_is_worth_something(self, d):
        fixed, moving, ddf, body = pair(d)
        everywhere = torch.ones_like(body)
        shared, errors = [], []
        for worth in (0.0, 10.0):
            end = refined(
                fixed,
                moving,
                still(d),
                everywhere,
                everywhere,
                steps=25,
                smoothness=STIFF,
                information=worth,
            )
            found = field(end, d)
            shared.append(float(mutual_information(fixed, warp(moving, found, fill=None), body)))
            errors.append(error(found, ddf, body))
        assert shared[1] > shared[0] + 0.01
        assert errors[1] < errors[0]

    def test_a_thin_slab_is_refined(self, d):
        image = torch.randn((1, 1, 17, *[3] * (d - 1)), generator=torch.Generator().manual_seed(0))
        start = torch.zeros(1, d, *half(image.shape[2:]))
        everywhere = torch.ones_like(image)
        soft = Smoothness(diffusion=5.0, bending=10.0)
        found = refined(image, image, start, everywhere, everywhere, steps=4, smoothness=soft)
        assert found.shape == start.shape
        assert torch.isfinite(found).all()

    def test_bending_costs_and_stretching_only_by_diffusion(self, d):
        points = identity_points(half(SHAPES[d])).movedim(-1, 0)[None]
        bends = Smoothness(diffusion=0.0, bending=10.0)
        assert float(bends.penalty(0.1 * points)) < 1e-6
        assert float(bends.penalty(0.01 * points.square())) > 1e-3
        assert float(Smoothness(diffusion=5.0).penalty(0.1 * points)) == pytest.approx(0.05 * d)

    def test_equal_images_stay(self, d):
        fixed, _, ddf, body = pair(d)
        everywhere = torch.ones_like(body)
        found = refined(fixed, fixed, still(d), everywhere, everywhere, steps=15, smoothness=STIFF)
        assert error(field(found, d), torch.zeros_like(ddf), body) < 0.1

    def test_leaves_its_start_untouched(self, d):
        fixed, moving, _, body = pair(d)
        start = waves(SHAPES[d], 0.5)
        kept = start.clone()
        found = refined(
            fixed, moving, start, body, torch.ones_like(body), steps=3, smoothness=STIFF
        )
        assert torch.equal(start, kept)
        assert not found.requires_grad
        assert found.shape == start.shape

    def test_what_is_not_known_does_not_count(self, d):
        fixed, moving, _, body = pair(d)
        known, moving_known = torch.ones_like(body), torch.ones_like(body)
        known[..., :6] = 0
        moving_known[..., -9:] = 0
        other = torch.where(known > 0, fixed, 9.0), torch.where(moving_known > 0, moving, -9.0)
        for information in (0.0, 6.0):
            first, second = (
                refined(
                    *images,
                    still(d),
                    known,
                    moving_known,
                    steps=6,
                    smoothness=STIFF,
                    information=information,
                )
                for images in ((fixed, moving), other)
            )
            torch.testing.assert_close(first, second, atol=2e-3, rtol=0)

    def test_nothing_known_moves_nothing(self, d):
        fixed, moving, _, body = pair(d)
        nothing = torch.zeros_like(body)
        found = refined(fixed, moving, still(d), nothing, nothing, steps=6, smoothness=STIFF)
        assert float(found.abs().max()) < 1e-6

    def test_the_same_bits_each_time(self, d):
        fixed, moving, _, body = pair(d)
        first, second = (
            refined(fixed, moving, still(d), body, body, steps=6, smoothness=STIFF)
            for _ in range(2)
        )
        assert torch.equal(first, second)


@pytest.mark.parametrize("d", [2, 3])
def test_what_is_compared_lies_where_the_applied_field_does(d):
    noise = torch.randn((1, d, *SHAPES[d]), generator=torch.Generator().manual_seed(0))
    velocity = averaged(noise, 8)
    velocity = velocity * (2 / velocity.norm(dim=1).max())  # two nodes
    difference = integrate(velocity, REFINEMENT.squarings) - integrate(velocity)
    assert float(difference.norm(dim=1).max()) < 0.05


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("information", [0.0, 3.0])
@pytest.mark.parametrize("fineness", [1, 2])
def test_dissimilarity_is_that_of_the_whole_lattice(d, information, fineness):
    """Looked at where the fixed image is known only: the same value and slope."""
    fine = SHAPES[d]
    every = (slice(None), slice(None), *[slice(None, None, fineness)] * d)
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(1, 1, *fine, generator=generator) for _ in range(2)]
    known = [torch.ones(1, 1, *fine) for _ in range(2)]
    known[0][:, :, : fine[0] // 3] = 0
    known[1][..., -4:] = 0
    fixed, moving = (refinement.describe(i, k) for i, k in zip(images, known, strict=True))
    fixed = fixed[every]
    nodes = tuple((n + 1) // 2 for n in fixed.shape[2:])
    velocity = torch.randn(1, d, *nodes, generator=generator).mul(0.3).requires_grad_(True)
    found = refinement._Dissimilarity(fixed, moving, information)(velocity)

    ddf = resize_ddf(integrate(velocity, REFINEMENT.squarings), fixed.shape[2:])
    points = fineness * (identity_points(fixed.shape[2:]) + ddf.movedim(1, -1))
    warped = sample(moving, points, fill=0.0)
    both = fixed[:, -1:] * warped[:, -1:]
    distance = (fixed[:, 1:-1] - warped[:, 1:-1]).square().mean(1, keepdim=True)
    unseen = (distance * both).sum().detach() / both.sum().detach()
    lost = fixed[:, -1:] * (1 - warped[:, -1:])
    expected = 100 * (distance * both + unseen * lost).sum() / fixed[:, -1:].sum()
    if information:
        surely = (both > 0.999).float()
        some = [x.flatten(2)[..., ::3] for x in (fixed[:, :1], warped[:, :1], surely)]
        expected = expected - information * mutual_information(*some, bins=24, normalized=False)[0]
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    slopes = [torch.autograd.grad(value, velocity)[0] for value in (found, expected)]
    torch.testing.assert_close(*slopes, atol=1e-5, rtol=1e-3)

"""The fuse stage: windows, fields of view, colour, scores."""

from functools import cache

import numpy as np
import pytest
import torch
from scipy import ndimage

from fusion_pipeline.data import Image, InputError
from fusion_pipeline.data.palettes import palette
from fusion_pipeline.fuse import Fuse, displayed, faded, refined
from fusion_pipeline.fuse.stage import _laid_around
from fusion_pipeline.losses.fusion_loss import FusionLoss
from fusion_pipeline.metrics import fusion_scores
from fusion_pipeline.networks.fusion_net import FusionNet
from fusion_pipeline.pipeline import FusionPipeline

AFFINE = np.array(
    [[1.4, 0.3, 0.0, -20.0], [-0.2, 1.5, 0.4, 8.0], [0.1, -0.3, 2.9, 40.0], [0, 0, 0, 1.0]]
)


def _case(shape=(30, 26, 22), keys=("ct", "mr", "pet")):
    rng = np.random.default_rng(0)
    affine = AFFINE if len(shape) == 3 else np.diag([-1.0, -1.0, 1.0])
    images = {}
    for key in keys:
        blobs = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5)
        array = torch.from_numpy((blobs - blobs.min()) / np.ptp(blobs)).float()[None]
        array[:, :4] = 0
        images[key] = Image(array, affine, key)
    return images, {key: torch.ones(1, *shape) for key in keys}


def _network(spatial_dims=3):
    torch.manual_seed(0)
    net = FusionNet(spatial_dims)
    torch.nn.init.normal_(net.logit.weight, std=0.7)
    return net


def test_result():
    images, valid = _case()
    valid["mr"][:, 20:] = 0
    found = Fuse(_network())(images, valid)
    assert found.fused.shape == images["ct"].shape
    np.testing.assert_array_equal(found.fused.affine, AFFINE)
    assert found.fused.array.dtype == found.weights.dtype == torch.float32
    assert 0 <= float(found.fused.array.min()) < float(found.fused.array.max()) <= 1
    assert found.weights.shape == (3, 30, 26, 22)
    torch.testing.assert_close(found.weights.sum(0), torch.ones(30, 26, 22))
    assert float(found.weights[1, 20:].abs().max()) == 0
    assert float(found.fused.array[:, :4].abs().max()) == 0


def test_one_window_is_the_network():
    images, valid = _case()
    net = _network()
    found = Fuse(net, steps=0)(images, valid)
    stacked = torch.cat([i.array for i in images.values()])[None]
    with torch.no_grad():
        expected = net(stacked, ["ct", "mr", "emission"])
    torch.testing.assert_close(found.fused.array, expected.fused[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.weights, expected.weights[0], atol=1e-5, rtol=0)


@cache
def _packaged():
    """The packaged network; hooks are taken off again."""
    return FusionPipeline.from_bundle().network.fusion


@pytest.mark.parametrize("dims", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_windows_give_what_the_whole_gives(dims):
    """The network sees the whole in one case and pieces in the other; whatever the order."""
    shape = (250, 230) if dims == 2 else (71, 53, 30)
    images, valid = _case(shape, ("pet", "mr", "ct"))
    valid["mr"][:, : shape[0] // 3] = 0
    net = _network(2) if dims == 2 else _packaged()
    sizes = []
    hook = net.register_forward_hook(lambda _, given, __: sizes.append(given[0].shape[2:]))
    whole = Fuse(net, steps=0, window=208)(images, valid)
    assert len(sizes) == 1
    pieces = Fuse(net, steps=0, window=52)(images, valid)
    hook.remove()
    assert len(sizes) > 4
    assert max(n for size in sizes[1:] for n in size) <= (208 if dims == 2 else 52)
    torch.testing.assert_close(pieces.weights, whole.weights, atol=1e-2, rtol=0)
    torch.testing.assert_close(pieces.fused.array, whole.fused.array, atol=5e-3, rtol=0)
    assert float((pieces.weights - whole.weights).abs().mean()) < 5e-4


@pytest.mark.parametrize("shape", [(150, 90), (150, 90, 61)])
def test_windows_begin_at_whole_places_and_share_nothing(shape):
    shown = torch.zeros(2, *shape, dtype=torch.bool)
    shown[0, 21:140, 30:70] = True
    shown[1, 50:60, 5:80] = True
    windows = _laid_around(shown, 61)
    times = torch.zeros(shape)
    for window in windows:
        times[window.core] += 1
        for outer, core, inner in zip(window.outer, window.core, window.inner, strict=True):
            assert outer.start % 4 == 0
            assert outer.stop - outer.start <= 61
            assert core.start == outer.start + inner.start
    assert float(times.max()) == 1
    assert bool((times[shown.any(0)] == 1).all())


def test_untrained_is_the_average_whatever_the_windows():
    images, valid = _case()
    valid["pet"][..., :9] = 0
    found = Fuse(FusionNet(), steps=0, window=40)(images, valid)
    spacing = images["ct"].spacing.tolist()
    stacked = torch.cat([images[k].array for k in images])
    # what the PET does not keep, the other two share
    share = faded(valid["pet"][0], spacing)
    weights = torch.stack(
        [share / 3 if key == "pet" else (1 - share) / 2 + share / 3 for key in images]
    )
    expected = (stacked * weights).sum(0, keepdim=True)
    torch.testing.assert_close(found.fused.array, expected, atol=1e-5, rtol=0)


def test_a_modality_ends_without_a_step():
    """Bright where it is seen, dark elsewhere: the mean goes from one to the other over 5 mm."""
    shape = (60, 20, 20)
    seen = torch.ones(1, *shape)
    seen[:, 40:] = 0
    images = {
        key: Image(torch.full((1, *shape), value), np.eye(4), key)
        for key, value in (("ct", 0.2), ("mr", 0.8))
    }
    found = Fuse(FusionNet(), steps=0)(images, {"ct": torch.ones(1, *shape), "mr": seen})
    along = found.fused.array[0, :, 10, 10]
    torch.testing.assert_close(along[:33], torch.full((33,), 0.5), atol=1e-4, rtol=0)
    torch.testing.assert_close(along[40:], torch.full((20,), 0.2), atol=1e-4, rtol=0)
    steps = along.diff()
    assert float(steps.max()) <= 1e-4
    assert float(steps.min()) > -0.1  # of 0.3


def test_steps_leave_no_frame_where_bright_fat_ends():
    """Fat is bright in the MR and dark in the CT; the steps once drew a third of it as a border."""
    shape = (96, 48)
    generator = torch.Generator().manual_seed(0)
    seen = torch.ones(1, *shape)
    seen[:, 60:] = 0
    images = {
        key: Image(value + 0.03 * torch.randn(1, *shape, generator=generator), np.eye(3), key)
        for key, value in (("ct", 0.15), ("mr", 0.9), ("pet", 0.1))
    }
    valid = {key: seen if key == "mr" else torch.ones(1, *shape) for key in images}
    along = Fuse(FusionNet(2))(images, valid).fused.array[0, :, 12:36].mean(1)
    whole = float(along[30:45].mean() - along[62:].mean())
    assert whole > 0.2
    assert float(along[57:63].diff().abs().max()) < 0.2 * whole


def test_a_picture_keeps_its_weight_where_the_others_are_black_beyond():
    """An MR that fills its field of view, in black: nothing takes over, so nothing fades."""
    shape = (64, 48)
    generator = torch.Generator().manual_seed(0)
    head, view = torch.zeros(1, *shape), torch.zeros(1, *shape)
    view[:, 8:56, 8:40] = 1
    head[:, 8:56, 8:40] = 0.6 + 0.1 * torch.rand(1, 48, 32, generator=generator)
    uptake = torch.zeros(1, *shape)
    uptake[:, 20:44, 16:32] = 0.5
    images = {key: Image(a, np.eye(3), key) for key, a in (("mr", head), ("pet", uptake))}
    whole = torch.ones(1, *shape)
    ended = Fuse(FusionNet(2))(images, {"mr": view, "pet": whole})
    never = Fuse(FusionNet(2))(images, {"mr": whole, "pet": whole})
    torch.testing.assert_close(ended.fused.array, never.fused.array)
    assert float(ended.weights[0][view[0] == 0].max()) == 0
    torch.testing.assert_close(ended.weights.sum(0), torch.ones(shape))
    bright = images | {"pet": images["pet"].with_array(uptake + 0.3)}
    beside = Fuse(FusionNet(2), steps=0)(bright, {"mr": view, "pet": whole})
    assert float(beside.weights[0, 8, 24]) < 0.1  # another picture goes on there


def test_bone_stays_bright_beside_a_picture_of_uptake():
    """Cold bone in warm tissue; the PET's contrast once turned it darker than soft tissue."""
    generator = torch.Generator().manual_seed(0)
    ct = 0.5 + 0.03 * torch.randn(1, 48, 48, generator=generator)
    ct[:, 30:40, 30:40] = 0.98
    uptake = np.full((48, 48), 0.3)
    uptake[28:42, 28:42] = 0.03
    pet = torch.from_numpy(ndimage.gaussian_filter(uptake, 2)).float()[None]
    images = {key: Image(a, np.eye(3), key) for key, a in (("ct", ct), ("pet", pet))}
    fused = Fuse(FusionNet(2))(images, {key: torch.ones(1, 48, 48) for key in images}).fused
    assert float(fused.array[0, 32:38, 32:38].mean()) > 0.35


def test_an_mr_that_ends_within_a_wider_ct_keeps_more():
    """Both are as rich: a CT that goes on elsewhere is kept there, so where they meet the MR is."""
    generator = torch.Generator().manual_seed(5)
    images = ndimage.gaussian_filter(
        torch.rand(2, 24, 24, 48, generator=generator).numpy(), (0, 1.5, 1.5, 1.5)
    )
    images = torch.from_numpy(0.2 + 3 * (images - images.min())).clamp(0.2, 0.95)
    kept = torch.ones_like(images)
    kept[1, ..., 20:] = 0
    images = images * kept
    narrow = images * (torch.arange(48) < 20 + 8)  # the steps look no further than this
    where = (slice(None), slice(None), slice(4, 16))

    def likeness(of):
        fused = refined(of[:1], of, ["ct", "mr"], kept, steps=18, largest=1_000_000)
        found = fused[0][where].flatten()
        pairs = [torch.stack([found, image[where].flatten()]) for image in of]
        return [float(torch.corrcoef(pair)[0, 1]) for pair in pairs]

    (ct, mr), (narrow_ct, narrow_mr) = likeness(images), likeness(narrow)
    assert mr > narrow_mr + 0.05
    assert 0.05 < ct < narrow_ct


def test_an_mr_beside_a_faint_pet_keeps_fat_and_muscle_apart():
    """The order of an uptake that is low all over once darkened the anatomy around a lesion."""
    generator = torch.Generator().manual_seed(0)
    shape = (40, 36, 24)
    mr = 0.3 + 0.02 * torch.randn(1, *shape, generator=generator)
    mr[:, 24:] += 0.5
    uptake = 0.08 + 0.02 * torch.rand(*shape, generator=generator)
    uptake[6:16, 12:24, 8:16] = 0.9
    pet = torch.from_numpy(ndimage.gaussian_filter(uptake.numpy(), 2))[None]
    images = {key: Image(a.clamp(0, 1), np.eye(4), key) for key, a in (("mr", mr), ("pet", pet))}
    fused = Fuse(_packaged())(images, {key: torch.ones(1, *shape) for key in images}).fused.array[0]
    muscle = fused[19:23, :8].mean()
    assert float(fused[28:].mean() - muscle) > 0.7 * 0.5
    assert float(fused[9:13, 15:21, 10:14].mean() - muscle) > 0.3


class TestFaded:
    def test_the_end_of_the_lattice_is_no_edge(self):
        everywhere = torch.ones(9, 8, 7)
        assert faded(everywhere, [1.0] * 3).equal(everywhere)
        half = everywhere.clone()
        half[5:] = 0
        kept = faded(half, [5.0, 1.0, 1.0])
        assert float(kept[0].min()) == 1.0
        assert float((kept - kept[:, :1, :1]).abs().max()) == 0

    @pytest.mark.parametrize("size", [1.0, 2.0, 3.0, 5.0])
    def test_it_is_a_smooth_step_over_5_mm(self, size):
        seen = torch.zeros(60, 30)
        seen[:30] = 1
        kept = faded(seen, [size, 1.0])[:, 15]
        depth = (29.5 - torch.arange(30)) * size
        rise = (depth / 5).clamp(0, 1)
        expected = (rise * rise * (3 - 2 * rise)).clamp_min(0.01)
        torch.testing.assert_close(kept[:30], expected, atol=0.06, rtol=0)
        assert float(kept[30:].abs().max()) == 0

    @pytest.mark.parametrize("degrees", [0, 10, 20, 45])
    @pytest.mark.parametrize("thick", [4, 8, 15])
    def test_a_thin_slab_keeps_its_weight_in_its_middle(self, degrees, thick):
        i, _, k = torch.meshgrid(*[torch.arange(60.0) - 30] * 3, indexing="ij")
        turn = np.deg2rad(degrees)
        seen = ((k * np.cos(turn) + i * np.sin(turn)).abs() < thick / 2).float()
        kept = faded(seen, [1.0] * 3)
        around = kept[20:40, 20:40][seen[20:40, 20:40] > 0]
        assert float(around.mean()) > 0.4
        assert float(around.max()) > 0.8

    def test_each_part_has_its_own_depth(self):
        seen = torch.zeros(60, 12, 12)
        seen[4:10], seen[20:] = 1, 1
        kept = faded(seen, [1.0] * 3)[:, 6, 6]
        assert float(kept[6:8].min()) > 0.95
        assert float(kept[31:].min()) == 1.0
        assert float(kept[21]) < 0.4

    @pytest.mark.parametrize("seen", [torch.zeros(5, 5), torch.eye(7)])
    def test_nothing_or_next_to_nothing_seen(self, seen):
        kept = faded(seen, [1.0, 1.0])
        assert bool((kept[seen > 0] > 0).all())
        assert float(kept[seen == 0].sum()) == 0

    def test_pictures_too(self):
        seen = torch.ones(40, 40)
        seen[:, 25:] = 0
        kept = faded(seen, [1.0, 1.0])
        assert float(kept[:, :19].min()) == 1.0
        assert float(kept[:, 24].max()) < 0.25


def test_the_packaged_network_ends_a_modality_without_a_step():
    """Two textures of unlike brightness: the largest change is small beside that of the whole."""
    network = _packaged()
    generator = torch.Generator().manual_seed(0)
    texture = [0.03 * torch.randn(1, 48, 40, 40, generator=generator) for _ in range(2)]
    images = {
        key: Image((value + t).clamp(0, 1), np.eye(4), key)
        for (key, value), t in zip((("ct", 0.3), ("mr", 0.8)), texture, strict=True)
    }
    seen = torch.ones(1, 48, 40, 40)
    seen[:, 32:] = 0
    found = Fuse(network)(images, {"ct": torch.ones_like(seen), "mr": seen})
    profile = found.fused.array[0, :, 12:28, 12:28].mean((1, 2))
    whole = float(profile[:20].mean() - profile[34:].mean())
    assert whole > 0.3
    assert float(profile.diff().abs().max()) < 0.45 * whole


def test_the_packaged_network_does_not_frame_a_field_of_view():
    """An image that ends keeps its weight up to where it fades, and gains none on the way."""
    generator = torch.Generator().manual_seed(0)
    blobs = torch.nn.functional.avg_pool3d(
        torch.randn(1, 2, 60, 44, 44, generator=generator), 5, 1, 2, count_include_pad=False
    )
    images = {
        key: Image((0.5 + 1.5 * blob).clamp(0.1, 1)[None], np.eye(4), key)
        for key, blob in zip(("ct", "mr"), blobs[0], strict=True)
    }
    seen = {key: torch.ones(1, 60, 44, 44) for key in images}
    whole = Fuse(_packaged(), steps=0)(images, seen)
    seen["mr"][:, 36:] = 0
    cut = Fuse(_packaged(), steps=0)(images, seen)
    more = (cut.weights[1] - whole.weights[1])[:36]
    assert float(whole.weights[1].std()) > 0.05  # it weighs
    assert float(more.mean((1, 2)).max()) < 0.01
    deep = slice(0, 30)  # the fade takes 5 mm
    assert float((cut.fused.array - whole.fused.array)[:, deep].abs().mean()) < 0.005


def test_the_packaged_weights_follow_what_the_images_show():
    """A hot ball in the PET, a bright rod in the CT: each has the greater weight in its own."""
    generator = torch.Generator().manual_seed(1)
    i, j, k = torch.meshgrid(*[torch.arange(48.0)] * 3, indexing="ij")
    ball = ((i - 14) ** 2 + (j - 24) ** 2 + (k - 24) ** 2).sqrt() < 8
    rod = ((i - 36) ** 2 + (j - 24) ** 2).sqrt() < 5
    images = {}
    for key, bright in (("ct", rod), ("pet", ball)):
        texture = 0.02 * torch.randn(1, 48, 48, 48, generator=generator)
        array = (0.3 + 0.6 * bright + texture).clamp(0, 1)
        images[key] = Image(array, np.eye(4), key)
    found = Fuse(_packaged())(images, {key: torch.ones(1, 48, 48, 48) for key in images})
    ct, pet = found.weights
    assert float(pet[ball].mean()) > float(pet[~ball & ~rod].mean()) + 0.1
    assert float(ct[rod].mean()) > float(ct[~ball & ~rod].mean()) + 0.1
    fused = found.fused.array[0]
    assert float(fused[ball].mean()) > 0.6  # an average would show 0.6
    assert float(fused[rod].mean()) > 0.6


def test_windows_of_air_are_weighed_evenly():
    images, valid = _case((200, 20, 18))
    images = {
        k: i.with_array(i.array * (torch.arange(200) % 84 >= 60).view(1, 200, 1, 1))
        for k, i in images.items()
    }
    valid["mr"][:, :8] = 0
    net = _network()
    sizes = []
    net.register_forward_hook(lambda _, given, __: sizes.append(given[0].shape[2]))
    found = Fuse(net, steps=0, window=44)(images, valid)
    assert len(sizes) == 10  # of 12, each keeping 12 voxels; two in the middle see only air
    assert float(found.fused.array[:, :8].abs().max()) == 0
    torch.testing.assert_close(found.weights[:, :8].mean((1, 2, 3)), torch.tensor([0.5, 0.0, 0.5]))


def test_air_around_the_body_costs_nothing_and_changes_little():
    images, _ = _case()
    wide, shape = {}, (90, 26, 102)
    for key, image in images.items():
        array = torch.full((1, *shape), 0.01)
        array[:, :30, :, 40:62] = image.array
        wide[key] = image.with_array(array)
    net, sizes = _packaged(), []
    hook = net.register_forward_hook(lambda _, given, __: sizes.append(given[0].shape[2:]))
    found = Fuse(net, steps=0)(wide, {key: torch.ones(1, *shape) for key in wide})
    hook.remove()
    assert sizes == [(46, 26, 54)]  # what is shown, and 16 voxels around it
    with torch.no_grad():
        whole = net(torch.cat([i.array for i in wide.values()])[None], ["ct", "mr", "emission"])
    apart = (found.fused.array - whole.fused[0]).abs()
    assert float(apart.max()) < 0.05
    assert float(apart.mean()) < 0.005
    torch.testing.assert_close(found.weights.sum(0), torch.ones(shape))
    assert float(found.fused.array[0, -1, 0, 0]) == pytest.approx(0.01)


def test_nobody_sees():
    images, valid = _case()
    for seen in valid.values():
        seen[:, 25:] = 0
    found = Fuse(_network())(images, valid)
    assert float(found.weights[:, 25:].abs().max()) == 0
    assert float(found.fused.array[:, 25:].abs().max()) == 0


def test_order_of_moving_images_changes_nothing():
    images, valid = _case()
    net = _network()
    first = Fuse(net)(images, valid)
    second = Fuse(net)({k: images[k] for k in ("ct", "pet", "mr")}, valid)
    assert torch.equal(first.fused.array, second.fused.array)
    assert torch.equal(first.weights[[0, 2, 1]], second.weights)


def test_scores():
    images, valid = _case()
    scores = Fuse(_network())(images, valid).scores
    assert sum(scores[f"weight_{k}"] for k in images) == pytest.approx(1, abs=1e-4)
    for name in ("ssim_min", "vif_min", "q_min", "nabf"):
        assert -1 <= scores[name] <= 1
    flat, seen = _case((60, 50), ("ct", "mr"))
    assert {"weight_ct", "weight_mr", "ssim_ct"} <= set(Fuse(_network(2))(flat, seen).scores)


def test_a_volume_is_scored_on_slices_all_along_it():
    generator = torch.Generator().manual_seed(2)
    images = {
        key: Image(0.1 + 0.8 * torch.rand(1, 24, 24, 40, generator=generator), np.eye(4), key)
        for key in ("ct", "mr")
    }
    for image in images.values():  # nothing in the first half: it takes no part
        image.array[..., :20] = 0.0
    found = Fuse(_network())(images, {key: torch.ones(1, 24, 24, 40) for key in images})
    expected = []
    for at in (22, 26, 30, 34, 38):  # at 10, 30, 50, 70, 90 % of the twenty that show anything
        sources = {key: image.array[0, ..., at] for key, image in images.items()}
        expected.append(fusion_scores(found.fused.array[0, ..., at], sources))
    for name in ("q_min", "ssim_ct", "nabf"):
        assert found.scores[name] == pytest.approx(np.mean([one[name] for one in expected]))
    black = {key: image.with_array(torch.zeros_like(image.array)) for key, image in images.items()}
    assert "q" in Fuse(_network())(black, {key: torch.ones(1, 24, 24, 40) for key in black}).scores


def _hot_ball():
    """Two anatomical images and a PET that shows a ball on a faint ground."""
    images, valid = _case((40, 36), ("ct", "mr", "pet"))
    i, j = torch.meshgrid(torch.arange(40.0), torch.arange(36.0), indexing="ij")
    ball = ((i - 22) ** 2 + (j - 16) ** 2).sqrt() < 6
    images["pet"] = images["pet"].with_array((0.05 + 0.85 * ball).float()[None])
    return images, valid, ball


class TestColour:
    def test_uptake_is_coloured_and_the_rest_grey(self):
        images, valid, ball = _hot_ball()
        found = Fuse(_network(2), colour_map="jet")(images, valid)
        assert found.colour is not None
        assert found.colour.colour.shape == (3, 40, 36)
        spread = found.colour.colour.amax(0) - found.colour.colour.amin(0)
        assert float(spread[~ball].max()) < 1e-3
        assert float(spread[ball].min()) > 20

    def test_luminance_lies_between_anatomy_and_map(self):
        """Luma is exact but for whole levels: a quarter of the anatomy, the rest of the map."""
        images, valid, ball = _hot_ball()
        del images["mr"], valid["mr"]
        found = Fuse(_network(2), steps=0, colour_map="hot")(images, valid)
        luma = (found.colour.colour * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
        at = palette("hot")[round(0.9 * 255)] @ np.float32([0.299, 0.587, 0.114])
        expected = 0.25 * 255 * images["ct"].array[0] + 0.75 * float(at)
        torch.testing.assert_close(luma[ball], expected[ball], atol=1.0, rtol=0)
        grey = 255 * images["ct"].array[0]
        torch.testing.assert_close(luma[~ball], grey[~ball], atol=0.51, rtol=0)

    def test_without_uptake_there_is_none(self):
        images, valid = _case((40, 36), ("ct", "mr"))
        assert Fuse(_network(2))(images, valid).colour is None

    def test_an_unknown_map_is_refused(self):
        with pytest.raises(InputError, match=r"colour_map: expected one of hot_iron, .*'grey'"):
            Fuse(FusionNet(2), colour_map="grey")


class TestSteps:
    @pytest.mark.parametrize("shape", [(60, 50), (30, 26, 22)])
    def test_steps_lower_the_loss_and_invent_nothing(self, shape):
        images, valid = _case(shape, ("ct", "mr"))
        sources = torch.cat([image.array for image in images.values()])[None]
        loss = FusionLoss(sources, ["ct", "mr"])
        net = _network(len(shape))
        plain, steps = (Fuse(net, steps=n)(images, valid).fused.array for n in (0, 8))
        assert float(loss(steps[None])) < float(loss(plain[None])) - 0.1
        assert float(steps[:, :4].abs().max()) == 0  # black in both
        assert bool((steps <= 1.15 * sources[0].amax(0) + 1e-6).all())

    def test_where_one_image_is_alone_it_is_itself(self):
        images, valid = _case((60, 50), ("ct", "mr"))
        valid["mr"][:, 30:] = 0
        found = Fuse(_network(2))(images, valid).fused.array
        torch.testing.assert_close(found[:, 30:], images["ct"].array[:, 30:], atol=1e-5, rtol=0)

    def test_the_same_twice(self):
        images, valid = _case((60, 50), ("ct", "mr"))
        first, second = (Fuse(_network(2))(images, valid).fused.array for _ in range(2))
        assert torch.equal(first, second)

    @pytest.mark.parametrize("shape", [(120, 100), (44, 40, 36)])
    def test_a_large_image_is_stepped_on_a_coarser_lattice_and_in_windows(self, shape):
        """It comes near what steps on the whole give, and no window shows."""
        images, _ = _case(shape, ("ct", "mr"))
        sources = torch.cat([image.array for image in images.values()])
        kept = torch.ones_like(sources)
        start = sources.mean(0, keepdim=True)
        whole, windows = (
            refined(start, sources, ["ct", "mr"], kept, steps=10, largest=n)
            for n in (100_000, start.numel() // 3)
        )
        change = float((whole - start).abs().mean())
        assert change > 0.005
        assert float((windows - start).abs().mean()) > 0.5 * change
        assert float((windows - whole).abs().mean()) < change
        # where windows meet, the two differ no more from voxel to voxel than elsewhere
        for axis in range(1, start.ndim):
            steps = (windows - whole).diff(dim=axis).abs()
            planes = steps.mean([a for a in range(steps.ndim) if a != axis])
            assert float(planes.max()) < 4 * float(planes.median()) + 1e-3


class TestDisplayed:
    def test_a_ct_has_its_soft_tissue_window_and_room_for_bone(self):
        hu = torch.tensor([[-1000.0, -160.0, 40.0, 240.0, 740.0, 3000.0]])[None]
        shown = displayed(Image(hu, np.eye(3), "ct", units="HU"), torch.ones_like(hu))[0, 0]
        expected = torch.tensor([0.0, 0.0, 0.46, 0.92, 0.96, 0.9877])
        torch.testing.assert_close(shown, expected, atol=1e-3, rtol=0)

    def test_a_picture_is_what_it_is(self):
        grey = torch.arange(256.0).view(1, 16, 16)
        image = Image(grey, np.diag([-1.0, -1.0, 1.0]), "mr", path="a.png")
        view = torch.ones_like(grey)
        view[:, 0] = 0
        torch.testing.assert_close(displayed(image, view), grey / 255 * view)

    @pytest.mark.parametrize(("key", "low", "high"), [("mr", 1, 99), ("pet", None, 99.5)])
    def test_others_by_percentiles_of_their_body(self, key, low, high):
        generator = torch.Generator().manual_seed(0)
        array = torch.zeros(1, 30, 30, 30)
        array[:, 6:24, 6:24, 6:24] = 400 + 100 * torch.rand(1, 18, 18, 18, generator=generator)
        image = Image(array, np.diag([3.0, 3.0, 3.0, 1.0]), key)
        shown = displayed(image, torch.ones_like(array))
        body = array[array > 0]
        black = 0.0 if low is None else float(torch.quantile(body, low / 100))
        white = float(torch.quantile(body, high / 100))
        expected = ((array - black) / (white - black)).clamp(0, 1)
        torch.testing.assert_close(shown, expected, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 32}, "expected a window of at least 36 voxels, got 32"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Fuse(FusionNet(), **options)


def test_errors_say_what_came():
    images, valid = _case()
    run = Fuse(_network())
    with pytest.raises(ValueError, match=r"expected a field of view of pet, .*, got nothing"):
        run(images, {"ct": valid["ct"], "mr": valid["mr"]})
    with pytest.raises(ValueError, match=r"got \(1, 3, 3, 3\)"):
        run(images, {**valid, "mr": torch.ones(1, 3, 3, 3)})
    images["mr"] = images["mr"].with_array(images["mr"].array[:, :-1])
    with pytest.raises(ValueError, match="expected images of one shape"):
        run(images, valid)

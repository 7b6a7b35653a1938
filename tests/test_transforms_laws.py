"""Laws that every transform obeys: MONAI's, and that the affine is never lost."""

import pickle
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch, set_track_meta
from monai.transforms import (
    Compose,
    Invertd,
    InvertibleTransform,
    Orientation,
    Orientationd,
    Spacing,
    Spacingd,
)

from fusion_pipeline import transforms as T
from fusion_pipeline.geometry import apply_affine, identity_points
from fusion_pipeline.transforms.scaling import normalized

SHAPE = (20, 24, 28)
UNITS = {"ct": "HU", "mr": "a.u.", "pet": "SUV", "spect": "counts"}
MODALITIES = tuple(UNITS)
# one row a transform: array class, dictionary class, the modality shown, the key of the result
LAWS = {
    "ClipHU": (T.ClipHU, T.ClipHUd, "ct", "image"),
    "RobustZScore": (T.RobustZScore, T.RobustZScored, "mr", "image"),
    "ScaleEmission": (T.ScaleEmission, T.ScaleEmissiond, "spect", "image"),
    "NormalizeModality-ct": (T.NormalizeModality, T.NormalizeModalityd, "ct", "image"),
    "NormalizeModality-mr": (T.NormalizeModality, T.NormalizeModalityd, "mr", "image"),
    "NormalizeModality-pet": (T.NormalizeModality, T.NormalizeModalityd, "pet", "image"),
    "Denoise": (T.Denoise, T.Denoised, "mr", "image"),
    "BodyMask": (T.BodyMask, T.BodyMaskd, "ct", "image_body"),
    "FieldOfView": (T.FieldOfView, T.FieldOfViewd, "mr", "image_field_of_view"),
}
SCALINGS = [name for name, law in LAWS.items() if issubclass(law[0], InvertibleTransform)]


@pytest.fixture(params=LAWS)
def law(request):
    """The array transform, its dictionary twin, a modality it serves, and the result's key."""
    array, dictionary, modality, key = LAWS[request.param]
    return array(), dictionary("image"), modality, key


def ball(affine, radius=13.0):
    """A solid ball in the world, its middle off the lattice's; and the middle in mm."""
    middle = apply_affine(affine, (np.asarray(SHAPE) - 1) / 2) + np.array([0.0, 2.0, -4.0])
    world = apply_affine(affine, identity_points(SHAPE).numpy())
    return torch.from_numpy(np.linalg.norm(world - middle, axis=-1) < radius), middle


def picture(affine, modality, seed=0):
    """A noisy ball of tissue in air, as a plain tensor."""
    air, tissue, sigma = {
        "ct": (-1000.0, 60.0, 8.0),
        "mr": (10.0, 500.0, 6.0),
        "pet": (0.05, 4.0, 0.02),
        "spect": (1.0, 90.0, 0.5),
    }[modality]
    noise = torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(seed))
    image = torch.where(ball(affine)[0], tissue, air)[None] + sigma * noise
    return image if modality == "ct" else image.clamp_min(0)


def image_of(affine, modality, seed=0, name="case01.mha"):
    """The same as the reader gives it."""
    meta = {"modality": modality, "units": UNITS[modality], "filename_or_obj": name, "warnings": []}
    return MetaTensor(picture(affine, modality, seed), torch.as_tensor(affine.copy()), meta)


def centre_of(image):
    """Centre of what is bright, in world mm, by the image's own affine."""
    values = image.as_tensor()[0].double().numpy()
    bright = values > (values.min() + values.max()) / 2
    return apply_affine(image.affine.numpy(), np.argwhere(bright).mean(0))


# --- what goes in comes out


def test_a_metatensor_keeps_its_affine_its_meta_and_its_history(law, oblique_affine):
    array, _, modality, _ = law
    given = Orientation("LPS", labels=None)(image_of(oblique_affine, modality))
    before = deepcopy(given)
    out = array(given)
    assert type(out) is MetaTensor
    assert torch.equal(out.affine, given.affine)
    assert {**out.meta, "units": ""}.keys() == given.meta.keys()
    for name in ("modality", "filename_or_obj"):
        assert out.meta[name] == given.meta[name]
    traced = [operation["class"] for operation in out.applied_operations]
    own = [type(array).__name__] if isinstance(array, InvertibleTransform) else []
    assert traced == ["Orientation", *own]
    # nothing of the input changed, and the two share nothing that a later change would hit
    assert torch.equal(given.as_tensor(), before.as_tensor())
    assert len(given.applied_operations) == len(before.applied_operations)
    out.meta["warnings"].append("later")
    assert given.meta["warnings"] == []
    out.meta["affine"][0, 3] += 5
    assert torch.equal(given.affine, before.affine)


def test_a_plain_tensor_and_an_array_give_a_plain_tensor(law, oblique_affine):
    _, _, modality, _ = law
    array = with_modality(law[0], modality)
    plain = picture(oblique_affine, modality)
    arguments = spacing_argument(array)
    outs = [array(given, *arguments) for given in (plain, plain.numpy(), plain.double())]
    assert all(type(out) is torch.Tensor for out in outs)
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_the_metatensors_values_are_the_plain_ones(law, oblique_affine):
    _, _, modality, _ = law
    plain = with_modality(law[0], modality)
    expected = plain(picture(oblique_affine, modality), *spacing_argument(plain))
    out = law[0](image_of(oblique_affine, modality))
    assert out.dtype == expected.dtype
    assert torch.equal(out.as_tensor(), expected)


def with_modality(array, modality):
    """The same transform, told the modality that a plain tensor cannot tell."""
    return type(array)(modality) if hasattr(array, "modality") else array


def spacing_argument(array):
    """The spacing, for the transforms that ask for it."""
    return ((1.0, 1.5, 3.0),) if isinstance(array, T.BodyMask | T.Denoise) else ()


def test_without_tracking_nothing_is_tracked(law, oblique_affine):
    given = image_of(oblique_affine, law[2])
    set_track_meta(False)
    try:
        assert type(law[0](given)) is torch.Tensor
    finally:
        set_track_meta(True)


def test_units_are_true_after_each_transform(law, oblique_affine):
    array, _, modality, _ = law
    out = array(image_of(oblique_affine, modality))
    keeps = isinstance(array, T.ClipHU | T.Denoise)
    assert out.meta["units"] == (UNITS[modality] if keeps else "1")


# --- dictionaries


def test_the_dictionary_twin_does_what_the_array_does(law, oblique_affine):
    array, dictionary, modality, key = law
    data = {"image": image_of(oblique_affine, modality), "id": "case01"}
    before = deepcopy(data)
    out = dictionary(data)
    assert torch.equal(out[key].as_tensor(), array(data["image"]).as_tensor())
    assert torch.equal(out[key].affine, data["image"].affine)
    assert out["id"] == "case01"
    assert data.keys() == before.keys()
    assert torch.equal(data["image"].as_tensor(), before["image"].as_tensor())
    assert set(out) == {"image", "id", key}


def test_missing_keys_are_skipped_or_named(law, oblique_affine):
    _, dictionary, modality, key = law
    data = {"image": image_of(oblique_affine, modality)}
    lenient = type(dictionary)(["image", "other"], allow_missing_keys=True)
    assert set(lenient(data)) == {"image", key}
    with pytest.raises(KeyError, match="other"):
        type(dictionary)(["image", "other"])(data)


def test_monais_other_names_are_there(law):
    dictionary = type(law[1])
    stem = dictionary.__name__[:-1]
    assert getattr(T, stem + "D") is getattr(T, stem + "Dict") is dictionary


def test_one_transform_serves_images_of_several_modalities(oblique_affine):
    chain = Compose([T.Denoised("image"), T.BodyMaskd("image"), T.NormalizeModalityd("image")])
    for modality in MODALITIES:
        given = image_of(oblique_affine, modality)
        smooth = T.Denoise(modality)(given)
        body = T.BodyMask(modality)(smooth)
        out = chain({"image": given})
        expected = T.NormalizeModality(modality)(smooth, body)
        assert torch.equal(out["image"].as_tensor(), expected.as_tensor())


def test_modalities_and_spacings_can_be_given_per_key(oblique_affine):
    spacing = (1.0, 1.5, 3.0)
    ct, mr = picture(oblique_affine, "ct"), picture(oblique_affine, "mr")
    out = T.BodyMaskd(["ct", "mr"], ["ct", "mr"], spacing=spacing)({"ct": ct, "mr": mr})
    assert torch.equal(out["ct_body"], T.BodyMask("ct")(ct, spacing))
    assert torch.equal(out["mr_body"], T.BodyMask("mr")(mr, spacing))


@pytest.mark.parametrize("twin", [T.BodyMaskd, T.Denoised, T.NormalizeModalityd])
def test_an_unknown_modality_is_refused_with_what_to_do(twin, oblique_affine):
    options = {} if twin is T.NormalizeModalityd else {"spacing": (1.0, 1.5, 3.0)}
    with pytest.raises(ValueError, match=r"image's meta\['modality'\]; got None and an image with"):
        twin("image", **options)({"image": picture(oblique_affine, "mr")})
    bare = MetaTensor(picture(oblique_affine, "mr"), torch.as_tensor(oblique_affine))
    with pytest.raises(ValueError, match="got None and a MetaTensor without it"):
        twin("image")({"image": bare})
    bare.meta["modality"] = "us"
    with pytest.raises(ValueError, match="modality of ct, mr, pet, spect, got 'us'"):
        twin("image")({"image": bare})


@pytest.mark.parametrize("twin", [T.BodyMaskd, T.Denoised])
def test_without_a_spacing_the_message_says_what_is_missing(twin, oblique_affine):
    with pytest.raises(ValueError, match="expected a MetaTensor or a spacing"):
        twin("image", "mr")({"image": picture(oblique_affine, "mr")})


@pytest.mark.parametrize("turned", [False, True])
def test_the_spacing_of_a_picture_is_the_length_of_its_columns(turned, oblique_affine):
    """Also where the picture is a plane of a volume, with a 4 x 4 affine."""
    affine = oblique_affine if turned else np.diag([1.0, 1.5, 1.0])
    noise = picture(oblique_affine, "mr")[..., 10]
    out = T.Denoise("mr")(MetaTensor(noise, torch.as_tensor(affine)))
    torch.testing.assert_close(out.as_tensor(), T.Denoise("mr")(noise, (1.0, 1.5)))


# --- masks


@pytest.mark.parametrize("twin", [T.RobustZScored, T.ScaleEmissiond, T.NormalizeModalityd])
def test_scalings_are_measured_in_the_body_within_the_field_of_view(twin, oblique_affine):
    given = image_of(oblique_affine, "pet")
    body, field = torch.zeros_like(given), torch.zeros_like(given)
    body[:, 4:12] = 1
    field[:, 9:] = 1
    both = (body * field).as_tensor()
    array = {T.RobustZScored: T.RobustZScore, T.ScaleEmissiond: T.ScaleEmission}.get(
        twin, T.NormalizeModality
    )()

    def run(**masks):
        return twin("image")({"image": given, **masks})["image"].as_tensor()

    expected = array(given, both).as_tensor()
    assert torch.equal(run(image_body=body, image_field_of_view=field), expected)
    assert torch.equal(run(image_body=body), array(given, body).as_tensor())
    assert torch.equal(run(image_field_of_view=field), array(given, field).as_tensor())
    elsewhere = 1 - field
    assert torch.equal(
        run(image_body=elsewhere, image_field_of_view=field), array(given, field).as_tensor()
    )
    assert not torch.equal(expected, array(given).as_tensor())
    assert not torch.equal(expected, array(given, body).as_tensor())


def test_a_mask_of_another_lattice_is_refused(oblique_affine):
    """The same shape, turned: nothing else would show it."""
    given = image_of(oblique_affine, "ct")
    masks = Compose([T.BodyMaskd("image"), Orientationd("image", "LPS", labels=None)])
    chain = Compose([masks, T.NormalizeModalityd("image")])
    with pytest.raises(RuntimeError, match="applying transform") as error:
        chain({"image": given})
    assert "expected a mask on the image's lattice" in str(error.value.__cause__)
    both = Orientationd(["image", "image_body"], "LPS", labels=None)
    out = Compose([T.BodyMaskd("image"), both, T.NormalizeModalityd("image")])({"image": given})
    expected = Compose([T.BodyMaskd("image"), T.NormalizeModalityd("image")])({"image": given})
    torch.testing.assert_close(centre_of(out["image"]), centre_of(expected["image"]))


# --- what the units decide


def test_units_decide_whether_a_ct_is_in_hu(oblique_affine):
    values = picture(oblique_affine, "ct")
    shifted = values - float(values.min())  # stored values: no voxel is negative

    def made(array, units):
        meta = {"modality": "ct"} if units is None else {"modality": "ct", "units": units}
        return MetaTensor(array, torch.as_tensor(oblique_affine), meta)

    normalize, body = T.NormalizeModality(), T.BodyMask()
    as_mr = T.NormalizeModality("mr")
    # told so, a CT in HU without air is windowed, and one in other units is not, whatever its sign
    tissue = shifted.clamp_max(600.0)
    windowed = normalize(made(tissue, "HU")).as_tensor()
    assert torch.equal(windowed, T.RobustZScore(0, 100)(T.ClipHU()(tissue)).clamp(-4, 4))
    assert not torch.equal(windowed, as_mr(tissue))
    assert torch.equal(normalize(made(values, "a.u.")).as_tensor(), as_mr(values))
    assert body(made(shifted, "HU")).all()  # nothing lies below -350 HU
    assert not body(made(shifted, "a.u.")).all()
    # not told, by the sign
    assert torch.equal(normalize(made(values, None)), normalize(made(values, "HU")))
    assert torch.equal(normalize(made(shifted, None)).as_tensor(), as_mr(shifted))
    # the plain functions take them as well
    assert torch.equal(T.normalize_modality(tissue, "ct", units="HU"), windowed)
    assert T.body_mask(shifted, (1.0, 1.5, 3.0), "ct", units="HU").all()


# --- with MONAI's spatial transforms


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("place", ["before", "after", "between"])
def test_the_world_is_right_on_an_oblique_lattice(law, place, lazy, oblique_affine):
    """After a later `Spacingd`, what was bright lies where it lay."""
    _, dictionary, modality, key = law
    given = image_of(oblique_affine, modality)
    keys = ["image"] if key == "image" else ["image", key]
    there = dictionary({"image": given})[key]
    orient = Orientationd(keys, "LPI", labels=None, allow_missing_keys=True)
    space = Spacingd(
        keys, (1.7, 1.3, 2.1), mode="nearest", padding_mode="border", allow_missing_keys=True
    )
    steps = {
        "before": [dictionary, orient, space],
        "after": [orient, space, dictionary],
        "between": [orient, dictionary, space],
    }[place]
    out = Compose(steps, lazy=lazy)({"image": given})[key]
    assert type(out) is MetaTensor
    assert out.shape[1:] != given.shape[1:]
    np.testing.assert_allclose(out.pixdim.numpy(), (1.7, 1.3, 2.1), atol=1e-5)
    truth = ball(oblique_affine)[1]
    if isinstance(dictionary, T.FieldOfViewd):  # all of the lattice
        assert bool((there.as_tensor() > 0).all())
        return
    assert np.linalg.norm(centre_of(there) - truth) < 0.6
    assert np.linalg.norm(centre_of(out) - truth) < 0.9


def test_a_field_of_view_moves_with_its_image(oblique_affine):
    given = image_of(oblique_affine, "mr") + 1.0
    given[:, :6] = 0.0
    there = T.FieldOfViewd("image")({"image": given})
    assert torch.equal(there["image_field_of_view"].as_tensor(), given.as_tensor() != 0)
    keys = ["image", "image_field_of_view"]
    moved = Compose(
        [Orientationd(keys, "PIR", labels=None), Spacingd(keys, (1.7, 1.3, 2.1), mode="nearest")]
    )(there)
    centres = [centre_of(entry["image_field_of_view"]) for entry in (there, moved)]
    assert np.linalg.norm(centres[0] - centres[1]) < 0.9
    middle = apply_affine(oblique_affine, (np.asarray(SHAPE) - 1) / 2)
    assert np.linalg.norm(centres[1] - middle) > 2.0


def test_masks_of_a_nifti_are_made_after_the_spacing(oblique_affine):
    """Before it, MONAI 1.6's `Spacingd` takes ``image_body`` for a dictionary of meta data."""
    given = {"image": image_of(oblique_affine, "ct", name="case01.nii.gz")}
    space = Spacingd("image", (1.7, 1.3, 2.1), padding_mode="border")
    masks = [T.FieldOfViewd("image"), T.BodyMaskd("image"), T.NormalizeModalityd("image")]
    out = Compose([space, *masks])(given)
    assert np.linalg.norm(centre_of(out["image_body"]) - ball(oblique_affine)[1]) < 0.9
    with pytest.raises(RuntimeError, match="Spacingd"):
        Compose([*masks, space])(given)


def test_pending_operations_are_carried_out_first(law, oblique_affine):
    """MONAI does so before each transform that is not lazy: lazy and eager agree."""
    _, dictionary, modality, key = law
    space = Spacingd("image", (1.7, 1.3, 2.1), mode="bilinear", padding_mode="border")
    orient = Orientationd("image", "LPI", labels=None)
    given = {"image": image_of(oblique_affine, modality)}
    # one resampling either way, so that the values can be compared to rounding
    for spatial in ([space], [orient]):
        eager = Compose([*spatial, dictionary])(given)[key]
        lazy = Compose([*spatial, dictionary], lazy=True)(given)[key]
        assert not lazy.pending_operations
        assert lazy.shape == eager.shape
        torch.testing.assert_close(lazy.affine, eager.affine)
        difference = (lazy.as_tensor().float() - eager.as_tensor().float()).abs()
        assert float(difference.mean()) < 1e-3 * float(eager.float().as_tensor().abs().max())


def test_a_lazy_chain_normalizes_as_an_eager_one(oblique_affine):
    steps = [
        Spacingd("image", (1.7, 1.3, 2.1), padding_mode="border"),
        Orientationd("image", "LPI", labels=None),
        T.NormalizeModalityd("image"),
    ]
    for modality in MODALITIES:
        given = {"image": image_of(oblique_affine, modality)}
        eager, lazy = Compose(steps)(given)["image"], Compose(steps, lazy=True)(given)["image"]
        torch.testing.assert_close(lazy.affine, eager.affine)
        torch.testing.assert_close(lazy.as_tensor(), eager.as_tensor(), atol=2e-3, rtol=0)
        assert eager.as_tensor().std() > 0.3


# --- inverses


@pytest.mark.parametrize("name", SCALINGS)
def test_the_inverse_gives_the_units_back_and_clipped_values_at_the_limit(name, oblique_affine):
    array, _, modality, _ = LAWS[name]
    transform = array()
    given = image_of(oblique_affine, modality)
    body = T.BodyMask()(given)
    body[:, :9] = False  # so that what is outside reaches further than what is inside
    out = transform(given, body)
    extra = out.applied_operations[-1]["extra_info"]
    lower, upper = extra["lower"][0], extra["upper"][0]
    back = transform.inverse(out)
    assert back.meta["units"] == UNITS[modality]
    assert back.applied_operations == []
    assert torch.equal(back.affine, given.affine)
    values = given.as_tensor()
    clipped = values.clamp(lower, upper)
    atol = 1e-4 * float(values.max() - values.min())
    torch.testing.assert_close(back.as_tensor(), clipped, atol=atol, rtol=0)
    free = values == clipped
    assert 0.02 < float(free.float().mean()) < 1.0
    assert not torch.allclose(out.as_tensor()[free], values[free])


@pytest.mark.parametrize("modality", ["mr", "pet"])
def test_the_recorded_limits_are_where_values_end(modality):
    """Far tails in the mask, further ones outside: a limit of ±4 and one of the values inside."""
    image = torch.full((1, *SHAPE), 100.0)
    image += torch.rand((1, *SHAPE), generator=torch.Generator().manual_seed(0))
    image[:, 0, :4] = 5000.0  # 0.9 % of the voxels of the mask
    image[:, 1] = 30.0
    mask = torch.ones((1, *SHAPE))
    mask[:, 1] = 0
    out, (scaling,) = normalized(image, modality, mask)
    back = scaling.restored(out[0])
    for end in ("lower", "upper"):
        reached = float(back.min() if end == "lower" else back.max())
        assert reached == pytest.approx(getattr(scaling, end), rel=1e-4)
    assert scaling.lower > 99.0
    assert (float(out.max()) == 4.0) == (modality == "pet")


def test_the_inverse_of_a_constant_and_of_an_empty_image(oblique_affine):
    flat = MetaTensor(torch.full((2, *SHAPE), 7.0), torch.as_tensor(oblique_affine))
    flat[1] = 0.0
    for transform in (T.RobustZScore(), T.NormalizeModality("mr")):
        out = transform(flat)
        assert not out.as_tensor().any()
        assert torch.equal(transform.inverse(out).as_tensor(), flat.as_tensor())
    empty = flat[1:] - 1
    for transform in (T.ScaleEmission(), T.NormalizeModality("pet")):
        assert not transform.inverse(transform(empty)).as_tensor().any()


def test_channels_are_scaled_and_restored_each_by_itself(oblique_affine):
    one, two = picture(oblique_affine, "mr"), 5 + 9 * picture(oblique_affine, "mr", seed=1)
    both = MetaTensor(torch.cat([one, two]), torch.as_tensor(oblique_affine))
    transform = T.RobustZScore(0, 100)
    back = transform.inverse(transform(both)).as_tensor()
    torch.testing.assert_close(back, both.as_tensor(), atol=0.1, rtol=1e-4)


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("how", ["array", "compose", "Invertd"])
def test_whole_chains_are_inverted(name, how, oblique_affine):
    array, dictionary, modality, _ = LAWS[name]
    given = image_of(oblique_affine, modality)
    space = {"pixdim": (1.1, 1.2, 2.4), "mode": "bilinear", "padding_mode": "border"}
    if how == "array":
        chain = Compose([Orientation("LPI", labels=None), Spacing(**space), array()])
        back = chain.inverse(chain(given))
    else:
        chain = Compose(
            [
                Orientationd("image", "LPI", labels=None),
                Spacingd("image", **space),
                dictionary("image"),
            ]
        )
        out = chain({"image": given})
        if how == "compose":
            back = chain.inverse(out)["image"]
        else:
            out["pred"] = MetaTensor(out["image"].as_tensor().clone())
            back = Invertd("pred", chain, orig_keys="image", nearest_interp=False)(out)["pred"]
    assert back.shape == given.shape
    assert back.meta["units"] == UNITS[modality]
    torch.testing.assert_close(back.affine, given.affine)
    tissue = float(given.as_tensor()[0][inner(oblique_affine)].median())
    again = float(back.as_tensor()[0][inner(oblique_affine)].median())
    spread = float(given.as_tensor().max() - given.as_tensor().min())
    assert abs(again - tissue) < 0.01 * spread


def inner(affine):
    """Well inside the ball, where interpolation mixes nothing else in."""
    return ball(affine, radius=7.0)[0]


def test_what_loses_says_so(law):
    array, dictionary, _, _ = law
    invertible = isinstance(array, InvertibleTransform)
    assert isinstance(dictionary, InvertibleTransform) == invertible
    for transform in (array, dictionary):
        if isinstance(transform, T.ClipHU | T.ClipHUd) or transform is array:
            assert ("Not invertible" in type(transform).__doc__) != invertible


def test_the_inverse_of_another_transform_is_refused(oblique_affine):
    out = T.RobustZScore()(image_of(oblique_affine, "mr"))
    with pytest.raises(RuntimeError, match="most recently applied invertible transform"):
        T.RobustZScore().inverse(out)


# --- workers, pickles, batches


def test_a_pickled_transform_does_the_same(law, oblique_affine):
    for transform in law[:2]:
        pickle.loads(pickle.dumps(transform))
    again = pickle.loads(pickle.dumps(law[1]))
    data = {"image": image_of(oblique_affine, law[2])}
    first, second = law[1](data)[law[3]], again(data)[law[3]]
    assert torch.equal(first.as_tensor(), second.as_tensor())


def test_it_is_deterministic_and_remembers_nothing(law, oblique_affine):
    _, dictionary, modality, key = law
    data, other = ({"image": image_of(oblique_affine, modality, seed)} for seed in (0, 1))
    first = dictionary(data)[key].as_tensor()
    dictionary(other)
    assert torch.equal(dictionary(data)[key].as_tensor(), first)


def test_a_list_is_each_alone(law, oblique_affine):
    array, _, modality, _ = law
    images = [image_of(oblique_affine, modality, seed) for seed in (0, 1)]
    for out, image in zip(Compose([array])(images), images, strict=True):
        assert torch.equal(out.as_tensor(), array(image).as_tensor())


def test_a_batch_is_each_alone_and_can_be_undone(law, oblique_affine):
    """Through MONAI's collation, whose history holds numbers, strings and lists only."""
    _, dictionary, modality, key = law
    items = [{"image": image_of(oblique_affine, modality, seed)} for seed in (0, 1)]
    chain = Compose([Orientationd("image", "LPI", labels=None), dictionary])
    batch = next(iter(DataLoader(Dataset(items, chain), batch_size=2)))
    alone = [chain(item) for item in items]
    parts = decollate_batch(batch)
    for part, one, item in zip(parts, alone, items, strict=True):
        assert torch.equal(part[key].as_tensor(), one[key].as_tensor())
        torch.testing.assert_close(part[key].affine, one[key].affine)
        if isinstance(dictionary, InvertibleTransform):
            back = chain.inverse(part)["image"]
            expected = chain.inverse(one)["image"]
            torch.testing.assert_close(back.as_tensor(), expected.as_tensor())
            torch.testing.assert_close(back.affine, item["image"].affine)


def test_two_workers_load_what_one_process_loads(oblique_affine):
    items = [{"image": image_of(oblique_affine, modality)} for modality in MODALITIES]
    chain = Compose(
        [
            Orientationd("image", "LPI", labels=None),
            T.Denoised("image"),
            T.FieldOfViewd("image"),
            T.BodyMaskd("image"),
            T.NormalizeModalityd("image"),
        ]
    )
    loaded = list(DataLoader(Dataset(items, chain), batch_size=1, num_workers=2))
    for batch, item in zip(loaded, items, strict=True):
        (out,) = decollate_batch(batch)
        expected = chain(item)
        for key in ("image", "image_body", "image_field_of_view"):
            assert torch.equal(out[key].as_tensor(), expected[key].as_tensor())
            torch.testing.assert_close(out[key].affine, expected[key].affine)
        assert chain.inverse(out)["image"].meta["units"] == item["image"].meta["units"]


# --- plain functions


@pytest.mark.parametrize("modality", MODALITIES)
def test_plain_functions_are_what_the_transforms_run(modality, oblique_affine):
    image, spacing = picture(oblique_affine, modality), (1.0, 1.5, 3.0)
    body = T.body_mask(image, spacing, modality)
    assert torch.equal(body, T.BodyMask(modality)(image, spacing))
    assert torch.equal(T.field_of_view(image), T.FieldOfView()(image))
    assert torch.equal(T.denoise(image, spacing, modality), T.Denoise(modality)(image, spacing))
    assert torch.equal(T.clip_hu(image, -9.0, 9.0), T.ClipHU(-9.0, 9.0)(image))
    assert torch.equal(T.robust_z_score(image, body), T.RobustZScore()(image, body))
    assert torch.equal(T.scale_emission(image, body), T.ScaleEmission()(image, body))
    out = T.normalize_modality(image, modality, body)
    assert torch.equal(out, T.NormalizeModality(modality)(image, body))
    assert torch.equal(out, normalized(image, modality, body)[0])


def test_the_bare_name_is_refused():
    root = Path(T.__file__).resolve().parents[1]
    code = f"import sys; sys.path.insert(0, {str(root)!r}); import transforms"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "import fusion_pipeline.transforms, not transforms" in run.stderr

"""Synthetic patients: the truth they claim is the truth."""

import functools

import numpy as np
import pytest
import torch

from fusion_pipeline.data import load_case, read_datalist, read_displacement
from fusion_pipeline.geometry import (
    WorldMap,
    apply_affine,
    identity_points,
    inside,
    jacobian_determinant,
    sample,
)
from fusion_pipeline.register import Evidence, Registration
from fusion_pipeline.synthesis import Tissue, synthetic_patient

CASES = [(3, "head"), (3, "trunk"), (2, "head"), (2, "trunk")]


@functools.cache
def patient(d=3, body="head", seed=5, mr_t2=False):
    return synthetic_patient(seed, spatial_dims=d, body=body, mr_t2=mr_t2)


def moving_voxels(case, key):
    """Where each voxel of the reference lies in a moving image, by the true displacement."""
    world = apply_affine(case.fixed.affine, identity_points(case.fixed.shape).double().numpy())
    shift = case.series[key].displacement.movedim(0, -1).double().numpy()
    moving = case.images[key]
    return torch.from_numpy(apply_affine(np.linalg.inv(moving.affine), world + shift))[None]


def correlation(a, b):
    return float(np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1])


@pytest.mark.parametrize(("d", "body"), CASES)
@pytest.mark.parametrize("key", ["mr", "pet"])
def test_warping_by_the_truth_gives_the_modality_on_the_reference_grid(d, body, key):
    made = patient(d, body)
    moving, points = made.case.images[key], moving_voxels(made.case, key)
    warped = sample(moving.array[None], points)[0, 0]
    seen = inside(points, moving.shape)[0]
    aligned = made.aligned[key].array[0]
    unmoved = apply_affine(
        np.linalg.inv(moving.affine) @ made.case.fixed.affine,
        identity_points(made.case.fixed.shape).double().numpy(),
    )
    before = sample(moving.array[None], torch.from_numpy(unmoved)[None])[0, 0]
    assert seen.float().mean() > 0.6
    # coarse lattices of 2D trunks lose fine edges; what counts is that nothing is left to align
    assert correlation(warped[seen], aligned[seen]) > 0.95
    assert correlation(before, aligned) < correlation(warped[seen], aligned[seen]) - 0.02


@pytest.mark.parametrize(("d", "body"), CASES)
def test_labels_and_landmarks_follow_the_truth(d, body):
    case = patient(d, body).case
    fixed = case.series["ct"].labels.array[0]
    for key in case.moving:
        points = moving_voxels(case, key)
        warped = sample(case.series[key].labels.array[None], points, mode="nearest", fill=-1)[0, 0]
        known = (warped >= 0) & ((warped > 0) | (fixed > 0))
        assert (warped[known] == fixed[known]).float().mean() > 0.6
        body_only = warped >= 0
        both = ((warped > 0) & (fixed > 0))[body_only].sum() * 2.0
        assert both / ((warped > 0)[body_only].sum() + (fixed > 0)[body_only].sum()) > 0.96
        voxels = apply_affine(np.linalg.inv(case.fixed.affine), case.series["ct"].landmarks)
        shift = sample(
            case.series[key].displacement[None],
            torch.from_numpy(voxels).reshape(1, -1, *[1] * (d - 1), d),
        )
        found = case.series["ct"].landmarks + shift.reshape(d, -1).T.double().numpy()
        np.testing.assert_allclose(found, case.series[key].landmarks, atol=1e-3)


def test_the_truth_means_the_same_to_a_registration():
    """A rigid registration made of the truth's rigid part errs by the elastic part, and no more."""
    case = patient().case
    u = case.series["mr"].displacement.double()
    world = apply_affine(case.fixed.affine, identity_points(case.fixed.shape).double().numpy())
    registration = Registration(
        WorldMap(moving_from_fixed=np.eye(4), ddf_mm=u.float(), working_affine=case.fixed.affine),
        Evidence(transform="deformable"),
    )
    np.testing.assert_allclose(
        registration.map.points(world), world + u.movedim(0, -1).numpy(), atol=1e-3
    )
    warped = registration.warp(case.images["mr"], case.fixed)
    seen = warped.array > 0
    assert correlation(warped.array[seen], patient().aligned["mr"].array[seen]) > 0.95


@pytest.mark.parametrize(("d", "body"), CASES)
def test_motions_are_within_limits_and_do_not_fold(d, body):
    case = patient(d, body).case
    for key, (degrees, elastic) in {"mr": (12.0, 6.0), "pet": (5.0, 3.0)}.items():
        world = apply_affine(case.fixed.affine, identity_points(case.fixed.shape).double().numpy())
        x = world.reshape(-1, d)
        y = x + case.series[key].displacement.movedim(0, -1).double().numpy().reshape(-1, d)
        turn = procrustes(x, y)
        cosine = (np.trace(turn) - 1) / 2 if d == 3 else turn[0, 0]
        angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        assert 0.3 * degrees < angle < 1.2 * degrees
        rest = (y - y.mean(0)) - (x - x.mean(0)) @ turn.T
        assert 0.1 * elastic < np.linalg.norm(rest, axis=1).max() < 2.2 * elastic
        voxels = np.linalg.inv(case.fixed.affine[:d, :d])
        ddf = np.einsum("ab,b...->a...", voxels, case.series[key].displacement.numpy())
        assert jacobian_determinant(torch.from_numpy(ddf)[None]).min() > 0.2


def procrustes(x, y):
    """The rotation that brings x closest to y."""
    u, _, vt = np.linalg.svd((y - y.mean(0)).T @ (x - x.mean(0)))
    return u @ np.diag([*[1] * (x.shape[1] - 1), np.linalg.det(u @ vt)]) @ vt


def test_geometry_differs_between_the_images():
    images = patient(mr_t2=True).case.images
    assert list(images) == ["ct", "mr", "mr_t2", "pet"]
    assert len({image.shape for image in images.values()}) == 4
    ct, mr = images["ct"].affine[:3, :3], images["mr"].affine[:3, :3]
    assert (np.diag(ct)[:2] < 0).all()  # LPS
    assert (np.abs(mr / np.abs(mr).max()) > 0.01).sum() > 5  # oblique
    assert np.linalg.det(mr) != pytest.approx(np.linalg.det(ct))
    assert all(image.array.dtype == torch.float32 for image in images.values())
    assert 50 * 45 * 40 < images["ct"].array.numel() < 80 * 80 * 64


def test_values_are_those_of_the_modality():
    made = patient()
    ct, labels = made.case.fixed.array, made.case.series["ct"].labels.array
    assert ct.min() >= -1024
    assert -30 < float(ct[labels == Tissue.WHITE].mean()) < 90
    assert ct[labels == Tissue.COMPACT_BONE].mean() > 400
    assert ct[labels == Tissue.AIR].median() < -950
    assert made.case.fixed.units == "HU"
    pet = made.case.images["pet"]
    assert pet.units == "SUV"
    assert pet.array.min() >= 0
    assert 4 < pet.array.max() < 25
    assert made.case.images["mr"].array.min() >= 0


@pytest.mark.parametrize("body", ["head", "trunk"])
def test_pictures_hold_grey_levels(body):
    for image in patient(2, body).case.images.values():
        assert image.array.min() == 0
        assert 150 < image.array.max() <= 255
        assert torch.equal(image.array, image.array.round())
        np.testing.assert_array_equal(image.affine, np.diag([-1.0, -1.0, 1.0]))


def test_seeds():
    first, again, other = patient(2), synthetic_patient(5, spatial_dims=2), patient(2, seed=6)
    for key in first.case.images:
        assert torch.equal(first.case.images[key].array, again.case.images[key].array)
        assert not torch.equal(first.case.images[key].array, other.case.images[key].array)
    assert first.case.id == "synthetic-head-5"


@pytest.mark.parametrize(("d", "body"), [(3, "trunk"), (2, "head")])
def test_a_saved_patient_loads_as_the_same_case(tmp_path, d, body):
    made = patient(d, body)
    datalist = made.save(tmp_path / "out")
    assert datalist == tmp_path / "out" / "cases.json"
    (files,) = read_datalist(datalist)
    case = load_case(files)
    assert case.id == made.case.id
    assert case.reference == "ct"
    assert not case.warnings
    for key, image in made.case.images.items():
        torch.testing.assert_close(case.images[key].array, image.array)
        np.testing.assert_allclose(case.images[key].affine, image.affine, atol=1e-4)
        assert case.images[key].units == image.units
        torch.testing.assert_close(
            case.series[key].labels.array.float(), made.case.series[key].labels.array
        )
        np.testing.assert_allclose(
            case.series[key].landmarks, made.case.series[key].landmarks, atol=1e-3
        )
    for key, displacement in made.displacements.items():
        torch.testing.assert_close(case.series[key].displacement, displacement, atol=1e-4, rtol=0)
        written = read_displacement(tmp_path / "out" / case.id / f"{key}_displacement.nii.gz")
        torch.testing.assert_close(written, displacement, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_dims": 4}, "spatial_dims 2 or 3, got 4"),
        ({"body": "limb"}, "a body of head, trunk, got 'limb'"),
        ({"size": "huge"}, "a size of small or full, got 'huge'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        synthetic_patient(0, **options)


@pytest.mark.slow
@pytest.mark.parametrize("body", ["head", "trunk"])
def test_full_patients_are_large_and_true(body):
    made = synthetic_patient(1, body=body, size="full")
    assert 100**3 < made.case.fixed.array.numel() < 170**3
    points = moving_voxels(made.case, "mr")
    warped = sample(made.case.images["mr"].array[None], points)[0, 0]
    seen = inside(points, made.case.images["mr"].shape)[0]
    assert correlation(warped[seen], made.aligned["mr"].array[0][seen]) > 0.97

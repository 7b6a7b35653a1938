"""Classical engines: each map leads the way ours do, whatever the axes of the files."""

import itertools
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from register_cases import itk_affine

from fusion_pipeline.baselines import ENGINES
from fusion_pipeline.data import Image, InputError
from fusion_pipeline.geometry import (
    apply_affine,
    identity_points,
    inverse_affine,
    rigid_matrix,
)

# measured: 0.5–0.6, 0.4–1.1 (antspyx 0.6.3 and 0.5.3), 1.6–1.7 and 1.9 mm, of 10.3; a wrong axis or
# sign costs 5 mm and more
MEASURED = {
    "greedy": ("picsl_greedy", 1.0),
    "ants": ("ants", 1.5),
    "elastix": ("itk", 2.0),
    "convexadam": ("convexAdam", 2.3),
}
CENTRE = np.array([14.0, -22.0, 31.0])
# another angle, shift and size along each axis: no swap and no sign can hide
TRUTH = rigid_matrix([5.0, -3.0, 5.5], [7.0, -5.0, 4.5], CENTRE.tolist())


def _lattice(angles, spacing, shape):
    """An oblique lattice about the centre; negative spacings flip axes."""
    affine = rigid_matrix(angles, [0.0] * 3, [0.0] * 3) @ np.diag([*spacing, 1.0])
    affine[:3, 3] = CENTRE - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine, shape


FIXED = {
    "flipped": _lattice([0.0] * 3, [-2.2, 2.6, -3.0], (42, 38, 30)),
    "oblique": _lattice([8.0, -11.0, 17.0], [2.2, -2.6, 3.0], (42, 38, 30)),
}
MOVING = _lattice([-14.0, 6.0, 80.0], [2.4, 2.7, 2.1], (40, 36, 46))


def _body(world):
    """An ellipsoid with organs and bones of its own on each side; air around it."""
    rng = np.random.default_rng(1)
    x = world - CENTRE
    out = np.where(((x / [38.0, 42.0, 60.0]) ** 2).sum(-1) < 1, 40.0, -1000.0)
    for place, size, hu in zip(
        rng.uniform(-26, 26, (16, 3)),
        rng.uniform(4, 11, (16, 3)),
        rng.choice([-90.0, 120.0, 300.0, 700.0], 16),
        strict=True,
    ):
        out[(((x - place) / size) ** 2).sum(-1) < 1] = hu
    return out


def _image(lattice, world_from_lattice, seed):
    """The body on a lattice, as a mean of 27 readings per voxel, with noise."""
    affine, shape = lattice
    voxels = identity_points(shape, dtype=torch.float64).numpy()
    whole = world_from_lattice @ affine
    offsets = itertools.product((-1 / 3, 0.0, 1 / 3), repeat=3)
    readings = [_body(apply_affine(whole, voxels + np.array(offset))) for offset in offsets]
    noise = 15 * np.random.default_rng(seed).standard_normal(shape)
    return Image(torch.from_numpy(np.mean(readings, 0) + noise).float()[None], affine, "ct", "HU")


def _slice(world_from_slice, seed):
    """The body's middle slice on a flipped lattice with another pixel along each axis."""
    affine, shape = np.diag([-1.6, 1.9, 1.0]), (64, 58)
    affine[:2, 2] = CENTRE[:2] - affine[:2, :2] @ ((np.array(shape) - 1) / 2)
    flat = apply_affine(world_from_slice @ affine, identity_points(shape).double().numpy())
    world = np.concatenate([flat, np.full((*shape, 1), CENTRE[2])], -1)
    noise = 15 * np.random.default_rng(seed).standard_normal(shape)
    return Image(torch.from_numpy(_body(world) + noise).float()[None], affine, "ct", "HU")


def _points():
    unit = np.random.default_rng(2).uniform(-1, 1, (400, 3))
    return CENTRE + unit[np.linalg.norm(unit, axis=1) < 1] * [34, 38, 36]


class _Greedy3D:
    """Finds the truth; SimpleITK writes it down, in LPS mm on the lattice that came in."""

    field = None

    def execute(self, command, **images):
        for name, image in images.items():
            setattr(self, name, image)

    def __getitem__(self, name):
        return self.field or sitk.TransformToDisplacementField(
            itk_affine(TRUTH),
            sitk.sitkVectorFloat64,
            self.fixed.GetSize(),
            self.fixed.GetOrigin(),
            self.fixed.GetSpacing(),
            self.fixed.GetDirection(),
        )


@pytest.fixture
def greedy(monkeypatch):
    """The stage with an engine that is never wrong."""
    engine = type("_Greedy3D", (_Greedy3D,), {})
    monkeypatch.setitem(sys.modules, "picsl_greedy", SimpleNamespace(Greedy3D=engine))
    return ENGINES["greedy"].load(1), engine


@pytest.mark.parametrize("orientation", FIXED)
def test_reads_an_itk_field_exactly(greedy, orientation):
    """No engine needed: SimpleITK is the witness."""
    fixed = Image(torch.zeros(1, *FIXED[orientation][1]), FIXED[orientation][0], "mr")
    found = greedy[0](fixed, fixed)
    points = _points()
    np.testing.assert_allclose(found.map.points(points), apply_affine(TRUTH, points), atol=1e-3)
    assert found.evidence.folded_fraction == 0


def test_a_field_that_is_not_finite_is_no_result(greedy):
    register, engine = greedy
    shape = FIXED["oblique"][1]
    fixed = Image(torch.zeros(1, *shape), FIXED["oblique"][0], "mr")
    engine.field = sitk.GetImageFromArray(np.full((5, 6, 7, 3), np.nan), isVector=True)
    with pytest.raises(ValueError, match="not finite"):
        register(fixed, fixed)


@pytest.mark.parametrize("name", MEASURED)
def test_a_missing_engine_says_what_to_install(monkeypatch, name):
    module = "convexAdam.convex_adam_MIND" if name == "convexadam" else MEASURED[name][0]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        InputError, match=r"to be installed, got none.*pip install 'fusion-pi.*peers"
    ):
        ENGINES[name].load(1)


@pytest.mark.parametrize("before", [None, "7"])
def test_the_threads_of_one_engine_are_not_left_to_others(monkeypatch, before):
    name, seen = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", []
    monkeypatch.delenv(name, raising=False)
    if before:
        monkeypatch.setenv(name, before)

    def imported(module):
        seen.append((module, os.environ[name]))
        return SimpleNamespace()

    monkeypatch.setattr("fusion_pipeline.baselines.engines.importlib.import_module", imported)
    ENGINES["ants"].load(3)
    assert seen == [("ants", "3")]
    assert os.environ.get(name) == before


@pytest.mark.slow
@pytest.mark.parametrize("orientation", FIXED)
@pytest.mark.parametrize("name", MEASURED)
def test_finds_the_known_map(name, orientation):
    """A turn of 8° and a shift of 10 mm, between lattices of unlike axes."""
    module, within_mm = MEASURED[name]
    pytest.importorskip(module)
    if name == "elastix" and not hasattr(sys.modules["itk"], "ParameterObject"):
        pytest.skip("needs itk-elastix; itk alone comes with the package")
    fixed = _image(FIXED[orientation], np.eye(4), seed=3)
    moving = _image(MOVING, inverse_affine(TRUTH), seed=4)
    found = ENGINES[name].load(1)(fixed, moving)
    points = _points()
    true = apply_affine(TRUTH, points)

    def error(where):
        return float(np.linalg.norm(where - true, axis=1).mean())

    assert error(points) > 10
    assert error(found.map.points(points)) < within_mm
    assert found.transform == "deformable"
    assert found.evidence.folded_fraction < 0.01


@pytest.mark.parametrize("name", ENGINES)
def test_headers_are_trusted_where_nothing_is_to_move(name, monkeypatch):
    engine = {"greedy": "picsl_greedy", "ants": "ants", "convexadam": "convexAdam.convex_adam_MIND"}
    if name == "elastix":
        pytest.importorskip("itk")
        pytest.skip("its parameters need the engine")
    if name in engine:
        monkeypatch.setitem(sys.modules, engine[name], SimpleNamespace())
    affine, shape = FIXED["oblique"]
    fixed = Image(torch.zeros(1, *shape), affine, "mr")
    result = ENGINES[name].load()(fixed, fixed, transform="none")
    assert result.transform == "none"
    points = _points()
    np.testing.assert_array_equal(result.map.points(points), points)


def test_convexadam_refuses_pictures_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "convexAdam.convex_adam_MIND", SimpleNamespace())
    picture = Image(torch.rand(1, 20, 24), np.diag([-1.0, -1.0, 1.0]), "mr")
    with pytest.raises(InputError, match="expected volumes to be deformed, got 2D images"):
        ENGINES["convexadam"].load()(picture, picture)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["greedy", "ants", "elastix"])
@pytest.mark.parametrize("transform", ["rigid", "deformable"])
def test_pictures_are_registered_in_their_own_pixels(name, transform):
    """A turn of 6° and a shift of 5 mm; a wrong axis or sign costs more than there was."""
    pytest.importorskip(MEASURED[name][0])
    if name == "elastix" and not hasattr(sys.modules["itk"], "ParameterObject"):
        pytest.skip("needs itk-elastix; itk alone comes with the package")
    truth = rigid_matrix([6.0], [4.0, -3.0], CENTRE[:2].tolist())
    fixed, moving = _slice(np.eye(3), seed=3), _slice(inverse_affine(truth), seed=4)
    result = ENGINES[name].load()(fixed, moving, transform=transform)
    points = _points()[:, :2]
    true = apply_affine(truth, points)
    before = np.linalg.norm(points - true, axis=-1).mean()
    after = np.linalg.norm(result.map.points(points) - true, axis=-1).mean()
    assert result.transform == transform
    assert after < 0.5 * before

"""The peers of ``benchmarks/``: each map leads the way ours do, whatever the axes of the files."""

import importlib.util
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from register_cases import itk_affine

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import (
    apply_affine,
    identity_points,
    inverse_affine,
    rigid_matrix,
)

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
# measured: 0.5–0.6, 0.5–0.8, 1.6–1.7 and 1.9 mm, of 10.3; a wrong axis or sign costs 5 mm and more
ENGINES = {
    "greedy": ("picsl_greedy", 1.0),
    "ants": ("ants", 1.0),
    "elastix": ("itk", 2.0),
    "convexadam": ("convexAdam", 2.3),
}
CENTRE = np.array([14.0, -22.0, 31.0])
# another angle, shift and size along each axis: no swap and no sign can hide
TRUTH = rigid_matrix([5.0, -3.0, 5.5], [7.0, -5.0, 4.5], CENTRE.tolist())


def _peers():
    """``benchmarks/peers.py``, which is no package's."""
    if "peers" not in sys.modules:
        spec = importlib.util.spec_from_file_location("peers", BENCHMARKS / "peers.py")
        sys.modules["peers"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["peers"])
    return sys.modules["peers"]


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
    """The peer with an engine that is never wrong."""
    monkeypatch.setenv("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
    engine = type("_Greedy3D", (_Greedy3D,), {})
    monkeypatch.setitem(sys.modules, "picsl_greedy", SimpleNamespace(Greedy3D=engine))
    return _peers().PEERS["greedy"].load(1), engine


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


@pytest.mark.parametrize("name", ENGINES)
def test_a_missing_engine_says_what_to_install(monkeypatch, name):
    monkeypatch.setenv("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
    module = "convexAdam.convex_adam_MIND" if name == "convexadam" else ENGINES[name][0]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit, match=r"is not installed \(.*\): pip install -e '\.\[peers\]'"):
        _peers().PEERS[name].load(1)


@pytest.mark.slow
@pytest.mark.parametrize("orientation", FIXED)
@pytest.mark.parametrize("name", ENGINES)
def test_finds_the_known_map(name, orientation, monkeypatch):
    """A turn of 8° and a shift of 10 mm, between lattices of unlike axes."""
    module, within_mm = ENGINES[name]
    pytest.importorskip(module)
    if name == "elastix" and not hasattr(sys.modules["itk"], "ParameterObject"):
        pytest.skip("needs itk-elastix; itk alone comes with the package")
    monkeypatch.setenv("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
    fixed = _image(FIXED[orientation], np.eye(4), seed=3)
    moving = _image(MOVING, inverse_affine(TRUTH), seed=4)
    found = _peers().PEERS[name].load(1)(fixed, moving)
    points = _points()
    true = apply_affine(TRUTH, points)

    def error(where):
        return float(np.linalg.norm(where - true, axis=1).mean())

    assert error(points) > 10
    assert error(found.map.points(points)) < within_mm
    assert found.transform == "deformable"
    assert found.evidence.folded_fraction < 0.01
